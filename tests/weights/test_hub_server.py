"""The server that the tests take for the Hub, seen through the unmodified client."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors, get_session, hf_hub_download

from tests.hub_server import TOKEN, run_client, use_hub

CONFIG = b'{"architecture": "dit_ti_2"}'
WEIGHTS = bytes(range(256)) * 8


@pytest.fixture
def api(hub_server, monkeypatch, tmp_path):
    use_hub(monkeypatch, hub_server, cache=tmp_path / "cache")
    return HfApi()


@pytest.fixture
def repository(hub_server):
    return hub_server.create("me/mine", {"config.json": CONFIG, "model.safetensors": WEIGHTS})


def test_a_folder_travels_between_two_fresh_processes(hub_server, tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    files = {"model.safetensors": WEIGHTS, "README.md": b"# Mine\n", "empty.json": b"", "sub/config.json": CONFIG}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    push = f"""
from huggingface_hub import HfApi
api = HfApi()
assert api.whoami()["name"] == "me"
for _ in range(2):
    print(api.create_repo("me/mine", exist_ok=True, private=True))
print(api.upload_folder(repo_id="me/mine", folder_path={str(folder)!r}))
"""
    pushed = run_client(hub_server, push, cache=tmp_path / "one")
    assert pushed.returncode == 0, pushed.stderr
    repository = hub_server.repository("me/mine")
    url = f"{hub_server.url}/me/mine"
    assert pushed.stdout.split() == [url, url, f"{url}/commit/{repository.head.id}"]
    assert repository.private
    assert repository.files() == files
    assert [each.is_large for _, each in sorted(repository.head.files.items())] == [False, False, False, True, False]
    assert len(repository.commits) == 2  # the Hub's own and one for all files

    pull = "from huggingface_hub import snapshot_download\nprint(snapshot_download('me/mine'))"
    pulled = run_client(hub_server, pull, cache=tmp_path / "two")
    found = Path(pulled.stdout.strip())
    assert found.is_relative_to(tmp_path / "two")
    assert {name: (found / name).read_bytes() for name in files} == files

    refused = run_client(hub_server, pull, cache=tmp_path / "three", token=None)
    assert "RepositoryNotFoundError" in refused.stderr


def test_a_download_that_is_cut_goes_on_where_it_stopped(hub_server, tmp_path):
    """Larger than the pieces of 10 MiB in which the client writes."""
    data = os.urandom(11_000_000)
    hub_server.create("me/mine", {"model.safetensors": data})
    hub_server.cut_downloads(10_600_000)
    fetch = "from huggingface_hub import hf_hub_download\nprint(hf_hub_download('me/mine', 'model.safetensors'))"
    done = run_client(hub_server, fetch, cache=tmp_path)
    assert Path(done.stdout.strip()).read_bytes() == data
    cut, resumed = hub_server.asked("GET", "/storage/")
    assert (cut.status, cut.headers.get("range")) == (None, None)
    assert (resumed.status, resumed.headers["range"]) == (206, "bytes=10485760-")
    assert "authorization" not in resumed.headers


def test_small_files_come_from_the_hub_and_large_ones_from_its_storage(hub_server, api, repository):
    small = Path(hf_hub_download("me/mine", "config.json"))
    large = Path(hf_hub_download("me/mine", "model.safetensors"))
    assert small.resolve().name == hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    assert large.resolve().name == hashlib.sha256(WEIGHTS).hexdigest()
    assert (small.read_bytes(), large.read_bytes()) == (CONFIG, WEIGHTS)
    from_hub, from_storage = hub_server.asked("GET", "config.json"), hub_server.asked("GET", "/storage/")
    assert [each.headers.get("authorization") for each in from_hub] == [f"Bearer {TOKEN}"]
    assert [each.headers.get("authorization") for each in from_storage] == [None]


def test_revisions(hub_server, api, repository):
    first = repository.head.id
    api.create_tag("me/mine", tag="v1")
    api.create_branch("me/mine", branch="dev/a")
    add = CommitOperationAdd("config.json", b"{}")
    made = api.create_commit("me/mine", [add], commit_message="Empty it", revision="dev/a")
    assert made.oid == repository.branches["dev/a"] != first == repository.branches["main"]
    for revision, content in {"v1": CONFIG, "dev/a": b"{}", first: CONFIG, first[:8]: CONFIG, None: CONFIG}.items():
        assert Path(hf_hub_download("me/mine", "config.json", revision=revision)).read_bytes() == content, revision
    assert api.repo_info("me/mine", revision="dev/a").sha == made.oid
    refs = api.list_repo_refs("me/mine")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "dev/a": made.oid}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    titles = [each.title for each in api.list_repo_commits("me/mine", revision="dev/a")]
    assert titles == ["Empty it", "Upload", "initial commit"]


def test_listing_files(hub_server, api):
    hub_server.create("me/mine", {"a.json": b"1", "x/b.safetensors": WEIGHTS, "x/y/c.json": b"3"})
    assert api.list_repo_files("me/mine") == [".gitattributes", "a.json", "x/b.safetensors", "x/y/c.json"]
    assert [each.path for each in api.list_repo_tree("me/mine")] == [".gitattributes", "a.json", "x"]
    assert [each.path for each in api.list_repo_tree("me/mine", "x")] == ["x/b.safetensors", "x/y"]
    (info,) = api.get_paths_info("me/mine", ["x/b.safetensors", "none"])
    assert (info.size, info.lfs.sha256) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    hub_server.create("me/secret", private=True)
    assert [each.id for each in api.list_models(author="me")] == ["me/mine", "me/secret"]
    assert [each.id for each in api.list_models(author="me", token=False)] == ["me/mine"]


def test_a_commit_is_all_or_nothing(api, repository):
    before = repository.head
    steps = [CommitOperationAdd("new.json", b"1"), CommitOperationDelete("none.json")]
    with pytest.raises(errors.RemoteEntryNotFoundError):
        api.create_commit("me/mine", steps, commit_message="No")
    with pytest.raises(errors.HfHubHTTPError, match="412"):
        api.create_commit("me/mine", steps[:1], commit_message="No", parent_commit="0" * 40)
    assert repository.head is before
    steps = [CommitOperationAdd("new.json", b"1"), CommitOperationDelete("config.json")]
    api.create_commit("me/mine", steps, commit_message="Yes", parent_commit=before.id)
    assert repository.files() == {"new.json": b"1", "model.safetensors": WEIGHTS}


def test_who_may_do_what(hub_server, api, repository):
    """The client tells errors apart by the headers; each of its errors is raised once."""
    hub_server.add_user("hf_reader_of_mine", "me", may_write=False)
    hub_server.add_user("hf_someone_else", "other")
    gated = hub_server.create("me/gated", {"config.json": CONFIG}, gated=True)
    hub_server.create("me/secret", {"config.json": CONFIG}, private=True)

    def fetch(name, file="config.json", revision=None, token=None):
        return hf_hub_download(f"me/{name}", file, revision=revision, token=token)

    for arguments, error, status in [
        (("none",), errors.RepositoryNotFoundError, 404),
        (("none", "config.json", None, False), errors.RepositoryNotFoundError, 401),
        (("secret", "config.json", None, "hf_someone_else"), errors.RepositoryNotFoundError, 404),
        (("gated", "config.json", None, "hf_someone_else"), errors.GatedRepoError, 403),
        (("gated", "config.json", None, False), errors.GatedRepoError, 401),
        (("mine", "none.json"), errors.RemoteEntryNotFoundError, 404),
        (("mine", "config.json", "none"), errors.RevisionNotFoundError, 404),
        (("mine", "config.json", None, "hf_nobody"), errors.HfHubHTTPError, 401),
    ]:
        with pytest.raises(error) as caught:
            fetch(*arguments)
        assert caught.value.response.status_code == status, arguments
    gated.accepted.add("other")
    assert Path(fetch("gated", token="hf_someone_else")).read_bytes() == CONFIG
    for token in ("hf_reader_of_mine", "hf_someone_else"):
        with pytest.raises(errors.HfHubHTTPError, match="403"):
            api.create_repo("me/new", token=token)
        with pytest.raises(errors.HfHubHTTPError, match="403"):
            api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="me/mine", token=token)


def test_ranges_and_pages_that_are_not_there(hub_server, api, repository):
    web = get_session()
    url = f"{hub_server.url}/me/mine/resolve/main/config.json"
    for asked, status, body in [("0-3", 206, CONFIG[:4]), ("5-", 206, CONFIG[5:]), (f"{len(CONFIG)}-", 416, b"")]:
        got = web.get(url, headers={"Range": f"bytes={asked}"})
        assert (got.status_code, got.content) == (status, body)
    assert web.get(url).headers["accept-ranges"] == "bytes"
    missing = web.get(f"{hub_server.url}/api/spaces")
    assert missing.status_code == 404
    assert "GET /api/spaces" in json.loads(missing.content)["error"]
    assert web.put(f"{hub_server.storage_url}/storage/{'0' * 64}", content=b"1").status_code == 400
