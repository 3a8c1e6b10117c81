"""What a target is: a place that holds releases. One module per target, whose ``TARGET`` is a class of this shape.

Deleting is part of publishing (``Batch.removed``), so that a commit is always a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from saesync.cache import Cache
from saesync.digest import FileDigest
from saesync.errors import Refused
from saesync.model import Observed
from saesync.nothing import nothing
from saesync.record import Record, SaeRecord

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class Upload:
    """One whole SAE to put in place. ``files`` are local paths by name inside the SAE's folder; their bytes must hash to
    ``record.files``, and are hashed again while they are sent. With ``copy_from`` the weights are copied inside the target
    from that folder (a move) and ``files`` holds only what is new."""

    record: SaeRecord
    files: Mapping[str, Path] = field(default_factory=nothing)
    copy_from: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """One atomic commit: whole SAEs of one release, its record and the card. Never half an SAE.

    ``card`` makes the README from the merged record and the README found (None: none); it is called again after a
    lost race. It returns the README's text and the digest of what it was made of, kept in the record. ``removed`` are SAEs
    deleted in the same commit (only files whose digests equal the record's).
    """

    release: str
    uploads: Mapping[str, Upload]
    card: Callable[[Record, str | None], tuple[str, str]]
    removed: frozenset[str] = frozenset()
    message: str = ""
    replace: frozenset[str] = frozenset()  # SAE folders that may overwrite files we did not record (--replace, --adopt)
    private: bool = False  # visibility for a repo that has to be created
    pull_request: bool = False  # commit to our pull request instead of the main branch; only for targets that ``Proposing``


@runtime_checkable
class Target(Protocol):
    """A place that holds releases. Locations are Hub ids or absolute folders."""

    name: str
    summary: str

    def __init__(self, cache: Cache) -> None: ...

    def observe(self, location: str) -> Observed:
        """What is there now. Never raises for invisibility: that is ``Observed.unknown``."""
        ...

    def publish(self, location: str, batch: Batch, expect: Observed, progress: Progress | None = None) -> Observed:
        """Put one batch in place, atomically, and return what is there then.

        Idempotent: a batch already in place writes nothing. Only the folders of the batch must be as in ``expect``;
        other people's changes elsewhere in the repo are kept and merged.

        Raises:
            Conflict: a folder of the batch, or the release's record of it, is not as in ``expect`` nor as in the batch.
            NotVisible, Unavailable: as named.
        """
        ...

    def check_write(self, location: str, private: bool) -> None:
        """Before any work: may we write here (or create it)?

        Raises:
            Missing: no, and what to do about it.
        """
        ...

    def fetch(self, location: str, observed: Observed, path: str, into: Path, progress: Progress | None = None) -> FileDigest:
        """Bring one published file to ``into`` and check its digest (for validate and adopt)."""
        ...


@runtime_checkable
class Placing(Protocol):
    """A target in which something may stand where a file or a folder is to be."""

    def check_paths(self, location: str, paths: Iterable[str]) -> None:
        """Before any work: can files be put at these paths?

        Raises:
            Missing: no, with everything that stands in the way.
        """
        ...


@runtime_checkable
class Proposing(Protocol):
    """A target that can also be published to by pull request (``Batch.pull_request``), without write access."""

    def observe_proposed(self, location: str) -> Observed:
        """As ``Target.observe``; as long as a pull request of ours is open, what stands in it."""
        ...

    def check_proposing(self, location: str) -> None:
        """Before any work: may we open a pull request here?

        Raises:
            Missing: no, and what to do about it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Tag:
    """The name that stands, the commit it stands on, and whether it was ``made``, or put back there, just now."""

    name: str
    commit: str
    made: bool


@runtime_checkable
class Tagging(Protocol):
    """A target whose commits can be named."""

    def tag(self, location: str, release: str, at: Observed, replace: bool = False) -> Tag:
        """Name the commit ``at.head`` after the record of ``release`` in it. Idempotent: a tag of that name on an earlier commit
        that holds the same stays there. ``at.tags`` are those that were there before.

        ``replace``: a tag of that name that points at something else is moved back.

        Raises:
            Conflict: there is such a tag, and it may not be moved.
            Missing, NotVisible, Unavailable: as named.
        """
        ...


def look_at(target: Target, location: str, proposed: bool) -> Observed:
    """What is at a location of a target: as published, or as proposed by our pull request.

    Raises:
        Refused: this target has no pull requests.
    """
    if not proposed:
        return target.observe(location)
    if not isinstance(target, Proposing):
        raise Refused(
            "Target has no pull requests", f"{target.name} cannot be published to by pull request: remove pull_request."
        )
    return target.observe_proposed(location)
