"""A tree leaves our formats, and adapters come in: PEFT, vLLM and transformers' own folders.

A leaf's update is the sum over its path. The adapters on the path stand side by side in one, their ranks added up,
which is exact. So whoever uses the leaf alone gets what our model gives when every token is routed to it (hard). What
soft routing makes of several leaves at once, no single adapter can be.

| function        | from                | to                                                              |
| --------------- | ------------------- | --------------------------------------------------------------- |
| `export_leaf`   | one leaf            | a PEFT folder                                                   |
| `export_vllm`   | all leaves          | a folder of PEFT folders of one rank, and the command to serve  |
| `export_merged` | one leaf and a base | a model of transformers                                         |
| `import_peft`   | a PEFT folder       | a bundle of one leaf, or a leaf of a bundle                     |

Names in an adapter's file are those of the base's own modules, which a bundle does not know: `Places` are found in the
base's config (`find`), or were noted when the run was made. Every folder is written whole or not at all.
"""

from tinylora.export.card import Card
from tinylora.export.importing import import_peft
from tinylora.export.leaf import Exported, export_leaf
from tinylora.export.merged import export_merged
from tinylora.export.origin import Origin, find_origin
from tinylora.export.peft_format import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from tinylora.export.places import Places
from tinylora.export.vllm import export_vllm

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "Card",
    "Exported",
    "Origin",
    "Places",
    "export_leaf",
    "export_merged",
    "export_vllm",
    "find_origin",
    "import_peft",
]
