"""The local cache: content-addressed, atomic, safe to delete. Losing it costs time, never truth.

Layout under ``root`` (``$SAESYNC_CACHE``, else ``$XDG_CACHE_HOME/saesync``, else ``~/.cache/saesync``)::

    <kind>/<k[:2]>/<key>        a file or a folder, whole or not there at all

Every entry is made under a temporary name (``scratch``) and renamed into place.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saesync.digest import FileDigest, digest_file, key_of
from saesync.errors import Missing
from saesync.scratch import scratch, sweep

_TEMPORARY = "tmp"
_SEAL = "sealed.json"
# What says that an entry is not whole. Other trouble, such as too many open files, says nothing of it.
_NOT_WHOLE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError, TypeError)
_ANYBODY = 0o666  # less what the umask takes away


def default_root() -> Path:
    """Where the cache is unless told otherwise.

    Raises:
        Missing: nobody has the home that it would be in. A folder that is named ``~`` is never made.
    """
    if chosen := os.environ.get("SAESYNC_CACHE"):
        return _real(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _real(base) / "saesync"


def _real(typed: str) -> Path:
    """What a variable names; links in a circle are met by whoever opens it."""
    named = os.path.expanduser(typed)  # noqa: PTH111 - Path's own raises RuntimeError there
    if named.startswith("~"):
        home = named.partition("/")[0]
        why = "This user has no home folder" if home == "~" else f"There is no user {home[1:]}"
        raise Missing(
            "Cache has no place", f"{why}, so {typed} is nowhere. Set SAESYNC_CACHE to a folder that may be written to."
        )
    root = Path(os.path.realpath(named))
    if printable(str(root)) != str(root):  # libraries that write there take text alone
        why = narrow(str(root)) or f"{printable(str(root))} is not UTF-8. Set SAESYNC_CACHE to a folder whose name is."
        raise Missing("Cache has no place", why)
    return root


class Cache:
    """A folder of entries by (kind, key). Safe to share between processes."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else default_root()

    @classmethod
    def checked(cls) -> Cache:
        """The cache where it is by default.

        Raises:
            Missing: it has no place, or may not be written to.
        """
        cache = cls()
        cache.check_writable()
        return cache

    def check_writable(self) -> None:
        """Everything below works only where the cache may be written to.

        Raises:
            Missing: it may not.
        """
        place = next((each for each in self._kinds() if not os.access(each, os.W_OK | os.X_OK)), existing(self.root))
        if not place.is_dir():
            why = f"{place} is a file; {self.root} has to be a folder"
        elif not os.access(place, os.W_OK | os.X_OK):
            why = f"No permission to write to {place}, where saesync keeps what it fetched and computed"
        else:
            return
        raise Missing("Cache cannot be written", f"{why}. Set SAESYNC_CACHE to a folder that may be written to.")

    def _kinds(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return [each for each in sorted(self.root.iterdir()) if each.is_dir()]
        return []

    def path(self, kind: str, key: str) -> Path:
        """Where the entry is, or would be."""
        return self.root / kind / key[:2] / key

    def has(self, kind: str, key: str) -> bool:
        """Whether the entry is there, whole."""
        return self.path(kind, key).exists()

    def sealed(self, kind: str, key: str) -> bool:
        """Whether the entry is there with the very files it was made with. One that was damaged since is removed."""
        folder = self.path(kind, key)
        if not os.path.lexists(folder):
            return False
        with contextlib.suppress(*_NOT_WHOLE):
            noted = json.loads((folder / _SEAL).read_bytes())
            found = [self.digest_of(folder / name) for name, _, _ in noted]
            if noted and [[digest.size, digest.sha256] for digest in found] == [[size, sha256] for _, size, sha256 in noted]:
                return True
        self.discard(kind, key)
        return False

    def discard(self, kind: str, key: str) -> None:
        """Remove an entry, whatever it has become."""
        remove(self.path(kind, key))

    @contextlib.contextmanager
    def making(self, kind: str, key: str, seal: bool = False) -> Iterator[Path]:
        """A fresh folder to fill; on success it becomes the entry (or is dropped if another process was first).

        ``seal``: note the digests of its files, for ``sealed``.

        Raises:
            OSError: no space, no permission.
        """
        with self.scratch() as folder:
            yield folder
            if seal:
                _seal(folder)
            settle(folder)
            final = self.path(kind, key)
            self._make_way(final)
            try:
                folder.rename(final)
            except OSError:
                # A folder cannot replace a non-empty one: whoever came first made the same content.
                if not final.exists():
                    raise

    def _make_way(self, final: Path) -> None:
        """The folder above an entry, also where a file took its name, and nothing at the entry's place but a folder."""
        for place in (self.root / final.relative_to(self.root).parts[0], final.parent, final):
            if os.path.lexists(place) and not place.is_dir():
                remove(place)
        final.parent.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A fresh folder on the cache's disk that is gone afterwards.

        Raises:
            OSError: no space, no permission.
        """
        place = self.root / _TEMPORARY
        if place.is_file():
            remove(place)
        with scratch(place) as folder:
            yield folder

    def write(self, kind: str, key: str, data: bytes, durable: bool = True) -> Path:
        """Store a small file as an entry. One that is not ``durable`` may be gone or damaged after power loss."""
        final = self.path(kind, key)
        try:
            write_atomic(final, data, durable)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            self._make_way(final)
            if final.is_dir():
                remove(final)
            write_atomic(final, data, durable)
        return final

    def read(self, kind: str, key: str) -> bytes | None:
        """A small entry's bytes, or None, also where something else took its place."""
        try:
            return self.path(kind, key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
            return None

    def read_json(self, kind: str, key: str) -> Any:
        """A small JSON entry, or None when absent or damaged (a damaged entry costs time, never truth)."""
        data = self.read(kind, key)
        if data is None:
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return None

    def digest_of(self, path: Path) -> FileDigest:
        """Digests of a local file, remembered by (path, size, mtime, inode).

        Raises:
            OSError: the file cannot be read.
        """
        at = path.stat()
        key = _stat_key(path, at)
        known = self.read_json("stat", key)
        if isinstance(known, dict) and known.get("size") == at.st_size and known.get("sha256"):
            return FileDigest(at.st_size, known["sha256"], known.get("blob_id"))
        found = digest_file(path)
        self._note(key, found)
        return found

    def remember(self, path: Path, digest: FileDigest) -> None:
        """Note a file's digest that is known from having written it: ``digest_of`` need not read it.

        Raises:
            OSError: the file is not there.
        """
        self._note(_stat_key(path, path.stat()), digest)

    def forget(self, path: Path) -> None:
        """Remember no digest of a file that turned out to hold other bytes: bits rot without touching size or time."""
        with contextlib.suppress(OSError):
            self.discard("stat", _stat_key(path, path.stat()))

    def _note(self, key: str, digest: FileDigest) -> None:
        """A digest that cannot be noted (a full disk) is computed again: it is right all the same."""
        with contextlib.suppress(OSError):
            self.write("stat", key, json.dumps(digest.to_json()).encode(), durable=False)

    def sweep(self) -> None:
        """Remove what killed processes left half-made."""
        sweep(self.root / _TEMPORARY)


def _stat_key(path: Path, at: os.stat_result) -> str:
    return key_of([printable(str(path.resolve())), at.st_size, at.st_mtime_ns, at.st_ino])


def _seal(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = [(str(path.relative_to(folder)), digest_file(path)) for path in files]
    (folder / _SEAL).write_text(json.dumps([[name, digest.size, digest.sha256] for name, digest in digests]))


def remove(place: Path) -> None:
    """Remove a file or a folder, whatever is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def existing(place: Path) -> Path:
    """``place``, or the nearest of its parents that is there."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def printable(name: str) -> str:
    """A file's name as text that can be encoded: bytes of it that are no UTF-8 are spelled out."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def narrow(name: str) -> str | None:
    """What to do about a name that is UTF-8 on the disk where Python takes names for something else; None where it is not."""
    try:
        os.fsencode(name).decode("utf-8")
    except UnicodeDecodeError:
        return None
    kind, shown = sys.getfilesystemencoding(), printable(name)
    return f"Names of files are {kind} here, and {shown} is not. Set PYTHONUTF8=1, or LC_ALL to a UTF-8 locale."


def write_atomic(path: Path, data: bytes, durable: bool = True, mode: int | None = None) -> None:
    """Write a file so that it is either as before or whole; also after power loss if ``durable``. Links are not followed.

    ``mode``: its permissions, else those of any new file here.

    Raises:
        OSError: no space, no permission.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".saesync-{secrets.token_hex(8)}")  # not made of its name, which may be as long as names can be
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _ANYBODY), "wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        if mode is not None:
            fresh.chmod(mode)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_named(path: Path, data: bytes) -> None:
    """Write a file that a user named: where links lead, with the permissions it had, and into pipes and devices as they are.

    Raises:
        OSError: no space, no permission, a folder.
    """
    real = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        kind = path.stat().st_mode  # as typed: /dev/stdout leads to a pipe that has no name
    except FileNotFoundError:
        write_atomic(real, data)
        return
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
        write_atomic(real, data, mode=stat.S_IMODE(kind))
    else:
        path.write_bytes(data)


def settle(folder: Path) -> None:
    """fsync a folder and every file and folder in it, so that a rename after it never exposes one that is empty."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            sync(path)


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
