"""As much of the Hugging Face hub's HTTP API as a download needs, on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class StubHub:
    """One repository at one commit.

    Attributes:
        repo: Its name, "owner/name".
        files: Contents by path; each is announced as a large file with its SHA-256, those in `small` are not.
        served: Contents that are sent instead of the announced ones.
        broken: Files whose download fails with status 500.
        cut_after: Bytes after which the first download of a file is cut off.
        hang_at: "info", "tree", "head" or "get": requests of this kind are never answered.
        states_blobs: Whether git's hash of each file is stated, as the hub does and mirrors may not.
        refuse: (status, the hub's X-Error-Code) for all requests.
        requests: (kind, path of the file or "", its Range header or "").
    """

    repo: str
    files: dict[str, bytes]
    small: set[str] = field(default_factory=set)
    served: dict[str, bytes] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    cut_after: dict[str, int] = field(default_factory=dict)
    hang_at: str = ""
    refuse: tuple[int, str] | None = None
    states_blobs: bool = True
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit = secrets.token_hex(20)  # the client remembers a commit's listing
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def downloads(self, file: str) -> list[str]:
        """Range headers of a file's downloads."""
        return [requested for kind, path, requested in self.requests if kind == "get" and path == file]

    def info(self) -> dict:
        siblings = [
            {"rfilename": path, "size": len(data), **({"blobId": _sha1(data)} if self.states_blobs else {}), **self._lfs(path, "sha256")}
            for path, data in self.files.items()
        ]
        return {"_id": "1", "id": self.repo, "sha": self.commit, "private": False, "tags": [], "downloads": 0, "siblings": siblings}

    def tree(self) -> list[dict]:
        return [
            {"type": "file", "path": path, "size": len(data), "oid": _sha1(data), **self._lfs(path, "oid")}
            for path, data in self.files.items()
        ]

    def etag(self, path: str) -> str:
        return _sha1(self.files[path]) if path in self.small else hashlib.sha256(self.files[path]).hexdigest()

    def _lfs(self, path: str, name: str) -> dict:
        if path in self.small:
            return {}
        return {"lfs": {name: self.etag(path), "size": len(self.files[path]), "pointerSize": 130}}


def _sha1(data: bytes) -> str:
    """As git names a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub: StubHub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        resolve = re.fullmatch(rf"/(?:datasets/)?{hub.repo}/resolve/[^/]+/(.+)", path)
        kind = self.command.lower() if resolve else "tree" if "/tree/" in path else "info"
        file = resolve[1] if resolve else ""
        hub.requests.append((kind, file, self.headers.get("Range", "")))
        if kind == hub.hang_at:
            hub.closing.wait()
        elif hub.refuse:
            self._send(b"{}", hub.refuse[0], {"X-Error-Code": hub.refuse[1]})
        elif kind == "get" and file in hub.broken:
            self._send(b"", 500, {})
        elif resolve:
            self._file(hub, file)
        elif path.startswith((f"/api/models/{hub.repo}", f"/api/datasets/{hub.repo}")):
            self._send(json.dumps(hub.tree() if kind == "tree" else hub.info()).encode(), 200, {"Content-Type": "application/json"})
        else:
            self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    def _file(self, hub: StubHub, file: str) -> None:
        data = hub.served.get(file, hub.files[file])
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{hub.etag(file)}"', "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = hub.cut_after.pop(file, None) if self.command == "GET" else None
        self._send(data[start:], 206 if start else 200, headers, cut)

    def _send(self, data: bytes, status: int, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
