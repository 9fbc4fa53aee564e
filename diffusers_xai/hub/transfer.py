"""Folders to the Hub in one commit, single files from the Hub, and errors of one clear line."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id


# Seconds to wait before a further attempt, after the connection was lost. The client repeats single files by itself.
RETRY_AFTER = (1.0, 4.0)

_logger = logging.getLogger(__name__)


class HubError(OSError):
    """A request that the Hub did not grant; the text says which and why."""


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a repository on the Hub, `user/name`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def check_push(repo_id: str, token: str | bool | None = None) -> None:
    """Raises if `repo_id` is no id, or the token is missing or refused: before long work is done for a push.

    Args:
        repo_id (`str`): `user/name`, or a name in the user's own namespace.
        token (`str` or `bool`, *optional*): As in [`push_folder`].

    Raises:
        HubError, ValueError: see [`push_folder`].
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"Expected a repository such as user/name, got {repo_id!r}.") from error
    with hub_errors(repo_id):
        huggingface_hub.whoami(token=token)


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    replaced: Sequence[str] = (),
) -> huggingface_hub.CommitInfo:
    """Uploads a folder in one commit: the repository holds all of it or stays as it was.

    The repository, and a branch, are made if need be. After a lost connection the upload is tried again; files that
    have arrived are not sent twice, and a commit whose answer was lost is not made twice.

    Args:
        folder (`Path`): What to upload.
        repo_id (`str`): `user/name`, or a name in the user's own namespace.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"` (of Gradio).
        message (`str`): Of the commit.
        private (`bool`, *optional*): Whether a new repository is private; the account's default if `None`.
        token (`str` or `bool`, *optional*): The token of `hf auth login`, or of `HF_TOKEN`, if `None`.
        revision (`str`, *optional*): The branch to commit to; `main` if `None`.
        create_pr (`bool`): Opens a pull request with the commit instead.
        replaced (sequence of `str`): Globs of remote files that are deleted in the same commit unless uploaded.

    Returns:
        `huggingface_hub.CommitInfo`: The commit; of the branch's last one where nothing has changed.

    Raises:
        HubError: If the token is refused, the connection stays lost, or the repository is public but should not be.
        ValueError: If `repo_id` is no id.
    """
    check_push(repo_id, token)
    with hub_errors(repo_id):
        repo_id = huggingface_hub.create_repo(
            repo_id,
            repo_type=repo_type,
            private=private,
            token=token,
            exist_ok=True,
            space_sdk="gradio" if repo_type == "space" else None,
        ).repo_id
        if private and not huggingface_hub.repo_info(repo_id, repo_type=repo_type, token=token).private:
            raise HubError(
                f"Expected a private repository, got {repo_id}, which exists and is public: nothing was pushed."
            )
        if revision is not None and not revision.startswith("refs/"):
            huggingface_hub.create_branch(repo_id, branch=revision, repo_type=repo_type, token=token, exist_ok=True)
        pauses = list(RETRY_AFTER)
        while True:
            try:
                # Not `upload_folder`: it makes several commits of a large folder.
                return huggingface_hub.create_commit(
                    repo_id,
                    _operations(folder, repo_id, repo_type, token, revision, replaced),
                    repo_type=repo_type,
                    commit_message=message,
                    token=token,
                    revision=revision,
                    create_pr=create_pr,
                )
            except Exception as error:
                if not pauses or not _is_connection_lost(error):
                    raise
                _logger.warning("The connection to the Hub was lost (%s): trying again", type(error).__name__)
                time.sleep(pauses.pop(0))


def _operations(
    folder: Path,
    repo_id: str,
    repo_type: str,
    token: str | bool | None,
    revision: str | None,
    replaced: Sequence[str],
) -> list[huggingface_hub.CommitOperationAdd | huggingface_hub.CommitOperationDelete]:
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    there = huggingface_hub.list_repo_files(repo_id, repo_type=repo_type, revision=revision, token=token)
    stale = [name for name in there if name not in files and any(fnmatch(name, pattern) for pattern in replaced)]
    return [
        *(huggingface_hub.CommitOperationDelete(name) for name in stale),
        *(huggingface_hub.CommitOperationAdd(name, file) for name, file in files.items()),
    ]


def fetch_file(
    repo_id: str,
    file: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Downloads one file into the Hub's cache, unless it is there.

    Args:
        repo_id (`str`): `user/name`.
        file (`str`): Path in the repository.
        repo_type (`str`): `"model"` or `"dataset"`.
        revision (`str`, *optional*): Branch, tag or commit; `main` if `None`.
        token (`str` or `bool`, *optional*): As in [`push_folder`].
        cache_dir (`str` or `Path`, *optional*): The cache; `HF_HUB_CACHE` if `None`.

    Returns:
        `Path`: The file `.../snapshots/<commit>/<file>`.

    Raises:
        HubError: If there is no such repository, revision or file, or no connection.
    """
    with hub_errors(repo_id, file, revision):
        path = huggingface_hub.hf_hub_download(
            repo_id, file, repo_type=repo_type, revision=revision, token=token, cache_dir=cache_dir
        )
    return Path(path)


@contextmanager
def hub_errors(repo_id: str, file: str | None = None, revision: str | None = None) -> Iterator[None]:
    """Turns what the Hub's client raises into a [`HubError`] of one line."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        text = _explain(error, repo_id, file, revision)
        if text is None:
            raise
        raise HubError(text) from error


def _explain(error: Exception, repo_id: str, file: str | None, revision: str | None) -> str | None:
    login = "log in with `hf auth login`, or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError):
        return f"Expected a token of the Hub for {repo_id}, got none: {login}."
    if isinstance(error, RevisionNotFoundError):
        return f"Expected a revision of {repo_id}, got {revision or 'main'!r}."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"Expected a repository on the Hub, got {repo_id}, which is not there or not open to the token: {login}."
        )
    if isinstance(error, EntryNotFoundError):
        if _is_connection_lost(error):
            return f"Expected {file} of {repo_id} in the cache or a connection to the Hub, got neither."
        return f"Expected {file} in {repo_id} at revision {revision or 'main'!r}, got none."
    if status in (401, 403):
        return f"The Hub refused the token for {repo_id} (HTTP {status}): {login} to a token that may write there."
    if _is_connection_lost(error):
        return f"The connection to the Hub was lost, {repo_id} stays as it was: try again ({_last_line(error)})."
    return f"The Hub refused {repo_id}: {_last_line(error)}" if status is not None else None


def _is_connection_lost(error: BaseException | None) -> bool:
    """Whether the error, or what caused it, is one of the network or of the server and may pass."""
    while error is not None:
        # By name: the client's HTTP library is httpx or httpx2, by its version.
        if isinstance(error, ConnectionError | TimeoutError) or _is_of(error, "TransportError"):
            return True
        if isinstance(error, HfHubHTTPError) and error.response.status_code >= 500:
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_of(error: BaseException, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(error).__mro__)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
