"""What stands in docs/: built, complete, and done as it says."""
