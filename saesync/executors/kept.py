"""What was fetched, in the cache: files by content (``blob``), and folders of them (``folder``). Believed only as long as
they are those that were fetched: caches are cleaned, and changed, by programs that know nothing of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from saesync.cache import Cache, remove
from saesync.digest import FileDigest
from saesync.errors import Refused

BLOBS, FOLDERS = "blob", "folder"


def lay_out(cache: Cache, key: str, files: Mapping[str, Path], digests: Mapping[str, FileDigest]) -> Path:
    """A folder of hard links (copies where the file system has none), atomically.

    Raises:
        OSError: no space, no permission.
        Refused: names of several files are one to the file system (macOS does not tell "A" from "a").
    """
    with cache.making(FOLDERS, key) as folder:
        for name, path in files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(place):  # a copy would write over the other file, and through its link over that in the cache
                detail = (
                    f"{name} and another file have one name on the disk of {cache.root}, which does not tell all names apart."
                )
                raise Refused("Names are not told apart", f"{detail} Set SAESYNC_CACHE to a disk that does.")
            try:
                os.link(path, place)
            except OSError:
                shutil.copyfile(path, place)
    made = cache.path(FOLDERS, key)
    for name, digest in digests.items():
        cache.remember(made / name, digest)
    return made


def laid_out(cache: Cache, key: str, digests: Mapping[str, FileDigest]) -> Path | None:
    """The folder, if every file in it is as it was fetched; one that was damaged since is removed."""
    folder = cache.path(FOLDERS, key)
    if not os.path.lexists(folder):
        return None
    if folder.is_dir() and all(whole(cache, folder / name, digest) for name, digest in digests.items()):
        return folder
    cache.discard(FOLDERS, key)
    return None


def whole(cache: Cache, path: Path, digest: FileDigest) -> bool:
    """Whether a fetched file is there with the bytes it was fetched with. Whatever else has its name is removed."""
    try:
        if cache.digest_of(path).same_bytes(digest):
            return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (IsADirectoryError, PermissionError):
        pass
    remove(path)
    return False
