"""Kill apply at any instant, run it again: the same tree as without, nothing twice, nothing half.

Ten moments per mode by default; the marked rest makes it more than fifty, and kills at every event of a run: whenever a step
begins or ends. ``killing`` says what a moment is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from apply_world import Run
from hub_world import TARGET, HubWorld, put_on_hub
from killing import comparable, points, run_in_child, start_child, without_runs
from servers.loopback import HubServer
from tiny import TinyWorld

from saesync.cache import Cache
from saesync.digest import digest_bytes
from saesync.workers import fork

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
POINTS, TIMES = 10, 3  # of one part; so many of them at times between moments
PARTS = [pytest.param(0, id="some"), pytest.param(1, id="more", marks=pytest.mark.slow)]


MODES = ("folder", "lfs", "xet")  # where every part runs


def test_there_are_more_than_fifty_points() -> None:
    """At moments alone; not counted are kills at times, at events, and in the middle of requests."""
    assert len(MODES) * len(PARTS) * (POINTS - TIMES) + 2 * (len(ROUTES["lfs"]) + len(ROUTES["xet"])) > 50


@dataclass
class Scene:
    """A place to publish to, as new before every point."""

    make: Callable[[], Run]
    wipe: Callable[[], None]
    tree: Callable[[], Mapping[str, bytes]]
    check: Callable[[], None]
    report: Path

    def survive(self, reference: Mapping[str, Any], **kill: Any) -> bool:
        """Kill once, look, run again to the end, look. False: it had finished before the kill came."""
        self.wipe()
        killed = run_in_child(self.make, self.report, **kill)
        self.check()
        again = run_in_child(self.make, self.report)
        assert again.exit_code == 0, (kill, again)
        assert comparable(self.tree()) == reference, kill
        self.check()
        third = run_in_child(self.make, self.report)
        assert third.exit_code == 0, kill
        assert [event["type"] for event in third.events] == ["version", "plan", "summary"], kill
        return killed.exit_code is None


def run(scene: Scene, part: int) -> None:
    """All points of one part: at moments, and at times between them."""
    scene.wipe()
    whole = run_in_child(scene.make, scene.report)
    assert whole.exit_code == 0
    assert whole.moments > 30
    reference = comparable(scene.tree())
    scene.check()
    killed = [scene.survive(reference, at=at) for at in points(whole.moments, POINTS - TIMES, part, len(PARTS))]
    # How long a run takes, and how often progress is said, is the machine's: the last moment and the times may be missed.
    assert all(killed[:-1]), "the moments are not where they were"
    for i in range(TIMES):
        scene.survive(reference, after=whole.seconds * (0.2 + 0.2 * i + 0.1 * part))


def run_steps(scene: Scene, part: int = 0, parts: int = 1) -> None:
    """Every event of a run, or every ``parts``-th of them from ``part`` on."""
    scene.wipe()
    whole = run_in_child(scene.make, scene.report)
    assert whole.exit_code == 0
    assert len(whole.events) > 25
    reference = comparable(scene.tree())
    killed = [scene.survive(reference, step=step) for step in range(1 + part, len(whole.events) + 1, parts)]
    # One commit more or less, as the machine has time for, is three events more or less.
    assert all(killed[: -6 // parts]), "there are fewer events than there were"


# ----------------------------------------------------------------------------------------------------- local target


@pytest.fixture
def local(world: TinyWorld, tmp_path: Path, heavy_imports: None) -> Scene:
    cache = tmp_path / "cache"

    def wipe() -> None:
        shutil.rmtree(world.published, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)

    def tree() -> Mapping[str, bytes]:
        assert not list(world.published.rglob(".saesync-tmp-*")), "what was staged is swept"
        found = (path for path in sorted(world.published.rglob("*")) if path.is_file())
        return {str(path.relative_to(world.published)): path.read_bytes() for path in found}

    def check() -> None:
        """What a reader may see at any time: a cfg only beside the weights it was made with."""
        for cfg in world.published.glob("*/*/cfg.json"):
            if not any(part.startswith(".saesync-tmp") for part in cfg.parts):
                assert (cfg.parent / "sae_weights.safetensors").exists()

    def make() -> Run:
        return Run((world.good,), Cache(cache), (world.folder,), start=fork)

    return Scene(make, wipe, tree, check, tmp_path / "report.json")


@pytest.mark.parametrize("part", PARTS)
def test_killed_while_publishing_to_a_folder(local: Scene, part: int) -> None:
    run(local, part)


@pytest.mark.slow
def test_killed_whenever_a_step_begins_or_ends_while_publishing_to_a_folder(local: Scene) -> None:
    run_steps(local)


# ---------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(hub_server: HubServer, world: TinyWorld, tmp_path: Path, heavy_imports: None) -> Scene:
    cache = tmp_path / "cache"
    placed: HubWorld = put_on_hub(hub_server, world)
    manifest = placed.manifest()

    def wipe() -> None:
        hub_server.restart_counters()
        if exists():
            name = {"name": TARGET.split("/")[1], "organization": TARGET.split("/")[0], "type": "model"}
            hub_server.call("DELETE", "/api/repos/delete", json.dumps(name).encode())
        shutil.rmtree(cache, ignore_errors=True)
        shutil.rmtree(Path(os.environ["HF_HOME"]) / "xet", ignore_errors=True)  # it remembers what was uploaded before

    place = hub_server.root / "repos" / "models" / f"{TARGET}.git"

    def exists() -> bool:
        """Whether it is there; the server may be making it, for a child that was killed meanwhile."""
        if place.exists():
            wait_for(lambda: not subprocess.run(["git", "--git-dir", place, "rev-parse"], check=False).returncode, f"no {place}")
        return place.exists()

    def tree() -> Mapping[str, bytes]:
        return {path: hub_server.file(TARGET, path) for path in hub_server.tree_of(TARGET)}

    def check() -> None:
        """Every commit is whole: the record names exactly the SAEs that are there, with their very bytes; no commit is
        made twice."""
        if not exists() or not hub_server.git(TARGET, "for-each-ref", "refs/heads/main"):
            return
        commits = hub_server.commits(TARGET)
        trees = [json.dumps(tree_but_runs(hub_server, commit), sort_keys=True) for commit in commits]
        assert len(set(trees)) == len(trees), "two commits have equal trees"
        for commit in commits:
            whole_commit(hub_server, commit)

    def make() -> Run:
        return Run((manifest,), Cache(cache), (world.folder,), start=fork)

    return Scene(make, wipe, tree, check, tmp_path / "report.json")


def tree_but_runs(server: HubServer, commit: str) -> Mapping[str, Any]:
    """What a commit holds. The same work done twice would differ in times alone."""
    record = "saesync/tiny-hub.json"
    found: dict[str, Any] = dict(server.tree_of(TARGET, commit))
    if record in found:
        found[record] = without_runs(server.git(TARGET, "show", f"{commit}:{record}").encode())
    return found


def whole_commit(server: HubServer, commit: str) -> None:
    paths = server.tree_of(TARGET, commit)
    there = {path.rpartition("/")[0] for path in paths if path.endswith(("cfg.json", ".safetensors"))}
    if "saesync/tiny-hub.json" not in paths:
        assert not there
        return
    record = json.loads(server.git(TARGET, "show", f"{commit}:saesync/tiny-hub.json"))
    assert set(record["saes"]) == there
    for sae_id, entry in record["saes"].items():
        cfg = server.git(TARGET, "show", f"{commit}:{sae_id}/cfg.json").encode()
        assert digest_bytes(cfg).sha256 == entry["files"]["cfg.json"]["sha256"]
        pointer = server.git(TARGET, "show", f"{commit}:{sae_id}/sae_weights.safetensors")
        assert f"oid sha256:{entry['files']['sae_weights.safetensors']['sha256']}\n" in pointer


@pytest.mark.parametrize("part", PARTS)
def test_killed_while_publishing_to_the_hub(hub: Scene, part: int) -> None:
    run(hub, part)


@pytest.mark.slow
def test_killed_whenever_a_step_begins_or_ends_while_publishing_to_the_hub(hub: Scene, hub_server: HubServer) -> None:
    """Every second event in one upload protocol, the others in the other."""
    run_steps(hub, 0 if hub_server.mode == "lfs" else 1, 2)


ROUTES = {
    "lfs": ("preupload", "lfs.batch", "lfs.put", "commit"),
    "xet": ("xet-write-token", "cas.xorbs", "cas.shards", "commit"),
}


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_in_the_middle_of_a_request(hub: Scene, hub_server: HubServer, when: str) -> None:
    """The server has a request (with ``after``: has done what it asks) and does not answer: then comes the kill."""
    hub.wipe()
    assert run_in_child(hub.make, hub.report).exit_code == 0
    reference = comparable(hub.tree())
    for route in ROUTES[hub_server.mode]:
        hub.wipe()
        hub_server.fault(route=route, when=when, action="hang", seconds=6, times=1)
        pid = start_child(hub.make, hub.report)
        wait_for(lambda: hub_server.admin("faults")["faults"][0]["hits"] > 0, f"nobody asked for {route}")
        time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        hub_server.restart_counters()
        hub.check()
        assert run_in_child(hub.make, hub.report).exit_code == 0, route
        assert comparable(hub.tree()) == reference, route
        hub.check()


def wait_for(holds: Callable[[], bool], otherwise: str) -> None:
    limit = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < limit, otherwise
        time.sleep(0.02)
