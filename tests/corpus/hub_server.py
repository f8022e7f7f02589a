"""A small server that speaks as much of the hub's protocol as reading a data set needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["serve"]


@contextmanager
def serve(name: str, commit: str, files: dict[str, bytes]) -> Iterator[str]:
    """Serve one data set repository on loopback; yields the address to set as HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
            self.send(200, json.dumps([entry(path) for path in asked if path in files]).encode())

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if re.fullmatch(rf"/api/datasets/{name}(/revision/(main|{commit}))?", path):
                siblings = [{"rfilename": file} for file in files]
                self.send(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode(), body)
            elif re.fullmatch(rf"/api/datasets/{name}/tree/{commit}", path):
                self.send(200, json.dumps([entry(file) for file in files]).encode(), body)
            elif (found := re.fullmatch(rf"/datasets/{name}/resolve/{commit}/(.+)", path)) and found[1] in files:
                self.send_file(files[found[1]], body)
            else:
                code = "EntryNotFound" if commit in path else "RepoNotFound"
                self.send(404, b"{}", body, {"X-Error-Code": code})

        def send_file(self, data: bytes, body: bool) -> None:
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked and body:
                first, last = int(asked[1]), int(asked[2] or len(data) - 1)
                headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
                self.send(206, data[first : last + 1], body, headers)
            else:
                self.send(200, data, body, headers)

        def send(self, code: int, data: bytes, body: bool = True, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    def entry(path: str) -> dict[str, object]:
        data = files[path]
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
