"""Repositories as the Hub keeps them: commits, branches and tags over files, and who may do what."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

#: What the Hub keeps as large files, by their sha256; the others lie in git.
LARGE = {".bin", ".ckpt", ".npz", ".png", ".pt", ".pth", ".safetensors"}
_LARGE_BYTES = 10 * 1024 * 1024


class HubError(Exception):
    """An answer other than success: a status, and the headers by which the Hub's client tells errors apart."""

    def __init__(self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {"X-Error-Message": message, **(headers or {})}
        if code is not None:
            self.headers["X-Error-Code"] = code


@dataclass(frozen=True)
class User:
    name: str
    may_write: bool = True


@dataclass(frozen=True)
class Blob:
    """The bytes of a file."""

    data: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def oid(self) -> str:
        """By which the client sees that a file is there already; also the name of the file in its cache."""
        return self.sha256 if self.is_large else self.git_oid


def belongs_in_lfs(path: str, num_bytes: int) -> bool:
    return PurePosixPath(path).suffix in LARGE or num_bytes >= _LARGE_BYTES


@dataclass(frozen=True)
class Commit:
    title: str
    author: str
    files: dict[str, Blob]
    parent: str | None

    @property
    def id(self) -> str:
        listing = "\n".join(f"{path} {blob.oid}" for path, blob in sorted(self.files.items()))
        return hashlib.sha1(f"{self.parent}\n{self.author}\n{self.title}\n{listing}".encode()).hexdigest()


@dataclass
class Repository:
    """One repository.

    Attributes:
        id: `owner/name`.
        private: only its owner sees it.
        gated: everybody sees it, only its owner and the users in `accepted` can download.
    """

    id: str
    private: bool = False
    gated: bool = False
    accepted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        # The Hub begins every repository with this file.
        start = Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", is_large=False)
        self._append("main", Commit("initial commit", self.owner, {".gitattributes": start}, parent=None))

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Path -> bytes, without the file that the Hub itself begins with."""
        found = self.commit_at(revision).files
        return {path: blob.data for path, blob in found.items() if path != ".gitattributes"}

    def commit_at(self, revision: str) -> Commit:
        """The commit of a branch, a tag, or the first digits of a commit's id."""
        name = self.branches.get(revision) or self.tags.get(revision)
        if name is None and re.fullmatch("[0-9a-f]{7,40}", revision):
            name = next((commit for commit in self.commits if commit.startswith(revision)), None)
        if name is None:
            raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.commits[name]

    def blob_at(self, revision: str, path: str) -> tuple[Commit, Blob]:
        commit = self.commit_at(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit.id})
        return commit, commit.files[path]

    def commit(
        self,
        changes: dict[str, Blob | None],
        title: str = "Upload",
        *,
        branch: str = "main",
        author: str | None = None,
        parent: str | None = None,
    ) -> Commit:
        """Add, replace and (None) delete files in one step, or change nothing at all and raise."""
        if branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", code="RevisionNotFound")
        head = self.branches[branch]
        if parent is not None and not head.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(self.commits[head].files)
        for path, blob in changes.items():
            if blob is not None:
                files[path] = blob
            elif files.pop(path, None) is None:
                raise HubError(404, "A file with this name doesn't exist", code="EntryNotFound")
        return self._append(branch, Commit(title, author or self.owner, files, parent=head))

    def _append(self, branch: str, commit: Commit) -> Commit:
        self.commits[commit.id] = commit
        self.branches[branch] = commit.id
        return commit

    def history(self, revision: str) -> list[Commit]:
        """The newest first."""
        commits = [self.commit_at(revision)]
        while (parent := commits[-1].parent) is not None:
            commits.append(self.commits[parent])
        return commits


class HubStore:
    """Users by token, repositories by id, large files by sha256."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}

    def create(self, repo_id: str, *, private: bool = False, gated: bool = False) -> Repository:
        self.repositories[repo_id] = Repository(repo_id, private, gated)
        return self.repositories[repo_id]

    def user_of(self, token: str | None) -> User | None:
        """None for who sends no token; a token that nobody has is refused."""
        if token is None:
            return None
        if token not in self.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def visible(self, repo_id: str, user: User | None) -> Repository:
        """A repository that this user sees. The Hub does not tell what is hidden from what is not there."""
        repository = self.repositories.get(repo_id)
        if repository is not None and not (repository.private and not _owns(user, repository)):
            return repository
        if user is None:
            raise HubError(401, "Invalid username or password.", code="RepoNotFound")
        raise HubError(404, "Repository not found", code="RepoNotFound")

    def readable(self, repo_id: str, user: User | None) -> Repository:
        """A repository whose files this user may have."""
        repository = self.visible(repo_id, user)
        if repository.gated and not _owns(user, repository) and (user is None or user.name not in repository.accepted):
            message = f"Access to model {repo_id} is restricted and you are not in the authorized list."
            raise HubError(401 if user is None else 403, message, code="GatedRepo")
        return repository

    def writable(self, repo_id: str, user: User | None) -> Repository:
        repository = self.visible(repo_id, user)
        self.check_may_write(repository.owner, user)
        return repository

    def check_may_write(self, owner: str, user: User | None) -> None:
        """Raise unless the user may create and change repositories of this owner."""
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user.name != owner or not user.may_write:
            raise HubError(403, f'You don\'t have the rights to write under the namespace "{owner}"')


def _owns(user: User | None, repository: Repository) -> bool:
    return user is not None and user.name == repository.owner
