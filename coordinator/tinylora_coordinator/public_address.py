"""Where people and workers reach a run, if that is not where it listens: noted in `keys/public.json`.

The tokens that are made and the join commands that are shown follow it. Where a proxy shows a certificate of its own at
this address, workers meet that one and not the run's: then tokens pin whoever vouches for it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tinylora.errors import SettingError

SYSTEM_CA = "system"
"""In place of a file: the certificate is one that workers' systems know how to verify."""


@dataclass(frozen=True)
class PublicAddress:
    """Where a run is reached.

    Attributes:
        url: https://host[:port].
        by_proxy: Whether a proxy ends TLS there, with a certificate of its own.
        ca: Who vouches for the proxy's certificate, where workers' systems do not know it.
    """

    url: str
    by_proxy: bool = False
    ca: Path | None = None

    @property
    def host(self) -> str:
        """Its host alone."""
        return urlsplit(self.url).hostname or ""


def make_public(url: str, *, ca: str = "", is_plain: bool = False) -> PublicAddress:
    """What the options of a command say.

    Args:
        url: Of `--public-url`.
        ca: Of `--public-ca`: `system`, a file, or nothing.
        is_plain: Whether the run is served without TLS, so that it must be a proxy that ends it.

    Raises:
        SettingError: It is no address that a worker could use.
    """
    from tinylora.flower.reach import Address  # it loads httpx, which a start has no time for
    from tinylora_coordinator.keys import check_host

    address = Address.parse(url)
    if address.is_plain:
        raise SettingError(f"--public-url {url}: expected https, such as https://run.example.org")
    check_host(urlsplit(address.url()).hostname or "")
    file = None if ca in ("", SYSTEM_CA) else Path(ca).resolve()
    return PublicAddress(address.url().removesuffix(":443"), bool(ca) or is_plain, file)


def public_to_json(public: PublicAddress) -> bytes:
    """As it is kept."""
    ca = None if public.ca is None else str(public.ca)
    return json.dumps({"url": public.url, "by_proxy": public.by_proxy, "ca": ca}, indent=1).encode() + b"\n"


def read_public_file(file: Path) -> PublicAddress | None:
    """What is noted in `file`; None where nothing is.

    Raises:
        SettingError: It is not readable.
    """
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        ca = None if found["ca"] is None else Path(found["ca"])
        return PublicAddress(str(found["url"]), bool(found["by_proxy"]), ca)
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingError(f"{file}: not readable; delete it, and serve with --public-url if there is one") from None
