"""The trainer: a child of the agent, the only process of a worker that holds torch, the base and the text.

The code is organised as follows. On the agent's side, without torch:

* `process`: `TrainerProcess`, which starts a trainer, asks it for things, and tells how it ended;
* `watching`: why it ended, and when it is to be taken for dead;
* `made`: what a finished unit leaves in its folder.

In the child:

* `child`: its life, from the first line on stdin to the end of that life line;
* `jobs`: one job at a time, done by the main thread, its events told elsewhere;
* `service`: what it can be asked for;
* `session`: load, size, run, and what is resident for them;
* `loading`: device, base and text;
* `unit_files`: a unit as it lies in its folder;
* `reporting`: what is told of it meanwhile;
* `checkpoint`: the last finished step on disk, now and then;
* `auditing`: how much training would give away;
* `downloads`: how much of a base has come so far;
* `sizes`: what fits, and how much power that takes;
* `measured`: sizes that were found once;
* `failures`: errors as they travel.
"""
