"""`saesync ci compare`: what is about to be applied against what was shown in the merged pull request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ci_support import REPO, Done, Forge, artifact, push_event, run_event, saesync
from planning import World, release

from saesync.ci.api import GitHub
from saesync.ci.comment import comment
from saesync.ci.event import read_run
from saesync.planfile import plan_json


def plan_of(*names: str, saes: int = 1) -> dict[str, Any]:
    releases = [release(name, [f"layer_{n}" for n in range(saes)], location=f"acme/{name}") for name in names]
    found: dict[str, Any] = json.loads(json.dumps(plan_json(World(releases).plan())))
    return found


def reviewed(forge: Forge, tmp_path: Path, plan: Any) -> str:
    """A pull request whose plan was shown, merged; the commit it made."""
    sha = forge.push("new", {"manifests/new.yaml": "release: new\n"})
    number = forge.open("new")
    run = read_run(run_event(tmp_path / "run.json", sha))
    comment(GitHub(forge.api, "ghs_actions"), run, artifact(tmp_path / "artifact", plan))
    return forge.merge(number)


def compared(forge: Forge, tmp_path: Path, sha: str, plan: Any, *words: str, ref: str = "refs/heads/main") -> Done:
    event, file = push_event(tmp_path / "push.json", sha, ref), tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    return saesync(forge, "ci", "compare", "--plan", str(file), "--event", str(event), *words, token="ghs_read")


def test_same(forge: Forge, tmp_path: Path) -> None:
    merged = reviewed(forge, tmp_path, plan_of("a", "b"))
    done = compared(forge, tmp_path, merged, plan_of("b", "a"), "--strict")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("### saesync · as reviewed\n\nCompared with pull request #1 at commit `")
    assert "whose check concluded `success`." in done.out
    assert [line for line in done.out.splitlines() if "same" in line] == ["| same | `b` | |", "| same | `a` | |"]


def test_differences_come_first_by_name(forge: Forge, tmp_path: Path) -> None:
    before, now = plan_of("a", "b", "gone"), plan_of("new", "a", "b")
    now["items"] = [item for item in now["items"] if item["release"] != "b"] + [
        item for item in plan_of("b", saes=2)["items"] if item["release"] == "b"
    ]
    merged = reviewed(forge, tmp_path, before)
    done = compared(forge, tmp_path, merged, now)
    assert done.code == 0
    assert done.out.startswith("### saesync · 1 release differs, 1 not reviewed, 1 gone\n")
    rows = [line.split(" | ")[:2] for line in done.out.splitlines() if line.startswith("| ") and "`" in line]
    assert rows == [["| **differs**", "`b`"], ["| **not reviewed**", "`new`"], ["| **gone**", "`gone`"], ["| same", "`a`"]]
    assert compared(forge, tmp_path, merged, now, "--strict").code == 1


def test_what_has_nothing_to_do_needs_no_review(forge: Forge, tmp_path: Path) -> None:
    merged = reviewed(forge, tmp_path, plan_of("a"))
    now = plan_of("a", "idle")
    for item in now["items"]:
        if item["release"] == "idle":
            item["steps"] = []
    done = compared(forge, tmp_path, merged, now, "--strict")
    assert done.code == 0
    assert "idle" not in done.out


def test_direct_push(forge: Forge, tmp_path: Path) -> None:
    sha = forge.push("main", {"manifests/new.yaml": "release: new\n"})
    done = compared(forge, tmp_path, sha, plan_of("a"))
    assert done.code == 0
    assert done.out.startswith("### saesync · no check found\n")
    assert "is not the merge of a pull request into `main`: nobody has seen this plan in review." in done.out
    assert compared(forge, tmp_path, sha, plan_of("a"), "--strict").code == 1


def test_merged_without_a_check(forge: Forge, tmp_path: Path) -> None:
    forge.push("new", {"manifests/new.yaml": "release: new\n"})
    merged = forge.merge(forge.open("new"))
    done = compared(forge, tmp_path, merged, plan_of("a"))
    assert (done.code, "No check found of pull request #1" in done.out) == (0, True)


def test_merged_although_it_was_not_verified(forge: Forge, tmp_path: Path) -> None:
    sha = forge.push("new", {"manifests/new.yaml": "release: new\n", "README.md": "code"})
    number = forge.open("new")
    comment(GitHub(forge.api, "ghs_actions"), read_run(run_event(tmp_path / "run.json", sha)), tmp_path)
    done = compared(forge, tmp_path, forge.merge(number), plan_of("a"), "--strict")
    assert done.code == 1
    assert "concluded `action_required` and holds no plan." in done.out
    assert "| **not reviewed** | `a` |" in done.out


def test_a_job_that_calls_itself_like_the_check_is_none(forge: Forge, tmp_path: Path) -> None:
    """A pull request may add a job called `saesync plan`; its check run lacks what only the API can write."""
    sha = forge.push("new", {"manifests/new.yaml": "release: new\n"})
    number = forge.open("new")
    job = {"name": "saesync plan", "head_sha": sha, "status": "completed", "conclusion": "success", "external_id": "1b2c"}
    forge.call("POST", f"/repos/{REPO}/check-runs", {**job, "output": {"title": "t", "summary": "s"}}, token="ghs_actions")
    done = compared(forge, tmp_path, forge.merge(number), plan_of("a"), "--strict")
    assert (done.code, "No check found" in done.out) == (1, True)


def test_another_branch(forge: Forge, tmp_path: Path) -> None:
    merged = reviewed(forge, tmp_path, plan_of("a"))
    assert "no check found" in compared(forge, tmp_path, merged, plan_of("a"), ref="refs/heads/old").out


def test_bad_input(forge: Forge, tmp_path: Path) -> None:
    event = push_event(tmp_path / "push.json", "main")
    done = saesync(forge, "ci", "compare", "--plan", str(tmp_path / "none.json"), "--event", str(event))
    assert done.code == 1
    assert "error: Not the event this command is for" in done.err
    event = push_event(tmp_path / "push.json", "0" * 40)
    done = saesync(forge, "ci", "compare", "--plan", str(tmp_path / "none.json"), "--event", str(event))
    assert "error: Plan file cannot be read" in done.err


@pytest.mark.parametrize("missing", ["--plan", "--event"])
def test_usage(forge: Forge, missing: str) -> None:
    words = {"--plan": "plan.json", "--event": "event.json"}
    given = [word for name, value in words.items() if name != missing for word in (name, value)]
    assert saesync(forge, "ci", "compare", *given).code == 2
