"""`python -m tinylora_coordinator`."""

from tinylora_coordinator.cli import main

main()
