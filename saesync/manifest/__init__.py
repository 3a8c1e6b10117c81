"""Manifests: YAML files to frozen releases, every value with its file:line:col, everything that is wrong said at once.

``find`` turns what a user typed into files, ``load`` turns files into releases. Nothing here reads weights or the network.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from saesync.errors import Diagnostic, ManifestError
from saesync.manifest import yaml12
from saesync.manifest.check import examine
from saesync.manifest.collisions import collisions
from saesync.manifest.expand import Budget
from saesync.manifest.paths import Bounds, real
from saesync.manifest.releases import release_of
from saesync.manifest.yaml12 import MAX_BYTES, MAX_SHOWN, Node, decode, parse
from saesync.model import Release

__all__ = [
    "DEFAULT_FOLDER",
    "KEEP",
    "find",
    "load",
    "load_confined",
    "looks_like_one",
    "may_be_one",
    "read_tree",
    "with_neighbours",
]

DEFAULT_FOLDER = Path("manifests")
KEEP = ".gitkeep"
"""What keeps a folder in git that has nothing else in it: there, no manifests are wanted."""

_SUFFIXES = (".yaml", ".yml")
_MOST_LOOKED_AT = 10_000
_LOOKS_LIKE_ONE = re.compile(
    rb"^(\xef\xbb\xbf)?([\"']?apiVersion[\"']?\s*:\s*[\"']?saesync/|[\"']?(release|saes)[\"']?\s*:)"
    rb"|(^|[{,])\s*\"apiVersion\"\s*:\s*\"saesync/"  # as JSON
    rb"|\A\s*\{\s*apiVersion\s*:\s*saesync/",
    re.MULTILINE,
)
_SAES = re.compile(rb"\bsaes[\"']?\s*:")


def find(paths: Sequence[Path]) -> list[Path]:
    """The manifests that ``paths`` name, sorted, each once; ``manifests/`` when there are none.

    A file is taken as it is. Of a folder, the .yaml and .yml files directly in it that look like manifests (other tools'
    YAML may stand beside them); hidden files are left out. One with ``KEEP`` in it may hold none.

    Raises:
        ManifestError: a path does not exist, another folder holds no manifest, a folder below it holds one that is not named, or
            a file in it is a link that leads out of it.
    """
    found: dict[Path, None] = {}
    wrong: list[Diagnostic] = []
    named = paths or (DEFAULT_FOLDER,)
    for path in named:
        try:
            found.update(dict.fromkeys(_in_folder(path, named) if path.is_dir() else [_existing(path)]))
        except ManifestError as error:
            wrong += error.diagnostics
    if wrong:
        raise ManifestError.of(wrong)
    return _once(found)


def with_neighbours(files: Sequence[Path]) -> list[Path]:
    """``files`` and the manifests in the same folders, sorted, each once.

    Raises:
        ManifestError: a file in one of the folders is a link that leads out of it.
    """
    found = dict.fromkeys(files)
    for folder in dict.fromkeys(path.parent for path in files):
        found.update(dict.fromkeys(_listed(folder)))
    return _once(found)


def load(
    files: Sequence[Path], *, roots: Sequence[Path] = (), read: Callable[[Path], bytes] | None = None
) -> tuple[Release, ...]:
    """The releases of ``files``, in their order. ``roots`` are folders that local paths may lead to besides the project.

    ``read`` gives the bytes of a manifest where these are not on disk (an earlier version of it).

    Raises:
        ManifestError: everything that is wrong in all of them, sorted by place.
    """
    return _load(files, read or read_bytes, lambda file: Bounds.of(file, roots))


def load_confined(files: Sequence[Path], checkout: Path, read: Callable[[Path], bytes] | None = None) -> tuple[Release, ...]:
    """As ``load``, of manifests that anybody may have written: no path leads out of ``checkout``, and no link is followed.

    Raises:
        ManifestError: everything that is wrong in all of them, sorted by place.
    """
    return _load(files, read or read_bytes, lambda file: Bounds.within(file, checkout))


def _load(
    files: Sequence[Path], read: Callable[[Path], bytes], bounds: Callable[[Path], Bounds]
) -> tuple[Release, ...]:  # fmt: skip
    budget = Budget()
    releases: list[Release] = []
    wrong: list[Diagnostic] = []
    for file in files:
        unread: list[Diagnostic] = []
        try:
            where = bounds(file)
            tree, unread = yaml12.read(decode(read(file), str(file))[1], str(file))
            expanded = examine(tree, str(file), budget)
            release, found = release_of(expanded, where)
            found = [*expanded.wrong, *found]
        except ManifestError as error:
            found = list(error.diagnostics)
        else:
            releases.append(release)
        places = {each.origin for each in unread}
        wrong += _first([*unread, *(each for each in found if each.origin not in places)], file)
    wrong += collisions(releases)[:MAX_SHOWN]
    if wrong:
        raise ManifestError.of(sorted(wrong, key=_place))
    return tuple(releases)


def read_tree(file: Path) -> Node:
    """The YAML tree of one file.

    Raises:
        ManifestError: it cannot be read, or is not YAML as manifests are written in.
    """
    return parse(decode(read_bytes(file), str(file))[1], str(file))


def read_bytes(file: Path) -> bytes:
    """The bytes of a manifest, at most one more than is allowed.

    Raises:
        ManifestError: it cannot be read, or is not a regular file.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ManifestError("Manifest cannot be read", f"{file} is not a regular file.")
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ManifestError("Manifest cannot be read", f"{file}: {error.strerror}.") from error


def looks_like_one(name: str, data: bytes) -> bool:
    """Whether a file of this name with these bytes would be taken for a manifest among others in a folder."""
    return may_be_one(name) and _is_like_one(data)


def may_be_one(name: str) -> bool:
    """Whether a file of this name may be a manifest among others in a folder."""
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _is_like_one(data: bytes) -> bool:
    """By its bytes. One in UTF-16, which some editors and shells write, counts: that it is no UTF-8 is then said."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16", errors="ignore").encode("utf-8", errors="ignore")
    return _LOOKS_LIKE_ONE.search(data.replace(b"\r", b"\n")) is not None


def _asks_for_saes(data: bytes) -> bool:
    """A policy looks like a manifest from its first line."""
    return _is_like_one(data) and _SAES.search(data.replace(b"\0", b"")) is not None


def _existing(path: Path) -> Path:
    if not os.path.lexists(path):
        if path == DEFAULT_FOLDER:
            said = f"There is no folder {path} here. Write a manifest with `saesync init`, or say where they are."
        else:
            said = f"There is no {path} here. Check the name."
        if not path.suffix:
            said += f" {_keeping(path)}"
        raise ManifestError("No such manifest", said)
    return path


def _keeping(folder: Path) -> str:
    return f"Where the last manifest was removed on purpose, commit an empty file {folder / KEEP}: git keeps no empty folder."


def _once(files: Iterable[Path]) -> list[Path]:
    """``files`` sorted; of several names of one file, the first that was given."""
    return sorted({real(path): path for path in reversed(list(files))}.values())


def _in_folder(folder: Path, named: Sequence[Path]) -> list[Path]:
    """The manifests directly in a folder, of which there must be some, and none further below that nobody named."""
    found = _listed(folder)
    if (overlooked := _below(folder, {real(path) for path in named})) is not None:
        why = f"Of {folder}, only the manifests directly in it are read, and {overlooked} is not one of them."
        raise ManifestError("Manifest would be overlooked", f"{why} Move it, or name {overlooked.parent}, too.")
    if not found and not (folder / KEEP).is_file():
        detail = f"{folder} holds no manifest: no .yaml file directly in it has `apiVersion: saesync/v1`. {_keeping(folder)}"
        raise ManifestError("No manifest found", detail)
    return found


def _below(folder: Path, named: Collection[Path]) -> Path | None:
    """The first manifest in the folders below one, but for hidden ones, links, and what is named itself.

    Large trees are data, and are not looked through to their end.
    """
    seen = 0
    for place, inside, names in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        at = Path(place)
        files = [] if at == folder or real(at) in named else [at / name for name in sorted(names) if may_be_one(name)]
        for path in files:
            if not path.is_symlink() and path.is_file() and real(path) not in named and _asks_for_saes(read_bytes(path)):
                return path
        seen += len(inside) + len(names)
        if seen > _MOST_LOOKED_AT:
            break
    return None


def _listed(folder: Path) -> list[Path]:
    home = real(folder)
    found = []
    for path in sorted(folder.iterdir()):
        if not may_be_one(path.name):
            continue
        if path.is_symlink() and not path.exists():
            raise ManifestError(
                "Link leads nowhere", f"{path} is a link to something that is not there. Correct it, or remove it."
            )
        if not path.is_file():
            continue
        if path.is_symlink() and not real(path).is_relative_to(home):
            detail = f"{path} is a link to a file outside {folder}. Name the file itself, or copy it."
            raise ManifestError("Link leads outside", detail)
        if _is_like_one(read_bytes(path)):
            found.append(path)
    return found


def _first(diagnostics: Sequence[Diagnostic], file: Path) -> list[Diagnostic]:
    """The first errors of one manifest: a thousand have one cause, and nobody reads them."""
    found = sorted(diagnostics, key=_place)
    if len(found) <= MAX_SHOWN:
        return found
    more = len(found) - MAX_SHOWN
    detail = f"{file} has {more:,} more error{'s' * (more != 1)}. Fix those shown first."
    return [*found[:MAX_SHOWN], Diagnostic("Too many errors", detail, found[MAX_SHOWN].origin)]


def _place(diagnostic: Diagnostic) -> tuple[str, int, int]:
    where = diagnostic.origin
    return ("", 0, 0) if where is None else (where.file, where.line, where.column)
