"""Apply against a Hub that misbehaves: success, or one clear message and nothing lost. No secret is ever shown or kept.

Everything runs with a token in the environment; ``silent`` looks for it afterwards in all that was printed, told, cached or
published.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apply_world import Run
from hub_world import DATA, MODEL, SOURCES, TARGET, HubWorld
from huggingface_hub.utils import _http
from servers.holdings import holdings
from servers.loopback import ALICE, ALICE_READ, BOB, SECRETS

from saesync import preflight
from saesync.apply import Outcome, Result

Look = Callable[..., Run]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.parametrize("hub_process", ["lfs"], indirect=True),
]
IDS = {"layer_0/topk", "layer_0/standard", "layer_1/batchtopk"}


@pytest.fixture(autouse=True)
def silent(hub_world: HubWorld, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[list[Run]]:
    """Register runs here; at the end no secret is found anywhere."""
    runs: list[Run] = []
    yield runs
    out, err = capfd.readouterr()
    told = json.dumps([event for run in runs for event in run.events], default=str)
    for where, text in (("stdout", out), ("stderr", err), ("events", told)):
        assert not [secret for secret in (*SECRETS, "sig=") if secret in text], where  # also not in a signed address
    kept = [path for folder in (tmp_path / "cache", hub_world.folder) for path in folder.rglob("*") if path.is_file()]
    for where, data in (*((str(path), path.read_bytes()) for path in kept), *holdings(hub_world.server.root)):
        assert not [secret for secret in SECRETS if secret.encode() in data], where
    assert hub_world.server.stats()["auth_leaks"] == 0


def applied(run: Run, silent: list[Run], **changes: Any) -> Result:
    silent.append(run)
    return run.apply(**changes)


def details(result: Result) -> str:
    return " ".join(diagnostic.detail for failure in result.failures for diagnostic in failure.diagnostics)


def whole(world: HubWorld) -> None:
    """Everything is published, once: no two commits have equal trees."""
    record = json.loads(world.server.git(TARGET, "show", "main:saesync/tiny-hub.json"))
    assert set(record["saes"]) == IDS
    trees = [world.server.git(TARGET, "rev-parse", f"{commit}^{{tree}}") for commit in world.server.commits(TARGET)]
    assert len(set(trees)) == len(trees)


PASSING: tuple[Mapping[str, Any], ...] = (
    {"route": "commit", "status": 429, "headers": {"Retry-After": "1"}},
    {"route": "commit", "status": 503, "times": 2},
    {"route": "commit", "status": 500, "when": "after"},
    {"route": "commit", "action": "reset", "when": "before"},
    {"route": "commit", "action": "reset", "when": "after"},
    {"route": "commit", "action": "close", "when": "after", "times": 2},
    {"route": "lfs.put", "action": "reset", "after_bytes": 1000},
    {"route": "lfs.put", "status": 503},
    {"route": "lfs.get", "action": "truncate", "after_bytes": 500},
    {"route": "lfs.get", "action": "corrupt", "offset": 900, "times": 2},
    {"route": "lfs.get", "status": 503},
    {"route": "resolve.get", "status": 429, "headers": {"Retry-After": "1"}},
    {"route": "tree", "action": "reset"},
    {"route": "repo.create", "action": "reset", "when": "after"},
)


@pytest.mark.parametrize(
    "fault", PASSING, ids=lambda f: "-".join(str(f[k]) for k in ("route", "status", "action", "when") if k in f)
)
def test_what_passes_is_survived(hub_world: HubWorld, look: Look, silent: list[Run], fault: Mapping[str, Any]) -> None:
    hub_world.server.fault(fault)
    result = applied(look(hub_world.manifest()), silent)
    assert result.exit_code == 0, details(result)
    assert hub_world.server.admin("faults")["faults"][0]["hits"] > 0, "the fault was never met"
    whole(hub_world)


LASTING = [
    pytest.param({"route": "commit", "status": 503}, TARGET, id="commit-503"),
    pytest.param({"route": "commit", "status": 429, "headers": {"Retry-After": "3600"}}, TARGET, id="commit-429"),
    pytest.param({"route": "lfs.put", "status": 403}, TARGET, id="lfs.put-403"),
    pytest.param({"route": "lfs.put", "action": "reset"}, TARGET, id="lfs.put-reset"),
    pytest.param({"route": "lfs.get", "action": "corrupt", "offset": 900}, "digest", id="lfs.get-corrupt"),
    pytest.param({"route": "lfs.get", "status": 403}, "", id="lfs.get-403"),
]


class NoWaiting:
    """The module ``time``, but that nothing sleeps."""

    def sleep(self, seconds: float) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.mark.parametrize(("fault", "words"), LASTING)
def test_what_lasts_is_told_and_nothing_is_lost(
    hub_world: HubWorld, look: Look, silent: list[Run], monkeypatch: pytest.MonkeyPatch, fault: Mapping[str, Any], words: str
) -> None:
    monkeypatch.setenv("SAESYNC_RETRY_SECONDS", "2")
    monkeypatch.setattr(_http, "time", NoWaiting())  # huggingface_hub itself would retry a reset for two minutes
    hub_world.server.fault({**fault, "times": -1})
    result = applied(look(hub_world.manifest()), silent)
    assert result.exit_code == 1
    assert result.failures
    assert words in details(result)
    assert len({failure.diagnostics for failure in result.failures}) <= 4, "said once, not per SAE"
    hub_world.server.admin("faults", method="DELETE")
    again = look(hub_world.manifest())
    assert applied(again, silent).exit_code == 0
    whole(hub_world)
    if fault["route"] in ("commit", "lfs.put"):
        assert not [e for e in again.told("step_finished") if e["step"] in ("convert", "validate") and not e["cached"]]


def test_a_stale_parent_is_merged_with(hub_world: HubWorld, look: Look, silent: list[Run]) -> None:
    server = hub_world.server
    server.create_repo(TARGET)
    server.push(TARGET, {"README.md": b"# Ours\n", "notes.txt": b"before"})
    run = look(hub_world.manifest())
    plan, context = run.look()
    silent.append(run)
    pushed: list[str] = []

    def emit(event: Mapping[str, Any]) -> None:
        run.events.append(event)
        if event["type"] == "step_started" and event["step"] == "publish":
            pushed.append(server.push(TARGET, {f"other{len(pushed)}.txt": b"theirs"}))

    from saesync.apply import StopFlag, apply

    assert apply(plan, context, emit, StopFlag()).exit_code == 0
    whole(hub_world)
    assert {"notes.txt", "other0.txt"} <= set(server.tree_of(TARGET))
    assert server.file(TARGET, "README.md").startswith(b"---") or b"# Ours" in server.file(TARGET, "README.md")
    assert b"# Ours" in server.file(TARGET, "README.md")


def test_a_read_only_token(hub_world: HubWorld, look: Look, silent: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE_READ)
    path = hub_world.manifest()
    run = look(path)
    (found,) = preflight.check(*run.look())
    assert found.summary == "No write access"
    assert found.origin is not None
    assert path.read_text().splitlines()[found.origin.line - 1] == f"  huggingface: {TARGET}"
    result = applied(run, silent)
    assert result.exit_code == 1
    assert "write" in details(result)
    assert not (hub_world.server.root / "repos" / "models" / f"{TARGET}.git").exists()
    monkeypatch.setenv("HF_TOKEN", ALICE)
    again = look(hub_world.manifest())
    assert applied(again, silent).exit_code == 0
    assert not [event for event in again.told("step_finished") if event["step"] == "convert" and not event["cached"]]
    whole(hub_world)


def test_a_private_source_without_a_token_is_unknown_not_absent(
    hub_world: HubWorld, look: Look, silent: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_world.server.create_repo(TARGET)
    hub_world.server.call("PUT", f"/api/models/{SOURCES}/settings", b'{"visibility": "private"}')
    monkeypatch.delenv("HF_TOKEN")
    result = applied(look(hub_world.manifest()), silent)
    assert result.exit_code == 1
    assert set(result.outcomes.values()) == {Outcome.UNKNOWN}
    assert SOURCES in details(result)
    assert all(diagnostic.origin is not None for failure in result.failures for diagnostic in failure.diagnostics)


@pytest.mark.parametrize("hidden", [TARGET, SOURCES])
def test_all_that_is_missing_is_named_though_the_plan_cannot_be_made(
    hub_world: HubWorld, clean_environ: dict[str, str], tmp_path: Path, hidden: str
) -> None:
    """Without a token neither the target nor the source can be seen; model, dataset and device are asked for all the same."""
    server = hub_world.server
    server.create_repo(TARGET)
    server.call("PUT", f"/api/models/{hidden}/settings", b'{"visibility": "private"}')
    for page in (f"models/{MODEL}", f"datasets/{DATA}"):
        server.call("PUT", f"/api/{page}/settings", b'{"gated": "manual"}')
    environment = clean_environ | server.environment(None, SAESYNC_CACHE=str(tmp_path / "cache"))
    command = [sys.executable, "-m", "saesync", "apply", "-y", "--device", "mps", str(hub_world.manifest())]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=hub_world.folder, timeout=120
    )
    assert done.returncode == 1, done.stderr
    blocks = [block for block in done.stderr.split("\n\n") if block.startswith("missing: ")]
    for named in (MODEL, DATA, "mps"):
        assert len([block for block in blocks if named in block]) == 1, (named, done.stderr)
    assert all("hub.yaml:" in block for block in blocks if "mps" not in block), blocks
    assert hidden in done.stdout
    assert "Traceback" not in done.stderr


def test_while_the_hub_cannot_be_asked_nothing_more_is_asked(
    hub_world: HubWorld, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAESYNC_RETRY_SECONDS", "0.1")
    hub_world.server.fault({"route": "repo.info", "status": 503, "times": -1})
    plan, context = look(hub_world.manifest()).look()
    assert {item.status.value for item in plan.items if item.id is not None} == {"unknown"}
    before = hub_world.server.count()
    assert preflight.check_unseen(plan, context) == ()
    assert hub_world.server.count() == before


@pytest.mark.parametrize(("repo", "kind"), [(MODEL, "model"), (DATA, "dataset")])
def test_what_is_gated_is_named_before_any_work(
    hub_world: HubWorld, look: Look, silent: list[Run], monkeypatch: pytest.MonkeyPatch, repo: str, kind: str
) -> None:
    hub_world.server.call("PUT", f"/api/{kind}s/{repo}/settings", b'{"gated": "manual"}')
    monkeypatch.setenv("HF_TOKEN", BOB)
    run = look(hub_world.manifest(target="bob/tiny-saes"))
    found = preflight.check(*run.look())
    assert len(found) == 1, found
    assert repo in found[0].detail
    assert found[0].origin is not None
    result = applied(run, silent)
    assert result.exit_code == 1
    assert repo in details(result)


def mount_small(folder: Path, size: int) -> None:
    """A file system of ``size`` bytes over ``folder``, in a mount namespace of this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(parents=True, exist_ok=True)
    private = 0x4000 | 0x40000
    for done in (
        libc.unshare(0x20000),
        libc.mount(b"none", b"/", None, private, None),
        libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()),
    ):
        if done != 0:
            raise OSError(ctypes.get_errno(), "cannot mount")


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs the right to mount")
@pytest.mark.parametrize("size", [60_000, 400_000])
def test_a_full_disk(hub_world: HubWorld, look: Look, silent: list[Run], tmp_path: Path, size: int) -> None:
    """Full while downloading, and while converting."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "kill"))
    from killing import run_in_child

    manifest = hub_world.manifest()

    def make() -> Run:
        mount_small(tmp_path / "cache", size)
        return look(manifest)

    full = run_in_child(make, tmp_path / "report.json")
    assert full.exit_code == 1
    failed = [value for event in full.events if event["type"] == "step_failed" for value in event["diagnostics"]]
    assert "Disk is full" in {value["summary"] for value in failed}, failed
    assert applied(look(manifest), silent).exit_code == 0
    whole(hub_world)


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs the right to mount")
def test_a_disk_that_fills_up_before_evidence_is_kept(hub_world: HubWorld, look: Look, tmp_path: Path) -> None:
    """What was done is told all the same, and the failure of the records with it."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "kill"))
    from killing import run_in_child

    manifest = hub_world.manifest(more="records: {huggingface: alice/tiny-records}\n")
    manifest.write_text(manifest.read_text().replace("min: 0.3", "min: 0.9999"))

    class Filling(list[dict[str, Any]]):
        def append(self, event: dict[str, Any]) -> None:
            super().append(event)
            if event["type"] == "sae_finished":
                with contextlib.suppress(OSError), (tmp_path / "cache" / "ballast").open("ab", buffering=0) as stream:
                    while True:
                        stream.write(bytes(4096))

    def make() -> Run:
        mount_small(tmp_path / "cache", 60_000_000)
        return replace(look(manifest), events=Filling())

    full = run_in_child(make, tmp_path / "report.json")
    assert full.exit_code == 1
    summary = full.events[-1]
    assert summary["type"] == "summary"
    assert summary["outcomes"] == {"failed": 3}
    last = summary["failures"][-1]
    assert (last["address"], last["diagnostics"][0]["summary"]) == ("tiny-hub", "Disk is full")


def test_too_small_a_disk_is_named_before_any_work(hub_world: HubWorld, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    found = preflight.check(*look(hub_world.manifest()).look())
    assert [diagnostic.summary for diagnostic in found] == ["Not enough disk space"]


@pytest.mark.parametrize(
    "fault", [{"route": "commit", "status": 503}, {"route": "lfs.get", "status": 401}, {"route": "whoami", "status": 500}]
)
def test_the_command_line_never_shows_a_token(
    hub_world: HubWorld, clean_environ: dict[str, str], tmp_path: Path, fault: Mapping[str, Any]
) -> None:
    server = hub_world.server
    server.fault({**fault, "times": -1})
    environment = clean_environ | server.environment(ALICE, SAESYNC_RETRY_SECONDS="1", SAESYNC_CACHE=str(tmp_path / "cache"))
    command = [sys.executable, "-m", "saesync", "--debug", "apply", "-y", "--format", "json", str(hub_world.manifest())]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=hub_world.folder, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert ALICE not in done.stdout + done.stderr
