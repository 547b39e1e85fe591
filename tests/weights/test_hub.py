"""Fetching from and pushing to the Hub, and what becomes of its errors."""

import errno
import hashlib
import os
import re
import socket
import traceback
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from ditzoo.weights.hub import DownloadError, HubName, UploadError, fetch_file, fetch_folder, is_hub_name, push_folder
from ditzoo.weights.hub_errors import without_tokens
from tests.hub_server import TOKEN, no_waiting, run_client, use_hub
from tests.hub_store import Blob

CONFIG = b'{"architecture": "dit_ti_2"}'
WEIGHTS = bytes(range(256)) * 8
#: Of the Hub's own form.
OTHER_TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"


@pytest.fixture
def hub(hub_server, monkeypatch, tmp_path):
    """The server, as the Hub of this process."""
    use_hub(monkeypatch, hub_server, cache=tmp_path / "cache")
    hub_server.waits = no_waiting(monkeypatch)
    return hub_server


@pytest.fixture
def repository(hub):
    return hub.create("me/mine", {"config.json": CONFIG, "model.safetensors": WEIGHTS})


@pytest.fixture
def folder(tmp_path):
    """A folder of a model, to be pushed."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def refusal(call, error=DownloadError):
    """The text of the error that a call ends with."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    text = str(caught.value)
    assert "\n" not in text
    return text


# Names


@pytest.mark.parametrize(
    ("text", "repo_id", "revision", "path"),
    [
        ("hf-hub:me/mine", "me/mine", None, None),
        ("hf-hub:me/mine@v1.0", "me/mine", "v1.0", None),
        ("hf-hub:me/mine@refs/pr/1", "me/mine", "refs/pr/1", None),
        ("hf-hub:me/mine/ema.pt", "me/mine", None, "ema.pt"),
        ("hf-hub:Me-1/a_b.c/x/y.pt@0123abc", "Me-1/a_b.c", "0123abc", "x/y.pt"),
    ],
)
def test_names(text, repo_id, revision, path):
    name = HubName.parse(text)
    assert name == HubName(repo_id, revision, path)
    assert str(name) == text
    assert is_hub_name(text)


@pytest.mark.parametrize(
    "text",
    [
        *("me/mine", "hf-hub:", "hf-hub:mine", "hf-hub:/mine", "hf-hub:me/", "hf-hub:me//mine", "hf-hub:me/mine@"),
        *("hf-hub:me/mine@a b", "hf-hub:me/mine@../x", "hf-hub:me/mine@-x", "hf-hub:me/mi..ne", "hf-hub:.me/mine"),
        *("hf-hub:me/mine/", "hf-hub:me/mine/../x", "hf-hub:me/mine//x", "hf-hub:me/mine/a\\b", "hf-hub:me/mi--ne"),
        "hf-hub:me/mine.git",
    ],
)
def test_names_of_another_form_are_refused_with_the_right_form(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))) as caught:
        HubName.parse(text)
    assert str(caught.value).endswith("write hf-hub:user/repo, hf-hub:user/repo@revision or "
                                      "hf-hub:user/repo/path/to/file.pt@revision.")  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [("me/mine", False), ("hf-hub:x", True), (Path("hf-hub:x"), False)])
def test_what_is_meant_as_a_name_on_the_hub(text, expected):
    assert is_hub_name(text) is expected


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fetch_file("mine", "a.json"), "'mine' is no repository of the Hub; their names read user/repo."),
        (lambda: fetch_folder("me/mine/x"), "'me/mine/x' is no repository of the Hub; their names read user/repo."),
        (lambda: fetch_folder("me/mine", revision="a b"), "'a b' is no revision; give a branch, a tag or a commit."),
        (lambda: fetch_file("me/mine", "../x"), "'../x' is no file in a repository; give its path there, such as"),
        (lambda: fetch_file("me/mine", "/x"), "'/x' is no file in a repository"),
        (lambda: push_folder("x", "mine"), "'mine' is no repository of the Hub"),
        (lambda: push_folder("x", "me/mine", revision="0" * 40), "goes to a branch, such as 'main'; '000000"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_asked(hub, call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
    assert hub.requests == []


# Fetching


def test_a_file_is_fetched_once(hub, repository, tmp_path):
    path = fetch_file("me/mine", "model.safetensors")
    assert path.read_bytes() == WEIGHTS
    assert path.is_relative_to(tmp_path / "cache")
    assert fetch_file("me/mine", "model.safetensors") == path
    assert len(hub.asked("GET", "/storage/")) == 1
    assert hub.asked("HEAD", "")[0].headers["user-agent"].startswith("ditzoo/")


def test_revisions_are_branches_tags_and_commits(hub, repository):
    first = repository.head
    repository.tags["v1"] = first.id
    repository.branches["dev"] = first.id
    repository.commit({"config.json": None})
    for revision in ("v1", "dev", first.id):
        assert fetch_file("me/mine", "config.json", revision=revision).read_bytes() == CONFIG
        assert (fetch_folder("me/mine", revision=revision) / "config.json").read_bytes() == CONFIG
    assert not (fetch_folder("me/mine") / "config.json").exists()


def test_a_folder_brings_no_code_and_no_pickles(hub):
    code = {"modeling.py": b"1/0", "sub/x.py": b"1/0", "x.pyc": b"", "x.so": b"", "model.bin": b"", "a.pt": b""}
    data = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": b"# Mine", "samples.png": b"1"}
    hub.create("me/mine", {**code, **data, "other.npz": b"1", "step-100/model.safetensors": WEIGHTS})
    folder = fetch_folder("me/mine")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == data
    more = fetch_folder("me/mine", patterns=["*"])
    assert not {path.name for path in more.rglob("*")} & {"modeling.py", "x.py", "x.pyc", "x.so"}
    assert (more / "other.npz").read_bytes() == b"1"


def test_a_folder_without_files_of_a_model_is_refused(hub):
    hub.create("me/mine", {"train.py": b""})
    assert refusal(lambda: fetch_folder("me/mine", patterns=("*.json", "*.safetensors"))) == (
        f"me/mine was not fetched: it holds no file *.json or *.safetensors. Its files: {hub.url}/me/mine/tree/main."
    )


# Faults while fetching


def test_a_download_that_is_cut_resumes_and_is_whole(hub):
    data = os.urandom(11_000_000)
    hub.create("me/mine", {"model.safetensors": data})
    hub.cut_downloads(10_600_000)
    assert fetch_file("me/mine", "model.safetensors").read_bytes() == data
    cut, resumed = hub.asked("GET", "/storage/")
    assert (cut.status, resumed.status, resumed.headers["range"]) == (None, 206, "bytes=10485760-")


def test_a_connection_that_is_torn_off_is_told(hub, repository):
    hub.cut_downloads(100, reset=True, times=9)
    text = refusal(lambda: fetch_file("me/mine", "model.safetensors"))
    assert re.fullmatch(
        r"model.safetensors of me/mine was not fetched: the connection broke off \(.+\)\. Run it again: files that are "
        r"whole stay in the cache\.",
        text,
    )
    hub.heal()
    assert fetch_file("me/mine", "model.safetensors").read_bytes() == WEIGHTS


def spoilt(data):
    return bytes([data[0] ^ 1]) + data[1:]


def test_wrong_bytes_are_refused_and_removed(hub, repository):
    """The client compares sizes only."""
    hub.alter_downloads(spoilt)
    wrong, right = (hashlib.sha256(data).hexdigest() for data in (spoilt(WEIGHTS), WEIGHTS))
    assert refusal(lambda: fetch_file("me/mine", "model.safetensors")) == (
        "model.safetensors of me/mine was not fetched: the bytes that came as model.safetensors have the sha256 "
        f"{wrong}, and the Hub names {right}. They are removed: run it again; if that does not help, a proxy alters "
        "files, or the repository is broken."
    )
    assert fetch_file("me/mine", "model.safetensors").read_bytes() == WEIGHTS


def test_wrong_bytes_of_a_small_file_are_refused_and_removed(hub, repository):
    hub.alter_downloads(spoilt)
    named = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    text = refusal(lambda: fetch_folder("me/mine", patterns=["config.json"]))
    assert text.startswith("me/mine was not fetched: the bytes that came as config.json have the sha1 ")
    assert f"and the Hub names {named}. They are removed: run it again" in text
    assert (fetch_folder("me/mine") / "config.json").read_bytes() == CONFIG


def test_a_mirror_may_name_small_files_by_their_own_hash(hub, repository, monkeypatch):
    monkeypatch.setattr(Blob, "git_oid", property(lambda blob: hashlib.sha1(blob.data).hexdigest()))
    assert fetch_file("me/mine", "config.json").read_bytes() == CONFIG


def test_wrong_bytes_in_a_folder_leave_the_good_ones(hub):
    shards = {f"model-0000{i}-of-00003.safetensors": WEIGHTS + bytes([i]) for i in (1, 2, 3)}
    hub.create("me/mine", {"config.json": CONFIG, **shards})
    second = shards["model-00002-of-00003.safetensors"]
    hub.alter_downloads(lambda data: spoilt(data) if data == second else data, times=4)
    text = refusal(lambda: fetch_folder("me/mine"))
    assert text.startswith("me/mine was not fetched: the bytes that came as model-00002-of-00003.safetensors have")
    hub.heal()
    before = len(hub.asked("GET", "/storage/"))
    folder = fetch_folder("me/mine")
    assert {name: (folder / name).read_bytes() for name in shards} == shards
    assert len(hub.asked("GET", "/storage/")) == before + 1


def test_wrong_bytes_are_removed_when_another_file_fails(hub):
    hub.create("me/mine", {"a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS[:-1]})
    hub.alter_downloads(lambda data: spoilt(data) if data == WEIGHTS else data[:-1], times=2)
    refusal(lambda: fetch_folder("me/mine"))
    assert (fetch_folder("me/mine") / "a.safetensors").read_bytes() == WEIGHTS


def test_a_wrong_size_is_told(hub, repository):
    hub.alter_downloads(lambda data: data[:-1])
    text = refusal(lambda: fetch_file("me/mine", "model.safetensors"))
    assert "its size is not the one that the Hub names" in text
    assert "should be of size 2048 but has size 2047" in text
    assert fetch_file("me/mine", "model.safetensors").read_bytes() == WEIGHTS


def test_errors_of_the_hub_pass_by_and_only_the_client_tries_again(hub, repository):
    hub.fail(500, on="HEAD .*/resolve/", times=3)
    assert fetch_file("me/mine", "config.json").read_bytes() == CONFIG
    assert hub.waits == [1, 2]
    assert [each.status for each in hub.asked("HEAD", "")] == [500, 500, 500, 200]


@pytest.mark.parametrize(
    ("status", "headers", "text"),
    [
        (503, {}, "the Hub is not well, it answered 503 (Maintenance). Wait, then run it again."),
        (599, {}, "the Hub is not well, it answered 599 (Maintenance). Wait, then run it again."),
        (429, {"Retry-After": "7"}, "the Hub gets too many requests from here (429). Wait 7 s, then run it again."),
        (429, {"RateLimit": '"api";r=0;t=55'}, "(429). Wait 55 s, then run it again."),
        (429, {}, "(429). Wait some minutes, then run it again."),
        (418, {}, "the Hub answered 418 (Maintenance)."),
    ],
)
def test_errors_of_the_hub_that_stay_are_told(hub, repository, status, headers, text):
    hub.fail(status, on="HEAD .*/resolve/", times=99, headers=headers, message="Maintenance")
    told = refusal(lambda: fetch_file("me/mine", "config.json"))
    assert told.startswith("config.json of me/mine was not fetched: ")
    assert told.endswith(text)
    if headers.get("Retry-After"):
        assert hub.waits == [8] * 5  # the client waits as long as it is asked to, and a second more


def test_an_answer_that_comes_too_late_is_told(hub, repository, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.delay(0.3, on="GET /storage/")
    assert fetch_file("me/mine", "model.safetensors").read_bytes() == WEIGHTS
    hub.delay(0.3, on="GET .*/config.json", times=9)
    text = refusal(lambda: fetch_file("me/mine", "config.json"))
    assert text.startswith(f"config.json of me/mine was not fetched: {hub.url} took too long to answer (")


def test_no_connection_is_told(hub, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            nowhere + "/{repo_id}/resolve/{revision}/{filename}",
        )
        for call in (lambda: fetch_file("me/mine", "config.json"), lambda: fetch_folder("me/mine")):
            text = refusal(call)
            assert f"was not fetched: there is no connection to {nowhere} (" in text
            assert text.endswith("Check the network, and the proxy if there is one.")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            errno.ENOSPC,
            "there is no space left on the disk of {cache}. Free some, or set HF_HOME to a folder on another",
        ),
        (errno.EACCES, "{cache} cannot be written to (Permission denied). Mend the rights of that folder, or set HF_H"),
        (errno.EIO, "[Errno 5] Input/output error. Run it again"),
    ],
)
def test_what_the_disk_refuses_is_told(hub, repository, monkeypatch, tmp_path, code, text):
    def full(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    told = refusal(lambda: fetch_file("me/mine", "config.json"))
    assert told.startswith(f"config.json of me/mine was not fetched: {text.format(cache=tmp_path / 'cache' / 'hub')}")


def test_a_server_that_is_no_hub_is_told(hub, repository):
    hub.fail(200, on="HEAD .*/resolve/", times=9)
    text = refusal(lambda: fetch_file("me/mine", "config.json"))
    assert text.endswith(
        f"{hub.url} does not answer as the Hub does. Check HF_ENDPOINT, and the proxy if there is one."
    )


# What is not there, and what is not allowed


def test_what_is_not_there_is_told_with_what_is_near(hub, repository):
    repository.tags["v1.0"] = repository.head.id
    page = f"{hub.url}/me/mine"
    assert refusal(lambda: fetch_file("me/mine", "model.safetensor")) == (
        "model.safetensor of me/mine was not fetched: there is no such file. Did you mean model.safetensors? The files "
        f"are listed at {page}/tree/main."
    )
    assert refusal(lambda: fetch_file("me/mine", "config.json", revision="v1.1")) == (
        "config.json of me/mine (revision v1.1) was not fetched: there is no such revision. Did you mean v1.0? "
        f"Branches and tags are listed at {page}/tree/main."
    )
    assert "there is no such revision. Did you mean v1.0?" in refusal(lambda: fetch_folder("me/mine", revision="v1.1"))
    assert refusal(lambda: fetch_folder("me/mne")) == (
        "me/mne was not fetched: there is no such repository, or it is private. Did you mean me/mine? The token in use "
        "has no access to it: log in as who has, with `hf auth login`, or set the variable HF_TOKEN."
    )
    # The list of names is a hint; what goes wrong with it goes unsaid.
    hub.fail(403, on="GET .*/refs", times=9)
    assert "no such revision. Branches" in refusal(lambda: fetch_folder("me/mine", revision="v1.1"))


def test_what_needs_a_token_is_told(hub, monkeypatch):
    hub.create("me/secret", {"config.json": CONFIG}, private=True)
    assert fetch_file("me/secret", "config.json").read_bytes() == CONFIG
    hub.create("me/terms", {"config.json": CONFIG}, gated=True)
    hub.add_user("hf_someone", "someone")

    monkeypatch.setenv("HF_TOKEN", "hf_someone")
    agree = f"its owner asks for consent to terms. Accept them at {hub.url}/me/terms, as the owner of the token in use."
    for call in (lambda: fetch_file("me/terms", "config.json"), lambda: fetch_folder("me/terms")):
        assert refusal(call).endswith(f"me/terms was not fetched: {agree}")
    hub.repository("me/terms").accepted.add("someone")
    assert fetch_file("me/terms", "config.json").read_bytes() == CONFIG

    monkeypatch.delenv("HF_TOKEN")
    log_in = f"Log in with `hf auth login`, or set the variable HF_TOKEN, to a token from {hub.url}/settings/tokens."
    assert refusal(lambda: fetch_folder("me/none")).endswith(
        f"me/none was not fetched: there is no such repository, or it is private. {log_in}"
    )
    hub.create("me/terms2", {"config.json": CONFIG}, gated=True)
    assert refusal(lambda: fetch_file("me/terms2", "config.json")).endswith(f"me/terms2, and log in here too. {log_in}")

    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    hub.create("me/open", {"config.json": CONFIG})
    assert refusal(lambda: fetch_folder("me/open")) == f"me/open was not fetched: the token was refused (401). {log_in}"
    hub.fail(403, on="HEAD .*/resolve/", times=9, message="Forbidden")
    assert refusal(lambda: fetch_file("me/open", "config.json")).endswith(
        f"the token in use has no right to read me/open (403). Take one that has, from {hub.url}/settings/tokens."
    )


# Offline


def test_offline_what_is_in_the_cache_is_had(hub, repository, monkeypatch):
    file, folder = fetch_file("me/mine", "model.safetensors"), fetch_folder("me/mine")
    asked = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_file("me/mine", "model.safetensors") == file
    assert fetch_folder("me/mine") == folder
    assert fetch_folder("me/mine", revision=repository.head.id) == folder
    assert len(hub.requests) == asked


def test_offline_what_is_not_in_the_cache_is_told(hub, repository, monkeypatch, folder):
    fetch_folder("me/mine", patterns=["*.json"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fix = (
        "not in the cache of this machine, and HF_HUB_OFFLINE is set, so that nothing is fetched. Unset it, or give "
        "the path of a local file or folder in place of the name."
    )
    assert refusal(lambda: fetch_file("me/other", "a.pt")) == f"a.pt of me/other was not fetched: it is {fix}"
    for repo_id in ("me/other", "me/mine"):
        assert refusal(lambda name=repo_id: fetch_folder(name)) == (
            f"{repo_id} was not fetched: it, or a part of it, is {fix}"
        )
    assert refusal(lambda: push_folder(folder, "me/mine"), UploadError) == (
        "nothing was pushed to me/mine: HF_HUB_OFFLINE is set, so that nothing is sent. Unset it."
    )


def test_a_hub_that_is_down_does_not_keep_from_what_is_in_the_cache(hub, repository):
    folder = fetch_folder("me/mine")
    hub.fail(503, times=99)
    assert fetch_folder("me/mine") == folder
    assert hub.waits == []


def test_a_fresh_process_works_offline(hub, folder, tmp_path):
    push_folder(folder, "me/mine")
    fetch_folder("me/mine")
    code = """
from ditzoo.weights.hub import DownloadError, fetch_file, fetch_folder
print((fetch_folder("me/mine") / "config.json").read_text())
try:
    fetch_file("me/other", "config.json")
except DownloadError as error:
    print(error)
"""
    done = run_client(hub, code, cache=tmp_path / "cache", offline=True, token=None)
    config, refused = done.stdout.splitlines()
    assert config.encode() == CONFIG
    assert refused.startswith(
        "config.json of me/other was not fetched: it is not in the cache of this machine, and HF_"
    )


# Pushing


def test_a_folder_goes_in_one_commit(hub, folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "samples.png").write_bytes(b"png")
    (folder / ".env").write_text("secret")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.json").write_text("{}")
    address = push_folder(folder, "me/mine", private=True, message="First")
    repository = hub.repository("me/mine")
    assert repository.private
    assert repository.files() == {"config.json": CONFIG, "model.safetensors": WEIGHTS, "sub/samples.png": b"png"}
    assert [each.title for each in repository.history("main")] == ["First", "initial commit"]
    assert address == f"{hub.url}/me/mine/commit/{repository.head.id}"
    assert push_folder(folder, "me/mine") == address  # nothing has changed
    assert (fetch_folder("me/mine") / "model.safetensors").read_bytes() == WEIGHTS


def test_weights_of_an_earlier_push_go_and_other_files_stay(hub, folder):
    shards = {f"model-0000{i}-of-00002.safetensors": bytes([i]) for i in (1, 2)}
    old = {**shards, "model.safetensors.index.json": b"{}", "diffusion_pytorch_model.safetensors": b"0"}
    kept = {"lora.safetensors": b"1", "README.md": b"# Mine", "ema/model.safetensors": b"2", "notes.json": b"{}"}
    repository = hub.create("me/mine", {**old, **kept})
    push_folder(folder, "me/mine")
    assert repository.files() == {"config.json": CONFIG, "model.safetensors": WEIGHTS, **kept}
    assert len(repository.history("main")) == 3
    (folder / "model.safetensors").unlink()
    push_folder(folder, "me/mine")  # no weights: those that are there stay
    assert repository.files()["model.safetensors"] == WEIGHTS


def test_a_pull_request_is_not_made(hub, repository, folder):
    text = refusal(lambda: push_folder(folder, "me/mine", revision="refs/pr/1"), UploadError)
    assert "nothing was pushed to me/mine (revision refs/pr/1): there is no such revision." in text
    repository.branches["refs/pr/1"] = repository.head.id
    (folder / "config.json").write_bytes(b"{}")
    push_folder(folder, "me/mine", revision="refs/pr/1")
    assert repository.files("refs/pr/1")["config.json"] == b"{}"
    assert repository.files()["config.json"] == CONFIG


def test_a_branch_is_made_where_there_is_none(hub, repository, folder):
    (folder / "config.json").write_bytes(b"{}")
    main = repository.head
    for _ in range(2):
        push_folder(folder, "me/mine", revision="dev/new")
    assert repository.head is main
    assert repository.files("dev/new") == {"config.json": b"{}", "model.safetensors": WEIGHTS}
    push_folder(folder, "me/mine", revision="main")
    assert repository.files() == repository.files("dev/new")


@pytest.mark.parametrize(
    ("private", "told"),
    [(True, "public already. Name another, or hide"), (False, "private already. Name another, or publish")],
)
def test_what_is_to_be_private_never_goes_to_a_public_repository(hub, folder, private, told):
    repository = hub.create("me/mine", private=not private)
    text = refusal(lambda: push_folder(folder, "me/mine", private=private), UploadError)
    assert text.startswith(f"nothing was pushed to me/mine: it is {told}")
    assert text.endswith(f"it at {hub.url}/me/mine/settings.")
    assert repository.files() == {}
    push_folder(folder, "me/mine")
    assert set(repository.files()) == {"config.json", "model.safetensors"}


def test_folders_that_cannot_be_pushed(hub, folder, tmp_path):
    with pytest.raises(NotADirectoryError, match=r"none is no folder; save the model into one first\."):
        push_folder(tmp_path / "none", "me/mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no files to push\."):
        push_folder(tmp_path / "empty", "me/mine")
    for token, name in ((TOKEN, "README.md"), (OTHER_TOKEN, "README.md"), (TOKEN, "LICENSE")):
        (folder / name).write_text(f"Trained with `HF_TOKEN={token} ditzoo train`.")
        with pytest.raises(ValueError, match=rf"{name} shows a token of the Hub\. Take it out") as caught:
            push_folder(folder, "me/mine")
        assert token not in str(caught.value)
        (folder / name).unlink()
    assert hub.requests == []
    (folder / "README.md").write_text("Fetched with `hf_hub_download`, sent with hf_transfer.")
    push_folder(folder, "me/mine")
    assert "README.md" in hub.repository("me/mine").files()


def test_an_upload_that_is_cut_is_sent_again_by_the_client(hub, folder):
    hub.cut_uploads(100)
    push_folder(folder, "me/mine")
    assert hub.repository("me/mine").files() == {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    assert [each.status for each in hub.asked("PUT", "")] == [None, 200]


def test_an_upload_that_stays_cut_leaves_the_repository_as_it_was(hub, folder):
    repository = hub.create("me/mine", {"config.json": b"old", "model-00001-of-00002.safetensors": b"old"})
    before = repository.head
    hub.cut_uploads(100, times=99)
    text = refusal(lambda: push_folder(folder, "me/mine"), UploadError)
    assert text.startswith("nothing was pushed to me/mine: the connection broke off (")
    assert text.endswith(
        "). Push again: all files come in with one commit at the end, so that no half of them is there."
    )
    assert repository.head is before
    assert len(hub.asked("PUT", "")) == 6  # the client's own
    hub.heal()
    push_folder(folder, "me/mine")
    assert repository.files() == {"config.json": CONFIG, "model.safetensors": WEIGHTS}


@pytest.mark.parametrize(
    ("on", "status", "code", "text"),
    [
        ("POST .*/commit/", 500, None, "the Hub is not well, it answered 500 (Sorry). Wait, then run it again."),
        ("POST .*/commit/", 412, None, "someone else changed the repository at the same time (412). Look at {page}"),
        ("POST .*/commit/", 403, None, "the token in use has no right to write to me/mine (403). Take one that has,"),
        ("POST .*/batch", 401, None, "the token was refused (401). Log in with `hf auth login`, or set the variable"),
        ("POST .*/preupload/", 404, "RepoNotFound", "the Hub answered 404 (Sorry)."),
        ("POST .*/create", 429, None, "the Hub gets too many requests from here (429). Wait some minutes, then run"),
        ("PUT ", 507, None, "the Hub is not well, it answered 507 (Sorry). Wait, then run it again."),
    ],
)
def test_no_error_while_pushing_leaves_half_a_repository(hub, repository, folder, on, status, code, text):
    (folder / "model.safetensors").write_bytes(b"new")
    before = repository.head
    hub.fail(status, on=on, times=99, message="Sorry", code=code)
    told = refusal(lambda: push_folder(folder, "me/mine"), UploadError)
    assert told.startswith(f"nothing was pushed to me/mine: {text.format(page=f'{hub.url}/me/mine')}")
    assert repository.head is before


def test_a_commit_that_comes_between_is_not_undone(hub, repository, folder, monkeypatch):
    """What is stale was read before it: the other's shard must neither stay beside the new weights nor go unseen."""
    ask = HfApi.model_info

    def ask_before_the_other(self, *arguments, **options):
        info = ask(self, *arguments, **options)
        repository.commit({"model-00001-of-00001.safetensors": Blob(b"other", is_large=True)})
        return info

    monkeypatch.setattr(HfApi, "model_info", ask_before_the_other)
    (folder / "config.json").write_bytes(b"{}")
    assert refusal(lambda: push_folder(folder, "me/mine"), UploadError) == (
        "nothing was pushed to me/mine: someone else changed the repository at the same time (412). Look at "
        f"{hub.url}/me/mine; push again."
    )
    assert repository.files()["model-00001-of-00001.safetensors"] == b"other"


def test_who_may_not_write_is_told(hub, repository, folder, monkeypatch):
    hub.add_user("hf_reader", "me", may_write=False)
    hub.create("other/theirs")
    for token, repo_id in (("hf_reader", "me/mine"), (None, "other/theirs"), (None, "other/new")):
        text = refusal(lambda t=token, r=repo_id: push_folder(folder, r, token=t), UploadError)
        assert text == (
            f"nothing was pushed to {repo_id}: the token in use has no right to write to {repo_id} (403). Take one "
            f"that has, from {hub.url}/settings/tokens, or name a repository of your own."
        )
    monkeypatch.delenv("HF_TOKEN")
    assert refusal(lambda: push_folder(folder, "me/new"), UploadError) == (
        "nothing was pushed to me/new: that needs a token (401). Log in with `hf auth login`, or set the variable "
        f"HF_TOKEN, to a token from {hub.url}/settings/tokens."
    )
    push_folder(folder, "me/new", token=TOKEN)
    assert set(hub.store.repositories) == {"me/mine", "other/theirs", "me/new"}


def test_a_card_that_the_hub_refuses_is_told(hub, folder):
    (folder / "README.md").write_text("---\nlicense: mit\n")
    text = refusal(lambda: push_folder(folder, "me/mine"), UploadError)
    assert text == (
        "nothing was pushed to me/mine: the Hub does not take the model card (Invalid metadata in README.md. - the "
        "metadata block is not closed). Mend the block at its head."
    )
    assert hub.repository("me/mine").files() == {}


# Tokens


@pytest.mark.parametrize("token", [TOKEN, "secret-of-a-mirror", OTHER_TOKEN])
def test_tokens_are_never_shown(hub, repository, folder, monkeypatch, capfd, caplog, token):
    """The server says what it was sent, the client quotes it, and so do tracebacks."""
    monkeypatch.setenv("HF_TOKEN", token)
    hub.add_user(token, "me")
    said = f"Bearer {token} is of no use, and {OTHER_TOKEN} neither"
    shown = []
    for status in (400, 401, 403, 418, 500):
        hub.fail(status, times=99, message=said)
        for call in (
            lambda: fetch_file("me/mine", "config.json"),
            lambda: fetch_folder("me/mine"),
            lambda: push_folder(folder, "me/mine"),
            lambda: push_folder(folder, "me/mine", token=token),
            lambda: push_folder(folder, "me/mine", token=f"{token}\n"),  # no header may hold that
        ):
            with pytest.raises((DownloadError, UploadError)) as caught:
                call()
            shown += [str(caught.value), "".join(traceback.format_exception(caught.value))]
        hub.heal()
    assert any("Bearer hf_*** is of no use, and hf_*** neither" in text for text in shown)
    shown += [caplog.text, *capfd.readouterr()]
    for secret in (token, OTHER_TOKEN):
        assert [text for text in shown if secret in text] == []


def test_what_is_no_secret_stays(monkeypatch):
    """A short word in HF_TOKEN, as test benches have it, is not taken out of every text."""
    monkeypatch.setenv("HF_TOKEN", "dit")
    assert without_tokens('{"model_cls": "ditzoo.models.DiT"}') == '{"model_cls": "ditzoo.models.DiT"}'
    monkeypatch.setenv("HF_TOKEN", "secret-1")
    assert without_tokens("secret-1 is of no use") == "hf_*** is of no use"


def test_the_password_of_a_mirror_is_not_shown(hub, repository, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url.replace("://", "://me:SECRET@"))
    hub.fail(401, times=99, message="not for https://me:SECRET@mirror")
    with pytest.raises(DownloadError, match=r"://127\.0\.0\.1:\d+/settings/tokens") as caught:
        fetch_file("me/mine", "config.json")
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_what_the_hub_says_does_not_drive_the_terminal(hub, repository):
    hub.fail(400, times=99, message="a\x1b[2J\x9bb" + "c" * 10**4)
    text = refusal(lambda: fetch_file("me/mine", "config.json"))
    assert "the Hub answered 400 (a?[2J?bccc" in text
    assert len(text) < 500


@pytest.mark.parametrize("name", ["../evil.json", "a/../../../../evil.json", "/evil.json", "..\\evil.json"])
def test_files_that_lead_out_of_the_cache_are_not_fetched(hub, tmp_path, name):
    hub.create("me/evil", {name: b"{}", "config.json": b"{}"})
    found = fetch_folder("me/evil")  # what lies in other folders is not fetched
    assert [path.name for path in found.iterdir()] == ["config.json"]
    assert hub.asked("GET", r"evil\.json") == []
    assert list(tmp_path.rglob("evil.json")) == []
    assert not Path("/evil.json").exists()


def test_the_clients_own_error_is_the_cause(hub, repository):
    with pytest.raises(DownloadError) as caught:
        fetch_file("me/mine", "none.json")
    assert type(caught.value.__cause__).__name__ == "RemoteEntryNotFoundError"


def test_what_the_caller_is_busy_with_is_not_taken_for_the_reason(hub, repository, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("No such thing")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", broken)
    try:
        raise OSError(errno.ENOSPC, "full")
    except OSError:
        text = refusal(lambda: fetch_file("me/mine", "config.json"))
    assert text.startswith("config.json of me/mine was not fetched: No such thing. Run it again")
