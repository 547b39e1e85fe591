"""What can go wrong between this machine and the Hub, each in one line that names the way out."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from http import HTTPStatus
from typing import TYPE_CHECKING

from ditzoo.weights.checks import message

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_TOKEN = re.compile(r"hf_oauth_[\w.-]+|(hf|api_org)_[A-Za-z0-9]{20,}")
#: In an address, as HF_ENDPOINT of a mirror may be one.
_PASSWORD = re.compile(r"://[^/\s@]+@")
_HIDDEN = "hf_***"
#: Of another form, as mirrors have them; a shorter one is no secret, and common words would be replaced for it.
_SHORTEST_TOKEN = 8
#: Of an error's text.
_LONGEST = 1000
#: The libraries by which versions of the Hub's client talk to it.
_TRANSPORTS = {"httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}


class DownloadError(OSError):
    """A file or folder of the Hub that could not be fetched."""


class UploadError(OSError):
    """A folder that could not be pushed to the Hub."""


@dataclass(frozen=True)
class Errand:
    """What was asked of the Hub.

    Attributes:
        repo_id: the repository.
        filename: the file in it; None for a folder.
        revision: branch, tag or commit; None for the main branch.
        token: the one that was given for this errand; never shown.
        is_push: whether something was to be sent.
    """

    repo_id: str
    filename: str | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    is_push: bool = False

    def __str__(self) -> str:
        place = self.repo_id if self.revision is None else f"{self.repo_id} (revision {self.revision})"
        if self.is_push:
            return f"nothing was pushed to {place}"
        return f"{place} was not fetched" if self.filename is None else f"{self.filename} of {place} was not fetched"

    def error(self, reason: str) -> DownloadError | UploadError:
        """The error to raise, in one line and without a token."""
        text = _PASSWORD.sub("://", without_tokens(f"{self}: {reason}", self.token))
        return (UploadError if self.is_push else DownloadError)(message(text, _LONGEST))

    @property
    def address(self) -> str:
        """The repository's page."""
        return f"{_endpoint()}/{self.repo_id}"

    @property
    def again(self) -> str:
        if self.is_push:
            return "Push again: all files come in with one commit at the end, so that no half of them is there."
        return "Run it again: files that are whole stay in the cache."


@contextmanager
def plain_errors(errand: Errand) -> Iterator[None]:
    """Let every error of the Hub's client come out as ours.

    Raises:
        DownloadError, UploadError: whatever went wrong. The client's own error is its cause, unless that would show
            a token.
    """
    before = sys.exception()  # what the caller may be busy with says nothing about this errand
    try:
        yield
    except (DownloadError, UploadError):
        raise
    except Exception as error:
        chain = list(_chain(error, before))
        shows_token = any(holds_token(str(each), errand.token) or _PASSWORD.search(str(each)) for each in chain)
        raise errand.error(_reason(chain, errand)) from (None if shows_token else error)


def without_tokens(text: str, token: str | None = None) -> str:
    """The text with every token of the Hub replaced: those of its form, the given one, and the one in use."""
    for secret in ((token or "").strip(), _token_in_use() or ""):
        if len(secret) >= _SHORTEST_TOKEN:
            text = text.replace(secret, _HIDDEN)
    return _TOKEN.sub(_HIDDEN, text)


def holds_token(text: str, token: str | None = None) -> bool:
    return without_tokens(text, token) != text


def _chain(error: BaseException, before: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, the outermost first."""
    following: BaseException | None = error
    while following is not None and following is not before:
        yield following
        following = following.__cause__ or following.__context__


def _reason(chain: Sequence[BaseException], errand: Errand) -> str:
    for error in chain:
        if (reason := _explained(error, errand)) is not None:
            return reason
    return f"{_said(chain[-1])}. {errand.again}"


def _explained(error: BaseException, errand: Errand) -> str | None:
    """What the error means and what to do; None if it says less than its cause."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return _offline(errand)
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return _answered(error, errand)
    if isinstance(error, ValueError) and "README.md" in str(error):
        return f"the Hub does not take the model card ({_said(error)}). Mend the block at its head."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"that needs a token, and there is none. {_log_in()}"
    if isinstance(error, errors.FileMetadataError):
        return f"{_endpoint()} does not answer as the Hub does. Check HF_ENDPOINT, and the proxy if there is one."
    if isinstance(error, OSError) and error.errno in _NO_SPACE and not errand.is_push:
        return (
            f"there is no space left on the disk of {constants.HF_HUB_CACHE}. Free some, or set HF_HOME to a folder "
            "on another disk."
        )
    if isinstance(error, OSError) and error.errno in _NO_RIGHT and not errand.is_push:
        return (
            f"{constants.HF_HUB_CACHE} cannot be written to ({error.strerror}). Mend the rights of that folder, or set "
            "HF_HOME to another."
        )
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return f"its size is not the one that the Hub names ({_said(error)}). {errand.again}"
    if type(error).__module__.partition(".")[0] in _TRANSPORTS:
        return _disconnected(error, errand)
    return None


def _offline(errand: Errand) -> str:
    if errand.is_push:
        return "HF_HUB_OFFLINE is set, so that nothing is sent. Unset it."
    missing = "it is" if errand.filename else "it, or a part of it, is"
    return (
        f"{missing} not in the cache of this machine, and HF_HUB_OFFLINE is set, so that nothing is fetched. Unset "
        "it, or give the path of a local file or folder in place of the name."
    )


def _disconnected(error: BaseException, errand: Errand) -> str:
    kind, said = type(error).__name__, _said(error)
    if "Connect" in kind or "Proxy" in kind:
        return f"there is no connection to {_endpoint()} ({said}). Check the network, and the proxy if there is one."
    if "Timeout" in kind:
        return f"{_endpoint()} took too long to answer ({said}). {errand.again}"
    return f"the connection broke off ({said}). {errand.again}"


def _answered(error: HfHubHTTPError, errand: Errand) -> str:
    """What an answer other than success means."""
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        account = "as the owner of the token in use" if _has_token(errand) else "and log in here too"
        way = "" if _has_token(errand) else f" {_log_in()}"
        return f"its owner asks for consent to terms. Accept them at {errand.address}, {account}.{way}"
    if isinstance(error, errors.DisabledRepoError):
        return f"the Hub has disabled this repository; see {errand.address}."
    if isinstance(error, errors.RevisionNotFoundError):
        near = _near(errand.revision or "main", lambda: _revisions(errand))
        return f"there is no such revision.{near} Branches and tags are listed at {errand.address}/tree/main."
    if isinstance(error, errors.EntryNotFoundError):
        near = _near(errand.filename or "", lambda: _files(errand))
        return (
            f"there is no such file.{near} The files are listed at {errand.address}/tree/{errand.revision or 'main'}."
        )
    if isinstance(error, errors.RepositoryNotFoundError) and not errand.is_push:
        near = _near(errand.repo_id, lambda: _repositories(errand))
        return f"there is no such repository, or it is private.{near} {_log_in(errand)}"
    if status == HTTPStatus.UNAUTHORIZED:
        refused = "the token was refused" if _has_token(errand) else "that needs a token"
        return f"{refused} (401). {_log_in()}"
    if status == HTTPStatus.FORBIDDEN:
        right = "write to" if errand.is_push else "read"
        return (
            f"the token in use has no right to {right} {errand.repo_id} (403). Take one that has, from "
            f"{_endpoint()}/settings/tokens{', or name a repository of your own' if errand.is_push else ''}."
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return f"the Hub gets too many requests from here (429). Wait {_wait_of(error)}, then run it again."
    if status in (HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED):
        return f"someone else changed the repository at the same time ({status}). Look at {errand.address}; push again."
    said = (error.server_message or _phrase(status))[:300]
    if status == HTTPStatus.REQUEST_TIMEOUT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"the Hub is not well, it answered {status} ({said}). Wait, then run it again."
    return f"the Hub answered {status} ({said})."


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "a status without a name"


def _wait_of(error: HfHubHTTPError) -> str:
    """How long the Hub asks to wait."""
    headers = error.response.headers
    after = headers.get("Retry-After", "").strip()
    window = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
    seconds = after if after.isdigit() else window[1] if window else None
    return f"{seconds} s" if seconds else "some minutes"


def _log_in(errand: Errand | None = None) -> str:
    """How to come to a token that is good for an errand; without one, to any."""
    if errand is not None and _has_token(errand):
        return f"The token in use has no access to it: log in as who has, with `hf auth login`, or set {_VARIABLE}."
    return f"Log in with `hf auth login`, or set {_VARIABLE}, to a token from {_endpoint()}/settings/tokens."


_VARIABLE = "the variable HF_TOKEN"


def _has_token(errand: Errand) -> bool:
    return bool(errand.token or _token_in_use())


def _token_in_use() -> str | None:
    from huggingface_hub import get_token

    try:
        return get_token()
    except Exception:  # the client may ask the Hub for a new one, and fail
        return None


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _near(word: str, listed: Callable[[], Iterable[str]]) -> str:
    """Which names may be meant; nothing where the Hub does not list them."""
    try:
        names = list(listed())
    except Exception:  # a hint; what went wrong before is the news
        return ""
    near = get_close_matches(word, names, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _revisions(errand: Errand) -> list[str]:
    from huggingface_hub import HfApi

    refs = HfApi(token=errand.token).list_repo_refs(errand.repo_id)
    return [ref.name for ref in (*refs.branches, *refs.tags)]


def _files(errand: Errand) -> list[str]:
    from huggingface_hub import HfApi

    return HfApi(token=errand.token).list_repo_files(errand.repo_id, revision=errand.revision)


def _repositories(errand: Errand) -> list[str]:
    from huggingface_hub import HfApi

    owner = errand.repo_id.partition("/")[0]
    return [model.id for model in HfApi(token=errand.token).list_models(author=owner, limit=200)]


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300].rstrip(".:")
    return text or type(error).__name__
