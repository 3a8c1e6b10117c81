"""Where files are looked at: a folder on this disk, or a Hub repo at a commit."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from saesync.cache import narrow
from saesync.errors import Missing, Refused, raised, renamed
from saesync.formats._bytes import Bytes, LocalBytes, RangedBytes
from saesync.inspection.reference import Reference

if TYPE_CHECKING:
    from saesync.hub import Hub

_MAX_FILES = 200_000


def require_text(path: Path) -> None:
    """The whole path is text: this disk may take any bytes as a name, the library that reads and writes weights does not.

    Raises:
        Refused: a part of it is not UTF-8.
    """
    name = str(path.absolute())
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        detail = f"{shown}: safetensors cannot open it. Rename it, or use another folder."
        raise Refused("Name is not UTF-8", narrow(name) or detail) from error


class Place(Protocol):
    """A listing whose files can be opened for ranged reads."""

    def names(self) -> Collection[str]:
        """All file names, relative, with forward slashes."""
        ...

    def open(self, name: str) -> Bytes:
        """One of them."""
        ...


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A folder. Hidden folders are left out, links to folders are not followed."""

    root: Path

    def names(self) -> Collection[str]:
        """See ``Place``.

        Raises:
            OSError: a folder cannot be read; what is in it would be missing without a word.
        """
        found: list[str] = []
        for folder, inner, files in os.walk(self.root, onerror=raised):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            base = Path(folder).relative_to(self.root)
            found.extend((base / name).as_posix() for name in files if (Path(folder) / name).is_file())
            if len(found) > _MAX_FILES:
                raise Missing("Too many files", f"{self.root} holds more than {_MAX_FILES:,} files. Name a folder inside it.")
        return found

    def open(self, name: str) -> Bytes:
        """See ``Place``."""
        return LocalBytes(self.root / name)


@dataclass(frozen=True)
class HubPlace:
    """A repo at a full commit."""

    hub: Hub
    repo: str
    sha: str

    def names(self) -> Collection[str]:
        """See ``Place``."""
        return self.hub.tree(self.repo, self.sha)

    def open(self, name: str) -> Bytes:
        """See ``Place``."""
        size = self.hub.tree(self.repo, self.sha)[name].size
        return RangedBytes(size, partial(self.hub.read_range, self.repo, self.sha, name))


def commit_of(hub: Hub, reference: Reference) -> tuple[str, str]:
    """The repository that a reference names, and the commit its revision points to now.

    Raises:
        Missing: no such repo or revision.
        NotVisible, Unavailable: it has another name now, or the Hub does not say.
    """
    repo = reference.repo or ""
    head = hub.head(repo, reference.revision)
    if head is None:
        raise Missing("Repository not found", f"There is no model repository {repo} on the Hub.")
    if head.renamed_to is not None:
        raise renamed(repo, head.renamed_to)
    return repo, head.sha
