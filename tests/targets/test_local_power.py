"""What a folder has after the power went: a rename counts only where what was renamed, and the folder it is in, are on the disk.

A kill shows nothing of this: the kernel keeps what was written. So the order of operations is looked at.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from local_killer import world
from target_support import batch, upload

from saesync.cache import Cache
from saesync.targets.local import Local

_listeners: list[Any] = []


def _hear(event: str, args: tuple[Any, ...]) -> None:
    for listener in _listeners:
        listener(event, args)


sys.addaudithook(_hear)  # one for all tests: it cannot be taken away


class Disk:
    """What was flushed, by inode, and the renames in their order with what was not yet on the disk then."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.flushed: set[int] = set()
        self.unflushed: list[str] = []
        self.changed: set[Path] = set()  # folders whose entries may be lost
        self.open_when_the_record_came: list[str] = []

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "os.mkdir" or (event == "os.remove" and os.path.lexists(args[0])):
            self.change(Path(args[0]))
        if event != "os.rename" or self.root not in Path(args[1]).parents:
            return
        source, target = Path(args[0]), Path(args[1])
        for path in (source, *(source.rglob("*") if source.is_dir() else ())):
            if path.stat().st_ino not in self.flushed:
                self.unflushed.append(f"{path.relative_to(self.root)} -> {target.relative_to(self.root)}")
        if target.parent.name == "saesync":
            self.open_when_the_record_came = sorted(self.name(path) for path in self.changed if path.exists())
        self.change(target)

    def change(self, path: Path) -> None:
        staged = any(part.startswith(".saesync-tmp-") for part in path.parts)
        if self.root in path.parents and not staged:
            self.changed.add(path.parent)

    def flush(self, inode: int) -> None:
        self.flushed.add(inode)
        self.changed = {path for path in self.changed if path.exists() and path.stat().st_ino != inode}

    def name(self, path: Path) -> str:
        return f"./{path.relative_to(self.root)}"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = Disk(tmp_path / "target")
    flush = os.fsync

    def fsync(handle: int) -> None:
        flush(handle)
        found.flush(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    _listeners.append(found.hear)
    yield found
    _listeners.clear()


def test_nothing_is_renamed_before_it_is_on_the_disk_and_the_record_comes_last(disk: Disk, tmp_path: Path) -> None:
    alone = batch("alone", {"a/b/c": upload(tmp_path / "alone", 21)})
    target = Local(Cache(tmp_path / "cache"))
    for work in (*world(tmp_path / "files"), alone):
        target.publish(str(disk.root), work, target.observe(str(disk.root)))
        assert disk.unflushed == []
        assert disk.open_when_the_record_came == []
        assert sorted(disk.name(path) for path in disk.changed if path.exists()) == []
