"""`saesync plan --untrusted` on checkouts that anybody may have written: nothing runs, no path leads out, no token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from servers.loopback import ALICE, HubServer

sys.path.insert(0, str(Path(__file__).parent))

from checkouts import COMMIT, Checkout, git, manifest, outdate, set_traps, sprung

PLAN = ("plan", "manifests", "--untrusted")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def plan(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


def saesync(checkout: Checkout, *words: str, **variables: str) -> Done:
    """As plan.yml runs it: isolated, in the checkout's folder."""
    env = {"SAESYNC_RETRY_SECONDS": "0", **os.environ, **variables}
    command = [sys.executable, "-I", "-m", "saesync", *words]
    done = subprocess.run(command, cwd=checkout.folder, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A pull request of which HEAD^ is the base: one manifest changed, one renamed, one deleted, one new, one untouched."""
    made = Checkout(tmp_path / "pull request")
    for name in ("changed", "renamed", "deleted", "same"):
        made.write(f"{name}.yaml", manifest(name))
    made.write("values.yaml", "no: manifest\n")
    made.commit("base")
    made.write("changed.yaml", manifest("changed", ev=0.5))
    git(made.folder, "mv", "manifests/renamed.yaml", "manifests/other.yaml")
    git(made.folder, "rm", "-q", "manifests/deleted.yaml")
    made.write("new.yaml", manifest("new", source=f"repo: evil/raw\n    revision: {COMMIT}\n    path: '{{layer}}.pth'"))
    made.write("values.yaml", "no: manifest here\n")
    made.commit("pull request")
    return made


# ------------------------------------------------------------------------------------------------- what changed


def test_only_what_changed_is_planned_and_what_is_gone_is_named(checkout: Checkout) -> None:
    done = saesync(checkout, *PLAN, "--changed-since", "HEAD^", "--format", "json")
    assert done.code == 0, done.err
    plan = done.plan
    assert {release["name"] for release in plan["releases"]} == {"changed", "renamed", "new"}
    assert plan["untrusted"] is True
    changed = plan["changed"]
    assert changed["since"] == git(checkout.folder, "rev-parse", "HEAD^").strip()
    assert (changed["added"], changed["modified"]) == (["manifests/new.yaml"], ["manifests/changed.yaml"])
    assert changed["renamed"] == [["manifests/renamed.yaml", "manifests/other.yaml"]]
    assert (changed["deleted"], changed["unchanged"]) == (["manifests/deleted.yaml"], 1)
    assert changed["gone"] == [{"release": "deleted", "manifest": "manifests/deleted.yaml"}]
    review = [(item["kind"], item["release"]) for item in plan["review"]]
    assert review == [
        ("gone", "deleted"),
        ("lowered", "changed"),
        ("new_target", "new"),
        ("public", "new"),
        ("new_owner", "new"),
    ]


def test_it_is_said_in_text_and_markdown(checkout: Checkout) -> None:
    text = saesync(checkout, *PLAN, "--changed-since", "HEAD^").out
    assert "Manifests: 1 added, 1 modified, 1 renamed, 1 deleted; 1 other not looked at." in text
    assert "! new: new owner of the source: evil (manifests/new.yaml:12:11)" in text
    assert "saesync apply" not in text
    shown = saesync(checkout, *PLAN, "--changed-since", "HEAD^", "--format", "markdown").out
    assert shown.index("**Needs review** (5)") < shown.index("| | SAEs |")
    assert "without a token" in shown


def test_what_is_not_committed_counts_too(checkout: Checkout) -> None:
    checkout.write("same.yaml", manifest("same", ev=0.9))
    checkout.write("untracked.yaml", manifest("untracked"))
    changed = saesync(checkout, *PLAN, "--changed-since", "HEAD", "--format", "json").plan["changed"]
    assert changed["modified"] == ["manifests/same.yaml"]
    assert changed["added"] == ["manifests/untracked.yaml"]


def test_nothing_changed_and_everything_deleted(checkout: Checkout) -> None:
    assert saesync(checkout, *PLAN, "--changed-since", "HEAD", "--format", "json").plan["items"] == []
    git(checkout.folder, "rm", "-q", "-r", "manifests")
    checkout.commit()
    done = saesync(checkout, *PLAN, "--changed-since", "HEAD^", "--format", "json")
    assert done.code == 0, done.err
    assert len(done.plan["changed"]["gone"]) == 4


def test_the_last_manifest_of_a_folder(checkout: Checkout) -> None:
    """git keeps no empty folder, so that after the merge its plan would fail: the pull request is told what keeps it."""
    git(checkout.folder, "rm", "-q", "-r", "manifests")
    checkout.commit()
    since = ("--changed-since", "HEAD^")
    assert "None is left in manifests: commit an empty file manifests/.gitkeep, or" in saesync(checkout, *PLAN, *since).out
    assert "`manifests/.gitkeep`" in saesync(checkout, *PLAN, *since, "--format", "markdown").out
    merged = saesync(checkout, "plan", "manifests")
    assert merged.code == 1
    assert "commit an empty file manifests/.gitkeep" in merged.err
    (checkout.folder / "manifests").mkdir()
    checkout.write(".gitkeep", "")
    git(checkout.folder, "add", "-A")
    git(checkout.folder, "commit", "-q", "--amend", "-m", "kept")
    done = saesync(checkout, *PLAN, *since)
    assert done.code == 0, done.err
    assert "gitkeep" not in done.out
    merged = saesync(checkout, "plan", "manifests", "--out", "plan.json")
    assert merged.code == 0, merged.err
    assert "no SAE is asked for" in merged.out, merged.out
    assert saesync(checkout, "apply", "plan.json").code == 0


def test_a_folder_that_neither_side_has_is_a_mistake(checkout: Checkout) -> None:
    words = ("plan", "manifets", "--untrusted", "--changed-since", "HEAD^")
    assert "error: No such manifest" in saesync(checkout, *words).err


def test_an_emptied_folder_beside_another(checkout: Checkout) -> None:
    """One that is gone does not hide what changed in the other, whatever it was called."""
    (checkout.folder / "v1.0").mkdir()
    (checkout.folder / "v1.0" / "old.yaml").write_text(manifest("old"), encoding="utf-8")
    checkout.commit()
    git(checkout.folder, "rm", "-q", "-r", "v1.0")
    checkout.write("newer.yaml", manifest("newer"))
    done = saesync(checkout, *PLAN, "v1.0", "--changed-since", "HEAD", "--format", "json")
    assert done.code == 0, done.err
    assert [release["name"] for release in done.plan["releases"]] == ["newer"]
    assert [each["release"] for each in done.plan["changed"]["gone"]] == ["old"]


def test_one_manifest_alone(checkout: Checkout) -> None:
    words = ("plan", "manifests/new.yaml", "--untrusted", "--changed-since", "HEAD^", "--format", "json")
    plan = saesync(checkout, *words).plan
    assert {release["name"] for release in plan["releases"]} == {"new"}
    assert plan["changed"]["deleted"] == []


def test_a_base_in_another_folder(checkout: Checkout, tmp_path: Path) -> None:
    """Compared with it nothing is new: it holds the same manifests."""
    git(tmp_path, "clone", "-q", str(checkout.folder), "base")
    words = (*PLAN, "--changed-since", "HEAD^", "--format", "json")
    assert saesync(checkout, *words, "--base", str(tmp_path / "base")).plan["review"] == []
    again = saesync(checkout, *words, "--base", "HEAD").plan
    assert again["review"] == []
    assert {release["name"] for release in again["releases"]} == {"changed", "renamed", "new"}


def test_a_base_that_cannot_be_read_makes_everything_new(checkout: Checkout) -> None:
    checkout.write("broken.yaml", "apiVersion: saesync/v1\nrelease: [\n")
    broken = checkout.commit()
    git(checkout.folder, "rm", "-q", "manifests/broken.yaml")
    checkout.commit()
    review = saesync(checkout, *PLAN, "--changed-since", "HEAD~3", "--base", broken, "--format", "json").plan["review"]
    assert {item["release"] for item in review if item["kind"] == "new_target"} == {"changed", "renamed", "new"}


@pytest.mark.parametrize("ref", ["nothing", "-nothing", "--output=/tmp/x", "HEAD^{tree}", "0" * 40, ""])
def test_a_commit_that_is_not_there(checkout: Checkout, ref: str) -> None:
    done = saesync(checkout, *PLAN, f"--changed-since={ref}")
    assert done.code == 1
    assert "Revision not found" in done.err


def test_words_that_do_not_go_together(checkout: Checkout) -> None:
    assert saesync(checkout, *PLAN, "--root", "..").code == 2
    assert saesync(checkout, *PLAN, "--base", "HEAD").code == 2


def test_outside_of_any_checkout(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "a.yaml").write_text(manifest("a"), encoding="utf-8")
    done = saesync(checkout, "plan", str(tmp_path / "manifests"), "--untrusted")
    assert done.code == 1
    assert "Not in a checkout" in done.err


# ------------------------------------------------------------------------------------------- nothing of it runs


def test_a_hostile_checkout_runs_nothing(checkout: Checkout, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    set_traps(checkout, marks)
    outdate(checkout)
    git(checkout.folder, "status", check=False)
    git(checkout.folder, "diff", check=False)
    git(checkout.folder, "-c", "filter.evil.process=", "show", "--ext-diff", "HEAD", check=False)
    assert {"diff-command", "fsmonitor", "process"} <= set(sprung(marks))  # the traps work
    outdate(checkout)
    done = saesync(checkout, *PLAN, "--changed-since", "HEAD^", "--format", "json")
    assert done.code == 0, done.err
    assert len(done.plan["releases"]) == 3
    assert sprung(marks) == []


def test_a_partial_clone_fetches_nothing(checkout: Checkout, tmp_path: Path) -> None:
    """What is missing is not asked for: the checkout says which program would fetch it."""
    marks = tmp_path / "marks"
    blob = git(checkout.folder, "rev-parse", "HEAD^:manifests/changed.yaml").strip()
    set_traps(checkout, marks)
    (checkout.folder / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    git(checkout.folder, "cat-file", "blob", blob, check=False)
    assert sprung(marks)
    done = saesync(checkout, *PLAN, "--changed-since", "HEAD^")
    assert done.code == 1
    assert "Blob not found" in done.err
    assert sprung(marks) == []


def test_plugins_are_not_loaded(checkout: Checkout, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    info = plugin / "evil-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[saesync.formats]\nx = evil:F\n[saesync.targets]\nx = evil:T\n", encoding="utf-8")
    (plugin / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise ImportError\n", encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(plugin), "SAESYNC_RETRY_SECONDS": "0"}

    def run(*words: str) -> int:
        command = [sys.executable, "-m", "saesync", *words]
        return subprocess.run(command, cwd=checkout.folder, env=env, capture_output=True, check=False).returncode

    run("formats")
    assert (tmp_path / "ran").exists()  # it would be
    (tmp_path / "ran").unlink()
    assert run(*PLAN) == 0
    assert not (tmp_path / "ran").exists()


# --------------------------------------------------------------------------------------------- no path leads out


def refused(checkout: Checkout, words: str, *more: str) -> None:
    done = saesync(checkout, *PLAN, *more)
    assert done.code == 1
    assert words in done.err, done.err
    assert "Nothing was planned." in done.err or "error:" in done.err


def test_local_paths_stay_inside_the_checkout(checkout: Checkout) -> None:
    for path in ("../../outside.pth", "/etc/passwd", "../.git/config", "../manifests/../.GIT/config"):
        checkout.write("new.yaml", manifest("new", source=f"path: {path}"))
        refused(checkout, "Path is refused" if "git" in path.lower() else "Path leads outside the project")
    checkout.write("new.yaml", manifest("new", publish="local: ../../published"))
    refused(checkout, "Path leads outside the project")


def test_the_working_directory_is_no_root(checkout: Checkout, tmp_path: Path) -> None:
    """plan.yml has the base branch's checkout beside the pull request's."""
    (tmp_path / "base.pth").write_bytes(b"x")
    checkout.write("new.yaml", manifest("new", source="path: ../../base.pth"))
    env = {**os.environ, "SAESYNC_RETRY_SECONDS": "0"}
    words = [sys.executable, "-I", "-m", "saesync", "plan", str(checkout.folder / "manifests")]
    done = subprocess.run([*words, "--untrusted"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Path leads outside the project" in done.stderr


def test_links_are_never_followed(checkout: Checkout, tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text(manifest("secret"), encoding="utf-8")
    (checkout.folder / "manifests" / "link.yaml").symlink_to(secret)
    refused(checkout, "ink")
    (checkout.folder / "manifests" / "link.yaml").unlink()
    (checkout.folder / "manifests" / "inside.yaml").symlink_to("same.yaml")
    refused(checkout, "Link is refused")
    (checkout.folder / "manifests" / "inside.yaml").unlink()
    (checkout.folder / "weights").symlink_to(tmp_path)
    checkout.write("new.yaml", manifest("new", source="path: ../weights/x.pth"))
    refused(checkout, "Link is refused")
    (checkout.folder / "weights").unlink()
    (checkout.folder / "weights" / "deep").mkdir(parents=True)
    (checkout.folder / "weights" / "deep" / "0.pth").symlink_to("/etc/passwd")
    checkout.write("new.yaml", manifest("new", source="path: ../weights"))
    refused(checkout, "Link is refused")


def test_a_folder_of_manifests_that_is_a_link(checkout: Checkout, tmp_path: Path) -> None:
    (checkout.folder / "manifests").rename(tmp_path / "elsewhere")
    (checkout.folder / "manifests").symlink_to(tmp_path / "elsewhere")
    refused(checkout, "Link is refused", "--changed-since", "HEAD^")


def test_a_local_source_inside_is_read(checkout: Checkout) -> None:
    (checkout.folder / "weights").mkdir()
    (checkout.folder / "weights" / "0.pth").write_bytes(b"x")
    checkout.write("new.yaml", manifest("new", publish="local: ../published", source="path: '../weights/{layer}.pth'"))
    items = saesync(checkout, "plan", "manifests/new.yaml", "--untrusted", "--format", "json").plan["items"]
    found = {item["id"]: (item["status"], [reason["code"] for reason in item["reasons"]]) for item in items if item["id"]}
    assert found["new/layer_0"][0] == "absent"
    assert found["new/layer_1"] == ("held", ["source_not_here"])


def test_no_pickle_is_trusted_on_a_strangers_word(tmp_path: Path) -> None:
    """Also where there is no policy that could name it."""
    made = Checkout(tmp_path / "checkout")
    made.write(
        "old.yaml",
        manifest("old", source="path: ../weights/{layer}.pkl.gz\n    trust: pickle").replace("goodfire", "saelens_pickle"),
    )
    for layer in (0, 1):
        weights = made.folder / "weights" / f"{layer}.pkl.gz"
        weights.parent.mkdir(exist_ok=True)
        weights.write_bytes(b"anything: a plan reads no pickle")
    done = saesync(made, *PLAN, "--format", "json")
    found = [item for item in done.plan["items"] if item["id"] is not None]
    assert len(found) == 2, done.err
    assert all(item["held"] for item in found)
    assert {reason["data"].get("key") for item in found for reason in item["reasons"]} == {"saes.source.trust"}


# ----------------------------------------------------------------------------------------------- no token is sent


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_the_hub_is_asked_without_a_token(hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.create_repo("alice/raw")
    sha = hub_server.push("alice/raw", {"0.pth": b"0", "1.pth": b"1"})
    hub_server.create_repo("alice/open")
    hub_server.create_repo("alice/secret", private=True)
    hub_server.restart_counters()
    made = Checkout(tmp_path / "checkout")
    source = f"repo: alice/raw\n    revision: {sha}\n    path: '{{layer}}.pth'"
    made.write("open.yaml", manifest("open", "huggingface: alice/open", source))
    policy = tmp_path / "policy.yaml"
    policy.write_text("apiVersion: saesync/v1\ntargets: {huggingface: [alice/*]}\n", encoding="utf-8")
    variables = hub_server.environment(ALICE, CI="true", GITHUB_ACTIONS="true")
    words = (*PLAN, "--policy", str(policy), "--format", "json")

    done = saesync(made, *words, **variables)
    assert done.code == 0, done.err
    assert done.plan["complete"] is True
    assert done.plan["totals"]["publish"] == 2
    made.write("secret.yaml", manifest("secret", "huggingface: alice/secret", source))
    done = saesync(made, *words, **variables)
    assert done.code == 0, done.err
    assert done.plan["complete"] is False
    assert (done.plan["totals"]["publish"], done.plan["totals"]["unknown"]) == (2, 2)
    asked = hub_server.log()
    assert asked
    assert {entry["auth"] for entry in asked} == {None}
    trusted = ("plan", "manifests", "--policy", str(policy), "--format", "json")
    assert saesync(made, *trusted, **variables).plan["complete"] is True  # with the token all of it is seen


@pytest.mark.parametrize(
    "endpoint", ["https://evil.example", "http://huggingface.co", "https://huggingface.co.evil.example", "x"]
)
def test_another_hub_is_refused(checkout: Checkout, endpoint: str) -> None:
    done = saesync(checkout, *PLAN, HF_ENDPOINT=endpoint)
    assert done.code == 1
    assert "Endpoint is refused" in done.err


def test_its_plan_file_cannot_be_applied(checkout: Checkout, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert saesync(checkout, *PLAN, "--out", str(file)).code == 0
    done = saesync(checkout, "apply", str(file))
    assert done.code == 1
    assert "Plan is of untrusted manifests" in done.err


@pytest.mark.parametrize(
    "registry", ["owner/name", "ssh://git@127.0.0.1:1/x.git", "https://127.0.0.1:1/x.git", "../registry.git"]
)
def test_no_registry_is_spoken_to(checkout: Checkout, registry: str) -> None:
    """A manifest may name any address there; what stands in it is unknown, even if it is a repository of the checkout's own."""
    git(checkout.folder, "init", "-q", "--bare", "registry.git")
    checkout.write("new.yaml", manifest("new", more=f"register:\n  saelens: {registry}\n"))
    done = saesync(checkout, "plan", "manifests/new.yaml", "--untrusted", "--format", "json", GITHUB_API_URL="http://127.0.0.1:1")
    assert done.code == 0, done.err
    (item,) = [item for item in done.plan["items"] if item["section"] == "register"]
    assert (item["status"], item["held"]) == ("unknown", True)
    assert item["reasons"][0]["data"]["detail"] == "of untrusted manifests only the Hub is asked"


def test_ones_own_changes_keep_their_reach(checkout: Checkout, tmp_path: Path) -> None:
    """Without --untrusted the manifests before are read with the same roots as those now: only what is new is new."""
    (tmp_path / "weights").mkdir()
    checkout.write("local.yaml", manifest("local", source="path: ../../weights/{layer}.pth"))
    checkout.commit()
    checkout.write("local.yaml", manifest("local", source="path: ../../weights/{layer}.pth", ev=0.1))
    words = ("plan", "manifests", "--changed-since", "HEAD", "--root", str(tmp_path / "weights"), "--format", "json")
    done = saesync(checkout, *words)
    assert done.code == 0, done.err
    assert "untrusted" not in done.plan
    assert [(item["kind"], item["release"]) for item in done.plan["review"]] == [("lowered", "local")]


def test_hundreds_of_manifests_take_a_few_git_processes(checkout: Checkout, tmp_path: Path) -> None:
    for number in range(200):
        checkout.write(f"more-{number}.yaml", manifest(f"more-{number}"))
    checkout.commit()
    checkout.write("more-7.yaml", manifest("more-7", ev=0.1))
    count = tmp_path / "count"
    (tmp_path / "bin").mkdir()
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    wrapper = tmp_path / "bin" / "git"
    wrapper.write_text(f'#!/bin/sh\necho >> "{count}"\nexec {real} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    done = saesync(
        checkout, *PLAN, "--changed-since", "HEAD", "--format", "json", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    )
    assert done.code == 0, done.err
    assert done.plan["changed"]["modified"] == ["manifests/more-7.yaml"]
    assert done.plan["changed"]["unchanged"] == 203
    assert len(count.read_text(encoding="utf-8").splitlines()) < 8
