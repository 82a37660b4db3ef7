"""A hub of one machine: the few addresses of huggingface.co that an upload and a download ask, over real HTTP.

Files that its owner would keep in large file storage go there (a batch that says where to, then the bytes), the others
come inside of the commit; each commit has a number of its own.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = ".safetensors"


class FakeHub:
    """What it holds, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.address = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        self.asked.append(f"{method} {path}")
        for asked, pattern, reply in (
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", lambda _: _json({"errors": [], "warnings": []})),
            ("POST", r"/api/models/(\w+/\w+)/preupload/main", self._preupload),
            ("POST", r"/(\w+/\w+)\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/stored/(\w+)", self._store),
            ("POST", r"/api/models/(\w+/\w+)/commit/main", self._commit),
            ("GET", r"/api/models/(\w+/\w+)(?:/revision/main)?", self._told),
            ("HEAD", r"/(\w+/\w+)/resolve/(\w+)/(.+)", self._resolve),
            ("GET", r"/(\w+/\w+)/resolve/(\w+)/(.+)", self._resolve),
        ):
            found = re.fullmatch(pattern, path)
            if asked == method and found:
                return reply(body, *found.groups())
        return 404, {"X-Error-Message": "no such address"}, b""

    def _create(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        self.files.setdefault(name, {})
        return _json({"url": f"{self.address}/{name}", "name": name})

    def _preupload(self, body: bytes, _name: str) -> Any:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
        return _json({"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]})

    def _batch(self, body: bytes, _name: str) -> Any:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.address}/stored/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _store(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {}, b""
        self.stored[oid] = body
        return 200, {}, b""

    def _commit(self, body: bytes, name: str) -> Any:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[name][value["path"]] = self.stored[value["oid"]]
        self.commits[name] = hashlib.sha1(body).hexdigest()
        commit = self.commits[name]
        return _json({"commitUrl": f"{self.address}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _told(self, _body: bytes, name: str) -> Any:
        if name not in self.files:
            return _missing("RepoNotFound")
        return _json({"id": name, "sha": self.commits.get(name, "0" * 40), "siblings": []})

    def _resolve(self, _body: bytes, name: str, revision: str, file: str) -> Any:
        if name not in self.files:
            return _missing("RepoNotFound")
        if revision not in ("main", self.commits.get(name, "0" * 40)):
            return _missing("RevisionNotFound")
        if file not in self.files[name]:
            return _missing("EntryNotFound", {"X-Repo-Commit": self.commits.get(name, "0" * 40)})
        data = self.files[name][file]
        commit = self.commits.get(name, "0" * 40)
        etag = hashlib.sha256(data).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, data


def _json(document: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()


def _missing(code: str, more: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    return 404, {"X-Error-Code": code, **(more or {})}, b""


@contextmanager
def serving(hub: FakeHub) -> Iterator[str]:
    """Its address while it answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self._body()
            hub.tokens.add(self.headers.get("Authorization", ""))
            status, headers, data = hub.answer(self.command, self.path.partition("?")[0], body)
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        do_GET = do_HEAD = do_POST = do_PUT = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
