"""A hub on this machine: the few endpoints that huggingface_hub calls to make a repository and to commit a folder."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "a" * 34


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """What the stand-in holds. Owners other than ``someone`` are refused, as is who has no token."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    agents: set[str] = field(default_factory=set)


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def answer(self, status: int, body: Any, code: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        if status >= 400:
            self.send_header("X-Error-Message", body["error"])
        self.end_headers()
        self.wfile.write(data)

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def refused(self) -> bool:
        self.hub.agents.add(self.headers.get("User-Agent", ""))
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return False
        self.answer(401, {"error": "Invalid credentials in Authorization header"})
        return True

    def repository(self, name: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        if found is None:
            self.answer(404, {"error": "Repository not found"}, "RepoNotFound")
        return found

    def do_GET(self) -> None:
        if self.refused():
            return
        path, _, _ = self.path.partition("?")
        owner, name, *rest = path.removeprefix("/api/models/").split("/")
        found = self.repository(f"{owner}/{name}")
        if found is None:
            return
        if rest[:1] == ["tree"]:
            rows = []
            for each, data in found.files.items():
                rows.append({"type": "file", "path": each, "size": len(data), "oid": hashlib.sha1(data).hexdigest()})
            self.answer(200, rows)
            return
        self.answer(200, {"id": f"{owner}/{name}", "private": found.private, "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        data = self.read()
        if self.refused():
            return
        path, _, _ = self.path.partition("?")
        if path == "/api/repos/create":
            self.create(json.loads(data))
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = []
            for each in json.loads(data)["objects"]:
                upload = {"href": f"{self.hub.address}/blobs/{each['oid']}", "header": {}}
                objects.append({**each, "actions": {"upload": upload}})
            self.answer(200, {"transfer": "basic", "objects": objects})
        else:
            owner, name, what, _ = path.removeprefix("/api/models/").split("/")
            found = self.repository(f"{owner}/{name}")
            if found is not None:
                {"preupload": self.preupload, "commit": self.commit}[what](found, data, f"{owner}/{name}")

    def create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or "someone"
        if owner != "someone":
            self.answer(403, {"error": f"You don't have the rights to create a model under the namespace {owner}"})
            return
        private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
        self.hub.repositories[f"{owner}/{asked['name']}"] = Repository(private)
        self.answer(200, {"url": f"{self.hub.address}/{owner}/{asked['name']}"})

    def preupload(self, found: Repository, data: bytes, name: str) -> None:
        modes = []
        for each in json.loads(data)["files"]:
            mode = "lfs" if each["path"].endswith(".safetensors") else "regular"
            modes.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False})
        self.answer(200, {"files": modes})

    def commit(self, found: Repository, data: bytes, name: str) -> None:
        for line in data.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                found.commits.append(value["summary"])
            elif entry["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del found.files[value["path"]]
        oid = f"{len(found.commits):040d}"
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.address}/{name}/commit/{oid}"})

    def do_PUT(self) -> None:
        data = self.read()
        oid = self.path.removeprefix("/blobs/")
        if hashlib.sha256(data).hexdigest() != oid:
            self.answer(400, {"error": "other bytes than announced"})
            return
        self.hub.blobs[oid] = data
        self.answer(200, {})
