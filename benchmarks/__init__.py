"""How fast are we, as ratios against something everybody knows, measured in one run on one machine.

    python -m benchmarks                     all of them, about a quarter of an hour
    python -m benchmarks training_step       one

Each writes `benchmarks/results/<name>.json`: what was compared, the goal, the ratio (least and median), the absolute
numbers behind it, the machine. A ratio compares two things that ran in turns, in one process, on one thread, in CPU
time, so that a busy or a slow machine changes both sides alike.
"""
