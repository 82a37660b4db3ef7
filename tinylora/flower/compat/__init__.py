"""Every flwr-internal import of the project (flwr 1.41, 1.42), grouped by who needs it, so that nobody loads the rest.

    wire     messages as objects on the wire, protobuf documents; both ends
    fleet    the worker's client
    link     flwr's ASGI app and its state
    rounds   starting a run, acting as its ServerApp process
    memory   Flower's in-memory grid

`tests/flower/test_compat.py` states for each symbol what we rely on: after a flwr update it fails first, by name.
"""
