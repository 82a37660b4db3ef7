"""The README.md of an exported folder: front matter that the hub reads, and facts for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import huggingface_hub

from tinylora.bundle import Bundle
from tinylora.export.origin import Origin
from tinylora.tree import NodePath

_EXACT = """It is exact for hard routing: for text that the run's router sends to this leaf alone, {what} gives
what the whole tree gives. Where a router mixes leaves (soft), no single adapter does. The router is not in here; it is
in the run's bundle."""
_MAX_SHOWN = 16


@dataclass(frozen=True)
class Card:
    """What the model card tells besides what a bundle knows."""

    n_steps: int | None = None
    """Optimiser steps that the leaf has had."""
    bundle_sha256: str = ""
    """Of the bundle that it was taken from."""


def adapter_card(
    bundle: Bundle, leaf: NodePath, nodes: Sequence[NodePath], rank: int, origin: Origin, card: Card
) -> str:
    """The card of a leaf as an adapter.

    Args:
        bundle: Where it comes from.
        leaf: Its path.
        nodes: Whose adapters are in it; none where nobody has trained any.
        rank: Of the whole.
        origin: Of the base.
        card: Further facts.
    """
    usage = f"""```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({_loading(origin, bundle)})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```"""
    about = "as an ordinary PEFT adapter"
    exact = _EXACT.format(what="the base with this adapter")
    facts = {"rank": f"{rank}, scale {bundle.scale:g}"} | _facts(bundle, leaf, nodes, origin, card)
    matter = _front_matter(bundle, origin, library="peft", relation="adapter")
    return _document(matter, _title(leaf, bundle), about, exact, facts, bundle, usage)


def merged_card(bundle: Bundle, leaf: NodePath, nodes: Sequence[NodePath], origin: Origin, card: Card) -> str:
    """The card of a leaf that was merged into its base."""
    usage = """```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```"""
    about = "merged into its base: a model like any other"
    exact = _EXACT.format(what="this model")
    facts = _facts(bundle, leaf, nodes, origin, card)
    matter = _front_matter(bundle, origin, library="transformers", relation="merge")
    return _document(matter, _title(leaf, bundle), about, exact, facts, bundle, usage)


def plain(text: str) -> str:
    """One cell of a table, whatever a run or a worker is called."""
    return " ".join(text.replace("|", "/").replace("<", "(").replace(">", ")").replace("`", "'").split())


def licence_of(bundle: Bundle, origin: Origin) -> str:
    """Of what comes out: that of the adapters where all are under one, else the base's."""
    return bundle.licences[0] if len(bundle.licences) == 1 else origin.licence


def _front_matter(bundle: Bundle, origin: Origin, *, library: str, relation: str) -> str:
    """YAML; a base that is no name on the hub is left out, because the hub refuses cards that name one."""
    data = huggingface_hub.ModelCardData(
        base_model=origin.base if origin.is_on_hub else None,
        library_name=library,
        license=licence_of(bundle, origin).lower() or None,
        pipeline_tag="text-generation",
        tags=["lora", "tinylora"],
        base_model_relation=relation if origin.is_on_hub else None,
    )
    return data.to_yaml()


def _title(leaf: NodePath, bundle: Bundle) -> str:
    return f"Leaf {leaf or 'root'} of {plain(bundle.run)}"


def _facts(bundle: Bundle, leaf: NodePath, nodes: Sequence[NodePath], origin: Origin, card: Card) -> dict[str, str]:
    made_of = ", ".join(node or "root" for node in nodes) or "none: nobody has trained it, so it adds nothing"
    return {
        "run": bundle.run,
        "leaf": f"{leaf or 'root'}, of a tree with {len(bundle.topology.leaves)} leaves",
        "made of the adapters of": made_of,
        "kind in the tree": f"{bundle.spec}, written out as plain LoRA",
        "steps": "" if card.n_steps is None else str(card.n_steps),
        "contributors": _contributors(bundle),
        "base": f"{bundle.base.base_id}, fingerprint {bundle.base.fingerprint}",
        "revision of the base": origin.revision or "",
        "licence of the base": origin.licence,
        "licences of the adapters": ", ".join(bundle.licences),
        "taken from bundle": card.bundle_sha256,
        **{f"text of leaf {leaf or 'root'}": "; ".join(bundle.data_notes.get(leaf, ()))},
    }


def _contributors(bundle: Bundle) -> str:
    names = bundle.contributors
    if not names:
        return ""
    rest = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return f"{len(names)} workers in the whole run: {', '.join(names[:_MAX_SHOWN])}{rest}"


def _document(
    matter: str, title: str, about: str, exact: str, facts: Mapping[str, str], bundle: Bundle, usage: str
) -> str:
    rows = "\n".join(f"| {name} | {plain(value)} |" for name, value in facts.items() if value)
    return f"""---
{matter}
---

# {title}

One leaf of a binary tree of LoRA adapters, trained by many workers together with TinyLoRA, {about}.

{exact}

| | |
| --- | --- |
{rows}

{_metrics(bundle.report)}{usage}
"""


def _metrics(report: Mapping[str, Any]) -> str:
    """Held-out loss of each system, where the report in the bundle has such a table."""
    systems = report.get("systems")
    if not isinstance(systems, Mapping):
        return ""
    rows = [
        f"| {plain(str(name))} | {row['nll_mean']:.4f} |"
        for name, row in sorted(systems.items())
        if isinstance(row, Mapping) and isinstance(row.get("nll_mean"), float)
    ]
    if not rows:
        return ""
    head = "Held-out nats per token in the run's report, mean over its domains:\n\n| system | nll |\n| --- | ---: |\n"
    return head + "\n".join(rows) + "\n\n"


def _loading(origin: Origin, bundle: Bundle) -> str:
    """How the base is named in Python; a folder of this machine is nobody else's business."""
    if not origin.is_on_hub:
        return json.dumps(f"path/to/{bundle.base.base_id}")
    return json.dumps(origin.base) + (f", revision={json.dumps(origin.revision)}" if origin.revision else "")
