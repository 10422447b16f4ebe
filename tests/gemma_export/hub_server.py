"""A Hub on this machine: the API, the resolve addresses and a CDN on another port, with faults on demand.

Written after what huggingface_hub 2.4.0 asks and what https://huggingface.co/docs/hub/api describes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

__all__ = ["COMMIT", "TOKEN", "Fault", "HubServer", "Repository", "Request", "blob_id", "hub_server"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_SecretOfTheTest"


def blob_id(content: bytes, *, lfs: bool) -> str:
    """The name of a content on the Hub and in its cache."""
    return (
        hashlib.sha256(content).hexdigest() if lfs else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    )


@dataclasses.dataclass
class Repository:
    """One repository; files are the same in every revision but those of `older`."""

    files: dict[str, bytes]
    revisions: dict[str, str] = dataclasses.field(default_factory=lambda: {"main": COMMIT, "v1.0": COMMIT})
    # commit -> files, where they differ
    older: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    # None, or the token that was granted access
    gated: str | None = None
    private: bool = False
    # mirrors may list names alone
    names_only: bool = False
    # what is listed although it is not true: name -> changes of its entry
    lies: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of_folder(folder: Path) -> Repository:
        """A repository with a folder's files."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return Repository(files)

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit of any length."""
        commits = {*self.revisions.values(), *self.older}
        found = [commit for commit in commits if commit.startswith(revision) and len(revision) >= 7]
        return self.revisions.get(revision) or (found[0] if len(found) == 1 else None)

    def at(self, commit: str) -> dict[str, bytes]:
        """The files of a commit."""
        return self.older.get(commit, self.files)

    @staticmethod
    def is_lfs(name: str) -> bool:
        """As .gitattributes of the Hub's repositories say."""
        return name.endswith((".safetensors", ".bin", ".gguf", ".model")) or name == "tokenizer.json"


@dataclasses.dataclass
class Request:
    """What came in, and how many bytes of a body went out."""

    server: str
    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclasses.dataclass
class Fault:
    """Something that goes wrong for requests whose path matches, a number of times."""

    path: str
    times: int = 1
    server: str = ""
    status: int | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    # instead of the right body
    body: bytes | None = None
    # the connection is cut after so many bytes of the body
    cut: int | None = None
    # after the cut bytes nothing more comes until the server ends
    stall: bool = False
    # the body is sent altered
    alter: Callable[[bytes], bytes] | None = None
    # Range is not understood
    no_ranges: bool = False


class HubServer:
    """Endpoint and CDN; both know everything that was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        # old name -> new name
        self.renamed: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._servers = {name: _serve(self, name) for name in ("hub", "cdn")}
        self.endpoint, self.cdn = (f"http://127.0.0.1:{self._servers[name].server_port}" for name in ("hub", "cdn"))

    def close(self) -> None:
        """Ends both."""
        self.stopping.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def environment(self, directory: Path) -> dict[str, str]:
        """What makes a process use this Hub, with an empty cache below a directory."""
        return {
            "HF_HOME": str(directory / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def fault(self, request: Request) -> Fault | None:
        """The fault that meets a request, used up once more."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and fault.server in ("", request.server) and re.search(fault.path, request.path):
                    fault.times -= 1
                    return fault
        return None

    def asked(self, pattern: str, *, server: str = "", method: str = "") -> list[Request]:
        """The requests whose path matches."""
        return [
            request
            for request in self.requests
            if re.search(pattern, request.path) and server in ("", request.server) and method in ("", request.method)
        ]


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A Hub for one test."""
    server = HubServer()
    try:
        yield server
    finally:
        server.close()


def _serve(hub: HubServer, name: str) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"hub": hub, "name": name})
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Programs that are killed leave their connections as they are."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    name: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.request_seen = Request(self.name, self.command, unquote(self.path), headers)
        self.fault = self.hub.fault(self.request_seen)
        if self.fault is not None and self.fault.status is not None:
            self._send(self.fault.status, self.fault.headers, self.fault.body or b"")
        elif self.name == "cdn":
            self._cdn()
        elif self.path.startswith("/api/models/"):
            self._api()
        else:
            self._resolve()

    def _api(self) -> None:
        path, _, query = self.path.partition("?")
        name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        if name in self.hub.renamed:
            self._send(307, {"Location": self.path.replace(name, self.hub.renamed[name])}, b"")
            return
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.commit(unquote(revision))
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = []
        for file, content in repository.at(commit).items():
            entry: dict[str, Any] = {"rfilename": file}
            if "blobs=true" in query and not repository.names_only:
                entry |= {"size": len(content), "blobId": blob_id(content, lfs=False)}
                if repository.is_lfs(file):
                    entry["lfs"] = {"sha256": blob_id(content, lfs=True), "size": len(content), "pointerSize": 135}
            siblings.append(entry | repository.lies.get(file, {}))
        info = {"id": name, "sha": commit, "private": repository.private, "siblings": siblings}
        self._send(200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(info).encode())

    def _resolve(self) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path)
        repository = self._repository(match[1]) if match else None
        if match is None or repository is None:
            if match is None:
                self._error(404, None, "Not found")
            return
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository.gated is not None and given != repository.gated:
            status = 403 if given else 401
            self._error(
                status, "GatedRepo", "Access to this model is restricted and you are not in the authorized list."
            )
            return
        commit, file = repository.commit(match[2]), unquote(match[3])
        if commit is None or file not in repository.at(commit):
            self._error(404, "EntryNotFound" if commit else "RevisionNotFound", "Entry not found")
            return
        content = repository.at(commit)[file]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if repository.is_lfs(file):
            digest = blob_id(content, lfs=True)
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "ETag": '"of-the-redirect"'}
            self._send(302, headers | {"Location": f"{self.hub.cdn}/{match[1]}/{digest}?signature=abc"}, b"")
        else:
            self._body(content, headers | {"ETag": f'"{blob_id(content, lfs=False)}"', "Content-Type": "text/plain"})

    def _cdn(self) -> None:
        digest = self.path.partition("?")[0].rpartition("/")[2]
        for repository in self.hub.repositories.values():
            for files in (repository.files, *repository.older.values()):
                for content in files.values():
                    if blob_id(content, lfs=True) == digest:
                        self._body(content, {"ETag": '"cdn"', "Content-Type": "binary/octet-stream"})
                        return
        self._send(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")

    def _repository(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            if known:
                self._error(404, "RepoNotFound", "Repository not found")
            else:
                self._error(401, None, "Invalid username or password.")
            return None
        return repository

    def _error(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        self._send(status, headers | ({"X-Error-Code": code} if code else {}), json.dumps({"error": message}).encode())

    def _body(self, content: bytes, headers: dict[str, str]) -> None:
        fault = self.fault
        if fault is not None and fault.body is not None:
            content, headers = fault.body, headers | fault.headers
        if fault is not None and fault.alter is not None:
            content = fault.alter(content)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None or (fault is not None and fault.no_ranges):
            self._send(200, headers, content)
            return
        start, stop = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
        if start >= len(content):
            self._send(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            return
        part = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        self._send(206, headers | part, content[start:stop])

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fault.cut if self.fault is not None else None
        try:
            for start in range(0, len(body) if cut is None else cut, 1 << 16):
                piece = body[start : min(start + (1 << 16), len(body) if cut is None else cut)]
                self.wfile.write(piece)
                self.request_seen.sent += len(piece)
            if cut is not None:
                self.wfile.flush()
                while self.fault is not None and self.fault.stall and not self.hub.stopping.is_set():
                    time.sleep(0.01)
                self.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
