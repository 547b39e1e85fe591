"""A server on this machine that speaks the Hub's HTTP API, faults included, for the unmodified client.

    def test_something(hub_server, tmp_path):
        hub_server.create("me/mine", {"config.json": b"{}"})
        done = run_client(hub_server, "import ditzoo; ...", cache=tmp_path)

The client reads its settings when it is imported: `run_client` and `client_environment` give them to a fresh process,
`use_hub` puts them in place in this one.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.hub_routes import Answer, Call, answer
from tests.hub_store import Blob, HubError, HubStore, Repository, User, belongs_in_lfs

ROOT = Path(__file__).parent.parent
#: Of the user `me`, who may write.
TOKEN = "hf_" + "mEtEsTtOkEn" * 3


@dataclass(frozen=True)
class Request:
    """A request that came in, with the status that went out: None if the connection was cut.

    Names of headers are in lower case.
    """

    method: str
    path: str
    headers: dict[str, str]
    status: int | None


@dataclass
class _Fault:
    """What goes wrong with the next requests of one kind."""

    times: int
    status: int | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None
    on: re.Pattern[str] = re.compile("")
    cut_after: int | None = None
    reset: bool = False
    alter: Callable[[bytes], bytes] | None = None
    delay: float = 0.0


class HubServer:
    """The server: `url` of its API, `store` of its repositories, `requests` that came in.

    Large files lie on a second port, `storage_url`, as the Hub has them on other machines: the client must not send
    the token there.
    """

    def __init__(self) -> None:
        self.store = HubStore()
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._faults: dict[str, list[_Fault]] = {"request": [], "download": [], "upload": []}
        self._listeners = [_Listener(self), _Listener(self)]
        self.url, self.storage_url = (f"http://127.0.0.1:{each.server_port}" for each in self._listeners)
        self.add_user(TOKEN, "me")

    def __enter__(self) -> HubServer:
        for each in self._listeners:
            threading.Thread(target=each.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        for each in self._listeners:
            each.shutdown()
            each.server_close()

    # What is there

    def add_user(self, token: str, name: str, *, may_write: bool = True) -> None:
        """A user, or another token of one."""
        self.store.users[token] = User(name, may_write)

    def create(
        self, repo_id: str, files: Mapping[str, bytes] | None = None, *, private: bool = False, gated: bool = False
    ) -> Repository:
        """A repository with these files in its second commit; the Hub itself makes the first."""
        repository = self.store.create(repo_id, private=private, gated=gated)
        if files:
            blobs = {path: Blob(data, belongs_in_lfs(path, len(data))) for path, data in files.items()}
            repository.commit(blobs)
        return repository

    def repository(self, repo_id: str) -> Repository:
        return self.store.repositories[repo_id]

    def asked(self, method: str, path: str) -> list[Request]:
        """The requests with this method whose path matches a regular expression somewhere."""
        return [each for each in self.requests if each.method == method and re.search(path, each.path)]

    # What goes wrong

    def fail(
        self,
        status: int,
        *,
        on: str = "",
        times: int = 1,
        message: str = "",
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer the next requests whose "METHOD /path" matches `on` with this status."""
        fault = _Fault(times, status, message, headers or {}, code, re.compile(on))
        self._faults["request"].append(fault)

    def delay(self, seconds: float, *, on: str = "", times: int = 1) -> None:
        """Wait before the next answers."""
        self._faults["request"].append(_Fault(times, on=re.compile(on), delay=seconds))

    def cut_downloads(self, after: int, *, times: int = 1, reset: bool = False) -> None:
        """Close the connection after so many bytes of the next downloads; `reset`: as a crash would."""
        self._faults["download"].append(_Fault(times, cut_after=after, reset=reset))

    def alter_downloads(self, alter: Callable[[bytes], bytes], *, times: int = 1) -> None:
        """Send other bytes in the next downloads than the Hub names."""
        self._faults["download"].append(_Fault(times, alter=alter))

    def cut_uploads(self, after: int, *, times: int = 1) -> None:
        """Close the connection after so many bytes of the next large files that come in."""
        self._faults["upload"].append(_Fault(times, cut_after=after))

    def heal(self) -> None:
        """Forget the faults that have not happened."""
        for faults in self._faults.values():
            faults.clear()

    def next_fault(self, kind: str, what: str = "") -> _Fault | None:
        with self.lock:
            for fault in self._faults[kind]:
                if fault.times > 0 and fault.on.search(what):
                    fault.times -= 1
                    return fault
        return None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error of the server's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for the client's acknowledgement
    server: _Listener

    def log_message(self, *parts: Any) -> None:
        """Nothing: tests look at `requests`."""

    def _serve(self) -> None:
        try:
            self._answer(self.server.hub)
        except _CutError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _answer(self, hub: HubServer) -> None:
        url = urlsplit(self.path)
        body = self._body(hub.next_fault("upload") if self.command == "PUT" else None)
        fault = hub.next_fault("request", f"{self.command} {url.path}")
        if fault is not None and fault.delay:
            hub.closing.wait(fault.delay)
        try:
            if fault is not None and fault.status is not None:
                raise HubError(fault.status, fault.message, code=fault.code, headers=fault.headers)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
            with hub.lock:
                user = hub.store.user_of(token)
                call = Call(hub.store, user, parse_qs(url.query), body, hub.url, hub.storage_url)
                reply = answer(self.command, url.path, call)
        except HubError as error:
            reply = Answer({"error": error.message}, error.status, error.headers)
        if reply.is_file:
            self._send_file(reply)
        else:
            content = b"" if reply.content is None else json.dumps(reply.content).encode()
            self._send(reply.status, {"Content-Type": "application/json", **reply.headers}, content)

    def _body(self, fault: _Fault | None) -> bytes:
        num_bytes = int(self.headers.get("Content-Length", 0))
        if fault is not None:
            self.rfile.read(min(fault.cut_after or 0, num_bytes))
            self._record(None)
            self._cut(fault.reset)
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(num_bytes)

    def _send_file(self, reply: Answer) -> None:
        fault = self.server.hub.next_fault("download") if self.command == "GET" else None
        data = reply.content if fault is None or fault.alter is None else fault.alter(reply.content)
        status, headers, part = 200, {"Accept-Ranges": "bytes", **reply.headers}, data
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            if first > last:
                self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
                return
            status, part = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(status, headers, part, fault)

    def _send(self, status: int, headers: dict[str, str], content: bytes, fault: _Fault | None = None) -> None:
        cut_after = None if fault is None else fault.cut_after
        self._record(status if cut_after is None else None)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut_after])
            if cut_after is not None:
                self._cut(fault.reset)

    def _record(self, status: int | None) -> None:
        """Before anything is sent, so that who has the answer also finds the request."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.hub.requests.append(Request(self.command, self.path, headers, status))

    def _cut(self, reset: bool) -> None:
        if reset:  # no farewell: what the other side has not read is lost
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        raise _CutError


class _CutError(Exception):
    pass


# Clients


def client_settings(server: HubServer, cache: Path | str, *, offline: bool, token: str | None) -> dict[str, str]:
    """The variables by which the Hub's client finds this server, and nothing of this machine's own."""
    settings = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": str(int(offline)),
        # The client would send through Xet whenever it is installed, and hang here.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return settings if token is None else {**settings, "HF_TOKEN": token}


def client_environment(
    server: HubServer, *, cache: Path | str, offline: bool = False, token: str | None = TOKEN
) -> dict[str, str]:
    """The environment of a fresh process whose cache lies in the folder `cache`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, **client_settings(server, cache, offline=offline, token=token)}


def run_client(
    server: HubServer, code: str, *, cache: Path | str, offline: bool = False, token: str | None = TOKEN
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process whose Hub is this server."""
    environment = client_environment(server, cache=cache, offline=offline, token=token)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def use_hub(
    monkeypatch: Any,
    server: HubServer,
    *,
    cache: Path | str,
    offline: bool = False,
    token: str | None = TOKEN,
) -> None:
    """Let the Hub's client of this process talk to this server until the test ends."""
    from huggingface_hub import constants

    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    for name, value in client_settings(server, cache, offline=offline, token=token).items():
        monkeypatch.setenv(name, value)
    values = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(Path(cache, "hub")),
        "HF_TOKEN_PATH": str(Path(cache, "token")),
        "HF_STORED_TOKENS_PATH": str(Path(cache, "stored_tokens")),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)


def no_waiting(monkeypatch: Any) -> list[float]:
    """Let the client of this process try again at once; returns the list of seconds that it would have waited."""
    waits: list[float] = []
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(sleep=waits.append, time=time.time))
    return waits
