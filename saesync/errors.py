"""Errors a user may see, as one tree. Everything that goes wrong on purpose is a ``SaesyncError``.

::

    SaesyncError            exit 1   base; carries one or more diagnostics
    ├── ManifestError       exit 1   a manifest cannot be read, or asks for something that is refused
    ├── Refused             exit 1   a file is unsafe, damaged, or not what it is said to be
    │   └── Inexpressible   exit 1   ... or intact, and SAELens cannot express what it holds
    ├── ProofFailed         exit 1   the converted SAE is not the authors' function
    ├── NotVisible          exit 1   401/403, gated, ambiguous 404: never taken for "absent"
    ├── Unavailable         exit 1   network, server or quota, after bounded retries
    ├── Conflict            exit 1   a target changed between observing and publishing
    ├── Missing             exit 1   something the plan needs is not here (token, device, package, disk)
    ├── PlanStale           exit 4   plan.json no longer describes what is asked or observed
    └── Interrupted         exit 130 Ctrl-C

Exit code 2 (usage) belongs to click. A ``Diagnostic`` has a *summary*, a constant without user data that can be
searched for, and a *detail* in full sentences: what is wrong, why, and what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, Self


@dataclass(frozen=True, slots=True)
class Origin:
    """A place in a file a user wrote. Lines and columns count from 1; ``width`` is what a caret underlines."""

    file: str
    line: int
    column: int
    width: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


_NOWHERE: Mapping[str, Origin] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing that is wrong. ``detail`` ends in ``.`` or ``?`` and says what to do.

    ``key`` is the manifest's key that it is about, where whoever found it does not know the manifest's places.
    """

    summary: str
    detail: str
    origin: Origin | None = None
    key: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The form that crosses process borders and stands in JSON events."""
        where = self.origin
        origin = None if where is None else [where.file, where.line, where.column, where.width]
        about = {} if self.key is None else {"key": self.key}
        return {"summary": self.summary, "detail": self.detail, "origin": origin, **about}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of ``to_json``."""
        origin = value.get("origin")
        return cls(value["summary"], value["detail"], None if origin is None else Origin(*origin), value.get("key"))

    def at(self, origin: Origin | None, places: Mapping[str, Origin] = _NOWHERE) -> Diagnostic:
        """The same diagnostic, placed at its key in ``places``, else at ``origin``, unless it already has a place."""
        if self.origin is not None:
            return self
        return Diagnostic(self.summary, self.detail, places.get(self.key or "", origin), self.key)


class SaesyncError(Exception):
    """Base of the tree. ``diagnostics`` is never empty."""

    exit_code: ClassVar[int] = 1

    def __init__(self, summary: str, detail: str, origin: Origin | None = None) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = (Diagnostic(summary, detail, origin),)
        super().__init__(f"{summary}: {detail}")

    @classmethod
    def of(cls, diagnostics: Iterable[Diagnostic]) -> Self:
        """One error for many diagnostics: everything that is wrong is said at once.

        Raises:
            ValueError: ``diagnostics`` is empty.
        """
        found = tuple(diagnostics)
        if not found:
            raise ValueError("an error needs at least one diagnostic")
        error = cls(found[0].summary, found[0].detail, found[0].origin)
        error.diagnostics = found
        return error


class ManifestError(SaesyncError):
    """A manifest cannot be read, or asks for something that is refused."""


class Refused(SaesyncError):
    """A file is unsafe to read, damaged, or not what it is said to be. Nothing is approximated."""


class Inexpressible(Refused):
    """A file holds what SAELens cannot express: nothing is wrong with it. ``said_by`` is the tensor or field that says so."""

    def __init__(self, summary: str, detail: str, origin: Origin | None = None, said_by: str = "") -> None:
        super().__init__(summary, detail, origin)
        self.said_by = said_by

    @classmethod
    def by(cls, said_by: str, detail: str) -> Self:
        """The refusal for what one tensor or field says."""
        return cls("Cannot be expressed in SAELens", detail, said_by=said_by)


class ProofFailed(SaesyncError):
    """The converted SAE differs from the original authors' forward pass."""


class NotVisible(SaesyncError):
    """The Hub does not let us see it: no statement about existence is possible."""


def renamed(name: str, now: str, what: str = "Repository") -> NotVisible:
    """The refusal to follow the old name of what has a new one."""
    return NotVisible(f"{what} was renamed", f"{name} is called {now} now. Write the new name; old names are not followed.")


class Unavailable(SaesyncError):
    """Network, server or quota trouble that outlasted the bounded retries."""


class Conflict(SaesyncError):
    """A target was changed by somebody else between observing and publishing."""


class Missing(SaesyncError):
    """Something a plan needs is not at hand."""


def lacking(error: BaseException) -> Missing | None:
    """In words, that somebody else's module is not installed (an installation may be for planning alone); None for all else."""
    if not isinstance(error, ModuleNotFoundError) or not error.name or error.name.partition(".")[0] == "saesync":
        return None
    what = f"This needs the Python module {error.name}, which is not installed here"
    return Missing("Package is missing", f"{what}. Install saesync with all that it depends on, without --no-deps.")


class PlanStale(SaesyncError):
    """The plan file was made from other inputs than the ones here now."""

    exit_code = 4


class Interrupted(SaesyncError):
    """The user pressed Ctrl-C."""

    exit_code = 130


def raised(error: BaseException) -> NoReturn:
    """For what tells errors to a callback: ``os.walk(onerror=raised)``."""
    raise error


@contextmanager
def keyed(key: str) -> Iterator[None]:
    """What goes wrong inside is told of a key of the manifest, where it is not yet told of another."""
    try:
        yield
    except SaesyncError as error:
        error.diagnostics = tuple(replace(each, key=each.key or key) for each in error.diagnostics)
        raise


ERROR_TYPES: Mapping[str, type[SaesyncError]] = {
    kind.__name__: kind
    for kind in (
        SaesyncError, ManifestError, Refused, Inexpressible, ProofFailed, NotVisible, Unavailable, Conflict, Missing, PlanStale,
        Interrupted,
    )
}  # fmt: skip

_FULL = ("no space left on device", "disk quota exceeded", " requested and ")  # as safetensors, the system and numpy say it


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, also one of a library, says that a disk is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    said = str(error).lower()
    return isinstance(error, Exception) and any(words in said for words in _FULL)
