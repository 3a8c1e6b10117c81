"""Digests agree with git and sha256sum; cache entries are whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from saesync.cache import Cache, default_root, write_atomic, write_named
from saesync.digest import FileDigest, canonical, digest_bytes, digest_file, key_of
from saesync.errors import Missing


def test_digests_are_those_of_git_and_sha256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 << 20))
    found = digest_file(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    command = ["git", "hash-object", "--no-filters", str(path)]
    git = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
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


def test_a_file_of_the_same_size_is_told_by_its_time_and_by_its_inode(tmp_path: Path) -> None:
    cache, path = Cache(tmp_path / "cache"), tmp_path / "weights"
    path.write_bytes(b"one")
    first = path.stat()
    assert cache.digest_of(path) == digest_bytes(b"one")
    path.write_bytes(b"two")
    os.utime(path, ns=(first.st_atime_ns, first.st_mtime_ns + 1))
    assert cache.digest_of(path) == digest_bytes(b"two")
    (tmp_path / "other").write_bytes(b"six")
    os.utime(tmp_path / "other", ns=(first.st_atime_ns, first.st_mtime_ns + 1))
    (tmp_path / "other").replace(path)
    assert cache.digest_of(path) == digest_bytes(b"six")


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
    """Links in a circle: a path like any other, which the system refuses when it is opened."""
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.setenv("SAESYNC_CACHE", str(tmp_path / "circle"))
    assert default_root() == tmp_path / "circle"


def test_a_home_that_nobody_has_is_no_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAESYNC_CACHE", "~nobody-of-that-name/cache")
    with pytest.raises(Missing, match="There is no user nobody-of-that-name, so ~nobody-of-that-name/cache is nowhere"):
        Cache()


@pytest.mark.skipif(sys.platform != "linux", reason="as containers run programs under a number that has no name")
def test_a_user_without_a_home_is_told_to_name_a_cache(tmp_path: Path) -> None:
    """Instead of a folder ``~`` in the working directory, which nobody dares to remove."""
    program = "from saesync.cli import main; main(['inspect', 'hf://owner/repo'])"
    as_nobody = ["unshare", "-U", "--map-user=31999", "--map-group=31999"]
    if subprocess.run([*as_nobody, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [*as_nobody, sys.executable, "-c", program],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: Cache has no place\n  This user has no home folder")
    assert "SAESYNC_CACHE" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_files_are_as_open_as_the_user_wants_them(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_named(tmp_path / "file", b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    (tmp_path / "file").chmod(0o640)
    write_named(tmp_path / "file", b"two")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640, "one that was there keeps its permissions"


def test_links_are_kept_and_pipes_are_written_into(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    for text in (b"one", b"two"):
        write_named(tmp_path / "link", text)
        assert (tmp_path / "there" / "file").read_bytes() == text
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_named(tmp_path / "pipe", b"three")
    assert os.read(reader, 10) == b"three"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    write_named(tmp_path / ("x" * 250 + ".json"), b"one")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on files stands for a full disk")
def test_a_digest_is_right_also_where_it_cannot_be_noted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    program = """
        import resource, signal, sys
        from pathlib import Path
        from saesync.cache import Cache
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        print(Cache(Path(sys.argv[1]) / "cache").digest_of(Path(sys.argv[1]) / "file").sha256)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(b"one").hexdigest()
