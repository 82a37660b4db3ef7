"""`python -m tinylora_worker`."""

from tinylora_worker.cli import main

main()
