"""A damaged cache costs time, never truth, and never a person's help: the same command, at most twice, gives the same result."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import PROGRAM, Place, copy_of
from unprivileged import no_override

Damage = Callable[[Path], object]


def to_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: path.write_bytes(b""),
    "overwritten": lambda path: path.write_bytes(b"\x07" * path.stat().st_size),
    "cleaned": Path.unlink,
    "a folder": to_a_folder,
}


@pytest.fixture
def warm(applied: Place, tmp_path: Path) -> Place:
    """A world of which everything is in a cache of its own, and nothing is published."""
    return copy_of(applied, tmp_path / "world", cache=tmp_path / "cache", published=False)


def result_of(place: Place) -> dict[str, bytes]:
    """What is published, without the record, which tells of times."""
    files = (path for path in place.world.published.rglob("*") if path.is_file() and path.parent.name != "saesync")
    return {str(path.relative_to(place.world.published)): path.read_bytes() for path in files}


def metrics(place: Place) -> dict[str, Any]:
    """What was measured, by SAE, and how large features were in the proof."""
    record = json.loads((place.world.published / "saesync" / "tiny-res.json").read_text())
    return {name: (sae["evidence"][0]["metrics"], sae["proof"]) for name, sae in record["saes"].items()}


def test_every_entry_is_damaged(warm: Place, applied: Place) -> None:
    """In turn by each way there is: of every kind of entry one or another by each."""
    ways = itertools.cycle(DAMAGES.values())
    for path in sorted(warm.cache.rglob("*")):
        if path.is_file():
            next(ways)(path)
    assert warm.run("plan", "manifests/good.yaml").code == 0
    done = warm.run("apply", "-y", "manifests/good.yaml")
    assert done.code == 0, done.said
    whole = result_of(applied)
    assert {name: data == whole[name] for name, data in result_of(warm).items() if name != "README.md"} == dict.fromkeys(
        set(whole) - {"README.md", "sweep/layer_0/cfg.json", "sweep/layer_0/sae_weights.safetensors"}, True
    )


@pytest.mark.parametrize("depth", [1, 2])
def test_a_cache_that_is_somebody_elses_is_called_by_its_name(warm: Place, depth: int) -> None:
    """As after an `apply` under sudo: the folders in it may be looked at, and not be written to. Two deep, a worker meets it."""
    shutil.rmtree(warm.cache)
    folders = [f"{kind}/{number:02x}" for kind in ("activations", "build", "evidence") for number in range(256)]
    for folder in [warm.cache / name for name in folders]:
        folder.mkdir(parents=True)
        (folder if depth == 2 else folder.parent).chmod(0o555)
    done = subprocess.run(
        [PROGRAM, "apply", "-y", "manifests/good.yaml"],
        cwd=warm.folder, env=dict(warm.environment), preexec_fn=no_override, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for path in warm.cache.rglob("*"):
        path.chmod(0o755) if path.is_dir() else None
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Set SAESYNC_CACHE to a folder" in said or "or set SAESYNC_CACHE to a folder of your own" in said, said
    assert "Correct it and run the same command again" not in said
    assert not warm.world.published.exists() or depth == 2


def test_wrong_numbers_are_not_taken_for_right_ones(warm: Place, applied: Place) -> None:
    """The headers say what they said before; only what they are followed by is something else."""
    shutil.rmtree(warm.cache / "evidence")
    shutil.rmtree(warm.cache / "build")
    numbers = [*(warm.cache / "activations").rglob("*.safetensors"), *(warm.cache / "tokens").rglob("*.npy")]
    assert len(numbers) >= 3
    for path in numbers:
        data = path.read_bytes()
        path.write_bytes(data[:-400] + bytes(400))
    done = warm.run("apply", "-y", "manifests/good.yaml")
    assert done.code == 0, done.said
    assert metrics(warm) == metrics(applied)


def test_a_cached_sae_that_was_changed_is_not_published(warm: Place, applied: Place) -> None:
    good = [path.read_bytes() for path in (applied.world.published / "layer_0").rglob("sae_weights.safetensors")]
    builds = (warm.cache / "build").rglob("sae_weights.safetensors")
    changed = next(path for path in builds if path.read_bytes() in good)  # not the one whose gate fails
    changed.write_bytes(changed.read_bytes()[:-4] + b"\0\0\0\0")
    shutil.rmtree(warm.cache / "stat")
    first = warm.run("apply", "-y")
    assert first.code == 1
    assert "Cached SAE was damaged" in first.err
    assert "Run the same command again" in first.err
    assert len(warm.published()) == 3, "the others are published"
    second = warm.run("apply", "-y", "manifests/good.yaml")
    assert second.code == 0, second.said


def test_bits_that_rot_under_an_unchanged_file_are_not_published(warm: Place) -> None:
    """Size, time and inode stay, so that the remembered digest passes for the file's until it is sent."""
    assert warm.run("apply", "-y", "manifests/good.yaml").code == 0
    good = [path.read_bytes() for path in (warm.world.published / "layer_0").rglob("sae_weights.safetensors")]
    shutil.rmtree(warm.world.published)
    rotten = next(path for path in (warm.cache / "build").rglob("sae_weights.safetensors") if path.read_bytes() in good)
    at = rotten.stat()
    with rotten.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\0\0\0\0")
    os.utime(rotten, ns=(at.st_atime_ns, at.st_mtime_ns))
    first = warm.run("apply", "-y", "manifests/good.yaml")
    assert first.code == 1
    assert "Cached SAE was damaged" in first.said
    assert len(warm.published()) == 2, "the others are published"
    second = warm.run("apply", "-y", "manifests/good.yaml")
    assert second.code == 0, second.said
    published = [path.read_bytes() for path in (warm.world.published / "layer_0").rglob("sae_weights.safetensors")]
    assert sorted(published) == sorted(good)


def test_a_cached_sae_that_was_changed_is_not_measured(applied: Place, tmp_path: Path) -> None:
    """It is published already, and only measured otherwise: as it is published, then."""
    found = []
    for name in ("whole", "damaged"):
        place = copy_of(applied, tmp_path / name, cache=tmp_path / f"{name}-cache", published=True)
        if name == "damaged":
            for path in (place.cache / "build").rglob("cfg.json"):
                path.write_bytes(path.read_bytes().replace(b'"k": 8', b'"k": 4').replace(b'"k": 16', b'"k": 12'))
            for path in (place.cache / "build").rglob("sae_weights.safetensors"):
                path.write_bytes(path.read_bytes()[:-400] + bytes(400))
        text = place.world.good.read_text()
        place.world.good.write_text(re.sub(r"  tokens: (\d+)", lambda match: f"  tokens: {int(match[1]) // 2}", text))
        done = place.run("apply", "-y", "manifests/good.yaml")
        assert done.code == 0, done.said
        assert "validate" in done.said
        found.append(metrics(place))
    assert found[0] == found[1]


def test_a_file_stands_where_a_kind_of_entries_was(warm: Place) -> None:
    for kind in ("stat", "evidence", "build", "tokens", "activations", "tmp"):
        shutil.rmtree(warm.cache / kind)
        (warm.cache / kind).write_text("in the way")
    assert warm.run("plan", "manifests/good.yaml").code == 0
    assert warm.run("apply", "-y", "manifests/good.yaml").code == 0
