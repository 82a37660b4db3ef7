"""The agent: the part of a worker that is always there. No torch in it, up in a second.

It owns the identity, the place in the run, the lease, the outbox and the limits; the trainer is its child.

    options.py    what a volunteer said, and what a home remembers of it
    store.py      HOME/state.json: pauses, wishes, what `run` needs without arguments
    hold.py       one agent in a home
    journal.py    lines for people: kept, shown, in a file that does not grow for ever
    desk.py       what to do now, decided; pure
    progress.py   the unit under way in numbers: loss curve, speed, time left; pure
    totals.py     credit, from receipts
    lookout.py    whether the coordinator answers, and what its run is doing
    keeper.py     the trainer's life: started, loaded, stopped, started again
    bench.py      one unit from beginning to end, whatever happens in between
    signals.py    Ctrl-C once, and twice
    report.py     the state of everything as one status message
    outward.py    the part of it that others are told, and what they never are; pure
    reporter.py   tells them
    control.py    the same for the command line, over gRPC
    client.py     the command line's end of it
    agent.py      threads, and who holds what
"""
