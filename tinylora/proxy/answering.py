"""What clients get that no leaf said alone: errors in OpenAI's shape, the list of models, several answers as one."""

from collections.abc import Mapping, Sequence
from typing import Any

from tinylora.proxy.asking import RefusedRequest


def error_document(refused: RefusedRequest) -> dict[str, Any]:
    """As OpenAI's clients read it."""
    told = {"message": refused.message, "type": refused.kind, "param": refused.param, "code": refused.code}
    return {"error": told}


def model_list(names: Sequence[str]) -> dict[str, Any]:
    """As `/v1/models` answers."""
    return {"object": "list", "data": [model_card(name) for name in names]}


def model_card(name: str) -> dict[str, Any]:
    """One of them."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "tinylora"}


def merged(parts: Sequence[tuple[Sequence[int], Mapping[str, Any]]], *, model: str) -> dict[str, Any]:
    """Answers to parts of a batch as one answer: choices in the order of the prompts, usage summed.

    Args:
        parts: Numbers of the prompts that were sent together, and what came back for them.
        model: What the client asked for.

    Raises:
        RefusedRequest: The choices are not as many for each prompt.
    """
    choices: list[dict[str, Any]] = []
    for numbers, answer in parts:
        given = sorted(answer["choices"], key=lambda choice: choice["index"])
        n_each, rest = divmod(len(given), len(numbers))
        if rest or not given:
            raise RefusedRequest(
                f"the server gave {len(given)} choices for {len(numbers)} prompts; they cannot be put in order",
                status=502,
                code="bad_upstream",
                kind="upstream_error",
            )
        choices += [
            {**choice, "index": numbers[place // n_each] * n_each + place % n_each}
            for place, choice in enumerate(given)
        ]
    whole = {**parts[0][1], "model": model, "choices": sorted(choices, key=lambda choice: choice["index"])}
    usages = [answer["usage"] for _, answer in parts if isinstance(answer.get("usage"), Mapping)]
    return {**whole, "usage": _summed(usages)} if usages else whole


def _summed(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers added up, also those of nested details; what is no number is the first one's."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for usage in usages for name in usage):
        values = [usage[name] for usage in usages if usage.get(name) is not None]
        if values and all(isinstance(value, Mapping) for value in values):
            found[name] = _summed(values)
        elif values and all(isinstance(value, int | float) for value in values):
            found[name] = sum(values)
        else:
            found[name] = values[0] if values else None
    return found
