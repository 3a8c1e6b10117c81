"""Writing to the Hub: one commit of explicit operations, each byte of it checked against the digest it was promised with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from saesync.digest import FileDigest, digest_bytes
from saesync.errors import Refused, SaesyncError, Unavailable
from saesync.hub.client import Client
from saesync.hub.trouble import Asked, Trouble, Unsettled

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

Progress = Callable[[int, int], None]
IN_MEMORY = 1 << 20  # files up to this size are read once and sent from memory
_GROUP_FILES, _GROUP_BYTES = 100, 256 << 20  # one upload call; progress moves from call to call


@dataclass(frozen=True, slots=True)
class Add:
    """Put a file in place: bytes, or a local file that must still hash to ``digest`` while it is sent."""

    path: str
    content: bytes | Path
    digest: FileDigest


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy a large file inside the repo, on the server."""

    path: str
    source: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one file."""

    path: str


Operation: TypeAlias = Add | Copy | Delete


def commit(
    client: Client,
    repo: str,
    operations: Sequence[Operation],
    message: str,
    parent: str,
    progress: Progress | None = None,
    revision: str | None = None,
    ignores: bool = False,
) -> str:
    """One attempt at one atomic commit on top of ``parent``. Returns its hash. ``revision`` is a pull request's (None: main);
    ``ignores``: the repo has a .gitignore, which may leave files out.

    Large files are uploaded first; only when the digests computed while sending equal the promised ones is the commit made.

    Raises:
        Unsettled: anything after which the outcome is not known, and a parent that is not the head any more.
        Refused: a local file changed since it was hashed; the Hub finds the card or an operation invalid.
        Missing: no token, no right to write, no space.
    """
    asked = Asked(f"commit {len(operations)} files to {repo}", repo, write=True)
    token = client.write_token(repo) if revision is None else client.token()
    api = client.api(token)
    put = [operation for operation in operations if isinstance(operation, Add)]
    adds = {operation.path: _addition(operation) for operation in put}
    rest = _copies_and_deletions(operations)
    with client.once(asked, token):
        try:
            _upload(api, repo, put, adds, progress, revision, ignores)
            done = api.create_commit(
                repo, [*adds.values(), *rest], commit_message=message, parent_commit=parent, revision=revision
            )
        except ValueError as error:
            raise _invalid(error, asked, client, token) from None
    return str(done.oid)


def _copies_and_deletions(
    operations: Sequence[Operation],
) -> list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete]:
    from huggingface_hub import CommitOperationCopy, CommitOperationDelete

    found: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = []
    for operation in operations:
        if isinstance(operation, Copy):
            found.append(CommitOperationCopy(operation.source, operation.path))
        elif isinstance(operation, Delete):
            found.append(CommitOperationDelete(operation.path, is_folder=False))
    return found


def _addition(operation: Add) -> CommitOperationAdd:
    from huggingface_hub import CommitOperationAdd

    content = operation.content
    if isinstance(content, Path):
        size = content.stat().st_size
        if size != operation.digest.size:
            raise _changed(operation.path)
        if size <= IN_MEMORY:
            content = content.read_bytes()
    if isinstance(content, bytes) and not operation.digest.same_bytes(digest_bytes(content)):
        raise _changed(operation.path)
    return CommitOperationAdd(operation.path, content)


def _upload(
    api: HfApi,
    repo: str,
    operations: Sequence[Add],
    adds: dict[str, CommitOperationAdd],
    progress: Progress | None,
    revision: str | None,
    ignores: bool,
) -> None:
    """Send what is large, group by group, and compare what was hashed on the way with what was promised.

    With ``ignores``, what is small is sent here, too: a commit that the repo would take only parts of is not made.
    """
    large = [operation for operation in operations if operation.digest.size > IN_MEMORY]
    done, total = 0, sum(operation.digest.size for operation in large)
    for group in _groups(large):
        additions = [adds[operation.path] for operation in group]
        _preupload(api, repo, additions, revision)
        for operation in group:
            if operation.digest.sha256 != adds[operation.path].upload_info.sha256.hex():
                raise _changed(operation.path)
            done += operation.digest.size
        if progress is not None:
            progress(done, total)
    sent = {operation.path for operation in large} if ignores else adds.keys()
    _preupload(api, repo, [addition for path, addition in adds.items() if path not in sent], revision)


def _preupload(api: HfApi, repo: str, additions: Sequence[CommitOperationAdd], revision: str | None) -> None:
    """Ask how each is to be sent, and send those that go to the object store.

    Raises:
        Refused: the repo ignores some of them; the client would leave them out of the commit without a word.
    """
    if not additions:
        return
    api.preupload_lfs_files(repo, additions, free_memory=False, revision=revision)
    if ignored := [addition.path_in_repo for addition in additions if getattr(addition, "_should_ignore", False)]:
        detail = f"The .gitignore in {repo} excludes {ignored[0]}. Correct it, and run again."
        raise Refused("Hub would leave files out", detail)


def _groups(operations: Sequence[Add]) -> Iterator[list[Add]]:
    group: list[Add] = []
    size = 0
    for operation in operations:
        if group and (len(group) == _GROUP_FILES or size + operation.digest.size > _GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(operation)
        size += operation.digest.size
    if group:
        yield group


def _changed(path: str) -> Refused:
    return Refused("File changed after it was proved", f"{path} does not have the digest of its proof any more. Run again.")


def _invalid(error: ValueError, asked: Asked, client: Client, token: str | None) -> SaesyncError | Unsettled:
    """The client raises ValueError for an invalid card, for errors of single large files, and for answers that are not JSON."""
    trouble = client.trouble(error, asked, token)  # BadRequestError is both a ValueError and an answer
    if trouble is not None:
        return trouble.error
    if isinstance(error, json.JSONDecodeError):
        detail = f"{client.host} was asked to {asked.what}; its answer is not what a Hub sends. Run the same command again later."
        return Unsettled(Trouble(Unavailable("Unexpected answer from the Hub", detail), True))
    line = " ".join(str(error).split())
    if "README" in line:
        return Refused("Hub finds the card invalid", f"{line[:300]}. Correct the front matter of the README.md in {asked.repo}.")
    return Refused("Hub refused the request", f"The Hub was asked to {asked.what} and refused: {line[:300]}.")
