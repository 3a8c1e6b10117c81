"""What the operating system refused, in words that say what to do."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from saesync.cache import default_root
from saesync.errors import Missing, SaesyncError, disk_is_full

_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)


def os_trouble(error: OSError) -> SaesyncError:
    """The error that the user is told. What is refused in the cache is mended by naming another."""
    where, in_cache = f" ({error.filename})" if error.filename else "", _in_cache(error.filename)
    if disk_is_full(error):
        other = ", or set SAESYNC_CACHE to a larger disk" if in_cache or not where else ""
        return SaesyncError("Disk is full", f"There is no space left{where}. Free some{other}.")
    said = f"{error.strerror or type(error).__name__}{where}"
    if in_cache and error.errno in _NOT_OURS:
        why = f"{said}, in saesync's cache: another user may have made it"
        return Missing("Cache cannot be written", f"{why}. Remove it, or set SAESYNC_CACHE to a folder of your own.")
    return SaesyncError("File trouble", f"{said}. Correct it and run the same command again.")


def _in_cache(name: object) -> bool:
    if not isinstance(name, str):
        return False
    with suppress(Missing):
        return Path(name).is_relative_to(default_root())
    return False
