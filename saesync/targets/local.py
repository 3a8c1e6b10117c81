"""Target ``local``: a folder laid out like a Hub repo, with the same promises as a commit.

A publish holds an exclusive lock on the folder itself (no lock file). New files are staged in ``.saesync-tmp-*`` inside it. Then,
in this order, each step atomic and durable before the next:

1. the record, with ``pending`` naming the SAEs about to change and the digests of their new files,
2. the SAEs: a new folder is renamed in whole; in a folder that exists cfg.json goes first and comes last, so that no reader
   ever loads one SAE's cfg with another's weights,
3. the README,
4. the record as it shall be, ``pending`` cleared.

Whatever instant a process dies at, publishing the same batch again leads to the same tree.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from saesync.cache import Cache, existing, settle, sync
from saesync.digest import BLOCK, FileDigest, Hasher
from saesync.errors import Conflict, Missing, Refused, Unavailable, disk_is_full
from saesync.folders import RECORD_FOLDER, roots_of
from saesync.model import CARD_FILE, CFG_FILE, Observed
from saesync.reason import not_visible
from saesync.record import Pending, Record, SaeRecord
from saesync.targets.base import Batch, Progress
from saesync.targets.merge import Merge, merge, record_file
from saesync.targets.obstacles import obstacles
from saesync.targets.reading import read_card, read_records

_STAGING = ".saesync-tmp-"
_LAST = ".saesync-tmp-record"
LOCK_SECONDS = 600.0


class Local:
    """A local folder as a target. ``location`` is its absolute path."""

    name = "local"
    summary = "a folder laid out like a Hub repository"

    def __init__(self, cache: Cache, patience: float = LOCK_SECONDS) -> None:
        """``patience``: how many seconds to wait for another process that is publishing to the same folder."""
        self._cache = cache
        self._patience = patience

    def observe(self, location: str) -> Observed:
        """See ``Target.observe``. Hidden entries, among them what is being staged, are not part of it."""
        root = Path(location)
        try:
            return self._observe(root)
        except NotADirectoryError:
            detail = f"{location} is a file; a folder is needed."
        except OSError as error:
            detail = f"{error.filename or location} cannot be read: {error.strerror}."
        return Observed(self.name, location, unknown=not_visible(location, detail))

    def _observe(self, root: Path) -> Observed:
        if not root.exists():
            return Observed(self.name, str(root))
        files: dict[str, FileDigest] = {}
        for path in _visible(root, ""):
            with contextlib.suppress(FileNotFoundError):  # replaced or removed while we looked
                files[path] = self._cache.digest_of(root / path)

        def read(path: str) -> bytes:
            return (root / path).read_bytes()

        records, locked = read_records(files, read)
        card = read_card(files, read)
        return Observed(self.name, str(root), exists=True, files=files, records=records, locked=locked, readme=card)

    def publish(self, location: str, batch: Batch, expect: Observed, progress: Progress | None = None) -> Observed:
        """See ``Target.publish``."""
        root = Path(location)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with self._locked(root):
                _sweep(root)
                now = self._observe(root)
                change = merge(batch, expect, now)
                if not change.nothing:
                    self.check_paths(location, change.written())
                    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root))
                    try:
                        _apply(root, staging, batch, now, change, progress)
                    finally:
                        shutil.rmtree(staging, ignore_errors=True)
                        (root / RECORD_FOLDER / _LAST).unlink(missing_ok=True)  # of a disk that was full
                _drop_empty(root, (*batch.removed, *batch.uploads))
                return now if change.nothing else self._observe(root)
        except OSError as error:
            if disk_is_full(error):
                raise Missing("Disk is full", f"There is no space left for {location}. Free some.") from error
            raise Missing("Folder cannot be written", f"{error.filename or location}: {error.strerror}.") from error

    def check_write(self, location: str, private: bool) -> None:
        """See ``Target.check_write``. ``private`` has no meaning for a folder."""
        place = existing(Path(location))
        if not place.is_dir():
            raise Missing("Folder cannot be written", f"{place} is a file; {location} has to be a folder.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise Missing("Folder cannot be written", f"No permission to write to {place}, needed to publish to {location}.")

    def check_paths(self, location: str, paths: Iterable[str]) -> None:
        """See ``Placing.check_paths``."""
        if found := obstacles(Path(location), paths):
            raise Missing.of(found)

    def fetch(
        self, location: str, observed: Observed, path: str, into: Path, progress: Progress | None = None
    ) -> FileDigest:  # fmt: skip
        """See ``Target.fetch``."""
        expect = observed.files.get(path)
        if expect is None:
            raise Missing("File is not there", f"{location} holds no {path}.")
        into.parent.mkdir(parents=True, exist_ok=True)
        with self._cache.scratch() as folder:
            copy = folder / "copy"
            try:
                found = _copy(Path(location) / path, copy, progress)
            except FileNotFoundError as error:
                raise Missing("File is not there", f"{location} holds no {path} any more.") from error
            if not found.same_bytes(expect):
                raise Conflict(
                    "Target changed meanwhile", f"{path} in {location} was changed since the plan looked. Make a new plan."
                )
            copy.replace(into)
        return found

    @contextlib.contextmanager
    def _locked(self, root: Path) -> Iterator[None]:
        """An exclusive lock on the folder itself; the kernel drops it when the process ends, however it ends."""
        import fcntl

        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            limit = time.monotonic() + self._patience
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > limit:
                        detail = f"Another process has been publishing to {root} for {self._patience:.0f} s. Try again later."
                        raise Unavailable("Folder is in use", detail) from None
                    time.sleep(0.1)
                else:
                    break
            yield
        finally:
            os.close(handle)


def _visible(root: Path, prefix: str) -> Iterator[str]:
    """Paths of all files below, relative to the first root; hidden entries and linked folders left out."""
    with os.scandir(root / prefix) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith("."):
            continue
        path = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):
                yield from _visible(root, f"{path}/")
        elif entry.is_file():
            yield path


def _sweep(root: Path) -> None:
    """Remove what a killed process staged. Only called under the lock, so nobody is using it."""
    for entry in root.glob(f"{_STAGING}*"):
        shutil.rmtree(entry)
    with contextlib.suppress(NotADirectoryError):  # of which it is said when something is to be written
        (root / RECORD_FOLDER / _LAST).unlink(missing_ok=True)


def _apply(root: Path, staging: Path, batch: Batch, now: Observed, change: Merge, progress: Progress | None) -> None:
    staged = _stage(root, staging, change, progress)
    last = change.record_bytes
    if change.folders:
        old = now.records.get(batch.release, Record(batch.release))
        half = {name: _pending(batch.uploads[name].record, old.pending.get(name)) for name in change.folders & set(batch.uploads)}
        pending = replace(old, pending=MappingProxyType({**old.pending, **half}))
        if half and pending != old:
            _place(_write(staging / "pending", pending.to_bytes()), root / record_file(old))
            last = change.record.to_bytes()  # also where it only says again what it said before
    folders: dict[str, set[str]] = {}
    for path in staged:
        folders.setdefault(path.rpartition("/")[0], set()).add(path)
    for folder, paths in sorted(folders.items()):
        _place_folder(root, staged, folder, {path for path in paths if staged[path].exists()})  # not what went with one above
    for path in sorted(change.deletes):
        (root / path).unlink(missing_ok=True)
    for emptied in sorted({(root / path).parent for path in change.deletes}):
        with contextlib.suppress(FileNotFoundError):
            sync(emptied)
    if change.card_bytes is not None:
        _place(_write(staging / "card", change.card_bytes), root / CARD_FILE)
    if last is not None:
        # The record is the last thing to change, and nothing is left to tidy after it: a kill then leaves no remnant.
        final = root / record_file(change.record)
        _ensure(final.parent)
        record = _write(final.with_name(_LAST), last)
        shutil.rmtree(staging)
        _place(record, final)


def _pending(wanted: SaeRecord, earlier: Pending | None) -> Pending:
    files = {name: (digest,) for name, digest in wanted.files.items()}
    return Pending(wanted.build_key, MappingProxyType(files)).after(earlier)


def _stage(root: Path, staging: Path, change: Merge, progress: Progress | None) -> dict[str, Path]:
    """Copies of everything new, hashed on the way, by path in the target."""
    sources = {path: put.source for path, put in change.puts.items()}
    sources |= {path: root / source for path, source in change.copies.items()}
    total = sum(source.stat().st_size for source in sources.values())
    done = 0
    staged: dict[str, Path] = {}
    for path, source in sources.items():
        target = staging / "saes" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        found = _copy(source, target, _within(progress, done, total))
        if path in change.puts and not found.same_bytes(change.puts[path].digest):
            raise Refused("File changed after it was proved", f"{path} does not have the digest of its proof now. Run again.")
        done += found.size
        staged[path] = target
    settle(staging)
    return staged


def _within(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one file as part of the whole."""
    if progress is None:
        return None
    tell = progress
    return lambda done, _: tell(before + done, total)


def _place_folder(root: Path, staged: dict[str, Path], folder: str, paths: set[str]) -> None:
    final = root / folder
    if not paths:
        return
    if not final.exists():
        _ensure(final.parent)
        staged[min(paths)].parent.rename(final)
        sync(final.parent)
        return
    cfg = f"{folder}/{CFG_FILE}"
    if cfg in paths and len(paths) > 1:
        (root / cfg).unlink(missing_ok=True)
        sync(final)
    for path in sorted(paths - {cfg}) + sorted(paths & {cfg}):
        _place(staged[path], root / path)


def _place(source: Path, final: Path) -> None:
    _ensure(final.parent)
    source.replace(final)
    sync(final.parent)


def _write(path: Path, data: bytes) -> Path:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return path


def _copy(source: Path, target: Path, progress: Progress | None = None) -> FileDigest:
    with source.open("rb") as read, target.open("wb") as write:
        size = os.fstat(read.fileno()).st_size
        hasher, done = Hasher(size), 0
        while block := read.read(BLOCK):
            write.write(block)
            hasher.update(block)
            done += len(block)
            if progress is not None:
                progress(done, size)
    return hasher.digest()


def _ensure(folder: Path) -> None:
    """Have a folder there, and on the disk."""
    if not folder.is_dir():
        _ensure(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def _drop_empty(root: Path, saes: Iterable[str]) -> None:
    """Folders of SAEs in which nothing is left, those inside them, and their parents. What is linked is left alone."""
    for folder in sorted(folder for sae_id in saes for folder in roots_of(sae_id)):
        home = root / folder
        above = [path for path in home.parents if root in path.parents]
        if any(path.is_symlink() for path in (home, *above)):
            continue
        for path in (*(Path(at) for at, _, _ in os.walk(home, topdown=False)), *above):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


TARGET = Local
