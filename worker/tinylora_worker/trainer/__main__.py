"""`python -m tinylora_worker.trainer`: what the agent starts; see `process`."""

from tinylora_worker.trainer.child import main

if __name__ == "__main__":
    main()
