"""The gates of a run as its ledger keeps them, read without torch."""

import safetensors
import safetensors.numpy

from tinylora.errors import DataError, ProtocolError, StorageError
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.routing.gates import Gates


def read_gates(ledger: SqliteLedger, version: int) -> Gates:
    """The gates of one version of the routers.

    Args:
        ledger: Of the run.
        version: From 1.

    Raises:
        DataError: They are not there, or damaged.
    """
    try:
        (row,) = ledger.rows("router_version", version=version)
        arrays = safetensors.numpy.load(ledger.get_blob(str(row["blob"])))
        return Gates.from_arrays({name: arrays[name] for name in arrays if name.startswith("router.")})
    except (StorageError, ProtocolError, ValueError, safetensors.SafetensorError) as error:
        raise DataError(f"gates of version {version}: not readable now ({error})") from None
