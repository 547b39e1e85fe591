"""Large files from an address of the web: resumed, checked, kept in the user's cache. The Hub has `weights.hub`."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock

from ditzoo import __version__
from ditzoo.weights.cache import cache_folder
from ditzoo.weights.hub import DownloadError

_ATTEMPTS = 5
_PAUSE = 1.0  # seconds before the second attempt, twice as long before each further one
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 2**20
#: Answers that may be others a little later.
_PASSING = {408, 425, 429, 500, 502, 503, 504}


def fetch_url(
    url: str, *, filename: str | None = None, sha256: str | None = None, num_bytes: int | None = None
) -> Path:
    """A file from the web, from the user's cache if it is there.

    A download that was cut off goes on where it was if the server says that the file is still the same; a second
    process that wants the same file waits for the first. Nothing is fetched when `HF_HUB_OFFLINE` is set.

    Args:
        url: `https://` or `http://`. What may be a key in it, from the question mark on, is in no message.
        filename: name in the cache; default: the end of the address.
        sha256: of the whole file, compared after the download.
        num_bytes: its size, compared before and after.

    Returns:
        The file, in a folder of its own for this address.

    Raises:
        ValueError: the address is no `http` or `https` one, or carries a password; the file name is none.
        DownloadError: the file could not be fetched or is not the one wanted; the message says what to do.
    """
    source = _Source(url, _checked_name(url, filename), sha256, num_bytes)
    path = _cached_path(source)
    if _is_cached(path, num_bytes):
        return path
    if _is_offline():
        raise DownloadError(
            f"{source} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it. Unset that, or {source.by_hand}."
        )
    with source.errors_of_the_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not _is_cached(path, num_bytes):  # another process may have been faster
                _Download(source, path).run()
    return path


@dataclass(frozen=True)
class _Source:
    """What is wanted, and from where."""

    url: str
    filename: str
    sha256: str | None
    num_bytes: int | None

    def __str__(self) -> str:
        return shown_url(self.url)

    @property
    def by_hand(self) -> str:
        return f"download it in a browser and give its place, checkpoint='path/to/{self.filename}'"

    @contextmanager
    def errors_of_the_disk(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, DownloadError):
                raise
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "free some space and call again, which goes on there" if full else "check that folder"
            raise DownloadError(
                f"{self} cannot be written to {path.parent}: {error.strerror or error}; {hint}, or set DITZOO_CACHE to "
                "a folder on another disk."
            ) from error


class _CutOffError(Exception):
    """The connection broke, or the server is busy: it may work again."""


class _Download:
    """One download into `path`, over `path.partial`; beside it lies what the server calls this state of the file."""

    def __init__(self, source: _Source, path: Path) -> None:
        self.source = source
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.state = path.with_name(f"{path.name}.partial.json")

    def run(self) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._fetch()
                break
            except _CutOffError as error:
                if attempt == _ATTEMPTS:
                    raise DownloadError(
                        f"{self.source} could not be fetched in {_ATTEMPTS} attempts: {error}. {self._offset():,} "
                        f"bytes are here; call again, which goes on there, or {self.source.by_hand}."
                    ) from error.__cause__
                time.sleep(_PAUSE * 2 ** (attempt - 1))
        self._check()
        self.partial.replace(self.path)
        self.state.unlink(missing_ok=True)

    def _offset(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _fetch(self) -> None:
        """One request, to the end of the file."""
        validator = self._validator()
        if validator is None:  # what is there cannot be gone on with: nobody knows whether the file has changed
            self.partial.unlink(missing_ok=True)
        offset = self._offset()
        headers = {"User-Agent": f"ditzoo/{__version__}", "Accept-Encoding": "identity"}
        if offset and validator:
            headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
        try:
            answer = _open(Request(self.source.url, headers=headers))
        except HTTPError as error:
            with error:
                self._refused(error, offset)
            return
        except DownloadError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise _CutOffError(_reason(error)) from error
        with answer:
            self._receive(answer, offset)

    def _receive(self, answer: Any, offset: int) -> None:
        begin, total = _range_of(answer, offset)
        if begin != offset:  # the file is another one by now, or the server knows no ranges
            offset = 0
        if begin not in (0, offset):
            raise DownloadError(f"{self.source} answered with another part of the file; {self.source.by_hand}.")
        if answer.headers.get_content_type() == "text/html":
            self._discard()
            raise DownloadError(self._web_page())
        self._check_size(total)
        if not offset:  # before the new state is written: it is none of what is there
            self.partial.unlink(missing_ok=True)
        self._check_space(total)
        self.state.write_text(json.dumps({"validator": _validator_of(answer)}), encoding="utf-8")
        with self.partial.open("ab" if offset else "wb") as file, _bar(self.source.filename, total, offset) as bar:
            for chunk in _chunks(answer):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and self._offset() < total:
            raise _CutOffError(f"{self._offset():,} of {total:,} bytes came")

    def _refused(self, error: HTTPError, offset: int) -> None:
        code = error.code
        answer = f"{code} {http.client.responses.get(code, '')}".strip()  # not the server's text, which may hold keys
        if code == 416 and offset and error.headers.get("Content-Range") == f"bytes */{offset}":
            return  # all of it was there already
        if code == 416 and offset:
            self._discard()
            raise _CutOffError(answer) from None
        if code in _PASSING:
            raise _CutOffError(f"the server answered {answer}") from None
        raise DownloadError(
            f"{self.source} cannot be fetched: the server answered {answer}. If it has moved, or asks to sign in, "
            f"{self.source.by_hand}."
        ) from None

    def _check(self) -> None:
        """That what came is what was wanted."""
        if not self._offset():
            raise DownloadError(f"{self.source} is empty (0 bytes) at its server; {self.source.by_hand}.")
        with self.partial.open("rb") as file:
            head = file.read(512).lstrip().lower()
            if head.startswith((b"<!doctype html", b"<html")):
                self._discard()
                raise DownloadError(self._web_page())
            file.seek(0)
            wanted = self.source.sha256
            found = hashlib.file_digest(file, "sha256").hexdigest() if wanted else None
        self._check_size(self._offset())
        if wanted and found != wanted.lower():
            self._discard()
            raise DownloadError(
                f"{self.source} has the SHA-256 {found}, where {wanted.lower()} was expected: it is another file, or "
                "was damaged on the way. It was removed; call again, and if that does not help ask its authors."
            )

    def _check_size(self, total: int | None) -> None:
        wanted = self.source.num_bytes
        if total is None or wanted is None or total == wanted:
            return
        self._discard()
        raise DownloadError(
            f"{self.source} has {total:,} bytes, where {wanted:,} were expected: its authors have put another file "
            f"there. If you want that one, {self.source.by_hand}."
        )

    def _check_space(self, total: int | None) -> None:
        missing, free = (total or 0) - self._offset(), shutil.disk_usage(self.path.parent).free
        if missing > free:
            raise OSError(errno.ENOSPC, f"{missing:,} more bytes are needed, {free:,} are free")

    def _web_page(self) -> str:
        return (
            f"{self.source} answered with a web page, not weights: its server asks for something first, or the file "
            f"has moved. Open the address in a browser: {self.source.by_hand}."
        )

    def _validator(self) -> str | None:
        try:
            validator = json.loads(self.state.read_text(encoding="utf-8"))["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return validator if isinstance(validator, str) and validator.isprintable() else None

    def _discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)


def shown_url(url: str) -> str:
    """An address without what may be a key or a password in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _checked_name(url: str, filename: str | None) -> str:
    """The file's name in the cache, once the address and it are fit to be used."""
    if re.search(r"[\s\x00-\x1f\x7f]", url) or not url.isascii():
        raise ValueError(f"{shown_url(url)!r} is no address: it holds blanks or other signs that must be escaped.")
    if reason := _malformed(url):
        raise ValueError(f"{url.partition('?')[0].rpartition('@')[2]!r:.100} is no address: {reason}. Check it.")
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError(f"{shown_url(url)} cannot be fetched: give an address that begins with https:// or http://.")
    if "@" in parts.netloc:
        raise ValueError(f"{shown_url(url)} was given with a user or a password, which is refused; fetch it by hand.")
    name = unquote(parts.path.rpartition("/")[2]) if filename is None else filename
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable() or len(name.encode()) > 200:
        raise ValueError(f"{name!r} cannot be the name of a file; give another as filename, without folders.")
    return name


def _malformed(url: str) -> str:
    """Why Python could not connect to an address; empty where it could."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        return "" if parts.port != 0 else "its port is 0"
    except ValueError as error:
        return str(error).rstrip(".")


def _cached_path(source: _Source) -> Path:
    """Two addresses with one file name have two folders."""
    return cache_folder() / "downloads" / hashlib.sha256(source.url.encode()).hexdigest()[:16] / source.filename


def _is_cached(path: Path, num_bytes: int | None) -> bool:
    return path.is_file() and num_bytes in (None, path.stat().st_size)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


class _Redirects(HTTPRedirectHandler):
    """Followed to the web alone, and not from an encrypted to an open connection."""

    def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = ("https",) if req.type == "https" else ("https", "http")
        if reason := _malformed(newurl):
            raise DownloadError(f"{shown_url(req.full_url)} leads to an address that is none: {reason}.")
        if urlsplit(newurl).scheme not in allowed:
            raise DownloadError(f"{shown_url(req.full_url)} leads to {shown_url(newurl)}, which is not safe to follow.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: Request) -> Any:
    return build_opener(_Redirects).open(request, timeout=_TIMEOUT)


def _range_of(answer: Any, offset: int) -> tuple[int, int | None]:
    """Where the answer begins in the file, and the size of the whole file if it is told."""
    if answer.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        return (int(match[1]), None if match[2] == "*" else int(match[2])) if match else (-1, None)
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _validator_of(answer: Any) -> str | None:
    """What tells this state of the file from others, for `If-Range`; weak tags do not."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified")


def _chunks(answer: Any) -> Iterator[bytes]:
    while chunk := _read(answer):
        yield chunk


def _read(answer: Any) -> bytes:
    try:
        chunk: bytes = answer.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _CutOffError(_reason(error)) from error
    return chunk


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)


@contextmanager
def _bar(name: str, total: int | None, done: int) -> Iterator[Any]:
    """A progress bar as the Hub's client shows it; none where nobody watches."""
    from huggingface_hub.utils.tqdm import tqdm

    with tqdm(desc=name, total=total, initial=done, unit="B", unit_scale=True, disable=None) as bar:
        yield bar
