"""What changed in a git checkout that anybody may have written. Nothing in it is executed: git is asked for a tree and for blobs
only, and what is in the folder is hashed here.

Neither of the two reads the index or the working tree, so that no hook, filter, fsmonitor, textconv or external diff of the
checkout's ``.git/config`` has anything to do; transports are off, so that a partial clone fetches nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saesync.digest import digest_bytes
from saesync.errors import ManifestError, Missing, Refused
from saesync.manifest import KEEP, looks_like_one, may_be_one
from saesync.manifest.paths import lexical, links_between
from saesync.manifest.yaml12 import MAX_BYTES
from saesync.model import Release

Read = Callable[[Path], bytes]
Load = Callable[[Sequence[Path], Read], tuple[Release, ...]]
_NO_PROGRAM = 127  # how `env` says that there is none
_FILE_MODES = ("100644", "100755")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SAFE = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "safe.directory=*", "protocol.allow=never")
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}


@dataclass(frozen=True, slots=True)
class Changes:
    """How the manifests of some folders differ from a commit. ``renamed`` holds (before, now); paths are as the user names them.

    ``others`` are those that do not, with their git blob ids; ``before`` are the releases of the commit. ``bare`` are the
    folders that held manifests and will not be found without one: git keeps no empty folder.
    """

    since: str
    added: tuple[Path, ...]
    modified: tuple[Path, ...]
    renamed: tuple[tuple[Path, Path], ...]
    deleted: tuple[Path, ...]
    others: Mapping[Path, str]
    before: tuple[Release, ...]
    bare: tuple[Path, ...] = ()

    @property
    def touched(self) -> frozenset[Path]:
        """Manifests that are there and are not as they were."""
        return frozenset((*self.added, *self.modified, *(now for _, now in self.renamed)))

    @property
    def emptied(self) -> frozenset[Path]:
        """Where manifests were and none is: each that is gone, and the folders that held no other. Absolute."""
        left = {lexical(path) for path in (*self.deleted, *(before for before, _ in self.renamed))}
        folders = {lexical(path).parent for path in (*self.touched, *self.others)}
        return frozenset(left | ({path.parent for path in left} - folders))

    def gone(self, named: Collection[str]) -> tuple[tuple[str, str], ...]:
        """(release, manifest) of the releases before that stand in none of the manifests now, which hold those ``named``."""
        return tuple((release.name, release.manifest) for release in self.before if release.name not in named)

    def to_json(self) -> dict[str, Any]:
        """The form that stands in plans."""
        return {
            "since": self.since,
            "added": [str(path) for path in self.added],
            "modified": [str(path) for path in self.modified],
            "renamed": [[str(before), str(now)] for before, now in self.renamed],
            "deleted": [str(path) for path in self.deleted],
            "bare": [str(path) for path in self.bare],
            "unchanged": len(self.others),
            "others": {str(path): blob for path, blob in self.others.items()},
        }


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder with ``.git`` in it. ``root`` is absolute, by its words (links above it are the user's own)."""

    root: Path

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Checkout:
        """The one that all ``paths`` are in.

        Raises:
            Refused: they are in none, in different ones, or reached through a link.
        """
        found = {_root_of(path) for path in paths}
        if len(found) != 1 or None in found:
            named = ", ".join(map(str, paths))
            needed = "With --untrusted or --changed-since, manifests have to be in one checkout of a git repository"
            detail = f"{needed}; this does not hold for {named}."
            raise Refused("Not in a checkout", detail)
        (root,) = (each for each in found if each is not None)
        for path in paths:
            if (link := links_between(root, lexical(path))) is not None:
                detail = f"{path} is reached through the link {link}, which is not followed here. Name the folder itself."
                raise Refused("Link is refused", detail)
        return cls(root)

    def commit(self, ref: str) -> str:
        """The commit that ``ref`` names.

        Raises:
            Missing: there is none of that name here.
        """
        name = f"{ref}^{{commit}}"
        found = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", name) if not ref.startswith("-") else None
        sha = (found or b"").decode("ascii", "replace").strip()
        if not _COMMIT.fullmatch(sha):
            detail = f"{self.root} knows no commit {ref!r}. Fetch it first: a shallow clone holds only the newest."
            raise Missing("Revision not found", detail)
        return sha

    def blobs(self, commit: str, folders: Iterable[Path]) -> dict[Path, tuple[str, int]]:
        """(blob id, bytes) of the regular files that stood directly in ``folders``, by absolute path.

        Raises:
            Missing: one is not here (a partial clone).
        """
        found: dict[Path, tuple[str, int]] = {}
        for folder in folders:
            inside = lexical(folder).relative_to(self.root).as_posix()
            listing = self._git("ls-tree", "-z", "-l", "--full-tree", commit, *([] if inside == "." else ["--", f"{inside}/"]))
            for line in (listing or b"").split(b"\0"):
                about, _, name = line.partition(b"\t")
                fields = about.decode("ascii", "replace").split()
                if len(fields) != 4 or fields[0] not in _FILE_MODES:
                    continue
                if not fields[3].isdigit():
                    raise self._missing(fields[2])
                found[self.root / os.fsdecode(name)] = (fields[2], int(fields[3]))
        return found

    def blob(self, blob_id: str) -> bytes:
        """The bytes of a blob, as git keeps them.

        Raises:
            Missing: it is not here (a partial clone).
        """
        found = self._git("cat-file", "blob", blob_id)
        if found is None:
            raise self._missing(blob_id)
        return found

    def _missing(self, blob_id: str) -> Missing:
        return Missing("Blob not found", f"{self.root} does not hold {blob_id}. Clone it without a filter.")

    def _git(self, *words: str) -> bytes | None:
        """What a git command prints; None when it fails."""
        missing = Missing("Git is missing", "Telling which manifests changed needs the program `git`. Install it.")
        try:
            from git import Git
            from git.exc import GitCommandError, GitCommandNotFound

            from saesync.forge.runner import without_foreign
        except ImportError as error:
            raise missing from error
        options = [word for setting in _SAFE for word in ("-c", setting)]
        git = [*without_foreign(_ENVIRONMENT), "git"]  # a hook's variables are of the repository that it is called in
        command = [*git, "--no-pager", *options, f"--git-dir={self.root / '.git'}", *words]
        try:
            return bytes(Git().execute(command, env=_ENVIRONMENT, stdout_as_string=False, strip_newline_in_stdout=False))
        except GitCommandNotFound as error:
            raise missing from error
        except GitCommandError as error:
            if error.status == _NO_PROGRAM:
                raise missing from error
            return None


def changes(checkout: Checkout, since: str, paths: Sequence[Path], load: Load, base: str | None = None) -> Changes:
    """How the manifests that ``paths`` (files, or folders) name differ from the commit ``since``.

    ``load`` makes releases of manifests, given what reads one. ``base`` is where the releases before stand, when that is not
    ``since``: another commit, or a folder that is a checkout.

    Raises:
        Missing: there is no such commit.
    """
    folders = tuple(dict.fromkeys(path.parent if _is_file(path) else path for path in paths))
    only = {lexical(path) for path in paths} - set(map(lexical, folders))
    now = {path: blob_id(path) for path in _files(checkout, folders)}
    then = _Then.of(checkout, checkout.commit(since), folders, now)
    stood = {path: then.blobs[path] for path in then.manifests() if not only or path in only}
    emptied = {path.parent for path in stood} - {path.parent for path in now}
    now = {path: blob for path, blob in now.items() if not only or path in only}
    added, deleted = [path for path in now if path not in stood], [path for path in stood if path not in now]
    renamed = _renamed(stood, now, added, deleted)
    shown = _Names(checkout.root, folders)
    return Changes(
        then.commit,
        tuple(shown(path) for path in added if path not in renamed.values()),
        tuple(shown(path) for path in now if path in stood and stood[path] != now[path]),
        tuple((shown(old_path), shown(path)) for old_path, path in renamed.items()),
        tuple(shown(path) for path in deleted if path not in renamed),
        {shown(path): blob for path, blob in now.items() if stood.get(path) == blob},
        _before(then, shown, load, base),
        tuple(folder for folder in folders if lexical(folder) in emptied and not (folder / KEEP).is_file()),
    )


def _is_file(path: Path) -> bool:
    """Whether a path names a manifest, and no folder of them. By its name where nothing is there any more."""
    return path.is_file() or (not path.is_dir() and may_be_one(path.name))


@dataclass(frozen=True, slots=True)
class _Then:
    """The files of some folders as a commit has them.

    What stands unchanged in the folder is read there: a git process per manifest would take seconds for a few hundred.
    """

    checkout: Checkout
    commit: str
    blobs: Mapping[Path, str]
    now: Mapping[Path, str]
    _read: dict[Path, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, checkout: Checkout, commit: str, folders: Sequence[Path], now: Mapping[Path, str]) -> _Then:
        blobs = checkout.blobs(commit, folders)
        return cls(checkout, commit, {path: blob for path, (blob, size) in blobs.items() if size <= MAX_BYTES}, now)

    def read(self, path: Path) -> bytes:
        """The bytes of a file, however its path is written."""
        path = lexical(path)
        if path not in self._read:
            same = self.now.get(path) == self.blobs[path]
            self._read[path] = _bytes(path) if same else self.checkout.blob(self.blobs[path])
        return self._read[path]

    def manifests(self) -> list[Path]:
        """Those that are manifests, by absolute path."""
        return [path for path in self.blobs if may_be_one(path.name) and looks_like_one(path.name, self.read(path))]


def _root_of(path: Path) -> Path | None:
    at = lexical(path)
    return next((each for each in (at, *at.parents) if os.path.lexists(each / ".git")), None)


def _files(checkout: Checkout, folders: Iterable[Path]) -> list[Path]:
    """The manifests that stand directly in the folders now, by absolute path."""
    found = []
    for folder in map(lexical, folders):
        if not folder.is_dir() or links_between(checkout.root, folder) is not None:
            continue
        for path in sorted(folder.iterdir()):
            if not path.is_symlink() and path.is_file() and looks_like_one(path.name, _bytes(path)):
                found.append(path)
    return found


def _bytes(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def blob_id(path: Path) -> str:
    """What git calls the content of a manifest.

    Raises:
        OSError: it cannot be read.
    """
    return str(digest_bytes(_bytes(path)).blob_id)


def _renamed(stood: Mapping[Path, str], now: Mapping[Path, str], added: list[Path], deleted: list[Path]) -> dict[Path, Path]:
    """Deleted manifests whose bytes stand under another name now."""
    fresh = {now[path]: path for path in added}
    return {path: fresh[stood[path]] for path in deleted if stood[path] in fresh}


@dataclass(frozen=True, slots=True)
class _Names:
    """Absolute paths in the words of the user, who named the folders."""

    root: Path
    folders: tuple[Path, ...]

    def __call__(self, path: Path) -> Path:
        folder = next((each for each in self.folders if lexical(each) == path.parent), None)
        return path.relative_to(self.root) if folder is None else folder / path.name


def _before(then: _Then, shown: _Names, load: Load, base: str | None) -> tuple[Release, ...]:
    """The releases before the change; none when they cannot be read, so that everything counts as new."""
    checkout, names, read = then.checkout, then.manifests(), then.read
    if base is not None and Path(base).is_dir():
        there = lexical(Path(base))
        names = _twins(checkout, there, shown.folders)

        def read(path: Path) -> bytes:
            return _bytes(there / lexical(path).relative_to(checkout.root))
    elif base is not None:
        other = _Then.of(checkout, checkout.commit(base), shown.folders, then.now)
        names, read = other.manifests(), other.read
    try:
        return load([shown(path) for path in names], read)
    except ManifestError:
        return ()


def _twins(checkout: Checkout, there: Path, folders: Sequence[Path]) -> list[Path]:
    """Where in this checkout the manifests of another one would stand."""
    inside = [there / lexical(folder).relative_to(checkout.root) for folder in folders]
    return [checkout.root / path.relative_to(there) for path in _files(Checkout(there), inside)]
