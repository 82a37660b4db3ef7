"""Every address the dashboard answers, with its method: what the public front door may hand to it, and nothing else.

Paths are compared as the bytes that came; so an odd spelling is another address, and there is nothing to decode.
"""

import re

NODE = r"(root|[01]{1,32})"
WORKER = r"[A-Za-z0-9_-]{1,64}"
SHA256 = r"[0-9a-f]{64}"
TOKEN = r"[A-Za-z0-9_-]{1,64}"
_FILE = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}"

_READ = (
    r"/",
    rf"/node/{NODE}",
    rf"/worker/{WORKER}",
    r"/(workers|timeline|routing|artifacts|join|admin)",
    rf"/assets/{_FILE}",
    r"/(favicon\.(ico|svg|png)|robots\.txt|manifest\.webmanifest)",
    r"/lite",
    r"/lite\.css",
    r"/metrics",
    r"/api/v1/(state|events|workers|series|timeline|routing|artifacts|join|session|admin|admin/tokens|openapi\.json)",
    rf"/api/v1/nodes/{NODE}",
    rf"/api/v1/workers/{WORKER}",
    rf"/api/v1/bundles/{SHA256}",
    rf"/api/v1/leaves/{NODE}",
)
_POST = (
    r"/api/v1/(routing/lookup|artifacts|session|admin/orders|admin/tokens)",
    rf"/api/v1/admin/workers/{WORKER}/approve",
)
_DELETE = (
    r"/api/v1/session",
    rf"/api/v1/admin/tokens/{TOKEN}",
)
PATHS = {"GET": _READ, "POST": _POST, "DELETE": _DELETE}
"""Regular expressions of the paths, by method."""
_OURS = {
    method: re.compile("|".join(f"(?:{path})" for path in paths).encode("ascii")) for method, paths in PATHS.items()
}
METHODS = tuple(_OURS)


def is_ours(method: str, raw_path: bytes) -> bool:
    """Whether the dashboard answers this very path, with this method; a query may follow."""
    pattern = _OURS.get(method)
    return pattern is not None and pattern.fullmatch(raw_path) is not None
