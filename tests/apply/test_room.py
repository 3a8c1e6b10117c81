"""A disk that is too small is named before any work: what a plan takes is computed per disk, from headers where it matters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apply_world import Run
from hub_world import SOURCES, HubWorld
from tiny import TinyWorld

from saesync import preflight, room
from saesync.cache import Cache
from saesync.model import Choices, PublishSpec, Release
from saesync.workers import fork

Look = Callable[..., Run]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
MIB = 1 << 20
mounts = pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs the right to mount")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str, int], Path]]:
    """``disk(name, size)`` mounts a file system of that many bytes."""
    mounted: list[Path] = []

    def mount(name: str, size: int) -> Path:
        place = tmp_path / name
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
        )
        if done.returncode != 0:
            pytest.skip("may not mount")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def to(place: Path) -> Callable[[Release], Release]:
    return lambda release: replace(release, publish=PublishSpec("local", str(place)))


def with_dtype(dtype: str) -> Callable[[Release], Release]:
    return lambda release: replace(release, saes=tuple(replace(sae, dtype=dtype) for sae in release.saes))


def claims(run: Run, monkeypatch: pytest.MonkeyPatch, refined: bool = False) -> dict[str, int]:
    """What a plan claims, by "what"; from headers when ``refined``."""
    found: list[room.Claim] = []
    calls = 0

    def record(given: Any, _cache: Path) -> Any:
        nonlocal calls
        calls += 1
        found[:] = list(given)
        return [] if calls == 2 or not refined else [object()]

    with monkeypatch.context() as patch:
        patch.setattr(room, "_short", record)
        assert preflight.check(*run.look()) == ()
    return {claim.what: claim.size for claim in found}


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2), ("float64", 8)])
def test_converted_saes_are_counted_in_the_dtype_they_get(
    world: TinyWorld, look: Look, monkeypatch: pytest.MonkeyPatch, dtype: str, width: int
) -> None:
    """The bound needs nothing but sizes; headers give what apply then really writes."""
    run = look(world.good, edit=with_dtype(dtype))
    bound, exact = claims(run, monkeypatch), claims(run, monkeypatch, refined=True)
    assert run.apply().exit_code == 0
    written = sum(path.stat().st_size for path in (run.cache.root / "build").rglob("*.safetensors"))
    numbers = sum(64 * 32 * 2 + 64 + 32 + (64 if "batchtopk" in name else 0) for name in ("topk", "standard", "batchtopk"))
    assert abs(written - width * numbers) < 4000, "headers, and thresholds that are wider"
    assert abs(exact["converted SAEs"] - 3 * room._SMALL - written) < 4000
    assert exact["published SAEs"] == exact["converted SAEs"]
    assert bound["converted SAEs"] >= exact["converted SAEs"]
    assert bound["converted SAEs"] < 2.2 * written + 3 * room._SMALL
    activations = sum(path.stat().st_size for path in (run.cache.root / "activations").rglob("*.safetensors"))
    assert activations <= exact["activations"] + 1000 <= bound["activations"]
    assert exact["downloads"] == 0, "everything is local"


@mounts
def test_cache_and_target_on_one_small_disk(world: TinyWorld, tmp_path: Path, disk: Any, heavy_imports: None) -> None:
    """Each of them would fit alone; apply really fills the disk where it is not asked first."""
    place = disk("small", MIB // 2)
    cache, published = Cache(place / "cache"), place / "published"
    apart = Run((world.good,), Cache(tmp_path / "elsewhere"), (world.folder,), start=fork, edit=to(published))
    assert preflight.check(*apart.look()) == ()
    both = Run((world.good,), cache, (world.folder,), start=fork, edit=to(published))
    (place / "ballast").write_bytes(bytes(MIB // 2 - 180_000))
    (found,) = preflight.check(*both.look())
    assert found.summary == "Not enough disk space"
    assert f"{cache.root}: " in found.detail
    assert f"{published}: " in found.detail
    assert "on one disk" in found.detail
    assert "converted SAEs" in found.detail
    assert "published SAEs" in found.detail
    result = both.apply()
    assert result.exit_code == 1
    reasons = {d.summary for failure in result.failures for d in failure.diagnostics}
    assert reasons <= {"Disk is full", "Folder cannot be written"}, [d.detail for f in result.failures for d in f.diagnostics]
    (place / "ballast").unlink()
    assert preflight.check(*both.look()) == ()
    assert both.apply().exit_code == 0


@mounts
def test_every_small_disk_is_named_at_once(world: TinyWorld, disk: Any) -> None:
    one, other = disk("one", 40_000), disk("other", 40_000)
    run = Run((world.good,), Cache(one), (world.folder,), start=fork, edit=to(other))
    found = preflight.check(*run.look())
    assert [diagnostic.summary for diagnostic in found] == ["Not enough disk space"] * 2, found
    assert str(one) in found[0].detail
    assert "published" not in found[0].detail
    assert str(other) in found[1].detail
    assert "are free there" in found[0].detail
    assert ["SAESYNC_CACHE" in diagnostic.detail for diagnostic in found] == [True, False], "a folder is where the manifest says"


@mounts
def test_the_last_byte_decides(world: TinyWorld, disk: Any, heavy_imports: None) -> None:
    """The bound does not fit, what the headers say does: nobody is sent away for nothing."""
    place = disk("target", MIB)
    run = Run((world.good,), Cache(world.folder / "cache"), (world.folder,), start=fork, edit=to(place))
    need = 3 * (room._SMALL + 4 * (64 * 32 * 2 + 64 + 32 + 64)) * room._SPARE
    free = shutil.disk_usage(place).free
    (place / "ballast").write_bytes(bytes(int(free - need) // 4096 * 4096 - 4096))
    assert preflight.check(*run.look()) == ()
    assert run.apply().exit_code == 0


def test_a_rebuild_needs_old_and_new_side_by_side(world: TinyWorld, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    first = look(world.good)
    assert first.apply().exit_code == 0
    held = sum(p.stat().st_size for p in world.published.rglob("*") if p.name in ("cfg.json", "sae_weights.safetensors"))
    wider = claims(look(world.good, edit=with_dtype("float64")), monkeypatch, refined=True)
    assert wider["published SAEs"] == pytest.approx(wider["converted SAEs"], rel=0.01)
    narrower = claims(look(world.good, edit=with_dtype("bfloat16")), monkeypatch, refined=True)
    assert narrower["published SAEs"] == pytest.approx(held / 2 + 3 * room._SMALL, rel=0.1), "while the old ones are still there"


def test_what_is_published_and_comes_back_is_counted(world: TinyWorld, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """To be measured again, or compared, on a machine that does not have it."""
    first = look(world.good)
    assert first.apply().exit_code == 0
    shutil.rmtree(first.cache.root)
    (world.published / "saesync" / "tiny-res.json").unlink()
    size = sum(p.stat().st_size for p in (world.published / "layer_0" / "topk").iterdir())
    found = claims(look(world.good, choices=Choices(adopt=("tiny-res/layer_0/topk",))), monkeypatch)
    assert found["downloads"] == size
    assert found["published SAEs"] == 0


def test_headers_on_the_hub_are_read_once_for_sources_that_are_alike(
    hub_world: HubWorld, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub_world.manifest()
    many = "".join(f"    - {{id: copy_{n}, layer: 0, format: saelens, path: copies/{n}}}\n" for n in range(50))
    text = path.read_text()
    files = {p.name: p.read_bytes() for p in (hub_world.folder / "sources" / "legacy").iterdir() if p.is_file()}
    pushed = {f"copies/{n}/{name}": data for n in range(50) for name, data in files.items()}
    sha = hub_world.server.push(SOURCES, pushed, lfs=tuple(name for name in pushed if name.endswith(".safetensors")))
    path.write_text(text.replace("  for_each:\n", f"  for_each:\n{many}").replace(hub_world.sources_sha, sha))
    run = look(path)
    plan, context = run.look()
    hub_world.server.restart_counters()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    (found,) = preflight.check(plan, context)
    assert found.summary == "Not enough disk space"
    assert "of downloads" in found.detail
    weights = [entry for entry in hub_world.server.log("resolve.get") if "copies/" in entry["path"]]
    assert 1 <= len(weights) <= 8, [entry["path"] for entry in weights]
