"""A bundle becomes another bundle, without training and without the base; or is told and compared.

    paths.py        the adapters on the way to a node as one plain LoRA
    cutting.py      a subtree, lower ranks
    mushing.py      many leaves in one adapter, nothing routed any more
    merging.py      two runs on one base under a new root
    fitting.py      adapters of two bundles in one kind, scale and rank
    dropping.py     a leaf taken out, the gates solved anew without it
    comparing.py    what differs between two bundles
    drawing.py      what a bundle says of itself, for people
    files.py        from files to a file: what is refused first, what every derived bundle tells

What all of them keep: who contributed, the licences, what was said of each leaf's text. What they leave out: the
signature, because the run that gave it did not make the new file.
"""

from tinylora.derive.comparing import diff, diff_files
from tinylora.derive.cutting import cut_bundle, cut_file
from tinylora.derive.dropping import drop_file, drop_leaf
from tinylora.derive.merging import merge_bundles, merge_files
from tinylora.derive.mushing import Mixed, mush_bundle, mush_file
from tinylora.derive.paths import leaf_state

__all__ = [
    "Mixed",
    "cut_bundle",
    "cut_file",
    "diff",
    "diff_files",
    "drop_file",
    "drop_leaf",
    "leaf_state",
    "merge_bundles",
    "merge_files",
    "mush_bundle",
    "mush_file",
]
