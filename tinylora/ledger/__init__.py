"""The durable memory of a run: events in one SQLite file, chained by hashes, and blobs in files named by theirs.

    DIR/ledger.sqlite     events in order, and the tables derived from them (WAL, synchronous=FULL, STRICT)
    DIR/ledger.lock       held by the one process that writes
    DIR/blobs/ab/ab12…    payloads; on disk before the event that names them
    DIR/spool/            bodies on their way in; emptied when a writer opens the folder
    DIR/snapshot.json     the state after some event, to start from; never believed against the events

`sqlite` the ledger itself · `chain` the hashes · `rows` which rows an event changes, pure · `tables` and `migrations/`
the schema · `blobs` the files · `snapshots` · `lock` one writer · `verify` finds what was altered · `faults` what the
system says, in one sentence. The memory ledger of simulations (`federation.ledger_memory`) passes the same tests.
"""
