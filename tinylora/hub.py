"""A tree from the hub or a folder, and back: what `TreeModel` takes from `huggingface_hub.ModelHubMixin`.

A folder, and a repository on the hub, hold `bundle.safetensors` and a model card. The base is not among them: it is
everybody's, and the bundle names it.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, errors, hf_hub_download
from huggingface_hub.utils import validate_repo_id

from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import LoadedBase, load_base
from tinylora.bundle import AdapterDtype, Bundle, inspect, read_bundle, write_bundle
from tinylora.errors import BaseModelError, BundleError, NetworkError, RefusedError, SettingError
from tinylora.routing.policy import Policy, Router
from tinylora.tensors import DTYPES, Tensors
from tinylora.tree import NodePath, Topology, is_under

BUNDLE_FILE = "bundle.safetensors"
Tree = TypeVar("Tree", bound="TreeHub")
_EXACT_DTYPES: tuple[AdapterDtype, ...] = ("BF16", "F16")
_HTTP_ERROR: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # of the HTTP library behind it
_MAX_NAMED = 16
_USAGE = """```python
import tinylora

model = tinylora.TreeModel.from_pretrained({base}, "{repo}")
```"""


class TreeHub(ModelHubMixin):
    """Loading, saving and sharing of a `TreeModel`."""

    base: LoadedBase
    nodes: tuple[NodePath, ...]
    spec: AdapterSpec
    scale: float
    router: Router | None
    policy: Policy
    origin: Bundle | None = None
    """The bundle that the model was made of, without its adapters; None where it was made otherwise."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
        """A bare instance. The mixin's own would write all arguments down as JSON, a deep copy of the base for it."""
        return object.__new__(cls)

    @classmethod
    def from_bundle(
        cls: type[Tree],
        bundle: Bundle,
        base: LoadedBase,
        policy: Policy | str | None = None,
        leaves: Collection[NodePath] | None = None,
    ) -> Tree:
        """See `TreeModel.from_bundle`."""
        raise NotImplementedError

    def node_state(self, path: NodePath) -> Tensors:
        """See `TreeModel.node_state`."""
        raise NotImplementedError

    # Another signature than the mixin's, on purpose: a tree stands on a base, which is named first.
    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls: type[Tree],
        base: str | Path | LoadedBase | None,
        bundle: str | Path,
        *,
        policy: Policy | str | None = None,
        leaves: Collection[NodePath] | None = None,
        verify: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.float32,
        quantise: str | None = None,
    ) -> Tree:
        """A bundle on its base, ready to use.

        What the hub has is fetched into its cache; the variables that steer this (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE,
        HF_ENDPOINT ...) hold. A base that is in the cache is taken as it is there.

        Args:
            base: Folder, hub id or a base in memory; None is the one that the bundle names.
            bundle: File, folder with a `bundle.safetensors`, or hub repository with one, such as "org/name".
            policy: How the gates decide; None takes the bundle's own.
            leaves: Load these leaves alone, or all below these inner nodes; the others are the base, or their loaded
                ancestors, as if nobody had trained them.
            verify: Whether to check the bundle's numbers against their sums; its header always is.
            revision: Branch, tag or commit of the bundle's repository.
            token: For the bundle's repository; None takes the one that you are logged in with.
            cache_dir: Where the bundle is kept, instead of the hub's usual cache.
            local_files_only: Ask nobody: take the bundle and the base from this machine.
            force_download: Fetch the bundle although it is in the cache.
            device: Where the base is loaded to; one in memory stays where it is, likewise below.
            dtype: Of the base in memory; None keeps the dtype it is stored in.
            quantise: "int8" or "nf4"; see `load_base`.

        Raises:
            BundleError: There is no such bundle, or it is not sound.
            BaseModelError: The base cannot be loaded, or the bundle belongs to another one.
            NetworkError: The hub cannot be reached.
            SettingError: A policy, leaf, device or quantisation that there is not.
        """
        wanted = Policy.parse(policy) if isinstance(policy, str) else policy
        file = find_bundle(
            bundle, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only,
            force_download=force_download,
        )  # fmt: skip
        chosen = None if leaves is None else leaves_below(leaves, Topology(tuple(inspect(file)["leaves"])))
        found = read_bundle(file, leaves=chosen, verify=verify)  # before the base: small, and the likelier mistake
        if not isinstance(base, LoadedBase):
            where = str(base or found.base.base_id)
            _check_device(device)
            _check_is_here(where, local_files_only)
            base = load_base(
                where, dtype=dtype, quantise=quantise, device=device, feature_dim=found.base.feature_dim
            )  # fmt: skip
        return cls.from_bundle(found, base, wanted, chosen)

    def to_bundle(self) -> Bundle:
        """The tree as it is now: adapters, gates, policy; all else as in the bundle that it came from.

        A node without anything in it, as those that nobody has trained, is left out.

        Raises:
            SettingError: The model has no router, or tied adapters and no bundle that it came from.
        """
        if self.router is None:
            raise SettingError("this model has no router, so it is no tree that a bundle could hold; make one with it")
        if self.origin is None and self.spec.kind == "tied":
            raise SettingError("tied adapters whose frozen factors are in no bundle cannot be saved; use write_bundle")
        states = {path: self.node_state(path) for path in self.nodes}
        origin = self.origin or Bundle(
            run="", topology=self.router.topology, base=self.base.facts, spec=self.spec, scale=self.scale, nodes={},
            gates=self.router.gates(), projection=self.base.routing_feature.projection,
        )  # fmt: skip
        return replace(
            origin,
            nodes={path: state for path, state in states.items() if any(map(torch.any, state.values()))},
            gates=self.router.gates(),
            policy=str(self.policy),
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        """The bundle alone, in the smallest dtype that loses nothing; not signed, as the run's key is not here."""
        bundle = self.to_bundle()
        write_bundle(bundle, save_directory / BUNDLE_FILE, dtype=exact_dtype(bundle))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload bundle and model card in one commit; see `huggingface_hub.ModelHubMixin.push_to_hub`.

        Returns:
            The commit's address.

        Raises:
            RefusedError: The hub does not let you.
            NetworkError: It cannot be reached.
        """
        options["model_card_kwargs"] = {"repo_id": repo_id} | (options.get("model_card_kwargs") or {})
        with _uploading(repo_id):
            return super().push_to_hub(repo_id, **options)

    def generate_model_card(self, *_args: Any, repo_id: str = "path/or/org/name", **_kwargs: Any) -> ModelCard:
        """What README.md says of the tree: base, licences, who took part, what the leaves were trained on."""
        return model_card(self.to_bundle(), repo_id)


# --- the bundle's file -----------------------------------------------------------------------------------------------


def base_named_in(file: Path, otherwise: str) -> str:
    """The base that a bundle names where that is on the hub; a folder's name says nothing of where it lies.

    Raises:
        BundleError: The file is no sound bundle.
    """
    named = inspect(file)["base"]["base_id"]
    return named if "/" in named else otherwise


def find_bundle(
    where: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The file of a bundle: it, the one in a folder, or the one in a repository on the hub, fetched where necessary.

    Raises:
        BundleError: Neither is there.
        NetworkError: The hub cannot be reached, and the file is not in its cache.
    """
    path = Path(os.path.expanduser(where))
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / BUNDLE_FILE).is_file():
            raise BundleError(f"{path}: no bundle in this folder; expected {BUNDLE_FILE}", rule="no_file")
        return path / BUNDLE_FILE
    if not _may_be_repository(str(where)):
        raise BundleError(
            f"{where}: no such file; expected a bundle, a folder with {BUNDLE_FILE}, or a repository on the hub such "
            "as org/name",
            rule="no_file",
        )
    with _downloading(str(where)):
        found = hf_hub_download(
            str(where),
            BUNDLE_FILE,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
    return Path(found)


def leaves_below(paths: Collection[NodePath], topology: Topology) -> tuple[NodePath, ...]:
    """All leaves of the subtrees at some nodes.

    Raises:
        SettingError: There is no such node.
    """
    strange = sorted(set(paths) - set(topology.nodes))
    if strange:
        raise SettingError(f"leaf {strange[0]!r}: no such node; the tree's leaves are {', '.join(topology.leaves)}")
    return tuple(leaf for leaf in topology.leaves if any(is_under(leaf, path) for path in paths))


def exact_dtype(bundle: Bundle) -> AdapterDtype:
    """The smallest dtype that holds every number of the adapters as it is."""
    every = [tensor for state in (*bundle.nodes.values(), bundle.shared) for tensor in state.values()]
    for name in _EXACT_DTYPES:
        if all(_is_exact(tensor, DTYPES[name]) for tensor in every):
            return name
    return "F32"


def _is_exact(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)


def _may_be_repository(where: str) -> bool:
    if where.count("/") != 1 or where.endswith(".safetensors"):
        return False
    try:
        validate_repo_id(where)
        return True
    except errors.HFValidationError:
        return False


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's own words for what is not there
        reason = str(error).partition("\n")[0]
        raise SettingError(
            f"device {str(device)!r}: not on this machine ({reason}); expected cpu, cuda or mps"
        ) from None


def _check_is_here(where: str, local_files_only: bool) -> None:
    """Where nobody is to be asked, the base must be a folder or in the hub's cache."""
    if not local_files_only or Path(os.path.expanduser(where)).exists():
        return
    try:
        hf_hub_download(where, "config.json", local_files_only=True)
    except (errors.EntryNotFoundError, errors.HFValidationError):
        raise BaseModelError(
            f"{where}: the base is not on this machine; give the path of a local copy, or allow to fetch it"
        ) from None


@contextmanager
def _downloading(where: str) -> Iterator[None]:
    try:
        yield
    except errors.LocalEntryNotFoundError:
        raise NetworkError(
            f"{where}: no such file or folder here, nor a bundle in the hub's cache, and the hub was not reached (no "
            "connection, or it was not to be asked); give a file, or try again with a connection"
        ) from None
    except (errors.RepositoryNotFoundError, errors.GatedRepoError, errors.RevisionNotFoundError) as error:
        what = "revision" if isinstance(error, errors.RevisionNotFoundError) else "repository"
        raise BundleError(
            f"{where}: no such file or folder here, and no such {what} that the hub shows to you; check the name, or "
            "log in",
            rule="no_file",
        ) from None
    except errors.EntryNotFoundError:
        raise BundleError(f"{where}: the repository on the hub has no {BUNDLE_FILE}", rule="no_file") from None
    except (_HTTP_ERROR, OSError) as error:
        raise NetworkError(f"{where}: the hub does not answer as it should: {_first_line(error)}") from None


@contextmanager
def _uploading(where: str) -> Iterator[None]:
    try:
        yield
    except errors.HFValidationError as error:
        raise SettingError(f"{where}: no name of a repository: {_first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        raise RefusedError(
            f"{where}: the hub refuses the upload: {_first_line(error)}; log in, or check the name"
        ) from None
    except (OSError, errors.OfflineModeIsEnabled) as error:
        raise NetworkError(f"{where}: the hub cannot be reached: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


# --- the model card --------------------------------------------------------------------------------------------------


def model_card(bundle: Bundle, repo_id: str) -> ModelCard:
    """README.md of a bundle; nothing that a worker wrote can act in it."""
    base = bundle.base.base_id if _may_be_repository(bundle.base.base_id) else None
    front = ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else "adapter",
        library_name="tinylora",
        license=bundle.licences[0].lower() if len(bundle.licences) == 1 else None,
        pipeline_tag="text-generation",
        tags=["lora", "tinylora"],
    )
    usage = _USAGE.format(base="None" if base else '"path/of/the/base"', repo=repo_id)
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _facts(bundle).items() if value)
    return ModelCard(
        f"---\n{front.to_yaml()}\n---\n\n# {_cell(bundle.run) or 'A tree of adapters'}\n\nA binary tree of LoRA "
        "adapters on one frozen base, with a router at every inner node; trained by many workers together with "
        f"TinyLoRA.\n\n{usage}\n\n| | |\n| --- | --- |\n{rows}\n\n{_texts(bundle)}"
    )


def _facts(bundle: Bundle) -> dict[str, str]:
    named = ", ".join(bundle.contributors[:_MAX_NAMED])
    n_more = len(bundle.contributors) - _MAX_NAMED
    return {
        "base": f"{bundle.base.base_id}, fingerprint {bundle.base.fingerprint}",
        "leaves": f"{len(bundle.topology.leaves)}, nodes with an adapter {len(bundle.nodes)}",
        "adapters": f"{bundle.spec}, rank {bundle.spec.rank}, scale {bundle.scale:g}",
        "policy": bundle.policy,
        "contributors": named + (f" and {n_more} more" if n_more > 0 else ""),
        "licences": ", ".join(bundle.licences),
        "made of bundles": ", ".join(bundle.derived_from),
    }


def _texts(bundle: Bundle) -> str:
    if not bundle.data_notes:
        return ""
    rows = [f"| {leaf or 'root'} | {_cell('; '.join(notes))} |" for leaf, notes in sorted(bundle.data_notes.items())]
    return "\n".join(["What workers say of each leaf's text:\n", "| leaf | text |", "| --- | --- |", *rows, ""])


def _cell(text: str) -> str:
    """Text for one cell of a table: no markup, no link, no line break."""
    for sign in "\\`*_[]#|~$":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
