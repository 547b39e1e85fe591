"""The part of the Hub's HTTP API that its client uses to create, fill, list and read repositories of models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.hub_store import Blob, HubError, HubStore, User, belongs_in_lfs

_DATE = "2024-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Call:
    """A request, as the routes see it."""

    store: HubStore
    user: User | None
    query: dict[str, list[str]]
    body: bytes
    url: str  # of the server that was asked
    storage_url: str  # of the one that holds large files

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What to send: JSON, or the bytes of a file, which may be asked for in ranges."""

    content: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    is_file: bool = False


Route = Callable[..., Answer]
_ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
_GROUPS = {"{repo}": r"(?P<repo>[^/]+/[^/]+)", "{revision}": r"(?P<revision>[^/]+)", "{path}": "(?P<path>.+)"}
_GROUPS |= {"{oid}": "(?P<oid>[0-9a-f]{64})"}


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    for word, group in _GROUPS.items():
        pattern = pattern.replace(word, group)

    def added(function: Route) -> Route:
        _ROUTES.append((method, re.compile(pattern), function))
        return function

    return added


def answer(method: str, path: str, call: Call) -> Answer:
    """The answer to a request.

    Raises:
        HubError: if it is another than success.
    """
    for known, pattern, function in _ROUTES:
        if method in known.split("|") and (match := pattern.fullmatch(path)):
            return function(call, **{name: unquote(value) for name, value in match.groupdict().items()})
    raise HubError(404, f"Sorry, we can't find the page you are looking for: {method} {path}")


# Users and the client itself


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Answer:
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    role = "write" if call.user.may_write else "read"
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return Answer({"type": "user", "id": call.user.name, "name": call.user.name, "orgs": [], "auth": token})


@route("GET", "/api/agent-harnesses")
def harnesses(call: Call) -> Answer:
    return Answer({"standardEnvVars": [], "harnesses": {}})


@route("POST", "/api/validate-yaml")
def validate_card(call: Call) -> Answer:
    """The Hub checks a card's metadata; here only that the block between the dashes is closed."""
    content = call.json["content"]
    if content.startswith("---") and "\n---" not in content:
        errors = [{"message": "the metadata block is not closed"}]
        return Answer({"errors": errors, "warnings": []}, status=400)
    return Answer({"errors": [], "warnings": []})


# Repositories


@route("POST", "/api/repos/create")
def create_repository(call: Call) -> Answer:
    wanted = call.json
    owner = wanted.get("organization") or (call.user.name if call.user else "")
    call.store.check_may_write(owner, call.user)
    repo_id = f"{owner}/{wanted['name']}"
    url = {"url": f"{call.url}/{repo_id}", "name": repo_id}
    if repo_id in call.store.repositories:
        return Answer({"error": "You already created this model repo", **url}, status=409)
    call.store.create(repo_id, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
    return Answer(url)


@route("DELETE", "/api/repos/delete")
def delete_repository(call: Call) -> Answer:
    repository = call.store.writable(f"{call.json['organization'] or call.user.name}/{call.json['name']}", call.user)
    del call.store.repositories[repository.id]
    return Answer("OK")


@route("GET", "/api/models")
def list_repositories(call: Call) -> Answer:
    authors = call.query.get("author", [])
    seen = [
        {"id": repository.id, "private": repository.private}
        for repository in call.store.repositories.values()
        if (not authors or repository.owner in authors)
        and (not repository.private or (call.user is not None and call.user.name == repository.owner))
    ]
    return Answer(seen)


@route("GET", "/api/models/{repo}")
def repository_info(call: Call, repo: str, revision: str = "main") -> Answer:
    repository = call.store.visible(repo, call.user)
    commit = repository.commit_at(revision)
    return Answer(
        {
            "_id": repo,
            "id": repo,
            "modelId": repo,
            "author": repository.owner,
            "sha": commit.id,
            "createdAt": _DATE,
            "lastModified": _DATE,
            "private": repository.private,
            "gated": "auto" if repository.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }
    )


route("GET", "/api/models/{repo}/revision/{revision}")(repository_info)


@route("GET", "/api/models/{repo}/auth-check")
def check_read(call: Call, repo: str) -> Answer:
    call.store.readable(repo, call.user)
    return Answer("OK")


@route("GET", "/api/models/{repo}/auth-check/write")
def check_write(call: Call, repo: str) -> Answer:
    call.store.writable(repo, call.user)
    return Answer("OK")


@route("GET", "/api/models/{repo}/refs")
def list_refs(call: Call, repo: str) -> Answer:
    repository = call.store.visible(repo, call.user)

    def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": to} for name, to in refs.items()]

    branches, tags = listed("heads", repository.branches), listed("tags", repository.tags)
    return Answer({"branches": branches, "tags": tags, "converts": []})


@route("GET", "/api/models/{repo}/commits/{revision}")
def list_commits(call: Call, repo: str, revision: str) -> Answer:
    repository = call.store.visible(repo, call.user)
    return Answer(
        [
            {"id": c.id, "authors": [{"user": c.author}], "date": _DATE, "title": c.title, "message": ""}
            for c in repository.history(revision)
        ]
    )


@route("POST", "/api/models/{repo}/branch/{path}")
def create_branch(call: Call, repo: str, path: str) -> Answer:
    repository = call.store.writable(repo, call.user)
    if path in repository.branches:
        raise HubError(409, f"Reference already exists: {path}")
    start = call.json.get("startingPoint") or "main"
    repository.branches[path] = repository.commit_at(start).id
    return Answer("OK")


@route("POST", "/api/models/{repo}/tag/{revision}")
def create_tag(call: Call, repo: str, revision: str) -> Answer:
    repository = call.store.writable(repo, call.user)
    tag = call.json["tag"]
    if tag in repository.tags:
        raise HubError(409, f"Tag reference exists already: {tag}")
    repository.tags[tag] = repository.commit_at(revision).id
    return Answer("OK")


# Listing files


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "oid": blob.git_oid, "size": len(blob.data), "path": path}
    if blob.is_large:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return entry


@route("GET", "/api/models/{repo}/tree/{revision}")
def list_tree(call: Call, repo: str, revision: str, path: str = "") -> Answer:
    files = call.store.visible(repo, call.user).commit_at(revision).files
    prefix = f"{path}/" if path else ""
    below = {name: blob for name, blob in sorted(files.items()) if name.startswith(prefix)}
    if path and not below:
        raise HubError(404, f'"{path}" does not exist on "{revision}"', code="EntryNotFound")
    deep = call.query.get("recursive", ["false"])[0].lower() == "true"
    entries = {}
    for name, blob in below.items():
        folders = name[len(prefix) :].split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            if deep or depth == 1:
                folder = prefix + "/".join(folders[:depth])
                oid = hashlib.sha1(folder.encode()).hexdigest()
                entries[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
        if deep or not folders:
            entries[name] = _entry(name, blob)
    return Answer(list(entries.values()))


route("GET", "/api/models/{repo}/tree/{revision}/{path}")(list_tree)


@route("POST", "/api/models/{repo}/paths-info/{revision}")
def paths_info(call: Call, repo: str, revision: str) -> Answer:
    files = call.store.visible(repo, call.user).commit_at(revision).files
    asked = parse_qs(call.body.decode()).get("paths", [])
    return Answer([_entry(path, files[path]) for path in asked if path in files])


# Writing


@route("POST", "/api/models/{repo}/preupload/{revision}")
def preupload(call: Call, repo: str, revision: str) -> Answer:
    repository = call.store.writable(repo, call.user)
    files = repository.commit_at(revision).files
    answers = []
    for file in call.json["files"]:
        path = file["path"]
        mode = "lfs" if belongs_in_lfs(path, file["size"]) else "regular"
        oid = files[path].oid if path in files else None
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Answer({"files": answers})


@route("POST", r"/{repo}\.git/info/lfs/objects/batch")
def lfs_batch(call: Call, repo: str) -> Answer:
    call.store.writable(repo, call.user)
    objects = []
    for wanted in call.json["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
        if wanted["oid"] not in call.store.large:
            upload = {"href": f"{call.storage_url}/storage/{wanted['oid']}", "header": {}}
            verify = {"href": f"{call.url}/{repo}.git/info/lfs/verify", "header": {}}
            entry["actions"] = {"upload": upload, "verify": verify}
        objects.append(entry)
    return Answer({"transfer": "basic", "objects": objects})


@route("PUT", "/storage/{oid}")
def upload_large(call: Call, oid: str) -> Answer:
    if hashlib.sha256(call.body).hexdigest() != oid:
        raise HubError(400, "The bytes do not have the sha256 that was announced")
    call.store.large[oid] = call.body
    return Answer("OK")


@route("POST", r"/{repo}\.git/info/lfs/verify")
def verify_large(call: Call, repo: str) -> Answer:
    call.store.writable(repo, call.user)
    if len(call.store.large.get(call.json["oid"], b"")) != call.json["size"]:
        raise HubError(422, "The file was not uploaded")
    return Answer("OK")


@route("POST", "/api/models/{repo}/commit/{revision}")
def commit(call: Call, repo: str, revision: str) -> Answer:
    repository = call.store.writable(repo, call.user)
    header: dict[str, str] = {}
    changes: dict[str, Blob | None] = {}
    for line in call.body.splitlines():
        step = json.loads(line)
        kind, value = step["key"], step["value"]
        if kind == "header":
            header = value
        elif kind == "file":
            changes[value["path"]] = Blob(base64.b64decode(value["content"]), is_large=False)
        elif kind == "lfsFile":
            if value["oid"] not in call.store.large:
                raise HubError(400, f"LFS pointer to a file that was not uploaded: {value['path']}")
            changes[value["path"]] = Blob(call.store.large[value["oid"]], is_large=True)
        elif kind == "deletedFile":
            changes[value["path"]] = None
        elif kind == "deletedFolder":
            files = repository.commit_at(revision).files
            changes |= {path: None for path in files if path.startswith(value["path"].rstrip("/") + "/")}
        else:
            raise HubError(400, f"Unknown step of a commit: {kind}")
    made = repository.commit(
        changes, header["summary"], branch=revision, author=call.user.name, parent=header.get("parentCommit")
    )
    return Answer({"success": True, "commitOid": made.id, "commitUrl": f"{call.url}/{repo}/commit/{made.id}"})


# Reading


@route("GET|HEAD", "/{repo}/resolve/{revision}/{path}")
def resolve(call: Call, repo: str, revision: str, path: str) -> Answer:
    """The bytes of a small file; of a large one only what it is and where it lies."""
    found, blob = call.store.readable(repo, call.user).blob_at(revision, path)
    headers = {"X-Repo-Commit": found.id, "ETag": f'"{blob.oid}"'}
    if not blob.is_large:
        return Answer(blob.data, headers=headers, is_file=True)
    call.store.large[blob.sha256] = blob.data
    headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
    headers["Location"] = f"{call.storage_url}/storage/{blob.sha256}"
    return Answer(status=302, headers=headers)


@route("GET|HEAD", "/storage/{oid}")
def download_large(call: Call, oid: str) -> Answer:
    if oid not in call.store.large:
        raise HubError(404, "NoSuchKey")
    return Answer(call.store.large[oid], headers={"ETag": f'"{oid[:32]}"'}, is_file=True)
