"""The one door to transformers: load a base, freeze it, name it, find the linears that can carry adapters.

A base is a folder or a hub id that transformers' own loaders read; no code that comes with a model is ever run, and no
pickle is opened. It is named by a fingerprint over the tensors in its files (in the dtype they are stored in, so fp32
and bf16 loads agree), its config and its tokenizer.
"""

import copy
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from tinylora import fingerprints
from tinylora.config import BaseFacts, ProjectionShape, RunSettings
from tinylora.errors import BaseModelError
from tinylora.quantised import bitsandbytes_options, import_bitsandbytes, make_sound, n_quantised, without_outliers
from tinylora.routing.features import RoutingFeature, feature_hash, random_projection

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
import huggingface_hub
import huggingface_hub.utils.logging as hub_logging
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LOAD_COUNT = 0
"""Bases loaded by this process so far; read it through `loads`."""

DEFAULT_WINDOW_TOKENS = 2048  # for bases without learned or rotary positions, such as BLOOM
_WINDOW_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_TIMEOUT_S = 10.0
_LOADER_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError)


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """A frozen base in memory, with its tokenizer and the facts that a run must know of it."""

    model: Any
    """A causal LM of transformers."""
    tokenizer: Any
    facts: BaseFacts

    def __post_init__(self) -> None:
        """Freeze the model: no gradients, no dropout."""
        self.model.requires_grad_(False).eval()

    @cached_property
    def linears(self) -> dict[str, tuple[str, ...]]:
        """Names of the modules behind each projection, in the order of layers; see `find_linears`."""
        return find_linears(self.model)

    @cached_property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The decoder's blocks, first to last."""
        return tuple(block for _, block in _blocks(self.model))

    @cached_property
    def routing_feature(self) -> RoutingFeature:
        """What turns this base's tokens into routing features; as wide as `facts` say."""
        table = _embeddings(self.model)
        where = "cpu" if table.device.type == "mps" else table.device  # its sums are in float64, which MPS has not
        return RoutingFeature.from_embeddings(table.to(where), dim=self.facts.feature_dim)

    def with_feature(self, dim: int) -> "LoadedBase":
        """The same base in memory, with a routing feature of `dim` numbers; itself where that is what it has."""
        if dim == self.facts.feature_dim:
            return self
        return replace(self, facts=self.facts.model_copy(update=_feature_facts(self.model, dim)))

    def for_run(self, settings: RunSettings) -> "LoadedBase":
        """The same base in memory, with the routing feature that a run asks for."""
        embed_dim = _embeddings(self.model).shape[1]
        is_filled = settings.router_feature == "embedding+table"
        return self.with_feature(settings.router_dim if is_filled else min(settings.router_dim, embed_dim))

    @cached_property
    def is_head_plain(self) -> bool:
        """Whether logits are the output embedding applied to the last hidden state, and nothing else.

        Then a loss can take the head in chunks. Found by trying, bit for bit, so caps and scales on logits say no.
        Asked while the model carries no adapters.
        """
        head = self.model.get_output_embeddings()
        if head is None or self.model.base_model is self.model:
            return False
        ids = self._few_tokens()
        with torch.no_grad():
            logits = self.model(input_ids=ids, use_cache=False).logits
            hidden = self.model.base_model(input_ids=ids, use_cache=False)[0]
            return hidden.shape[-1] == _embeddings(self.model).shape[-1] and _same_bits(head(hidden), logits)

    def _few_tokens(self) -> torch.Tensor:
        n_tokens = min(8, self.facts.max_window_tokens, len(_embeddings(self.model)))
        return torch.arange(n_tokens, device=_embeddings(self.model).device).unsqueeze(0)


def loads() -> int:
    """How many bases this process has loaded; a worker loads one in its whole life."""
    return LOAD_COUNT


# --- loading ---------------------------------------------------------------------------------------------------------


def load_base(
    where: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    quantise: str | None = None,
    device: str | torch.device = "cpu",
    feature_dim: int = 256,
) -> LoadedBase:
    """Load a base from a folder or from the hub, ready to carry adapters.

    A copy in the hub's local cache is taken as it is; the network is asked only when there is none.

    Args:
        where: Local folder, or hub id such as "bigscience/bloom-560m".
        dtype: Of the weights in memory; None keeps the dtype they are stored in.
        quantise: "int8" or "nf4" holds the linears in 8 or 4 bits by bitsandbytes, with nf4's products in bf16, or
            in fp16 with that `dtype`, which is then of all else. The facts are the same as without.
        device: Where the model lives, such as "cuda"; a quantised one cannot be moved.
        feature_dim: Numbers in the routing feature, unless a run or a bundle asks for another one.

    Raises:
        SettingError: `quantise` is another word.
        BaseModelError: Not there, unreachable, no causal LM, without tokenizer or weights, no block has a linear, or it
            cannot be quantised.
    """
    global LOAD_COUNT
    where = os.path.expanduser(where)
    with _quiet():
        options = None if quantise is None else _quantisation_options(quantise, dtype)
        files = _locate(where)
        config = _read_config(where, files.config)
        _check_is_causal_lm(where, config)
        tokenizer = _load_tokenizer(where, files.is_local)
        quantisation = None if options is None else _quantisation(where, files.is_local, config, options)
        model = _load_model(where, files.is_local, dtype, quantisation, device)
        LOAD_COUNT += 1
        if quantise is not None:
            _check_is_quantised(where, model, quantise)
        _check_they_fit(where, model, tokenizer)
        base_id = Path(where).resolve().name if Path(where).is_dir() else where
        found = fingerprints.of_base(config, tokenizer, fingerprints.tensors_in(files.weights))
        facts = describe(model, tokenizer, base_id, feature_dim=feature_dim, fingerprint=found)
    return LoadedBase(model, tokenizer, facts)


def load_tokenizer(where: str | Path) -> Any:
    """A base's tokenizer alone, from a folder or the hub's local cache; the network is not asked.

    Raises:
        BaseModelError: It is not on this machine.
    """
    with _quiet():
        return _load_tokenizer(os.path.expanduser(where), is_local=True)


def load_embeddings(where: str | Path) -> torch.Tensor:
    """A base's table of input embeddings alone, as it is stored, mapped from its file; the network is not asked.

    Raises:
        BaseModelError: The base is not on this machine, or its files have no such tensor.
    """
    where = os.path.expanduser(where)
    skeleton = _skeleton(where)
    with _quiet():
        files = _weight_files(where, is_local=True)
    if not files:
        raise BaseModelError(f"{where}: no weights in safetensors on this machine; give a folder with a model")
    table = skeleton.get_input_embeddings().weight
    names = [name for name, tensor in skeleton.named_parameters(remove_duplicate=False) if tensor is table]
    found = _find_stored(files, names, tuple(table.shape))
    if found is None:
        raise BaseModelError(f"{where}: no tensor {names[0]} of shape {tuple(table.shape)} in its safetensors files")
    file, name = found
    with safetensors.safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)


def _find_stored(files: tuple[Path, ...], names: list[str], shape: tuple[int, ...]) -> tuple[Path, str] | None:
    """File and name of a parameter that has these names in the model.

    Files that were saved of the decoder alone leave the first part of a name away, others put one before it.
    """
    stored = {
        tensor.name: file for file in files for tensor in fingerprints.tensors_in((file,)) if tensor.shape == shape
    }
    for name in names:
        near = [other for other in stored if name.endswith(f".{other}") or other.endswith(f".{name}")]
        if name in stored or len(near) == 1:
            chosen = name if name in stored else near[0]
            return stored[chosen], chosen
    return None


@dataclass(frozen=True)
class _Files:
    config: Path
    weights: tuple[Path, ...]
    is_local: bool
    """Everything is on this machine; the loaders need not ask the hub."""


def _locate(where: str) -> _Files:
    if Path(where).is_dir():
        if not (Path(where) / "config.json").is_file():
            raise BaseModelError(
                f"{where}: no model in this folder; expected config.json, weights in safetensors and a tokenizer, as "
                "transformers' save_pretrained writes them"
            )
        return _files_of(where, is_local=True)
    if Path(where).exists() or not _HUB_ID.fullmatch(where):
        raise BaseModelError(f"{where}: no such folder; expected a folder with a model, or a hub id such as org/name")
    if _file(where, "config.json", is_local=True) and _weight_files(where, is_local=True):
        return _files_of(where, is_local=True)
    _ask_hub(where)
    return _files_of(where, is_local=False)


def _ask_hub(where: str) -> None:
    """One request without retries: the loaders themselves would try for half a minute before they give up."""
    try:
        huggingface_hub.model_info(where, timeout=_HUB_TIMEOUT_S)
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.GatedRepoError):
        raise BaseModelError(
            f"{where}: no folder of this name, and no model that the hub shows to you; check the name, or log in"
        ) from None
    except Exception as error:  # what the HTTP library raises depends on the library the hub's client uses
        raise BaseModelError(
            f"{where}: no folder of this name, and the hub is unreachable ({_first_line(error)}); give the path of "
            "a local copy, or try again with a connection"
        ) from None


def _files_of(where: str, *, is_local: bool) -> _Files:
    config = _file(where, "config.json", is_local=is_local)
    weights = _weight_files(where, is_local=is_local)
    if config is None or not weights:
        missing = (
            "config.json" if config is None else "weights: expected model.safetensors (pickled weights are not opened)"
        )
        raise BaseModelError(f"{where}: no {missing}; save the model with transformers' save_pretrained")
    return _Files(config, weights, is_local)


def _weight_files(where: str, *, is_local: bool) -> tuple[Path, ...]:
    """The safetensors files of a base; empty when one is missing."""
    names = {"model.safetensors"}
    index = _file(where, "model.safetensors.index.json", is_local=is_local)
    if index is not None:
        weight_map = _read_config(where, index).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    files = [_file(where, name, is_local=is_local) for name in sorted(names)]
    return () if None in files else tuple(file for file in files if file is not None)


def _file(where: str, name: str, *, is_local: bool) -> Path | None:
    try:
        found = transformers.utils.hub.cached_file(where, name, local_files_only=is_local)
    except OSError:
        return None
    return Path(found) if found else None


def _read_config(where: str, file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{where}: {file.name} is not readable as JSON: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise BaseModelError(f"{where}: {file.name}: expected an object, got {type(values).__name__}")
    return values


def _check_is_causal_lm(where: str, config: dict[str, Any]) -> None:
    model_type, architectures = config.get("model_type"), config.get("architectures") or []
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise BaseModelError(f"{where}: this version of transformers knows no model type {model_type!r}")
    known = [name for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _names(value)]
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (architectures and not set(architectures) & set(known)):
        got = ", ".join(architectures) or model_type
        raise BaseModelError(
            f"{where}: {got} is not a causal language model; expected one that predicts the next token"
        )


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _load_tokenizer(where: str, is_local: bool) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            where, trust_remote_code=False, local_files_only=is_local
        )
    except _LOADER_ERRORS:
        tokenizer = None
    if tokenizer is None or not tokenizer.vocab_size:
        raise BaseModelError(
            f"{where}: no tokenizer; expected tokenizer.json (or what its class saves) beside the weights"
        )
    return tokenizer


def _quantisation_options(quantise: str, dtype: torch.dtype | None) -> dict[str, Any]:
    """Products of nf4 weights are in bf16, except where the rest is in fp16: on GPUs without bf16."""
    options = bitsandbytes_options(quantise, torch.float16 if dtype is torch.float16 else torch.bfloat16)
    import_bitsandbytes(quantise)
    return options


def _quantisation(where: str, is_local: bool, config: dict[str, Any], options: dict[str, Any]) -> Any:
    """Linears inside the blocks are quantised, and no others: whatever lies about embeddings and head stays."""
    if "quantization_config" in config:
        raise BaseModelError(f"{where}: its weights are stored quantised already; load it without quantisation")
    try:
        made = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False, local_files_only=is_local)
        with torch.device("meta"):
            skeleton = transformers.AutoModelForCausalLM.from_config(made)
    except _LOADER_ERRORS as error:
        raise BaseModelError(f"{where}: the model cannot be loaded: {_first_line(error)}") from None
    inside = {name for names in find_linears(skeleton).values() for name in names}
    linears = {name for name, module in skeleton.named_modules() if _linear_size(module) is not None}
    return transformers.BitsAndBytesConfig(**options, llm_int8_skip_modules=sorted(linears - inside))


def _check_is_quantised(where: str, model: Any, quantise: str) -> None:
    """Its linears are in bits, and it runs: some families read a linear's weights past the call."""
    make_sound(model)
    reason = "bitsandbytes takes none of its linears"
    if n_quantised(model):
        try:
            with torch.no_grad():
                model.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
            return
        except _LOADER_ERRORS as error:
            reason = _first_line(error)
    raise BaseModelError(f"{where}: cannot be quantised to {quantise} ({reason}); load it without quantisation")


def _load_model(
    where: str, is_local: bool, dtype: torch.dtype | None, quantisation: Any, device: str | torch.device
) -> Any:
    loader: Any = transformers.AutoModelForCausalLM
    chosen = {} if quantisation is None else {"quantization_config": quantisation, "device_map": {"": device}}
    try:
        model, report = loader.from_pretrained(
            where,
            dtype=dtype or "auto",
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=is_local,
            output_loading_info=True,
            **chosen,
        )
    except Exception as error:  # safetensors' own error is a bare Exception
        if not isinstance(error, _LOADER_ERRORS) and "safetensor" not in type(error).__name__.lower():
            raise
        raise BaseModelError(f"{where}: the model cannot be loaded: {_first_line(error)}") from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise BaseModelError(
            f"{where}: the weights lack {missing[0]} and {len(missing) - 1} more; the files do not fit config.json"
        )
    return model if quantisation is not None else model.to(device)


def _check_they_fit(where: str, model: Any, tokenizer: Any) -> None:
    n_embeddings = len(_embeddings(model))
    if tokenizer.vocab_size > n_embeddings:
        raise BaseModelError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, the model {n_embeddings}; they do not "
            "belong together"
        )
    # Some families are read both ways unless a flag says otherwise. With one token there is nothing to see.
    ids = torch.arange(3, device=_embeddings(model).device).clamp(max=n_embeddings - 1).unsqueeze(0)
    other = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
    with torch.no_grad(), without_outliers(model):
        before, after = (model.eval()(input_ids=row, use_cache=False).logits[:, :-1].float() for row in (ids, other))
    if (before - after).abs().max() > 1e-4 * before.abs().max():
        raise BaseModelError(f"{where}: not a causal language model: its tokens see those that come after them")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, warnings or advice from the libraries; what a person must know is said by our own errors."""
    verbosity, hub_verbosity = transformers.logging.get_verbosity(), hub_logging.get_verbosity()
    had_bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    hub_logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if had_bars:
            transformers.logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


# --- describing ------------------------------------------------------------------------------------------------------


def describe(
    model: Any, tokenizer: Any, base_id: str, *, feature_dim: int = 256, fingerprint: str | None = None
) -> BaseFacts:
    """What a run must know of a base.

    Args:
        model: A causal LM of transformers, without adapters.
        tokenizer: Its tokenizer.
        base_id: Name for people; no path of this machine.
        feature_dim: Numbers in the routing feature.
        fingerprint: Of the base's files; without it, one is taken of the model as it is in memory.

    Raises:
        BaseModelError: No block of the model has a linear.
    """
    return BaseFacts(
        base_id=base_id,
        fingerprint=fingerprint
        or fingerprints.of_base(model.config.to_dict(), tokenizer, fingerprints.tensors_of(model)),
        tokenizer_fingerprint=fingerprints.of_tokenizer(tokenizer),
        **_feature_facts(model, feature_dim),
        max_window_tokens=_max_window_tokens(model.config),
        projections={name: _shape(model, modules) for name, modules in find_linears(model).items()},
    )


def _feature_facts(model: Any, dim: int) -> dict[str, Any]:
    """What `RoutingFeature.from_embeddings` chooses, without the table that it makes."""
    embed_dim = _embeddings(model).shape[1]
    projection = random_projection(embed_dim, dim) if embed_dim > dim else None
    return {"feature_dim": dim, "feature_hash": feature_hash(projection, embed_dim, dim)}


@dataclass(frozen=True)
class Structure:
    """What a base's config alone tells of the model that it describes."""

    modules: dict[str, tuple[str, ...]]
    """As `find_linears`."""
    shapes: dict[str, ProjectionShape]
    is_transposed: bool
    """As `has_transposed_linears`."""
    architecture: str
    """Name of the model's class, such as "LlamaForCausalLM"."""
    is_quantised: bool
    """Whether its weights are stored in bits that no adapter can be merged into."""


def find_structure(where: str | Path) -> Structure:
    """The modules of the base in a folder or the hub's local cache.

    Only its config is read: the model is built without weights, and the network is not asked.

    Raises:
        BaseModelError: There is no config that transformers knows, or no block has a linear.
    """
    skeleton = _skeleton(os.path.expanduser(where))
    modules = find_linears(skeleton)
    return Structure(
        modules=modules,
        shapes={name: _shape(skeleton, members) for name, members in modules.items()},
        is_transposed=has_transposed_linears(skeleton),
        architecture=type(skeleton).__name__,
        is_quantised=getattr(skeleton.config, "quantization_config", None) is not None,
    )


def _skeleton(where: str) -> Any:
    """The model without weights, of a config on this machine."""
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False, local_files_only=True)
            with torch.device("meta"):
                return transformers.AutoModelForCausalLM.from_config(config)
        except _LOADER_ERRORS as error:
            raise BaseModelError(f"{where}: no base whose modules can be looked up: {_first_line(error)}") from None


def has_transposed_linears(model: Any) -> bool:
    """Whether the linears in its blocks keep their weights as (in, out), as GPT-2's Conv1D do."""
    return any(hasattr(module, "nf") for _, block in _blocks(model) for module in block.modules())


def find_linears(model: Any) -> dict[str, tuple[str, ...]]:
    """All linears inside the decoder's blocks, by projection: the modules' names, in the order of layers.

    Blocks are found by structure: they are the members of the outermost module lists. A projection is a linear's name
    within its block, such as "self_attn.q_proj". Where its shape differs between layers, each shape is a projection of
    its own and the number of the first layer that has it is added: "mlp.down_proj-0", "mlp.down_proj-12". Embeddings
    and the head lie outside the blocks and stay as they are. Experts stored as one tensor are no linears, and stay too.

    Raises:
        BaseModelError: There is none.
    """
    found: dict[str, dict[tuple[int, int], list[tuple[int, str]]]] = {}
    for layer, (block_name, block) in enumerate(_blocks(model)):
        for name, module in block.named_modules():
            size = _linear_size(module)
            if name and size is not None:
                found.setdefault(name, {}).setdefault(size, []).append((layer, f"{block_name}.{name}"))
    if not found:
        raise BaseModelError(
            f"{type(model).__name__}: no block with a linear was found, so adapters have no place in it"
        )
    return {
        name if len(by_size) == 1 else f"{name}-{members[0][0]}": tuple(module for _, module in members)
        for name, by_size in found.items()
        for members in by_size.values()
    }


def _blocks(model: Any) -> Iterator[tuple[str, nn.Module]]:
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    lists: list[str] = []
    for name, module in decoder.named_modules(prefix=prefix):
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists.append(name)
            yield from ((f"{name}.{index}", block) for index, block in enumerate(module))


def _linear_size(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear of whatever make: torch's, a quantised one, or GPT-2's Conv1D; None for other modules."""
    for keys in (("in_features", "out_features"), ("nx", "nf")):
        n_in, n_out = (getattr(module, key, None) for key in keys)
        if isinstance(n_in, int) and isinstance(n_out, int):
            return n_in, n_out
    return None


def _shape(model: nn.Module, modules: tuple[str, ...]) -> ProjectionShape:
    size = _linear_size(model.get_submodule(modules[0]))
    if size is None:
        raise BaseModelError(f"{modules[0]}: expected a linear")
    return ProjectionShape(n_layers=len(modules), in_features=size[0], out_features=size[1])


def _embeddings(model: Any) -> torch.Tensor:
    return model.get_input_embeddings().weight.detach()


def _max_window_tokens(config: Any) -> int:
    text = config.get_text_config()
    values = (getattr(text, key, None) for key in _WINDOW_KEYS)
    return next((value for value in values if isinstance(value, int) and value > 0), DEFAULT_WINDOW_TOKENS)


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)


# --- fingerprints ----------------------------------------------------------------------------------------------------


def fingerprint_of(where: str | Path) -> str:
    """A base's fingerprint, from its files on this machine; every byte of the weights is read.

    Raises:
        BaseModelError: The base is not on this machine.
    """
    where = os.path.expanduser(where)
    with _quiet():
        files = _files_of(where, is_local=True)
        tokenizer = _load_tokenizer(where, is_local=True)
    return fingerprints.of_base(_read_config(where, files.config), tokenizer, fingerprints.tensors_in(files.weights))


# --- text ------------------------------------------------------------------------------------------------------------


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokens of one document: begin, text, end, where the tokenizer has such tokens.

    Nothing is cut off, however long the text; markup that looks like a special token is text like any other.
    """
    (ids,) = encode_plain(tokenizer, [text])
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [*begin, *ids, *end]


def encode_plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Tokens of texts as they stand, with nothing before or behind them; all at once is faster than one by one."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, truncation=False, split_special_tokens=True, verbose=False)[
        "input_ids"
    ]


# --- making bases ----------------------------------------------------------------------------------------------------


def new_causal_lm(model_type: str, config: dict[str, Any]) -> Any:
    """A causal LM of a family of transformers ("llama", "bloom", ...) with random weights."""
    with _quiet():
        made = transformers.AutoConfig.for_model(model_type, **config)
        return transformers.AutoModelForCausalLM.from_config(made)


def wrap_tokenizer(tokenizer: Any, *, bos: str, eos: str, pad: str, max_tokens: int) -> Any:
    """A tokenizer of transformers around one of the tokenizers library; `max_tokens` is the base's window."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, model_max_length=max_tokens
    )


def save_base(model: Any, tokenizer: Any, directory: Path, *, dtype: torch.dtype) -> None:
    """Write model and tokenizer in transformers' format, the weights in `dtype`; `model` stays as it is."""
    with _quiet():
        copy.deepcopy(model).to(dtype).save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def save_as_it_is(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write model and tokenizer in transformers' format, in the dtypes that the model has in memory.

    Raises:
        OSError: The folder cannot be written.
    """
    with _quiet():
        try:
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        except Exception as error:  # safetensors' own error is a bare Exception, and has the number in its text
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
