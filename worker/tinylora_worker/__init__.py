"""The volunteer's program: join a run with one's own text, and train until it is finished.

The code is organised as follows; of all of it, only `trainer` (in its own process) loads torch:

    cli.py          `tinylora-worker`, every verb; volunteer.py is the way in, screen.py what is seen meanwhile
    preflight/      before it joins: checks, estimate, consent
    agent/          what is always there: identity, place in the run, lease, outbox, limits, and the trainer's life
    trainer/        the child with base and text: loads, sizes, trains, writes checkpoints
    wire/           what these say to each other, over a socket that is private to one user
    policy.py       may it work now, and if not, why; limits.py, schedule.py, machine.py and traffic.py are asked
"""
