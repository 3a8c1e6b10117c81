"""Folders of fetched files, laid out from the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from saesync.cache import Cache
from saesync.errors import Refused
from saesync.executors.kept import FOLDERS, lay_out


def test_names_that_the_disk_takes_for_one_are_refused(tmp_path: Path) -> None:
    """As macOS takes "A.txt" and "a.txt" for one. Two ways to write one name stand for that here, where they do not."""
    cache = Cache(tmp_path / "cache")
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    with pytest.raises(
        Refused, match=r"\./a\.txt and another file have one name on the disk of .*cache, which .* Set SAESYNC_CACHE"
    ):
        lay_out(cache, "k", {"a.txt": first, "./a.txt": second}, {})
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2")
    assert not cache.path(FOLDERS, "k").exists()
