"""Tables by which a run's pages route a text (`dashboard/lookup.py`), made where the base is: at `init`, or later."""

from pathlib import Path
from typing import TYPE_CHECKING

from tinylora.errors import BaseModelError
from tinylora_coordinator.dashboard.lookup import Ends, table_bytes
from tinylora_coordinator.folder import RunFolder, Tables, read_run, write_tables

if TYPE_CHECKING:
    from tinylora.base_model import LoadedBase  # transformers comes with it


def lookup_tables(base: "LoadedBase") -> Tables | None:
    """What `init` keeps so that the run's pages can route a text; None where the tokenizer is none of tokenizers'."""
    backend = getattr(base.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    feature, tokenizer = base.routing_feature, base.tokenizer
    ends = Ends(tokenizer.bos_token_id, tokenizer.eos_token_id)
    table = table_bytes(feature.table.detach().cpu().numpy(), ends, feature_hash=base.facts.feature_hash)
    return Tables(table, backend.to_str().encode())


def make_lookup(root: Path, base: "LoadedBase") -> None:
    """Write these tables for a run that has none, or damaged ones, whether it is being served or not.

    Raises:
        SettingError: There is no run in `root`.
        BaseModelError: It is a run of another base, or its tokenizer cannot be used here.
        StorageError: The folder cannot be written.
    """
    folder = RunFolder(root)
    files = read_run(folder)
    base = base.with_feature(files.base.feature_dim)
    is_same = (base.facts.tokenizer_fingerprint, base.facts.feature_hash, base.facts.fingerprint) == (
        files.base.tokenizer_fingerprint, files.base.feature_hash, files.base.fingerprint
    )  # fmt: skip
    if not is_same:
        raise BaseModelError(f"{base.facts.base_id}: not the base of this run, which is {files.base.base_id}")
    tables = lookup_tables(base)
    if tables is None:
        raise BaseModelError(f"{base.facts.base_id}: its tokenizer has no tokenizer.json, which this needs")
    write_tables(folder, tables)
