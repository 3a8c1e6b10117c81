"""The scripts of the workflows, one after the other, against a loopback Hub and a loopback GitHub with real git.

A pull request is opened, the comment appears, main is pushed, the SAEs are on the Hub and the registry's pull request is open.
A second push changes nothing.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from ci_support import BOT, REPO, TOKEN, Forge, push_event, run_event
from hub_world import TARGET, HubWorld
from servers.holdings import holdings
from servers.loopback import ALICE
from surroundings import GIT_ALONE

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)]

ROOT = Path(__file__).parents[2]
LIST = "lists/SAELens"
FILE = "sae_lens/pretrained_saes.yaml"
BRANCH = "saesync/tiny-hub"
BOT_TOKEN = "ghp_bot"
POLICY = f"""\
apiVersion: saesync/v1
targets:
  huggingface: [alice/*]
  saelens: [{LIST}]
publishers: [alice]
"""
UPSTREAM = {"other": {"conversion_func": None, "model": "gpt2", "repo_id": "a/b", "saes": [{"id": "x", "path": "x"}]}}
SECRETS = (ALICE, BOT_TOKEN, TOKEN)


def steps() -> Iterator[Mapping[str, Any]]:
    yield from yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]


@dataclass
class Runner:
    """A machine that runs the action's scripts: its folders, and what the jobs printed."""

    folder: Path
    hub: HubWorld
    forge: Forge
    printed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        program = self.folder / "temp" / "saesync" / "bin" / "python"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        program.chmod(0o755)
        self.summary = self.folder / "summary.md"
        self.event = self.folder / "event.json"

    def job(self, name: str, inputs: Mapping[str, str], code: int = 0) -> str:
        """The scripts of one command of the action, with what its inputs put into their environment."""
        asked = f"inputs.command == '{name}'"
        said = ""
        for step in steps():
            if "run" in step and asked in step.get("if", "") and "install" not in step["name"].lower():
                said += self._script(step, inputs, code)
        return said

    def _script(self, step: Mapping[str, Any], inputs: Mapping[str, str], code: int) -> str:
        given = {variable: self._value(str(value), inputs) for variable, value in step.get("env", {}).items()}
        folder = self.folder / step.get("working-directory", ".")
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
            cwd=folder, env=self._environment() | given, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        self.printed += [done.stdout, done.stderr]
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, f"{step['name']}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def _value(self, text: str, inputs: Mapping[str, str]) -> str:
        defaults = {
            "manifests": "manifests",
            "policy": "saesync-policy.yaml",
            "github-token": TOKEN,
            "hf-token": "",
            "hf-oidc": "",
        }
        values = {**defaults, "registry-token": "", **inputs}
        for name, value in values.items():
            text = text.replace(f"${{{{ inputs.{name} }}}}", value)
        text = text.replace("${{ github.workspace }}", str(self.folder))
        assert "${{" not in text, text
        return text

    def _environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GITHUB_", "SAESYNC_"))}
        return {
            **clean,
            **self.hub.server.environment(token=None),
            "HF_HOME": str(self.folder / "hf"),
            "SAESYNC_CACHE": str(self.folder / "cache"),
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_API_URL": self.forge.api,
            "GITHUB_SERVER_URL": self.forge.base,
            "GITHUB_REPOSITORY": REPO,
            "GITHUB_EVENT_PATH": str(self.event),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "RUNNER_TEMP": str(self.folder / "temp"),
            "OMP_NUM_THREADS": "2",
        }

    def checkout(self, name: str, sha: str) -> None:
        """As actions/checkout does it: this commit, and no token in the folder."""
        folder = self.folder / name
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        for words in (["clone", "-q", str(self.forge.root / f"{REPO}.git"), str(folder)],
                      ["-C", str(folder), "checkout", "-q", "--detach", sha]):  # fmt: skip
            subprocess.run(["git", *words], check=True, env=os.environ | GIT_ALONE)


@pytest.fixture
def runner(tmp_path: Path, hub_world: HubWorld, forge: Forge) -> Runner:
    manifests = {
        "manifests/README.md": "Manifests.\n",
        "saesync-policy.yaml": POLICY,
        ".github/workflows/plan.yml": "name: plan\n",
    }
    forge.seed(manifests)
    forge.seed({FILE: yaml.dump(UPSTREAM, sort_keys=False)}, LIST)
    return Runner(tmp_path / "runner", hub_world, forge)


def upstream_pulls(forge: Forge) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = forge.call("GET", f"/repos/{LIST}/pulls?state=all")
    return found


def test_from_a_pull_request_to_the_registry(runner: Runner, hub_world: HubWorld, forge: Forge) -> None:
    manifest = hub_world.manifest(more=f"register:\n  saelens: {LIST}\n").read_text()
    base = forge.git(REPO, "rev-parse", "refs/heads/main")
    hub_world.server.create_repo(TARGET)  # without a token a repo that is not there cannot be told from a private one

    # A pull request is opened: plan.yml, then comment.yml.
    sha = forge.push("new", {"manifests/tiny.yaml": manifest})
    number = forge.open("new")
    runner.checkout("saesync-default-branch", base)
    runner.checkout("saesync-pull-request", sha)
    runner.job("plan", {})
    run_event(runner.event, sha)
    runner.job("comment", {})
    (body,) = forge.said(number)
    assert "3 to publish" in body
    assert "`tiny-hub`" in body
    (check,) = forge.checks(sha)
    assert check["conclusion"] == "neutral"  # the registry is not looked at for strangers: seen, not vouched for
    assert hub_world.server.commits_landed() == 0

    # It is merged: apply.yml's three jobs.
    merged = forge.merge(number)
    push_event(runner.event, merged)
    jobs(runner, merged)
    summary = runner.summary.read_text()
    assert "tiny-hub" in summary
    tree = hub_world.server.tree_of(TARGET)
    assert {f"layer_0/topk/{name}" for name in ("cfg.json", "sae_weights.safetensors")} <= set(tree)
    (pull,) = upstream_pulls(forge)
    assert pull["title"].startswith("feat: ")
    assert pull["state"] == "open"
    for words in ("explained_variance", "±", "SAE.from_pretrained", "Proof of conversion"):
        assert words in pull["body"]
    entry = yaml.safe_load(forge.git(f"bot/{LIST.partition('/')[2]}", "show", f"{BRANCH}:{FILE}"))
    assert entry["other"] == UPSTREAM["other"]
    assert [sae["id"] for sae in entry["tiny-hub"]["saes"]] == ["layer_0/topk", "layer_0/standard", "layer_1/batchtopk"]

    # A second push changes nothing.
    again = forge.push("main", {"manifests/README.md": "Manifests, described.\n"})
    push_event(runner.event, again)
    hub_world.server.restart_counters()
    branch = forge.git(f"bot/{LIST.partition('/')[2]}", "rev-parse", BRANCH)
    jobs(runner, again)
    assert hub_world.server.commits_landed() == 0
    assert hub_world.server.uploaded_bytes() == 0
    assert len(upstream_pulls(forge)) == 1
    assert forge.git(f"bot/{LIST.partition('/')[2]}", "rev-parse", BRANCH) == branch
    assert len(forge.said(number)) == 1
    # A changed manifest updates the same pull request.
    link = f"register:\n  saelens: {LIST}\n  links: {{model: 'https://example.org/tiny'}}\n"
    changed = forge.push("main", {"manifests/tiny.yaml": hub_world.manifest(more=link).read_text()})
    push_event(runner.event, changed)
    jobs(runner, changed)
    assert [one["number"] for one in upstream_pulls(forge)] == [pull["number"]]
    entry = yaml.safe_load(forge.git(f"bot/{LIST.partition('/')[2]}", "show", f"{BRANCH}:{FILE}"))
    assert entry["tiny-hub"]["links"] == {"model": "https://example.org/tiny"}
    assert hub_world.server.commits_landed() == 0

    assert not [text for text in runner.printed if any(secret in text for secret in SECRETS)]
    for root in (hub_world.server.root, forge.root):
        for where, data in holdings(root):
            assert not [secret for secret in SECRETS if secret.encode() in data], where
    assert all(comment["user"]["login"] == BOT for comment in forge.comments(number))


def jobs(runner: Runner, sha: str) -> None:
    """The jobs of apply.yml for a push of main."""
    runner.checkout("saesync-main", sha)
    runner.job("propose", {"hf-token": ALICE})
    runner.job("publish", {"hf-token": ALICE})
    runner.job("register", {"registry-token": BOT_TOKEN})
