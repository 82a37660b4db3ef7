"""A process of its own that serves a real link behind its door, so that its memory can be measured from outside.

python -m tests.door.served_link FOLDER WORKER_PEM

It prints one JSON line when it serves, and ends when its stdin does.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from tinylora_coordinator.front_door import (
    FrontDoor,
    NodeAuth,
    listen,
    public_pages,
    serve_internal,
    serve_public,
    server_tls,
)
from tinylora_coordinator.keys import KeyFolder, make_keys

from tinylora.flower.enrolment import JOIN_PATH
from tinylora.flower.link import create_link

HOST = "127.0.0.1"


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """A join route that lets nobody in, after reading what he says."""
    await Request(scope, receive).body()
    await JSONResponse({"error": "token"}, 403)(scope, receive, send)


def main(folder: Path, worker_pem: bytes) -> None:
    """Serve until stdin ends."""
    keys = KeyFolder(folder / "keys")
    make_keys(keys, run="flood", hosts=[HOST], now=datetime.now(UTC))
    link = create_link(folder / "link.db")
    link.register(worker_pem, "honest")
    pages = public_pages(ca_file=keys.ca, bundle_file=folder / "bundle.safetensors", status=lambda: {})
    door = FrontDoor({**pages, ("POST", JOIN_PATH): refuse}, link.flower, NodeAuth(link.is_registered), spool=folder)
    tls = server_tls(keys.server, keys.server_key)
    with serve_internal(link.app, listen(HOST, 0)) as inside, serve_public(door, listen(HOST, 0), tls=tls) as public:
        secrets = {"admin": link.admin, "superexec_secret": link.superexec_secret.hex()}
        print(json.dumps({"public": public.port, "inside": inside.port, **secrets}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes())
