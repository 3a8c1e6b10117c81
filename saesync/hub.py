"""The Hugging Face Hub as saesync sees it: a thin layer over huggingface_hub with explicit tokens, error mapping,
bounded retries and a cache by commit. huggingface_hub is imported on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesync.cache import Cache
from saesync.digest import FileDigest


@dataclass(frozen=True, slots=True)
class Head:
    """A repo at a revision. ``renamed_to`` is set when the Hub redirected the name: named to the user, never followed."""

    sha: str
    private: bool
    gated: bool = False
    renamed_to: str | None = None


class Hub:
    """Reads and writes of Hub repos (``kind`` is "model" or "dataset"). Every call carries an explicit token.

    All methods raise NotVisible (401/403/gated/ambiguous 404 without a token) or Unavailable (after bounded retries);
    ``absent`` answers are None where noted.
    """

    def __init__(self, cache: Cache, endpoint: str | None = None) -> None:
        raise NotImplementedError

    def head(self, repo: str, revision: str | None = None, kind: str = "model") -> Head | None:
        """The commit a revision points to; None when the repo surely does not exist (404 with a valid token)."""
        raise NotImplementedError

    def tree(self, repo: str, sha: str, kind: str = "model") -> Mapping[str, FileDigest]:
        """All files at a full commit, by path; cached by commit for ever."""
        raise NotImplementedError

    def reachable(self, repo: str, sha: str, kind: str = "model") -> bool:
        """Whether a commit is in the history of a branch or tag, not only of a pull request; True is cached."""
        raise NotImplementedError

    def read(self, repo: str, sha: str, path: str, expect: FileDigest, kind: str = "model", limit: int = 64 << 20) -> bytes:
        """A small file at a commit, checked against ``expect`` and cached by its digest."""
        raise NotImplementedError

    def read_range(self, repo: str, sha: str, path: str, start: int, stop: int, kind: str = "model") -> bytes:
        """Bytes ``start:stop`` of a file, by a ranged request (for headers)."""
        raise NotImplementedError

    def download(
        self, repo: str, sha: str, path: str, expect: FileDigest, into: Path,
        progress: Callable[[int, int], None] | None = None, kind: str = "model",
    ) -> None:  # fmt: skip
        """One file to ``into`` (resuming a ``.part`` beside it), hashed and compared with ``expect`` before it is renamed there."""
        raise NotImplementedError

    def whoami(self) -> Mapping[str, Any] | None:
        """Who the token belongs to; None without a token."""
        raise NotImplementedError
