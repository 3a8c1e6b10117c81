"""A saved plan of changed manifests (`--changed-since`), and what is changed after it was made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkouts import Checkout, manifest

STALE = 4


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Two manifests, of which one was changed, and the plan of that one."""
    made = Checkout(tmp_path / "lab")
    for name in ("one", "two"):
        made.write(f"{name}.yaml", manifest(name))
    made.commit("base")
    made.write("one.yaml", manifest("one", ev=0.5))
    code, said = saesync(made, "plan", "--changed-since", "HEAD", "--out", "plan.json")
    assert code == 0, said
    return made


def saesync(checkout: Checkout, *words: str) -> tuple[int, str]:
    command, env = [sys.executable, "-m", "saesync", *words], {**os.environ, "SAESYNC_RETRY_SECONDS": "0"}
    done = subprocess.run(command, cwd=checkout.folder, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_the_commands_that_come_next_are_of_the_same_plan(checkout: Checkout) -> None:
    """Without the words that it was made with a plan is of more, and what a policy holds is asked for."""
    (checkout.folder / "p.yaml").write_text("apiVersion: saesync/v1\ntargets: {local: [./**]}\n")
    (checkout.folder / "ae.pth").write_bytes(b"weights")
    here = manifest("one", "local: ../published", "path: ../ae.pth")
    words = ("plan", "--changed-since", "HEAD", "--base", "HEAD", "--policy", "p.yaml")
    checkout.write("one.yaml", here)
    checkout.write("three.yaml", manifest("three"))
    code, said = saesync(checkout, *words)
    assert code == 0, said
    assert "p.yaml does not allow publish.huggingface" in said
    made = f"saesync {' '.join(words)} --out plan.json && saesync apply plan.json --policy p.yaml"
    assert f"To do exactly this:  {made}\n" in said
    assert saesync(checkout, *words, "--out", "plan.json")[0] == 0
    checkout.write("one.yaml", here.replace("mit", "isc"))
    code, said = saesync(checkout, "apply", "plan.json", "--policy", "p.yaml")
    assert code == STALE
    head = json.loads((checkout.folder / "plan.json").read_text())["changed"]["since"]
    assert f"Make a new plan:  saesync plan --changed-since {head} --policy p.yaml --out plan.json" in said


def test_as_it_was_it_is_not_stale(checkout: Checkout) -> None:
    code, said = saesync(checkout, "apply", "plan.json")
    assert "Plan is stale" not in said
    assert code == 1, "there is no Hub here"


def test_nothing_is_done_but_what_the_plan_is_of(checkout: Checkout) -> None:
    """Both releases are asked for and stand nowhere; their source is no SAE, which is told of the one that was approved."""
    (checkout.folder / "ae.pth").write_bytes(b"weights")
    for name in ("one", "two"):
        text = manifest(name, "local: ../published", "path: ../ae.pth")
        unmeasured = text[: text.index("validate:")] + text[text.index("publish:") :]
        checkout.write(f"{name}.yaml", unmeasured)
    checkout.commit("local")
    checkout.write("one.yaml", unmeasured.replace("two", "one").replace("goodfire\n", "goodfire\n  dtype: bfloat16\n"))
    code, said = saesync(checkout, "plan", "--changed-since", "HEAD", "--out", "plan.json")
    assert code == 0, said
    code, said = saesync(checkout, "apply", "plan.json")
    assert code == 1
    assert "one/" in said, said
    assert "two/" not in said, said


@pytest.mark.parametrize(("name", "what"), [("two", "was changed since"), ("three", "was added since")])
def test_another_release_of_the_same_repository(checkout: Checkout, name: str, what: str) -> None:
    checkout.write(f"{name}.yaml", manifest(name, ev=0.1))
    code, said = saesync(checkout, "apply", "plan.json")
    assert code == STALE, said
    assert f"{name}   {what}, and is not in the plan   (manifests/{name}.yaml:2:" in said


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"])
def test_a_hook_of_another_repository_may_plan(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """git says to its hooks which repository called them."""
    plain = saesync(checkout, "plan", "--changed-since", "HEAD")
    monkeypatch.setenv(name, str(tmp_path))
    assert saesync(checkout, "plan", "--changed-since", "HEAD") == plain
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Install it" in saesync(checkout, "plan", "--changed-since", "HEAD")[1]
