"""The operator's program: `init` a run's folder, `serve` it, look at it, take its bundle.

folder.py    what lies in a run's folder, and how it gets there
service.py   serving a run: link in a thread, rounds in the main thread
cli.py       `tinylora-coordinator`
"""
