"""What the parts of a worker say to each other: worker.proto and the stubs made from it by `make stubs`."""
