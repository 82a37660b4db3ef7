"""The volunteer's program: join a run with one's own text, and train until it is finished.

service.py   one worker's life: key, join, base, shard, units, receipts
cli.py       `tinylora-worker`
"""
