"""Whether a request to the dashboard comes from its own page, judged by its head alone.

The operator's browser shows pages of other sites, too, and those can make it send requests to 127.0.0.1, or to the
public address with his cookie. Browsers say where a request comes from (`Origin`, `Sec-Fetch-Site`); programs that are
no browser say nothing, and act for whoever started them. On the loopback listener the Host must be this machine's, or
somebody else's name would be enough to make our answers his own (DNS rebinding).
"""

from urllib.parse import urlsplit

from tinylora_coordinator.heads import Headers, Refusal, values

_OURS = ((), (b"same-origin",), (b"none",))
_READING = ("GET", "HEAD")
_OF_PROXIES = (b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip")
_FOREIGN = Refusal(403, "origin", "this comes from a page of somebody else")


def own_hosts(port: int) -> frozenset[bytes]:
    """The Host headers by which a browser on this machine reaches the loopback listener."""
    return frozenset(f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost", "[::1]"))


def judge_host(headers: Headers, own: frozenset[bytes]) -> Refusal | None:
    """Whether it was this machine's own name that was asked, and not by a proxy, who may ask for anybody."""
    if _host(headers) in own and not any(values(headers, name) for name in _OF_PROXIES):
        return None
    return Refusal(421, "host", "this address is for this machine alone: ask for it as 127.0.0.1 or localhost")


def judge_site(method: str, headers: Headers) -> Refusal | None:
    """Whether a page of somebody else made the browser ask this."""
    site = tuple(values(headers, b"sec-fetch-site"))
    if method in _READING:
        return None if site in _OURS or _is_followed_link(headers) else _FOREIGN
    if site not in _OURS or not _is_of_this_host(values(headers, b"origin"), headers):
        return _FOREIGN
    has_body = values(headers, b"content-length") not in ([], [b"0"]) or values(headers, b"transfer-encoding")
    if has_body and not _is_json(headers):
        return Refusal(415, "type", "a body is JSON: content-type application/json")
    return None


def _is_followed_link(headers: Headers) -> bool:
    """Whether somebody goes to our page, rather than that a page takes something from us."""
    told = values(headers, b"sec-fetch-mode"), values(headers, b"sec-fetch-dest")
    return told in (([b"navigate"], []), ([b"navigate"], [b"document"]))


def _is_of_this_host(origins: list[bytes], headers: Headers) -> bool:
    """Whether the page is one of the very host that is asked; programs name no page."""
    if not origins:
        return True
    netloc = _netloc(origins[0])
    return len(origins) == 1 and netloc is not None and netloc == _host(headers)


def _host(headers: Headers) -> bytes | None:
    hosts = values(headers, b"host")
    return hosts[0].lower() if len(hosts) == 1 and hosts[0] else None


def _netloc(origin: bytes) -> bytes | None:
    """Host and port of an origin; None where it has none, and is nobody's."""
    try:
        parts = urlsplit(origin.decode("ascii"))
    except ValueError:
        return None
    return parts.netloc.lower().encode() if parts.scheme in ("http", "https") and parts.netloc else None


def _is_json(headers: Headers) -> bool:
    kinds = values(headers, b"content-type")
    return len(kinds) == 1 and kinds[0].partition(b";")[0].strip().lower() == b"application/json"
