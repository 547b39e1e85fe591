"""Files from the web: whole, resumed and checked, or an error that says what to do and gives no key away."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants

from ditzoo.weights import DownloadError, download, fetch_url
from ditzoo.weights.cache import cache_folder
from tests.weights.file_server import serving

CONTENT = np.random.RandomState(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BY_HAND = r"download it in a browser and give its place, checkpoint='path/to/weights\.pt'"


@pytest.fixture
def server():
    with serving(CONTENT) as running:
        yield running


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(download, "_PAUSE", 0.0)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def partials() -> list[int]:
    """Sizes of the unfinished files in the cache."""
    return [path.stat().st_size for path in cache_folder().rglob("*.partial")]


def error_of(server, **options: object) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch_url(server.url, **options)
    assert "SECRET" not in str(caught.value)
    assert f"{server.address}/models/weights.pt" in str(caught.value)
    return str(caught.value)


# All is well.


def test_a_file_is_fetched_once_and_kept_under_its_name(server, capfd):
    path = fetch_url(server.url, sha256=SHA256.upper(), num_bytes=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert path.name == "weights.pt"
    assert path.parent.parent == cache_folder() / "downloads"
    assert fetch_url(server.url) == path
    assert len(server.requests) == 1
    assert server.requests[0]["accept-encoding"] == "identity"
    assert capfd.readouterr().err == ""  # no progress bar where nobody watches
    assert server.requests[0]["user-agent"].startswith("ditzoo/")
    assert sorted(file.name for file in path.parent.iterdir()) in (["weights.pt"], ["weights.pt", "weights.pt.lock"])


def test_two_addresses_with_one_file_name_are_two_files(server):
    paths = [fetch_url(f"{server.address}/{folder}/weights.pt") for folder in ("a", "b")]
    assert paths[0] != paths[1]
    assert [path.name for path in paths] == ["weights.pt"] * 2
    assert fetch_url(f"{server.address}/a/weights.pt", filename="other.pt").name == "other.pt"


def test_a_file_without_a_told_length(server):
    server.tells_length = False
    assert fetch_url(server.url).read_bytes() == CONTENT


def test_a_redirect_is_followed(server):
    server.location = f"{server.address}/moved/weights.pt"
    assert fetch_url(server.url).read_bytes() == CONTENT


def test_two_threads_share_one_download(server):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch_url(server.url), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(server.requests) == 1


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_folder().name.startswith("cache-")
    monkeypatch.setenv("DITZOO_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ditzoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "ditzoo"
    monkeypatch.setenv("DITZOO_CACHE", "~/own")
    assert cache_folder() == tmp_path / "home" / "own"


# The connection breaks.


def test_a_cut_download_goes_on_where_it_was(server):
    server.plan = ["cut", "cut"]
    assert fetch_url(server.url, sha256=SHA256).read_bytes() == CONTENT
    first, second = 100_000, 166_666
    assert [request.get("range") for request in server.requests] == [None, f"bytes={first}-", f"bytes={second}-"]
    assert {request.get("if-range") for request in server.requests[1:]} == {server.etag}


def test_the_next_call_goes_on_too(server):
    server.plan = ["cut"] * 5
    text = error_of(server)
    assert re.search(rf"could not be fetched in 5 attempts: .* bytes are here; call again, .* or {BY_HAND}", text)
    (kept,) = partials()
    assert fetch_url(server.url).read_bytes() == CONTENT
    assert server.requests[-1]["range"] == f"bytes={kept}-"
    assert partials() == []


def test_a_file_that_has_changed_is_fetched_anew(server):
    server.plan = ["cut"] * 5
    error_of(server)
    server.content, server.etag = CONTENT[::-1], '"another"'
    assert fetch_url(server.url).read_bytes() == CONTENT[::-1]
    assert "range" in server.requests[-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_nothing_is_resumed_that_may_have_changed(server, etag):
    server.etag, server.plan = etag, ["cut"]
    assert fetch_url(server.url, sha256=SHA256).read_bytes() == CONTENT
    assert not any("range" in request for request in server.requests)


def test_a_server_that_sends_no_parts(server):
    server.ranges, server.plan = False, ["cut"]
    assert fetch_url(server.url, sha256=SHA256).read_bytes() == CONTENT


def test_a_process_killed_before_the_last_step(server, monkeypatch):
    """All bytes are there, under the name of an unfinished file."""

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(download._Download, "_check", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch_url(server.url)
    assert partials() == [len(CONTENT)]
    assert fetch_url(server.url, sha256=SHA256).read_bytes() == CONTENT
    assert [request.get("range") for request in server.requests] == [None, "bytes=300000-"]


def test_a_part_longer_than_the_file_is_thrown_away(server):
    server.plan = ["cut"] * 5
    error_of(server)
    server.content = CONTENT[:1000]
    assert fetch_url(server.url).read_bytes() == CONTENT[:1000]


def test_a_busy_server_is_asked_again(server):
    server.plan = [503, 429, 500]
    assert fetch_url(server.url).read_bytes() == CONTENT
    assert len(server.requests) == 4


def test_no_server_at_all():
    with serving(CONTENT) as stopped:
        pass
    assert "Connection refused" in error_of(stopped)


# The answer is not the file.


@pytest.mark.parametrize(
    ("status", "words"), [(404, "404 Not Found"), (403, "403 Forbidden"), (401, "401 Unauthorized")]
)
def test_a_refusal_is_told_at_once(server, status, words):
    server.plan = [status]
    text = error_of(server)
    assert re.search(f"the server answered {words}.*{BY_HAND}", text)
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_no_file(server, kind):
    server.content, server.content_type = b"\n<!DOCTYPE html><p>Confirm the download</p>", kind
    assert re.search(f"a web page, not weights.*{BY_HAND}", error_of(server))
    assert partials() == []
    server.content, server.content_type = CONTENT, "application/octet-stream"
    assert fetch_url(server.url).read_bytes() == CONTENT


def test_an_empty_file(server):
    server.content = b""
    assert "is empty (0 bytes)" in error_of(server)


def test_a_wrong_hash(server):
    text = error_of(server, sha256="0" * 64)
    assert f"has the SHA-256 {SHA256}, where {'0' * 64} was expected" in text
    assert partials() == []
    assert fetch_url(server.url, sha256=SHA256).read_bytes() == CONTENT


def test_a_wrong_size_is_told_before_the_download(server):
    text = error_of(server, num_bytes=7)
    assert "has 300,000 bytes, where 7 were expected" in text
    server.tells_length = False
    assert "has 300,000 bytes, where 7 were expected" in error_of(server, num_bytes=7)


def test_a_cached_file_of_another_size_is_fetched_anew(server):
    path = fetch_url(server.url)
    path.write_bytes(b"short")
    assert fetch_url(server.url, num_bytes=len(CONTENT)).read_bytes() == CONTENT


def test_redirects_leave_the_web_nowhere(server):
    server.location = "ftp://example.org/weights.pt?token=SECRET"
    assert "leads to ftp://example.org/weights.pt, which is not safe to follow" in error_of(server)
    server.location = "http://127..1/weights.pt?token=SECRET"
    assert "leads to an address that is none: " in error_of(server)
    assert len(server.requests) == 2


# No network, no room.


@pytest.mark.usefixtures("offline")
def test_offline_without_the_file(server):
    text = error_of(server)
    assert re.search(f"is not in the cache, and HF_HUB_OFFLINE forbids to fetch it.*{BY_HAND}", text)
    assert server.requests == []


def test_offline_with_the_file(server, request):
    path = fetch_url(server.url)
    request.getfixturevalue("offline")
    assert fetch_url(server.url) == path
    assert len(server.requests) == 1


def test_too_little_room_is_told_before_the_download(server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    text = error_of(server)
    assert "300,000 more bytes are needed, 1,000 are free" in text
    assert "DITZOO_CACHE" in text
    assert partials() == []


def test_a_disk_that_fills_up_keeps_what_came(server, monkeypatch):
    chunks = iter([CONTENT[:1000], CONTENT[1000:2000]])

    def filling(answer):
        yield next(chunks)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(download, "_chunks", filling)
        text = error_of(server)
    assert "No space left on device; free some space and call again, which goes on there" in text
    assert partials() == [1000]
    assert fetch_url(server.url, sha256=SHA256).read_bytes() == CONTENT
    assert server.requests[-1]["range"] == "bytes=1000-"


def test_a_cache_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DITZOO_CACHE", str(tmp_path / "file"))
    assert "Not a directory" in error_of(server)


# What is no address.


@pytest.mark.parametrize(
    ("url", "filename", "text"),
    [
        ("file:///etc/passwd", None, r"file:///etc/passwd cannot be fetched: give an address that begins with https"),
        ("ftp://host/a.pt", None, "ftp://host/a.pt cannot be fetched"),
        ("weights.pt", None, "cannot be fetched"),
        ("https:///a.pt", None, "cannot be fetched"),
        ("https://me:SECRET@host/a.pt", None, "https://host/a.pt was given with a user or a password"),
        ("https://host/a b.pt?key=SECRET", None, "'https://host/a b.pt' is no address: it holds blanks"),
        ("https://host/a.pt\r\nX: y", None, "is no address"),
        ("https://me:SECRET@host..x/a.pt?SECRET", None, r"'host\.\.x/a\.pt' is no address: .* label empty"),
        ("https://host:99999/a.pt?SECRET", None, r"'https://host:99999/a\.pt' is no address: Port out of range"),
        ("https://[::1/a.pt?SECRET", None, "is no address: Invalid IPv6 URL"),
        ("https://host/?key=SECRET", None, "'' cannot be the name of a file; give another as filename"),
        ("https://host/..%2Fa.pt", None, r"'\.\./a\.pt' cannot be the name of a file"),
        ("https://host/a.pt", "../a.pt", "cannot be the name of a file"),
        ("https://host/a.pt", "a\x1b.pt", "cannot be the name of a file"),
    ],
)
def test_wrong_arguments(url, filename, text):
    with pytest.raises(ValueError, match=text) as caught:
        fetch_url(url, filename=filename)
    assert "SECRET" not in str(caught.value)
