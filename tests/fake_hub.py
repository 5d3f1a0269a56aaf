"""A hub on this machine: as much of its HTTP interface as downloads and uploads need, over folders; it notes what it
is asked.

Pages: `/api/models/ID/revision/REV` (commit and files), `/ID/resolve/REV/FILE` (HEAD, GET, Range). Files of more than
`LARGE` bytes have their SHA-256 as ETag, as those in git LFS have.

Uploads: `/api/repos/create`; `/api/models/ID/preupload/main`, which tells the client which files (of more than `LARGE`
bytes) go to git LFS; their batch and PUT; and `/api/models/ID/commit/main`, which takes the other files in its body.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 2_000


@dataclass
class FakeHub:
    """What is served, how, and what was asked for."""

    repos: dict[str, Path] = field(default_factory=dict)
    """`owner/name` -> folder."""
    gated: set[str] = field(default_factory=set)
    """Repositories whose files are refused: with 401 without a token, with 403 to an account that has no access."""
    cut: set[str] = field(default_factory=set)
    """Ends of paths whose first transfer breaks off in the middle."""
    stall: set[str] = field(default_factory=set)
    """Ends of paths whose transfer stops in the middle and never goes on."""
    writable: str = ""
    """Folder under which new repositories are created by whoever has a token; empty: nobody may write."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range)."""
    url: str = ""

    def commit(self, repo: str) -> str:
        """Changes with the content, as on the hub."""
        total = hashlib.sha1()
        for name, data in self.files(repo).items():
            total.update(name.encode() + data)
        return total.hexdigest()

    def files(self, repo: str) -> dict[str, bytes]:
        folder = self.repos[repo]
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def sent(self) -> list[str]:
        """The files that were asked for, by name, in order."""
        return [path.split("/resolve/")[1].split("/", 1)[1] for method, path, _ in self.asked if method == "GET"
                and "/resolve/" in path]  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.body()
        self.hub.asked.append(("POST", path, ""))
        if path == "/api/validate-yaml":
            return self.send(b'{"errors": [], "warnings": []}', {}, True)
        if not self.headers.get("Authorization"):
            return self.refuse(401, "Unauthorized")
        if not self.hub.writable:
            return self.refuse(403, "Forbidden")
        if path == "/api/repos/create":
            request = json.loads(body)
            repo = f"{request['organization']}/{request['name']}"
            self.hub.repos[repo] = Path(self.hub.writable) / repo
            self.hub.repos[repo].mkdir(parents=True, exist_ok=True)
            return self.send(json.dumps({"url": f"{self.hub.url}/{repo}", "name": repo}).encode(), {}, True)
        match = re.fullmatch(
            r"(?:/api/models)?/([^/]+/[^/.]+)(/preupload/main|/commit/main|[.]git/info/lfs/objects/batch)", path
        )
        if match is None or match[1] not in self.hub.repos:
            return self.refuse(404, "RepoNotFound")
        answer = getattr(self, f"on_{match[2].split('/')[-2]}")(match[1], body)
        self.send(json.dumps(answer).encode(), {}, True)

    def on_preupload(self, repo: str, body: bytes) -> dict[str, object]:
        sizes = {file["path"]: file["size"] for file in json.loads(body)["files"]}
        modes = {path: "lfs" if size > LARGE else "regular" for path, size in sizes.items()}
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}

    def on_objects(self, repo: str, body: bytes) -> dict[str, object]:
        objects = [{**each, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
                   for each in json.loads(body)["objects"]]  # fmt: skip
        return {"transfer": "basic", "objects": objects}

    def on_commit(self, repo: str, body: bytes) -> dict[str, object]:
        folder = self.hub.repos[repo]
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                data = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                data = (Path(self.hub.writable) / "lfs" / value["oid"]).read_bytes()
            else:
                continue
            (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / value["path"]).write_bytes(data)
        commit = self.hub.commit(repo)
        return {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit}

    def do_PUT(self) -> None:
        path, data = urlsplit(self.path).path, self.body()
        self.hub.asked.append(("PUT", path, ""))
        at = Path(self.hub.writable) / path.removeprefix("/")
        if hashlib.sha256(data).hexdigest() != at.name:
            return self.refuse(422, "WrongContents")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(data)
        self.send(b"", {}, True)

    def body(self) -> bytes:
        """What the client sends, of a stated length or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def refuse(self, code: int, reason: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("X-Error-Message", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        if match is None or match[1] not in self.hub.repos:
            return self.refuse(404, "RepoNotFound")
        repo, revision = match[1], match[2]
        commit = self.hub.commit(repo)
        if revision not in ("main", commit):
            return self.refuse(404, "RevisionNotFound")
        files = self.hub.files(repo)
        if file is None:
            rows = [{"rfilename": name, "size": len(data), "blobId": "0"} for name, data in files.items()]
            return self.send(json.dumps({"id": repo, "sha": commit, "siblings": rows}).encode(), {}, body)
        if repo in self.hub.gated:
            return self.refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        if file[3] not in files:
            return self.refuse(404, "EntryNotFound")
        data = files[file[3]]
        kind = hashlib.sha256 if len(data) > LARGE else hashlib.sha1
        self.send(data, {"ETag": f'"{kind(data).hexdigest()}"', "X-Repo-Commit": commit}, body)

    def send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(first[1]) if first else 0
        self.send_response(206 if first else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if first:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not body:
            return
        path = unquote(urlsplit(self.path).path)
        if any(path.endswith(end) for end in self.hub.stall):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            time.sleep(60)
        elif ends := {end for end in self.hub.cut if path.endswith(end)}:
            self.hub.cut -= ends
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
        else:
            self.wfile.write(data[start:])


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """`hub` answers at `hub.url` inside."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
