"""Digests agree with git and sha256sum; cache entries are whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from saesync.cache import Cache, default_root, write_atomic
from saesync.digest import FileDigest, canonical, digest_bytes, digest_file, key_of


def test_digests_are_those_of_git_and_sha256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 << 20))
    found = digest_file(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    git = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True).stdout.strip()
    assert found.blob_id == git
    assert found == digest_bytes(path.read_bytes())


def test_same_bytes_needs_a_common_digest() -> None:
    assert not FileDigest(1, sha256="a").same_bytes(FileDigest(1, blob_id="b"))
    assert FileDigest(1, "a", "b").same_bytes(FileDigest(1, blob_id="b"))
    assert not FileDigest(1, "a", "b").same_bytes(FileDigest(1, "x", "b"))


def test_keys_do_not_depend_on_order_and_refuse_nan() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            canonical({"a": [value]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
@example({"a": [1e-4, 9.999e-5, -1e15, 1e16, -0.0, 1.0], "b": {"\x00\x1f\x7f\u2028é": 2**70}})
@example({"weights": {1: 2, 3: (1.5, True)}})
def test_the_spelling_is_that_of_pythons_json_whoever_writes_it(value: Any) -> None:
    spelt = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical(value) == spelt.encode()


def test_an_entry_that_failed_is_not_there(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(RuntimeError), cache.making("builds", "k" * 64) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not cache.has("builds", "k" * 64)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_first_of_two_makers_wins(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.making("builds", "k" * 64) as slow, cache.making("builds", "k" * 64) as fast:
        (fast / "file").write_text("same")
        (slow / "file").write_text("same")
    assert (cache.path("builds", "k" * 64) / "file").read_text() == "same"


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    dead = tmp_path / "tmp" / "4194399-left"
    dead.mkdir(parents=True)
    mine = tmp_path / "tmp" / f"{os.getpid()}-mine"
    mine.mkdir()
    cache.sweep()
    assert not dead.exists()
    assert mine.exists()


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    cache, path = Cache(tmp_path / "cache"), tmp_path / "file"
    path.write_bytes(b"one")
    first = cache.digest_of(path)
    assert cache.digest_of(path) == first
    path.write_bytes(b"two!")
    assert cache.digest_of(path).sha256 == hashlib.sha256(b"two!").hexdigest()


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    cache, path = Cache(tmp_path / "cache"), tmp_path / "file"
    path.write_bytes(b"one")
    first = cache.digest_of(path)
    for entry in (tmp_path / "cache" / "stat").rglob("*"):
        if entry.is_file():
            entry.write_bytes(b"{")
    assert cache.digest_of(path) == first


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_root_that_cannot_be_is_no_surprise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Homes that nobody has, and links in a circle: a path like any other, which the system refuses when it is opened."""
    (tmp_path / "circle").symlink_to("circle")
    for chosen in ("~nobody-of-that-name/cache", str(tmp_path / "circle")):
        monkeypatch.setenv("SAESYNC_CACHE", chosen)
        assert default_root().name == Path(chosen).name
