"""The Hugging Face Hub as saesync sees it: explicit tokens, errors in our own words, bounded retries, a cache by commit.

Reads are plain requests over huggingface_hub's session; writes go through its ``create_commit``. huggingface_hub is imported on
first use.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saesync.cache import Cache
from saesync.digest import FileDigest, digest_bytes, key_of
from saesync.errors import Missing, NotVisible, Refused, Unavailable
from saesync.hub import accounts as _accounts
from saesync.hub import authors as _authors
from saesync.hub import discussions as _discussions
from saesync.hub import download as _download
from saesync.hub import writes as _writes
from saesync.hub.answers import renamed_to
from saesync.hub.client import Client, check_name, failures, parsed, quoted
from saesync.hub.discussions import Proposal
from saesync.hub.trouble import Answered, Asked, Garbled, Patience, Unsettled
from saesync.hub.writes import Add, Copy, Delete, Operation

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

__all__ = ["Add", "Copy", "Delete", "Head", "Hub", "Operation", "Patience", "Proposal", "Unsettled"]

_SHA = re.compile(r"[0-9a-f]{40}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_HISTORY_PAGE = 500


@dataclass(frozen=True, slots=True)
class Head:
    """A repo at a revision. ``renamed_to`` is set when the Hub redirected the name: named to the user, never followed (``sha`` is
    then empty)."""

    sha: str
    private: bool
    gated: bool = False
    renamed_to: str | None = None


@dataclass(frozen=True, slots=True)
class Glance:
    """What a public repo tells without a token: the commit of its main branch, and its tags with the commits they point at."""

    main: str
    tags: Mapping[str, str]


class Hub:
    """Reads and writes of Hub repos (``kind`` is "model" or "dataset"). Every call carries an explicit token. Safe to share
    between threads.

    All methods raise NotVisible (401/403/gated/ambiguous 404 without a token) or Unavailable (after bounded retries);
    ``absent`` answers are None where noted. Writes that are not allowed raise Missing.
    """

    def __init__(self, cache: Cache, endpoint: str | None = None, patience: float | None = None) -> None:
        """``patience``: the most seconds to wait for one action to succeed (None: ``SAESYNC_RETRY_SECONDS``, else 120)."""
        self._cache = cache
        self._client = Client(endpoint, patience)
        self._users: dict[str, str] = {}  # account names by the digest of their token

    @property
    def endpoint(self) -> str:
        """Address of the Hub, without a slash at its end."""
        return self._client.endpoint

    def patience(self) -> Patience:
        """A fresh allowance of waiting time, for loops around ``commit``."""
        return self._client.patience()

    # ------------------------------------------------------------------------------------------------ reads

    def head(self, repo: str, revision: str | None = None, kind: str = "model") -> Head | None:
        """The commit a revision points to (one request); None when the repo surely does not exist (404 with a valid token).

        Raises:
            Missing: the repo is there, the revision is not.
        """
        asked = Asked(f"find {kind} {check_name(repo)}", repo, kind)
        path = f"/api/{kind}s/{repo}" + ("" if revision is None else f"/revision/{quoted(revision)}")

        def action(token: str | None) -> Head | None:
            try:
                response = self._client.get(path, token, {"expand": ["sha", "private", "gated"]})
            except Answered as answer:
                return self._no_head(answer, token, repo, revision, kind)
            return _head_of(parsed(response))

        found = self._client.attempt(asked, action)
        if found is not None and kind == "model" and not found.private:
            self._cache.discard("hidden", key_of([self.endpoint, repo]))
        return found

    def glance(self, repo: str) -> Glance | None:
        """The main branch and the tags of a model repo that anybody can see, in one request without a token; None where it cannot
        be seen so, or not now: then ``head`` says what there is to say. What was hidden once is not tried again before it was
        seen to be public."""
        key = key_of([self.endpoint, check_name(repo)])
        if self._cache.has("hidden", key) or self._client.patience().hopeless:
            return None
        began = time.monotonic()
        try:
            refs = _refs_of(parsed(self._client.get(f"/api/models/{repo}/refs", None)))
        except Answered as answer:
            if answer.response.status_code in (401, 403, 404):
                self._cache.write("hidden", key, b"", durable=False)
            return None
        except failures() as error:
            if self._client.trouble(error, Asked(f"find model {repo}", repo), None, began) is None:
                raise
            return None
        main = refs.get("branches", {}).get("main")
        return None if main is None else Glance(main, refs.get("tags", {}))

    def _no_head(self, answer: Answered, token: str | None, repo: str, revision: str | None, kind: str) -> Head | None:
        response: httpx2.Response = answer.response
        code = response.headers.get("X-Error-Code", "")
        if response.has_redirect_location and (now := renamed_to(response, kind)) is not None:
            return Head("", private=False, renamed_to=now)
        if response.status_code == 404 and code == "RevisionNotFound":
            raise Missing("Revision not found", f"{kind} {repo} has no revision {revision or 'main'}. Look at its commits.")
        if response.status_code == 404 and code == "RepoNotFound" and token is not None:
            return None
        raise answer

    def tree(self, repo: str, sha: str, kind: str = "model") -> Mapping[str, FileDigest]:
        """All files at a full commit, by path; cached by commit for ever."""
        key = key_of([self.endpoint, kind, repo, sha])
        if (known := _tree_from(self._cache.read_json("tree", key))) is not None:
            return known
        asked = Asked(f"list the files of {kind} {check_name(repo)}", repo, kind)
        path = f"/api/{kind}s/{repo}/tree/{quoted(sha)}"
        found: dict[str, FileDigest] = {}
        host = self._client.host
        for page in self._client.pages(asked, path, {"recursive": "true", "expand": "false"}):
            for entry in page:
                if not (isinstance(entry, dict) and isinstance(entry.get("path"), str)):
                    raise self._client.garbled(asked)  # leaving it out would make a file look missing
                if entry.get("type") == "file":
                    found[entry["path"]] = _digest_of(entry, host)
        rows = [[name, digest.size, digest.sha256, digest.blob_id] for name, digest in found.items()]
        self._cache.write("tree", key, json.dumps(rows).encode())
        return found

    def reachable(self, repo: str, sha: str, kind: str = "model") -> bool:
        """Whether a commit is in the history of a branch or tag, not only of a pull request; True is cached.

        Anyone can open a pull request on a repo, and its commits can be read under the repo's name.
        """
        key = key_of([self.endpoint, kind, repo, sha])
        if self._cache.has("reachable", key):
            return True
        asked = Asked(f"read the history of {kind} {check_name(repo)}", repo, kind)
        refs = self._refs(asked)
        tips = dict.fromkeys(tip for group in ("branches", "tags", "converts") for tip in refs.get(group, {}).values())
        seen = sha in tips or any(self._in_history(asked, tip, sha) for tip in tips)
        if seen:
            self._cache.write("reachable", key, b"")
        return seen

    def tags(self, repo: str) -> Mapping[str, str]:
        """The tags of a model repo and the commits they point at (one request)."""
        return self._refs(Asked(f"list the tags of {check_name(repo)}", repo)).get("tags", {})

    def _refs(self, asked: Asked) -> dict[str, dict[str, str]]:
        """Names and commits of branches, tags and converts."""
        return self._client.attempt(
            asked, lambda token: _refs_of(parsed(self._client.get(f"/api/{asked.kind}s/{asked.repo}/refs", token)))
        )

    def _in_history(self, asked: Asked, tip: str, sha: str) -> bool:
        path = f"/api/{asked.kind}s/{asked.repo}/commits/{quoted(tip)}"
        pages = self._client.pages(asked, path, {"limit": _HISTORY_PAGE})
        return any(isinstance(entry, dict) and entry.get("id") == sha for page in pages for entry in page)

    def author(self, repo: str, sha: str, path: str) -> str | None:
        """The account that wrote a file last, as of a commit; None when the Hub does not say. See ``authors``."""
        return _authors.author_of(self._client, self._cache, check_name(repo), sha, path)

    def read(self, repo: str, sha: str, path: str, expect: FileDigest, kind: str = "model", limit: int = 64 << 20) -> bytes:
        """A small file at a commit, checked against ``expect`` and cached by its digest.

        Raises:
            Refused: the file has more than ``limit`` bytes.
        """
        if expect.size > limit:
            raise Refused("File is too large", f"{path} in {repo} has {expect.size:,} bytes; at most {limit:,} are read.")
        key = expect.sha256 or expect.blob_id or ""
        known = self._cache.read("blob", key)
        if known is not None and expect.same_bytes(digest_bytes(known)):
            return known
        asked = Asked(f"read {path} of {kind} {check_name(repo)}", repo, kind)
        address = _download.resolve_path(repo, sha, path, kind)
        for _ in range(2):
            data = _download.read_bytes(self._client, asked, address, 0, expect.size) if expect.size else b""
            if expect.same_bytes(digest_bytes(data)):
                self._cache.write("blob", key, data)
                return data
        raise Unavailable("Download is corrupted", f"{path} of {repo} does not have the digest its tree lists. Try again later.")

    def read_range(self, repo: str, sha: str, path: str, start: int, stop: int, kind: str = "model") -> bytes:
        """Bytes ``start:stop`` of a file, by a ranged request (for headers); fewer at the end of the file. Not checked."""
        asked = Asked(f"read the header of {path} of {kind} {check_name(repo)}", repo, kind)
        if stop <= start:
            return b""
        return _download.read_bytes(self._client, asked, _download.resolve_path(repo, sha, path, kind), start, stop)

    def download(
        self, repo: str, sha: str, path: str, expect: FileDigest, into: Path,
        progress: Callable[[int, int], None] | None = None, kind: str = "model",
    ) -> FileDigest:  # fmt: skip
        """One file to ``into`` (resuming ``<into>.part``), hashed and compared with ``expect`` before it gets its name.

        Returns all its digests.

        Raises:
            Missing: the disk is full.
            Unavailable: also when the bytes are wrong three times over.
        """
        asked = Asked(f"download {path} of {kind} {check_name(repo)}", repo, kind)
        address = _download.resolve_path(repo, sha, path, kind)
        return _download.download(self._client, asked, address, expect, into, progress)

    # ----------------------------------------------------------------------------------------------- writes

    def user(self) -> str | None:
        """The account's name; None without a token. See ``accounts.user``."""
        return _accounts.user(self._client, self._users)

    def whoami(self) -> Mapping[str, Any] | None:
        """Who the token belongs to; None without a token."""
        return _accounts.whoami(self._client, self._client.token)

    def can_write(self, repo: str) -> bool:
        """Whether the token may write to a model repo, or create it where it does not exist."""
        return _accounts.can_write(self._client, check_name(repo))

    def create_repo(self, repo: str, private: bool) -> bool:
        """Create a model repo; False when there is one already, which is left as it is (look at its visibility afterwards).

        Raises:
            Missing: the token may not.
        """
        asked = Asked(f"create the repository {check_name(repo)}", repo, write=True)
        return self._made(asked, lambda api: api.create_repo(repo, private=private, exist_ok=False))

    def create_tag(self, repo: str, name: str, commit: str) -> bool:
        """Name a commit of a model repo; False when there is a tag of that name already (look where it points).

        Raises:
            Missing: the token may not.
        """
        asked = Asked(f"tag a commit of {check_name(repo)}", repo, write=True)
        return self._made(asked, lambda api: api.create_tag(repo, tag=name, revision=commit))

    def _made(self, asked: Asked, make: Callable[[HfApi], object]) -> bool:
        """Make something in a repo; False when it is there already (409)."""
        from huggingface_hub.errors import HfHubHTTPError

        def action(token: str | None) -> bool:
            try:
                make(self._client.api(token))
            except HfHubHTTPError as error:
                if error.response.status_code != 409:
                    raise
                return False
            return True

        return self._client.attempt(asked, action, lambda: self._client.write_token(asked.repo))

    def delete_tag(self, repo: str, name: str) -> None:
        """Delete a tag of a model repo, if it is there.

        Raises:
            Missing: the token may not.
        """
        from huggingface_hub.errors import RevisionNotFoundError

        asked = Asked(f"delete a tag of {check_name(repo)}", repo, write=True)

        def action(token: str | None) -> None:
            with contextlib.suppress(RevisionNotFoundError):
                self._client.api(token).delete_tag(repo, tag=name)

        self._client.attempt(asked, action, lambda: self._client.write_token(repo))

    def proposals(self, repo: str, author: str | None) -> list[Proposal]:
        """See ``discussions.proposals``."""
        return _discussions.proposals(self._client, check_name(repo), author)

    def propose(self, repo: str, title: str, description: str) -> int:
        """See ``discussions.propose``."""
        return _discussions.propose(self._client, check_name(repo), title, description)

    def set_status(self, repo: str, num: int, status: Literal["open", "closed"]) -> None:
        """See ``discussions.set_status``."""
        _discussions.set_status(self._client, check_name(repo), num, status)

    def commit(
        self, repo: str, operations: Sequence[Operation], message: str, parent: str,
        progress: Callable[[int, int], None] | None = None, revision: str | None = None, ignores: bool = False,
    ) -> str:  # fmt: skip
        """One attempt at one atomic commit on top of ``parent``; returns its hash. See ``writes.commit``.

        Raises:
            Unsettled: the outcome is not known, or another commit came first; read the head again, then decide.
            Refused, Missing, NotVisible: as named.
        """
        return _writes.commit(self._client, check_name(repo), operations, message, parent, progress, revision, ignores)


def _refs_of(data: Any) -> dict[str, dict[str, str]]:
    """Names and commits of branches, tags and converts, by these words.

    Raises:
        Garbled: it is no listing of them.
    """
    if not isinstance(data, dict):
        raise Garbled
    found: dict[str, dict[str, str]] = {}
    for kind, group in data.items():
        for ref in group if isinstance(group, list) else ():
            name, tip = (ref.get("name"), ref.get("targetCommit")) if isinstance(ref, dict) else (None, None)
            if isinstance(name, str) and isinstance(tip, str) and _SHA.fullmatch(tip):
                found.setdefault(kind, {})[name] = tip
    return found


def _head_of(data: Any) -> Head:
    sha = data.get("sha") if isinstance(data, dict) else None
    if not isinstance(sha, str) or not _SHA.fullmatch(sha):
        raise Garbled
    return Head(sha, private=data.get("private") is True, gated=bool(data.get("gated")))


def _digest_of(entry: Mapping[str, Any], host: str) -> FileDigest:
    """Digest of a file in a tree listing. The ``oid`` of a large file is its pointer's, and says nothing of the content."""
    lfs = entry.get("lfs")
    size = entry.get("size")
    if isinstance(lfs, dict):
        oid, size = lfs.get("oid"), lfs.get("size", size)
        if isinstance(oid, str) and _HEX64.fullmatch(oid) and isinstance(size, int):
            return FileDigest(size, sha256=oid)
    elif isinstance(oid := entry.get("oid"), str) and _SHA.fullmatch(oid) and isinstance(size, int):
        return FileDigest(size, blob_id=oid)
    raise NotVisible("Unexpected answer from the Hub", f"{host} listed a file without a digest. Is HF_ENDPOINT right?")


def _tree_from(rows: Any) -> dict[str, FileDigest] | None:
    """A cached tree; None when absent or damaged."""
    if not isinstance(rows, list):
        return None
    try:
        return {name: FileDigest(size, sha256, blob_id) for name, size, sha256, blob_id in rows}
    except (TypeError, ValueError):
        return None
