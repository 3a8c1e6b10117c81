"""Registration at the end of an apply: what is published is entered in SAELens's list, once, and says what was measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from apply_world import Run
from hub_world import TARGET, HubWorld
from surroundings import GIT_ALONE

from saesync import preflight
from saesync.apply import Outcome, StopFlag, apply
from saesync.model import Plan, Status, StepKind

Look = Callable[..., Run]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.parametrize("hub_process", ["lfs"], indirect=True),
]
OTHER = {"other-release": {"conversion_func": None, "model": "gpt2", "repo_id": "a/b", "saes": [{"id": "x", "path": "x"}]}}
IDS = ["layer_0/topk", "layer_0/standard", "layer_1/batchtopk"]


def write_list(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.dump(OTHER, sort_keys=False))
    return path.read_bytes()


def registering(world: HubWorld, registry: str, **more: str) -> Path:
    return world.manifest(more=f"register:\n  saelens: {registry}\n", **more)


def register_items(plan: Plan) -> list[tuple[Status, tuple[StepKind, ...]]]:
    return [(item.status, item.steps) for item in plan.items if item.basis.get("asked.section") == "register"]


def test_a_release_is_entered_in_a_registry_file_with_its_numbers(hub_world: HubWorld, look: Look) -> None:
    registry = hub_world.folder / "list" / "pretrained_saes.yaml"
    before = write_list(registry)
    manifest = registering(hub_world, "../list/pretrained_saes.yaml")
    run = look(manifest)
    plan, context = run.look()
    assert register_items(plan) == [(Status.ABSENT, (StepKind.REGISTER,))]
    assert preflight.check(plan, context) == ()
    result = run.apply()
    assert result.exit_code == 0, result.failures
    assert list(result.outcomes.values()).count(Outcome.REGISTERED) == 1
    after = registry.read_bytes()
    assert after.startswith(before)
    entry = yaml.safe_load(after)["tiny-hub"]
    assert entry["repo_id"] == TARGET
    assert entry["conversion_func"] is None
    assert [sae["id"] for sae in entry["saes"]] == IDS
    assert all(sae["path"] == sae["id"] and sae["l0"] > 0 and 0 < sae["variance_explained"] < 1 for sae in entry["saes"])
    assert [event["changed"] for event in run.told("registered")] == [True]

    hub_world.server.restart_counters()
    again = look(manifest)
    assert register_items(again.plan()) == [(Status.CURRENT, ())]
    assert again.apply().exit_code == 0
    assert again.told("registered") == []
    assert registry.read_bytes() == after
    assert hub_world.server.commits_landed() == 0


def test_an_entry_that_was_not_come_to_is_no_sae(hub_world: HubWorld, look: Look) -> None:
    """Ctrl-C while the last SAEs are committed: they are published, and the list stays as it is."""
    registry = hub_world.folder / "list" / "pretrained_saes.yaml"
    before = write_list(registry)
    run = look(registering(hub_world, "../list/pretrained_saes.yaml"))
    plan, context = run.look()
    stop = StopFlag()

    def emit(event: Mapping[str, Any]) -> None:
        run.events.append(event)
        if event["type"] == "committed":
            published.extend(event["saes"])
            if len(published) == len(IDS):
                stop.request()

    published: list[str] = []
    result = apply(plan, context, emit, stop)
    assert (result.exit_code, result.entries_left) == (130, 1)
    assert dict(Counter(result.outcomes.values())) == {Outcome.PUBLISHED: 3}
    assert registry.read_bytes() == before
    assert list(look(*run.manifests).apply().outcomes.values()) == [Outcome.REGISTERED]


def test_a_failing_sae_keeps_the_whole_release_out_and_partial_lets_the_others_in(hub_world: HubWorld, look: Look) -> None:
    registry = hub_world.folder / "list" / "pretrained_saes.yaml"
    before = write_list(registry)
    manifest = registering(hub_world, "../list/pretrained_saes.yaml")
    text = manifest.read_text().replace("l0: {max: 40}", "l0: {max: 8.5}")
    manifest.write_text(text)
    run = look(manifest)
    result = run.apply()
    assert result.exit_code == 1
    assert registry.read_bytes() == before
    assert "register" not in {event["step"] for event in run.told("step_started")}, "it waits for all of its SAEs"
    assert register_items(look(manifest).plan()) == [(Status.WAITING, ())]

    manifest.write_text(text + "  partial: true\n")
    partial = look(manifest)
    assert register_items(partial.plan()) == [(Status.ABSENT, (StepKind.REGISTER,))]
    partial.apply()
    entered = [sae["id"] for sae in yaml.safe_load(registry.read_text())["tiny-hub"]["saes"]]
    published = {path.rpartition("/")[0] for path in hub_world.server.tree_of(TARGET) if path.endswith("cfg.json")}
    assert set(entered) == published
    assert 0 < len(entered) < 3


def test_a_git_repository_gets_a_branch_and_says_how_to_look_at_it(
    hub_world: HubWorld, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("NAME", "Ann Author"), ("EMAIL", "ann@example.org")):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    repo = hub_world.folder / "upstream"
    before = write_list(repo / "sae_lens" / "pretrained_saes.yaml")
    git(repo, "init", "-q", "-b", "main")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "feat: list")
    git(repo, "config", "receive.denyCurrentBranch", "ignore")
    manifest = registering(hub_world, "../upstream")
    run = look(manifest)
    result = run.apply()
    assert result.exit_code == 0, result.failures
    told = run.told("registered")[0]
    assert told["branch"] == "saesync/tiny-hub"
    assert told["compare"]
    after = git(repo, "show", "saesync/tiny-hub:sae_lens/pretrained_saes.yaml")
    assert after.startswith(before.decode())
    message = git(repo, "log", "-1", "--format=%an%n%B", "saesync/tiny-hub")
    assert message.startswith("Ann Author\nfeat: ")
    assert "Signed-off-by: Ann Author <ann@example.org>" in message

    assert register_items(look(manifest).plan()) == [(Status.WAITING, ())]
    git(repo, "merge", "-q", "--ff-only", "saesync/tiny-hub")
    assert register_items(look(manifest).plan()) == [(Status.CURRENT, ())]


def git(repo: Path, *words: str) -> str:
    command = ["git", "-C", str(repo), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | GIT_ALONE)
    return done.stdout


THEIRS = """\
apiVersion: saesync/v1
release: theirs
model:
  name: gpt2-small
saes:
  id: a
  source: {repo: alice/tiny-dictionaries, path: legacy, format: saelens}
  entry: {l0: 12}
register:
  saelens: ../list/pretrained_saes.yaml
"""


def test_registering_needs_no_package_that_only_measuring_needs(hub_world: HubWorld, tmp_path: Path) -> None:
    """The job that registers installs what a plan needs, and no more."""
    registry = hub_world.folder / "list" / "pretrained_saes.yaml"
    write_list(registry)
    manifest = hub_world.folder / "manifests" / "theirs.yaml"
    manifest.write_text(THEIRS)
    heavy = ("torch", "sae_lens", "transformers", "transformer_lens", "datasets", "pyarrow", "numpy", "tokenizers")
    words = ["apply", "-y", str(manifest), "--root", str(hub_world.folder), "--steps", "register"]
    code = f"import sys\nfor name in {heavy}: sys.modules[name] = None\nfrom saesync.cli import main\nmain({words})"
    environment = {**os.environ, **hub_world.server.environment(), "SAESYNC_CACHE": str(tmp_path / "light")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(registry.read_text())["theirs"]["saes"] == [{"id": "a", "path": "legacy", "l0": 12}]


def test_a_record_counts_only_from_accounts_that_the_policy_names(hub_world: HubWorld, look: Look, tmp_path: Path) -> None:
    registry = hub_world.folder / "list" / "pretrained_saes.yaml"
    before = write_list(registry)
    assert look(hub_world.manifest()).apply().exit_code == 0
    manifest = registering(hub_world, "../list/pretrained_saes.yaml")
    policy = hub_world.folder / "saesync-policy.yaml"

    def apply(publishers: str) -> subprocess.CompletedProcess[str]:
        targets = "targets: {huggingface: ['alice/*'], saelens: [./list/pretrained_saes.yaml]}"
        policy.write_text(f"apiVersion: saesync/v1\n{targets}\npublishers: {publishers}\n")
        words = ["apply", "-y", str(manifest), "--root", str(hub_world.folder), "--policy", str(policy)]
        environment = {**os.environ, **hub_world.server.environment(), "SAESYNC_CACHE": str(tmp_path / "cache")}
        program = str(Path(sys.executable).with_name("saesync"))
        return subprocess.run([program, *words], env=environment, capture_output=True, text=True, check=False)

    held = apply("[mallory]")
    assert held.returncode == 1
    assert "the record was last written by alice, whom the policy's publishers do not name" in held.stdout
    assert registry.read_bytes() == before
    for publishers in ("[alice]", "[]"):  # by name; and the account whose token this is
        done = apply(publishers)
        assert done.returncode == 0, done.stderr
        assert "tiny-hub" in registry.read_text()
        registry.write_bytes(before)
