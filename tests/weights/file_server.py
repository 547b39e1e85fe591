"""A web server on this machine that has one file, and whatever goes wrong with servers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer:
    """Answers every path with `content`, as `plan` says.

    Attributes:
        content: of the file.
        requests: headers of every request so far, names in lower case.
        plan: what to do with the next requests: `"cut"` sends a third of what was asked for and hangs up, a number is
            answered as status; empty: all is well.
        content_type: told with the file.
        etag: told with the file; None leaves it out.
        ranges: whether parts of the file can be asked for.
        tells_length: whether the size is told with the file.
        location: where to redirect to, if anywhere.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.requests: list[dict[str, str]] = []
        self.plan: list[object] = []
        self.content_type = "application/octet-stream"
        self.etag: str | None = '"' + hashlib.md5(content).hexdigest() + '"'
        self.ranges = True
        self.tells_length = True
        self.location: str | None = None
        self.address = ""

    @property
    def url(self) -> str:
        return f"{self.address}/models/weights.pt?rlkey=SECRET&dl=0"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = {key.lower(): value for key, value in handler.headers.items()}
        self.requests.append(asked)
        step = self.plan.pop(0) if self.plan else None
        if isinstance(step, int):
            handler.send_error(step, "SECRET")
            return
        if self.location is not None and not handler.path.startswith("/moved"):
            handler.send_response(302)
            handler.send_header("Location", self.location)
            handler.end_headers()
            return
        begin = self._begin(asked)
        if begin >= len(self.content) > 0:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = self.content[begin:]
        handler.send_response(206 if begin else 200)
        handler.send_header("Content-Type", self.content_type)
        if self.etag is not None:
            handler.send_header("ETag", self.etag)
        if begin:
            total = len(self.content)
            handler.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        if self.tells_length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 3] if step == "cut" else body)

    def _begin(self, asked: dict[str, str]) -> int:
        if not self.ranges or "range" not in asked or asked.get("if-range") != self.etag:
            return 0
        return int(asked["range"].removeprefix("bytes=").removesuffix("-"))


@contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    files = FileServer(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files.answer(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    files.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
