"""The workflows, the action and the example: what a job may do, that scripts hold commands only, and that they run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from checkouts import Checkout, manifest

from saesync.ci.workflow_checks import workflow_problems
from saesync.ci.workflows import parse
from saesync.cli import cli

ROOT = Path(__file__).parent.parent.parent
LAB = ROOT / "examples" / "lab-repository"
OWN = {path.stem: path for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
LABS = {path.stem: path for path in sorted((LAB / ".github" / "workflows").glob("*.yml"))}
FILES = [*OWN.values(), *LABS.values(), ROOT / "action.yml"]
PINNED = re.compile(r"uses: (?P<name>[\w./-]+)@(?P<hash>[0-9a-f]{40}) # (?P<note>.+)$")
UNREAD = "0" * 40  # stands in the example for the commit that its reader has to choose
names = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
    return found


def jobs(path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = load(path)["jobs"]
    return found


def steps(path: Path) -> Iterator[Mapping[str, Any]]:
    value = load(path)
    for part in [value["runs"]] if "runs" in value else value["jobs"].values():
        yield from part["steps"]


def step(name: str) -> Mapping[str, Any]:
    """A step of the action."""
    return next(each for each in steps(ROOT / "action.yml") if each["name"] == name)


def scripts() -> Iterator[tuple[Path, str]]:
    for path in FILES:
        for each in steps(path):
            if "run" in each:
                yield path, each["run"]


# --------------------------------------------------------------------------------------------------- every file


@names
def test_every_action_is_pinned_by_commit_with_its_version(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        if "uses:" not in line or "uses: ./saesync-code " in line:
            continue
        found = PINNED.search(line)
        assert found, line
        if found["name"] == "saesync/saesync":
            assert (path.is_relative_to(LAB), found["hash"]) == (True, UNREAD)
        else:
            assert re.fullmatch(r"v\d+\.\d+\.\d+", found["note"]), line


def test_one_commit_per_action_everywhere() -> None:
    pins: dict[str, set[str]] = {}
    for path in FILES:
        for found in PINNED.finditer(path.read_text(encoding="utf-8"), re.MULTILINE):
            pins.setdefault(found["name"], set()).add(found["hash"])
    assert all(len(hashes) == 1 for hashes in pins.values()), pins


@names
def test_no_expression_stands_in_a_script(path: Path) -> None:
    assert not [each["run"] for each in steps(path) if "${{" in each.get("run", "")]


@names
def test_no_failure_is_passed_over_but_of_fetching_what_may_not_be_there(path: Path) -> None:
    value = load(path)
    parts = [*steps(path), *(value.get("jobs") or {}).values()]
    spared = [each["name"] for each in parts if each.get("continue-on-error", "false") != "false"]
    assert spared == (["Fetch what the pull request's run left"] if "runs" in value else [])
    for _, script in scripts():
        assert not re.search(r"\|\| *(true|:|exit 0)|set \+e", script)


def test_ci_runs_what_anybody_runs() -> None:
    assert [each["run"] for each in steps(OWN["ci"]) if "run" in each] == [".ci/run"]


def test_what_is_installed_is_known_by_its_hash() -> None:
    """Or is the action's own folder: from an index, each file by a hash; nothing is built with what was not pinned."""
    installs = [line for _, script in scripts() for line in script.splitlines() if " install " in line]
    assert installs
    for line in installs:
        words = shlex.split(line)
        if "-r" in words:
            assert {"--require-hashes", "--only-binary=:all:"} <= set(words), line
        else:
            assert words[-1] == "$GITHUB_ACTION_PATH", line
            assert "--no-build-isolation" in words, line
            assert "--no-deps" in words or "$GITHUB_ACTION_PATH/constraints.txt" in words, line


@names
def test_no_checkout_keeps_its_token_and_nothing_is_cached(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for forbidden in ("pull_request_target", "actions/cache", "HF_OIDC_RESOURCE", "allow-unsafe-pr-checkout"):
        assert forbidden not in text
    for each in steps(path):
        options = each.get("with", {})
        assert "cache" not in options
        if each.get("uses", "").startswith("actions/checkout@"):
            assert options["persist-credentials"] == "false"
            assert not {"token", "ssh-key", "submodules", "lfs"} & set(options)
            assert "head" not in options.get("ref", "")


ALLOWED: dict[str, dict[str, dict[str, str]]] = {
    "plan": {"plan": {"contents": "read"}},
    "comment": {"comment": {"actions": "read", "checks": "write", "contents": "read", "pull-requests": "write"}},
    "apply": {
        "plan": {"checks": "read", "contents": "read", "pull-requests": "read"},
        "apply": {"contents": "read", "id-token": "write"},
        "register": {"contents": "read"},
    },
    "ci": {"test": {"contents": "read"}},
    "devices": {"compare": {"contents": "read"}},
}


@pytest.mark.parametrize("path", [*OWN.values(), *LABS.values()], ids=lambda path: str(path.relative_to(ROOT)))
def test_jobs_may_do_this_and_no_more(path: Path) -> None:
    assert load(path)["permissions"] == {}
    assert {name: job["permissions"] for name, job in jobs(path).items()} == ALLOWED[path.stem]
    assert all("timeout-minutes" in job for job in jobs(path).values())


# ------------------------------------------------------------------------------------------------ each workflow


@pytest.mark.parametrize("files", [OWN, LABS], ids=["own", "lab"])
def test_plan_has_no_secret_and_no_environment(files: Mapping[str, Path]) -> None:
    value, text = load(files["plan"]), files["plan"].read_text(encoding="utf-8")
    assert value["on"] == {"pull_request": {"paths": ["manifests/**"]}}
    assert "secrets" not in text
    assert "github.token" not in text
    assert "environment" not in text


@pytest.mark.parametrize("files", [OWN, LABS], ids=["own", "lab"])
def test_comment_runs_after_plan_only(files: Mapping[str, Path]) -> None:
    value, text = load(files["comment"]), files["comment"].read_text(encoding="utf-8")
    assert value["on"] == {"workflow_run": {"workflows": [load(files["plan"])["name"]], "types": ["completed"]}}
    assert "secrets" not in text
    assert "environment" not in text


@pytest.mark.parametrize("files", [OWN, LABS], ids=["own", "lab"])
def test_apply_waits_for_approval_and_keeps_the_tokens_apart(files: Mapping[str, Path]) -> None:
    value = load(files["apply"])
    assert list(value["on"]) == ["push"]
    assert value["on"]["push"]["branches"] == ["main"]
    assert value["concurrency"]["cancel-in-progress"] == "false"
    plan, apply, register = (value["jobs"][name] for name in ("plan", "apply", "register"))
    assert [job["environment"] for job in (plan, apply, register)] == ["plan", "publish", "register"]
    assert (apply["needs"], register["needs"]) == ("plan", "apply")
    assert apply["runs-on"]["labels"] == ["self-hosted", "saesync-gpu"]
    assert register["if"] == "${{ !cancelled() && needs.apply.outputs.approved == 'true' }}"
    assert apply["steps"][0] == {
        "name": "Note that somebody approved this run", "id": "approved", "run": 'echo "approved=true" >> "$GITHUB_OUTPUT"'
    }  # fmt: skip
    last = [job["steps"][-1]["with"] for job in (plan, apply, register)]
    assert [set(part) for part in last] == [
        {"command", "hf-token"},
        {"command", "hf-oidc", "hf-token"},
        {"command", "registry-token"},
    ]
    assert [part["command"] for part in last] == ["propose", "publish", "register"]


def test_the_example_is_this_repositorys_own_without_its_checkouts() -> None:
    def shape(path: Path) -> dict[str, Any]:
        value = load(path)
        for job in value["jobs"].values():
            job["steps"] = [each.get("with", each) for each in job["steps"] if not each.get("uses", "").startswith("actions/")]
            if isinstance(job["runs-on"], dict):  # here a variable may name the group
                job["runs-on"]["group"] = "saesync-gpu"
        return value

    assert set(LABS) == {"plan", "comment", "apply"}
    for name, path in LABS.items():
        assert shape(path) == shape(OWN[name])


def test_own_workflows_run_the_code_of_the_default_branch() -> None:
    for name in ("plan", "comment"):
        (job,) = jobs(OWN[name]).values()
        checkout, use = job["steps"]
        assert checkout["with"]["ref"] == "${{ github.event.repository.default_branch }}"
        assert use["uses"] == f"./{checkout['with']['path']}"


# --------------------------------------------------------------------------------------------------- the scripts


def test_scripts_hold_commands_that_run_anywhere() -> None:
    """No branches, no loops, no substitutions: what is decided is decided in saesync, or by `if:`."""
    commands = (
        "mkdir -p ",
        "cat ",
        "grep -qxE ",
        "echo ",
        "python -m venv ",
        '"$RUNNER_TEMP/saesync/bin/python" ',
        ".ci/run",
        "make devices",
    )
    for path, script in scripts():
        for line in script.strip().splitlines():
            assert line.startswith(commands), f"{path}: {line}"
            assert not re.search(r"[;&|`]|\$\(|\bif\b|\bfor\b", re.sub(r"'[^']*'", "", line)), f"{path}: {line}"


def saesync_lines() -> list[list[str]]:
    found = [line.partition(" -I -m saesync ")[2] for _, script in scripts() for line in script.splitlines()]
    return [shlex.split(line.partition(" > ")[0].partition(" >> ")[0]) for line in found if line]


def test_every_saesync_command_exists_with_its_options() -> None:
    lines = saesync_lines()
    assert [line[0] for line in lines] == ["plan", "ci", "plan", "ci", "apply", "apply"]
    context = click.Context(cli)
    for line in lines:
        command: click.Command | None = cli
        while isinstance(command, click.Group):
            command, line = command.get_command(context, line[0]), line[1:]  # noqa: PLW2901 - words are used up
        assert command is not None
        command.make_context("saesync", [word.replace("$", "") for word in line])


def test_the_action_takes_these_commands_and_no_others() -> None:
    check = step("Is this a command?")["run"]
    used = set(re.findall(r"inputs\.command == '(\w+)'", (ROOT / "action.yml").read_text(encoding="utf-8")))
    assert used == {"plan", "comment", "propose", "publish", "register"}
    for word in [*used, "", "plan ", "apply", "plan|comment"]:
        done = subprocess.run(["bash", "-e", "-c", check], env={**os.environ, "COMMAND": word}, check=False)
        assert (done.returncode == 0) == (word in used), word


def runner(folder: Path) -> dict[str, str]:
    """What a script of the action finds on a runner: saesync, installed where the action installs it."""
    program = folder / "temp" / "saesync" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    more = {"CI": "true", "GITHUB_ACTIONS": "true", "SAESYNC_RETRY_SECONDS": "0", "RUNNER_TEMP": str(folder / "temp")}
    return {**os.environ, **more}


def test_the_plan_steps_script_runs(tmp_path: Path) -> None:
    """Beside each other, as on a runner: the default branch with its policy, and the pull request."""
    checkout = Checkout(tmp_path / "saesync-pull-request")
    checkout.commit("base")
    checkout.write("new.yaml", manifest("new"))
    checkout.commit("merge")
    (tmp_path / "policy.yaml").write_text("apiVersion: saesync/v1\ntargets: {}\n", encoding="utf-8")
    env = {**runner(tmp_path), "MANIFESTS": "manifests", "POLICY": str(tmp_path / "policy.yaml")}
    script = step("Plan the pull request's manifests")
    assert script["working-directory"] == "saesync-pull-request"
    subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script["run"]], cwd=checkout.folder, env=env, check=True)
    plan = json.loads((tmp_path / "temp" / "saesync-plan" / "plan.json").read_text(encoding="utf-8"))
    assert plan["untrusted"] is True
    assert plan["changed"]["added"] == ["manifests/new.yaml"]
    assert plan["totals"]["held"] == 2
    text = (tmp_path / "temp" / "saesync-plan" / "plan.md").read_text(encoding="utf-8")
    assert text.startswith("<!-- saesync:plan -->\n")
    assert "`policy.yaml` does not allow `publish.huggingface` `acme/saes`" in text


def test_the_propose_steps_script_runs_and_apply_takes_its_plan(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "saesync-main")
    checkout.write("new.yaml", manifest("new"))
    (checkout.folder / "saesync-policy.yaml").write_text("apiVersion: saesync/v1\ntargets: {}\n", encoding="utf-8")
    env = {**runner(tmp_path), "MANIFESTS": "manifests", "POLICY": "saesync-policy.yaml", "HF_TOKEN": ""}
    run = ["bash", "-e", "-o", "pipefail", "-c"]
    subprocess.run([*run, step("Plan what the manifests ask for")["run"]], cwd=checkout.folder, env=env, check=True)
    done = subprocess.run(
        [*run, step("Publish")["run"]], cwd=checkout.folder, env=env, capture_output=True, text=True, check=False
    )
    assert "Plan is stale" not in done.stderr
    assert "error" not in done.stderr, done.stderr
    assert done.returncode == 1  # everything is held: its place is not in the policy


# ---------------------------------------------------------------------------------------- lint, requirements, example


def lint(*words: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name(words[0]))
    return subprocess.run([program, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)


def test_linters_find_nothing_and_would_find_something(tmp_path: Path) -> None:
    done = lint("zizmor", "--offline", "--quiet", ".github", "action.yml", "examples")
    assert done.returncode == 0, done.stdout + done.stderr
    bad = re.sub(r"@[0-9a-f]{40}", "@v7", OWN["ci"].read_text(encoding="utf-8"))
    (tmp_path / "bad.yml").write_text(bad, encoding="utf-8")
    assert lint("zizmor", "--offline", "--quiet", str(tmp_path / "bad.yml")).returncode != 0
    schema = ("check-jsonschema", "--builtin-schema", "vendor.github-workflows")
    assert lint(*schema, *map(str, [*OWN.values(), *LABS.values()])).returncode == 0
    assert lint("check-jsonschema", "--builtin-schema", "vendor.github-actions", "action.yml").returncode == 0
    (tmp_path / "bad.yml").write_text(bad.replace("runs-on", "runs-of"), encoding="utf-8")
    assert lint(*schema, str(tmp_path / "bad.yml")).returncode != 0


def test_requirements_are_those_of_constraints_and_hashed() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "requirements.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr} Run `python tools/requirements.py`."
    text = (ROOT / "requirements-plan.txt").read_text(encoding="utf-8")
    entries = re.split(r"^(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    assert len(entries) > 20
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==[^\s]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n", entry), entry
    assert not {"torch", "sae-lens", "transformers", "datasets", "pyarrow"} & {entry.partition("==")[0] for entry in entries}


def test_the_example_is_a_good_repository() -> None:
    done = subprocess.run([sys.executable, "-m", "saesync", "check"], cwd=LAB, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1 manifest, 26 SAEs: fine.\n"), done.stderr
    owners = (LAB / ".github" / "CODEOWNERS").read_text(encoding="utf-8")
    assert all(f"\n{path} " in owners for path in ("/manifests/", "/saesync-policy.yaml", "/.github/"))


@pytest.mark.parametrize("path", [*OWN.values(), *LABS.values()], ids=lambda path: str(path.relative_to(ROOT)))
def test_doctor_finds_nothing_in_them(path: Path) -> None:
    found = parse(str(path), path.read_text(encoding="utf-8"))
    assert found is not None
    assert found.unpinned() == []
    if path.stem in ("plan", "comment", "apply"):
        assert workflow_problems(path.stem, found, "main", "publish") == []
