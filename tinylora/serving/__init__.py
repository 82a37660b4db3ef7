"""Every leaf on its own device: a process for each device with the base and its leaves, rows sent where they belong.

    from tinylora.serving import LeafServers

    with LeafServers("bundle.safetensors", "path/of/the/base", "0=cuda:0,1=cuda:1") as servers:
        for row in servers.generate(["One text.", "Another."], max_new_tokens=32):
            print(row.path, row.text)

The code is organised as follows:

* `device_map`: which leaf lies where, and what `auto` makes of it. Pure;
* `plan`: which row goes to which process, before and after its leaf is known. Pure;
* `servers`: `LeafServers`, the parent's side. It holds no model;
* `process`: one child as its parent sees it: started, asked, ended, told apart from one that died;
* `messages`: lines of JSON between the two, and errors as they travel;
* `child`: a child's life;
* `holder`: what it holds, and what it does when asked: route, generate, score.

Origin: TrelisResearch's TinyLoRA imagines inference with a leaf on each device. Decision 0019 says why this way.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylora.serving.device_map import DeviceMap, device_map
    from tinylora.serving.servers import LeafServers, Served

__all__ = ["DeviceMap", "LeafServers", "Served", "device_map"]
_HOMES = {"DeviceMap": "device_map", "LeafServers": "servers", "Served": "servers", "device_map": "device_map"}


def __getattr__(name: str) -> Any:
    """Import a name from its home, so that the child and the map come without the rest."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tinylora.serving' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tinylora.serving.{_HOMES[name]}"), name)
