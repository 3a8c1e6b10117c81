"""The one pull request a run was of, and what it changes: from GitHub's API, never from what the run left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saesync.ci.api import GitHub, part
from saesync.ci.event import Run
from saesync.errors import Unavailable

MANIFESTS = "manifests/"
MOST_FILES = 300
"""GitHub's comparison lists no more files than this, and does not say when there are more."""


@dataclass(frozen=True, slots=True)
class Pull:
    """A pull request as it is now. ``head_repository`` is None when it was deleted. ``changed_files`` is GitHub's own count."""

    number: int
    open: bool
    head_sha: str
    head_repository: str | None
    base_ref: str
    changed_files: int | None

    def is_of(self, run: Run) -> bool:
        """Whether the run was made of what it proposes now."""
        same = run.head_repository is not None and _same(self.head_repository, run.head_repository)
        return self.open and same and self.head_sha == run.head_sha


@dataclass(frozen=True, slots=True)
class Changes:
    """What a pull request changes. ``outside`` are paths outside ``manifests``; ``whole`` is False when the list is not all."""

    outside: tuple[str, ...]
    whole: bool
    manifests: str = MANIFESTS

    @property
    def only_manifests(self) -> bool:
        """Whether it is certain that nothing but manifests changes."""
        return self.whole and not self.outside


def find(github: GitHub, run: Run) -> list[Pull]:
    """Open pull requests whose head is the run's commit in the run's repository, whatever branch they are to go to."""
    found = github.pages(f"/repos/{run.repository}/pulls", state="open")
    return [pull for pull in map(_pull, found) if pull.is_of(run)]


def read(github: GitHub, repository: str, number: int) -> Pull:
    """One pull request as it is at this moment."""
    return _pull(github.get(f"/repos/{repository}/pulls/{number}"))


def changes(github: GitHub, run: Run, pull: Pull, manifests: str = MANIFESTS) -> Changes:
    """What the run's commit changes against the default branch: both names of what was renamed, and what was removed.
    ``manifests`` is the folder of manifests, with a slash at its end.

    The comparison is of the commit itself, so a push between two requests cannot slip other files under it.
    """
    found = github.get(f"/repos/{run.repository}/compare/{part(run.default_branch)}...{part(run.head_sha)}")
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, list):
        return Changes((), False, manifests)
    paths: list[str] = []
    whole = len(files) < MOST_FILES and len(files) == pull.changed_files
    for file in files:
        names = _names(file)
        whole = whole and bool(names)
        paths += names
    return Changes(tuple(dict.fromkeys(path for path in paths if not path.startswith(manifests))), whole, manifests)


def _names(file: Any) -> list[str]:
    """The path of a changed file, and what it was called before; none when the entry is not understood."""
    if not isinstance(file, dict):
        return []
    name, before = file.get("filename"), file.get("previous_filename")
    names = [name] if before is None else [name, before]
    moved = file.get("status") in ("renamed", "copied")
    known = all(isinstance(each, str) and each for each in names) and (not moved or before is not None)
    return [str(each) for each in names] if known else []


def _pull(value: Any) -> Pull:
    """
    Raises:
        Unavailable: the answer is not of the form GitHub documents.
    """
    try:
        head, base, count = value["head"], value["base"], value.get("changed_files")
        repository = head["repo"]["full_name"] if head.get("repo") else None
        number, state = value["number"], value["state"]
        pull = Pull(number, state == "open", head["sha"], repository, base["ref"], count)
    except (AttributeError, KeyError, TypeError) as error:
        raise Unavailable("GitHub's answer is not understood", "A pull request has another form than documented.") from error
    if not isinstance(number, int) or not all(isinstance(text, str) for text in (pull.head_sha, pull.base_ref)):
        raise Unavailable("GitHub's answer is not understood", "A pull request has another form than documented.")
    return pull


def _same(one: str | None, other: str) -> bool:
    return one is not None and one.casefold() == other.casefold()


def merged_by(github: GitHub, repository: str, commit: str, branch: str) -> int | None:
    """Number of the pull request whose merge made a commit of ``branch``; None for a direct push."""
    for value in github.pages(f"/repos/{repository}/commits/{part(commit)}/pulls"):
        if value.get("merged_at") and value.get("merge_commit_sha") == commit and _base(value) == branch:
            return _pull(value).number
    return None


def _base(value: Mapping[str, Any]) -> Any:
    base = value.get("base")
    return base.get("ref") if isinstance(base, dict) else None
