"""What is special to a folder: kills between file operations, the lock, leftovers, links."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from target_support import batch, upload

from saesync.cache import Cache
from saesync.errors import Conflict, Missing, Unavailable
from saesync.reason import ReasonCode
from saesync.record import Pending, Record, record_path
from saesync.targets.base import Upload
from saesync.targets.local import Local


@pytest.fixture
def target(tmp_path: Path) -> Local:
    return Local(Cache(tmp_path / "cache"), patience=0.3)


def test_killed_between_every_two_file_operations(tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).with_name("local_killer.py")), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["points"]["first"] >= 20
    assert found["points"]["second"] >= 30


def test_cfg_and_weights_of_two_builds_are_never_seen_together(target: Local, tmp_path: Path) -> None:
    """Between the file operations of a rebuild a reader finds the old SAE, no cfg, or the new SAE."""
    root = tmp_path / "out"
    old, new = upload(tmp_path / "old", 1), upload(tmp_path / "new", 2)
    target.publish(str(root), batch("res", {"layer_0": old}), target.observe(str(root)))
    pairs: set[tuple[str | None, str | None]] = set()
    looking = True

    def look(event: str, args: tuple[object, ...]) -> None:
        nonlocal looking
        if looking and event in ("os.rename", "os.remove"):
            looking = False  # observing renames files of its own, in the cache
            folder = target.observe(str(root)).folder("layer_0")
            found = (folder.get("cfg.json"), folder.get("sae_weights.safetensors"))
            pairs.add(tuple(None if digest is None else digest.sha256 for digest in found))  # type: ignore[arg-type]
            looking = True

    sys.addaudithook(look)
    target.publish(str(root), batch("res", {"layer_0": new}), target.observe(str(root)))
    looking = False
    allowed = {tuple(one.record.files[name].sha256 for name in ("cfg.json", "sae_weights.safetensors")) for one in (old, new)}
    assert {pair for pair in pairs if pair[0] is not None} <= allowed
    assert len(pairs) >= 3


def test_pending_is_visible_and_resumed(target: Local, tmp_path: Path) -> None:
    root = tmp_path / "out"
    one = upload(tmp_path / "one", 1)
    work = batch("res", {"layer_0": one})
    done = target.publish(str(root), work, target.observe(str(root)))
    half = Pending(one.record.build_key, {name: (digest,) for name, digest in one.record.files.items()})
    record = replace(done.records["res"], saes=MappingProxyType({}), pending=MappingProxyType({"layer_0": half}))
    (root / record_path("res")).write_bytes(record.to_bytes())
    (root / "layer_0" / "cfg.json").unlink()
    seen = target.observe(str(root))
    assert seen.records["res"].pending == {"layer_0": half}
    after = target.publish(str(root), work, seen)
    assert after.records["res"].pending == {}
    assert after.files == done.files


def test_a_foreign_write_after_a_crash_is_not_taken_for_our_own(target: Local, tmp_path: Path) -> None:
    root = tmp_path / "out"
    one = upload(tmp_path / "one", 1)
    half = Pending(one.record.build_key, {name: (digest,) for name, digest in one.record.files.items()})
    (root / "saesync").mkdir(parents=True)
    (root / record_path("res")).write_bytes(Record("res", pending={"layer_0": half}).to_bytes())
    before = target.observe(str(root))
    (root / "layer_0").mkdir()
    (root / "layer_0" / "sae_weights.safetensors").write_bytes(b"theirs")
    for expect in (before, target.observe(str(root))):
        with pytest.raises(Conflict):
            target.publish(str(root), batch("res", {"layer_0": one}), expect)
    assert (root / "layer_0" / "sae_weights.safetensors").read_bytes() == b"theirs"


def test_what_was_left_half_in_place_can_be_removed(target: Local, tmp_path: Path) -> None:
    root = tmp_path / "out"
    one = upload(tmp_path / "one", 1)
    half = Pending(one.record.build_key, {name: (digest,) for name, digest in one.record.files.items()})
    (root / "saesync").mkdir(parents=True)
    (root / record_path("res")).write_bytes(Record("res", pending={"layer_0": half}).to_bytes())
    (root / "layer_0").mkdir()
    shutil.copy(one.files["sae_weights.safetensors"], root / "layer_0")
    (root / "layer_0" / "notes.txt").write_text("by hand")
    after = target.publish(str(root), batch("res", {}, removed=frozenset({"layer_0"})), target.observe(str(root)))
    assert after.records["res"].pending == {}
    assert sorted(after.folder("layer_0")) == ["notes.txt"]


def test_two_interrupted_runs_in_a_row(target: Local, tmp_path: Path) -> None:
    """The second wanted other files than the first: what the first had put in place is still our own."""
    root = tmp_path / "out"
    one, two, three = (upload(tmp_path / name, n) for n, name in enumerate(("one", "two", "three")))
    half = Pending(one.record.build_key, {name: (digest,) for name, digest in one.record.files.items()})
    (root / "saesync").mkdir(parents=True)
    (root / record_path("res")).write_bytes(Record("res", pending={"layer_0": half}).to_bytes())
    (root / "layer_0").mkdir()
    shutil.copy(one.files["sae_weights.safetensors"], root / "layer_0")

    seen = target.observe(str(root))
    assert seen.records["res"].half_placed("layer_0", seen.folder("layer_0"))
    again = Pending(two.record.build_key, {name: (digest,) for name, digest in two.record.files.items()}).after(half)
    (root / record_path("res")).write_bytes(Record("res", pending={"layer_0": again}).to_bytes())
    after = target.publish(str(root), batch("res", {"layer_0": three}), target.observe(str(root)))
    assert after.folder("layer_0") == three.record.files
    assert after.records["res"].pending == {}


def test_stale_staging_is_ignored_and_swept(target: Local, tmp_path: Path) -> None:
    root = tmp_path / "out"
    work = batch("res", {"layer_0": upload(tmp_path / "one", 1)})
    done = target.publish(str(root), work, target.observe(str(root)))
    (root / ".saesync-tmp-dead" / "saes").mkdir(parents=True)
    (root / ".saesync-tmp-dead" / "saes" / "half").write_bytes(b"half")
    (root / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert target.observe(str(root)) == done
    target.publish(str(root), work, done)
    assert sorted(path.name for path in root.iterdir()) == [".gitattributes", "README.md", "layer_0", "saesync"]


def test_folder_in_use(target: Local, tmp_path: Path) -> None:
    root = tmp_path / "out"
    root.mkdir()
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="Another process"):
            target.publish(str(root), batch("res", {"layer_0": upload(tmp_path / "one", 1)}), target.observe(str(root)))
    finally:
        os.close(handle)
    assert list(root.iterdir()) == []


def test_links_are_not_written_through(target: Local, tmp_path: Path) -> None:
    root, outside = tmp_path / "out", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "layer_0").symlink_to(outside)
    with pytest.raises(Missing, match="symbolic link"):
        target.publish(str(root), batch("res", {"layer_0/a": upload(tmp_path / "one", 1)}), target.observe(str(root)))
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "where", "said"),
    [
        ("file", "layer_0", "layer_0 is a file, and has to be a folder"),
        ("file", "saesync", "saesync is a file, and has to be a folder"),
        ("folder", "README.md", "README.md is a folder, and has to be a file"),
        ("folder", "saesync/res.json", "res.json is a folder, and has to be a file"),
        ("folder", "layer_0/a/cfg.json", "cfg.json is a folder, and has to be a file"),
    ],
)
def test_what_stands_in_the_way_is_named_and_nothing_is_written(
    target: Local, tmp_path: Path, kind: str, where: str, said: str
) -> None:
    root = tmp_path / "out"
    at = root / where
    at.parent.mkdir(parents=True)
    at.mkdir() if kind == "folder" else at.write_text("theirs")
    before = sorted(root.rglob("*"))
    with pytest.raises(Missing, match=said):
        target.publish(str(root), batch("res", {"layer_0/a": upload(tmp_path / "one", 1)}), target.observe(str(root)))
    assert sorted(root.rglob("*")) == before


def test_a_file_is_no_folder(target: Local, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    seen = target.observe(str(tmp_path / "out"))
    assert seen.unknown is not None
    assert seen.unknown.code is ReasonCode.NOT_VISIBLE
    with pytest.raises(Missing, match="is a file"):
        target.check_write(str(tmp_path / "out" / "deeper"), private=False)
    with pytest.raises(Missing, match="Folder cannot be written"):
        target.publish(str(tmp_path / "out"), batch("res", {}), seen)


def evidence_alone(folder: Path) -> dict[str, Upload]:
    """More than fits into one block of a disk."""
    record = upload(folder, 1).record
    return {f"layer_{number}": Upload(replace(record, files={})) for number in range(50)}


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount")
@pytest.mark.parametrize("what", ["weights", "record"])
def test_a_full_disk_is_called_by_its_name_and_leaves_nothing(target: Local, tmp_path: Path, what: str) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(place)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("may not mount")
    try:
        root = place / "out"
        weights = {"layer_0/a": upload(tmp_path / "one", 1, size=100_000)}
        big = batch("res", weights if what == "weights" else evidence_alone(tmp_path / "one"))
        with pytest.raises(Missing, match=f"Disk is full: There is no space left for {root}"):
            target.publish(str(root), big, target.observe(str(root)))
        assert {path.name for path in place.rglob("*") if path.is_file()} <= {"README.md"}  # written whole before the record
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(target: Local, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(Missing, match="No permission"):
        target.check_write(str(tmp_path / "out" / "new"), private=False)


def test_fetch_notices_changes(target: Local, tmp_path: Path) -> None:
    root = tmp_path / "out"
    seen = target.publish(str(root), batch("res", {"layer_0": upload(tmp_path / "one", 1)}), target.observe(str(root)))
    (root / "layer_0" / "cfg.json").write_text("{}")
    with pytest.raises(Conflict, match="changed since"):
        target.fetch(str(root), seen, "layer_0/cfg.json", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_observing_again_reads_no_weights(target: Local, tmp_path: Path) -> None:
    root = tmp_path / "out"
    seen = target.publish(str(root), batch("res", {"layer_0": upload(tmp_path / "one", 1)}), target.observe(str(root)))
    opened: list[str] = []
    looking = True

    def look(event: str, args: tuple[object, ...]) -> None:
        if looking and event == "open":
            opened.append(str(args[0]))

    sys.addaudithook(look)
    assert target.observe(str(root)) == seen
    looking = False
    assert not [path for path in opened if path.endswith(".safetensors")]
