"""What stands in the way of files that are put into a folder or a repository: seen before any work, and again before writing."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from saesync.errors import Diagnostic


def obstacles(root: Path, paths: Iterable[str]) -> tuple[Diagnostic, ...]:
    """Why files cannot be put at these ``paths`` below ``root``, each reason once.

    A linked folder would lead out of the target; a file may stand where a folder is needed, or a folder where a file is.
    """
    wanted = sorted({*paths})
    folders = sorted({parent for path in wanted for parent in PurePosixPath(path).parents if parent != PurePosixPath()})
    return tuple(dict.fromkeys((*_folders(root, folders), *_files(root, wanted), *_locked(root, wanted))))


def obstacles_in(files: Collection[str], paths: Iterable[str], location: str) -> tuple[Diagnostic, ...]:
    """The same in a repository that holds ``files``: git would drop what stands in the way without a word."""
    folders = {above for path in files for above in _above(path)}
    found: list[Diagnostic] = []
    for path in sorted(paths):
        found += [_in_the_way(f"{at} in {location} is a file, and has to be a folder") for at in _above(path) if at in files]
        if path in folders:
            found.append(_in_the_way(f"{path} in {location} is a folder, and has to be a file"))
    return tuple(dict.fromkeys(found))


def _above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _folders(root: Path, folders: Iterable[PurePosixPath]) -> Iterator[Diagnostic]:
    for folder in folders:
        at = root / folder
        if at.is_symlink():
            yield Diagnostic("Folder is a link", f"{at} is a symbolic link; saesync does not write through it.")
        elif os.path.lexists(at) and not at.is_dir():
            yield _in_the_way(f"{at} is a file, and has to be a folder")


def _files(root: Path, paths: Iterable[str]) -> Iterator[Diagnostic]:
    for path in paths:
        at = root / path
        if at.is_dir() and not at.is_symlink():
            yield _in_the_way(f"{at} is a folder, and has to be a file")


def _locked(root: Path, paths: Iterable[str]) -> Iterator[Diagnostic]:
    """Folders that files or the folders above them have to be made in, and may not be."""
    for path in paths:
        parents = (root / parent for parent in PurePosixPath(path).parents if parent != PurePosixPath())
        at = next((parent for parent in parents if os.path.lexists(parent)), None)
        if at is not None and at.is_dir() and not os.access(at, os.W_OK | os.X_OK):
            yield Diagnostic("Folder cannot be written", f"No permission to write to {at}. Correct it, and run again.")


def _in_the_way(what: str) -> Diagnostic:
    return Diagnostic("Something is in the way", f"{what}. Move it away, and run again.")
