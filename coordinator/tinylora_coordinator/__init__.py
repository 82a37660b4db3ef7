"""The operator's program: `init` a run's folder, `serve` it, look at it, take its bundle.

folder.py    what lies in a run's folder, and how it gets there
keys.py      its CA, certificate and keys; operator_store.py: tokens, workers, orders; desk.py: the commands on these
joining.py   the join route; receipts.py: the receipts route; public_door.py: all routes, put together
supervisor.py  `serve`: link_process.py and rounds_process.py, each started again alone (restarts.py, lifeline.py)
service.py   the bundle of a run
cli.py       `tinylora-coordinator`
"""
