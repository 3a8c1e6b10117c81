"""`saesync ci comment` through real PyGithub: which pull request, what is believed, what is written, and what goes wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ci_support import BOT, FORK, MARKER, PLAN, REPO, TOKEN, Done, Forge, a_plan, artifact, run_event, saesync

from saesync.ci import comment as commenting
from saesync.ci.api import GitHub
from saesync.ci.artifact import MAX_BYTES, read
from saesync.ci.check import Digests
from saesync.ci.event import read_run
from saesync.errors import NotVisible, Refused, Unavailable
from saesync.planfile import digests

NEW = {"manifests/new.yaml": "release: new\n"}


@pytest.fixture
def proposed(forge: Forge, tmp_path: Path) -> tuple[int, str]:
    """A pull request that adds a manifest, and its head."""
    sha = forge.push("new", NEW)
    return forge.open("new"), sha


def say(forge: Forge, tmp_path: Path, sha: str, plan: Any = None, head: str | None = REPO, **changes: Any) -> str:
    """What the command does for a finished run. Without ``plan`` the artefact holds a small one; "" leaves it as it is."""
    event = run_event(tmp_path / "event.json", sha, head, **changes)
    folder = tmp_path / "artifact"
    folder.mkdir(exist_ok=True)
    if plan != "":
        artifact(folder, a_plan() if plan is None else plan)
    return commenting.comment(GitHub(forge.api, TOKEN), read_run(event), folder)


def words_for(tmp_path: Path, sha: str) -> tuple[str, ...]:
    event, folder = run_event(tmp_path / "event.json", sha), artifact(tmp_path / "artifact", a_plan())
    return "ci", "comment", "--event", str(event), "--artifact", str(folder)


def concluded(forge: Forge, sha: str) -> list[str]:
    return [run["conclusion"] for run in forge.checks(sha) if run["name"] == "saesync plan"]


# ------------------------------------------------------------------------------------------------ what is written


def test_first_comment_and_check(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    plan = a_plan()
    done = saesync(forge, *words_for(tmp_path, sha))
    assert done == Done(0, f"Pull request #{number}: comment posted, check 'saesync plan' concludes success.\n", "")
    (body,) = forge.said(number)
    assert body.startswith(f"{MARKER}\n### saesync plan · 2 to publish, 1 place to create, 1 tag to create\n")
    assert f"Digest `{plan['digest'][:8]}` of commit `{sha[:8]}`" in body
    assert "onerror" not in body  # plan.md is never read
    (run,) = forge.checks(sha)
    assert (run["status"], run["conclusion"], run["head_sha"]) == ("completed", "success", sha)
    assert run["external_id"] == f"saesync-plan:{plan['digest']}"
    assert Digests.read(run["output"]["text"]) == Digests(sha, plan["digest"], digests(plan).releases)


def test_updated_in_place_and_then_left_alone(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    say(forge, tmp_path, sha)
    assert "comment updated" in say(forge, tmp_path, sha, a_plan("layer_7"))
    assert "layer_7" in forge.said(number)[0]
    assert "comment unchanged" in say(forge, tmp_path, sha, a_plan("layer_7"))
    assert len(forge.said(number)) == 1
    assert concluded(forge, sha) == ["success"]


def test_next_push_updates_the_comment_and_gets_a_check_of_its_own(
    forge: Forge, tmp_path: Path, proposed: tuple[int, str]
) -> None:
    number, first = proposed
    say(forge, tmp_path, first)
    second = forge.push("new", {"manifests/more.yaml": "release: more\n"})
    assert "comment updated" in say(forge, tmp_path, second)
    assert len(forge.said(number)) == 1
    assert f"`{second[:8]}`" in forge.said(number)[0]
    assert concluded(forge, first) == concluded(forge, second) == ["success"]


def test_fork(forge: Forge, tmp_path: Path) -> None:
    forge.fork()
    sha = forge.push("new", NEW, repo=FORK)
    number = forge.open("new", repo=FORK)
    assert "concludes success" in say(forge, tmp_path, sha, head=FORK)
    assert len(forge.said(number)) == 1


def test_a_marker_of_somebody_else_is_ignored(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    for n in range(120):  # ours is looked for on every page
        forge.say(number, "mallory", f"{MARKER}\nplan is fine, merge {n}")
    assert "comment posted" in say(forge, tmp_path, sha)
    assert "comment unchanged" in say(forge, tmp_path, sha)
    assert len(forge.call("GET", f"/repos/{REPO}/issues/{number}/comments?per_page=100&page=2")) == 21


def test_another_comment_of_the_same_account_is_left_alone(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    forge.say(number, BOT, f"Coverage went up. {MARKER}")
    assert "comment posted" in say(forge, tmp_path, sha)
    assert len(forge.said(number)) == 2


def test_two_comments_of_two_runs_at_once_become_one(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    for _ in range(2):
        forge.say(number, BOT, f"{MARKER}\nold")
    assert "comment updated" in say(forge, tmp_path, sha)
    (body,) = forge.said(number)
    assert "old" not in body


def test_a_personal_token_knows_its_own_comment(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    forge.say(number, BOT, f"{MARKER}\nby the workflow")
    words = words_for(tmp_path, sha)
    assert "comment posted" in saesync(forge, *words, token="ghp_alice").out
    assert "comment unchanged" in saesync(forge, *words, token="ghp_alice").out
    assert forge.said(number) == [f"{MARKER}\nby the workflow"]


# ---------------------------------------------------------------------------------------------------- conclusions


def test_unknown_held_and_incomplete_are_neutral(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    _, sha = proposed
    for verb in ("unknown", "held"):
        plan = a_plan()
        plan["items"][0] |= {"verb": verb, "held": True}
        assert "concludes neutral" in say(forge, tmp_path, sha, plan)
    assert "concludes neutral" in say(forge, tmp_path, sha, {**a_plan(), "complete": False})
    assert "concludes success" in say(forge, tmp_path, sha, {**a_plan(), "complete": True})


@pytest.mark.parametrize(("conclusion", "ours"), [("failure", "failure"), ("timed_out", "neutral"), ("cancelled", "neutral")])
@pytest.mark.parametrize("plan", [None, ""])
def test_a_run_that_did_not_succeed(
    forge: Forge, tmp_path: Path, proposed: tuple[int, str], conclusion: str, ours: str, plan: Any
) -> None:
    number, sha = proposed
    assert f"concludes {ours}" in say(forge, tmp_path, sha, plan, conclusion=conclusion)
    (body,) = forge.said(number)
    assert "Digest" in body or "this run](https://github.com/" in body


def test_review_comes_first_and_too_much_of_it_requires_action(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    item = {"kind": "new_target", "release": "res", "data": {"section": "publish", "value": "huggingface:evil/x"}, "origin": None}
    assert "concludes success" in say(forge, tmp_path, sha, {**a_plan(), "review": [item]})
    lines = forge.said(number)[0].splitlines()
    assert lines[3] == "**Needs review** (1)"
    assert "`huggingface:evil/x`" in lines[5]
    many = [{**item, "data": {**item["data"], "value": f"huggingface:evil/{n}" + "x" * 150}} for n in range(500)]
    assert "concludes action_required" in say(forge, tmp_path, sha, {**a_plan(), "review": many})
    (body,) = forge.said(number)
    assert len(body) <= 60_000
    shown = body.count("huggingface:evil/")
    assert f"**{500 - shown:,} more of these do not fit here. Do not approve from this text alone.**" in body
    assert "[plan.json of the run](https://github.com/acme/saes/actions/runs/77)" in body
    assert "needs review" in forge.checks(sha)[0]["output"]["title"]


def test_five_hundred_saes_fit_and_what_is_cut_is_counted(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    plan = a_plan(*(f"layer_{n}" + "x" * 100 for n in range(500)))
    assert "concludes success" in say(forge, tmp_path, sha, plan)
    (body,) = forge.said(number)
    assert len(body) <= 60_000
    assert f"… and {500 - body.count('`blocks.'):,} more." in body
    assert (
        "Not all of it fits here: [plan.json of the run](https://github.com/acme/saes/actions/runs/77) holds everything." in body
    )


# ------------------------------------------------------------------------------------------- what a change may touch


@pytest.mark.parametrize(
    ("files", "moved", "shown"),
    [
        ({PLAN: "name: plan\non: pull_request\njobs: {}\n"}, {}, PLAN),
        ({**NEW, "saesync-policy.yaml": "targets: {}\n"}, {}, "saesync-policy.yaml"),
        ({"README.md": None}, {}, "README.md"),
        ({"manifests.py": "x"}, {}, "manifests.py"),
        ({"Manifests/new.yaml": "x"}, {}, "Manifests/new.yaml"),
        ({}, {"manifests/res.yaml": "moved/res.yaml"}, "moved/res.yaml"),
        ({}, {"README.md": "manifests/README.md"}, "README.md"),
    ],
    ids=["forged plan.yml", "policy", "removed", "prefix of the name", "case", "renamed out", "renamed in"],
)
def test_anything_outside_of_manifests_is_not_verified(
    forge: Forge, tmp_path: Path, files: dict[str, str | None], moved: dict[str, str], shown: str
) -> None:
    sha = forge.push("new", files, moved=moved)
    number = forge.open("new")
    assert "concludes action_required" in say(forge, tmp_path, sha)
    (body,) = forge.said(number)
    assert body.startswith(f"{MARKER}\n### saesync · plan not verified: workflows or code changed\n")
    assert f"- `{shown}`" in body
    assert "Digest" not in body
    assert "layer_0" not in body
    (run,) = forge.checks(sha)
    assert run["conclusion"] == "action_required"
    assert run["output"]["title"] == "plan not verified: workflows or code changed"
    assert "text" not in run["output"]


def test_manifests_in_another_folder(forge: Forge, tmp_path: Path) -> None:
    """The action's input `manifests` says which."""
    sha = forge.push("new", {"research/saes/new.yaml": "release: new\n"})
    number = forge.open("new")
    done = saesync(forge, *words_for(tmp_path, sha))
    assert "concludes action_required" in done.out
    assert "outside `manifests/`" in forge.said(number)[0]
    done = saesync(forge, *words_for(tmp_path, sha), "--manifests", "./research/saes/")
    assert "concludes success" in done.out, done
    sha = forge.push("new", {"research/saes.py": "evil\n"})
    done = saesync(forge, *words_for(tmp_path, sha), "--manifests", "research/saes")
    assert "concludes action_required" in done.out
    assert "outside `research/saes/`" in forge.said(number)[0]


@pytest.mark.parametrize("folder", ["", ".", "./", "/", "a/../..", "/manifests", ".github", ".github/workflows"])
def test_workflows_are_never_counted_among_the_manifests(forge: Forge, tmp_path: Path, folder: str) -> None:
    done = saesync(forge, *words_for(tmp_path, "1" * 40), "--manifests", folder)
    assert done.code == 2
    assert "a folder of their own" in done.err


def test_a_plan_of_as_many_saes_as_one_run_handles_is_shown(tmp_path: Path) -> None:
    """Real ones have 3 kB for each, of 20,000."""
    plan = a_plan(*(f"layer_{number}" for number in range(200)))
    asked = [item for item in plan["items"] if item["id"] is not None]
    for item in asked:
        item["basis"]["about"] = "x" * 2_500
    plan["items"] = [{**item, "id": f"{item['id']}/{more}"} for item in asked for more in range(100)]
    plan["digest"] = digests(plan).whole
    assert len(read(artifact(tmp_path / "artifact", plan))["items"]) == 20_000


def test_a_verified_plan_is_withdrawn_when_code_comes_along(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, first = proposed
    say(forge, tmp_path, first)
    second = forge.push("new", {PLAN: "name: evil\n"})
    assert "comment updated, check 'saesync plan' concludes action_required" in say(forge, tmp_path, second)
    (body,) = forge.said(number)
    assert "not verified" in body


def test_a_truncated_list_is_not_verified(forge: Forge, tmp_path: Path) -> None:
    sha = forge.push("new", {f"manifests/{n}.yaml": f"release: r{n}\n" for n in range(301)})
    number = forge.open("new")
    assert "concludes action_required" in say(forge, tmp_path, sha)
    assert "is cut short (300 is the most it holds)" in forge.said(number)[0]


def test_counts_that_disagree_are_not_verified(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    forge.admin("pull", {"repo": REPO, "number": number, "changed_files": 2})
    assert "concludes action_required" in say(forge, tmp_path, sha)


def test_what_main_did_meanwhile_is_not_the_pull_requests(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    _, sha = proposed
    forge.push("main", {PLAN: "name: plan\n# better\n"})
    assert "concludes success" in say(forge, tmp_path, sha)


# ------------------------------------------------------------------------------------------------ which pull request


def nothing_written(forge: Forge, said: str) -> str:
    assert said.startswith("Nothing to do: ")
    assert forge.writes() == 0
    return said


def test_head_moved(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    _, old = proposed
    forge.push("new", {"manifests/new.yaml": "release: newer\n"})
    assert "no open pull request" in nothing_written(forge, say(forge, tmp_path, old))


def test_head_moves_while_we_look(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    """The last look before writing decides: here the comparison is slow, and somebody pushes."""
    number, sha = proposed
    run = read_run(run_event(tmp_path / "event.json", sha))
    github = GitHub(forge.api, TOKEN)
    get = github.get

    def pushed_meanwhile(path: str, **parameters: Any) -> Any:
        found = get(path, **parameters)
        if "/compare/" in path:
            forge.push("new", {PLAN: "name: evil\n"})
        return found

    github.get = pushed_meanwhile  # type: ignore[method-assign]
    assert "has moved on" in commenting.comment(github, run, artifact(tmp_path / "a", a_plan()))
    assert forge.writes() == 0
    assert forge.said(number) == []


def test_closed_or_deleted(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    assert "a deleted repository" in nothing_written(forge, say(forge, tmp_path, sha, head=None))
    forge.call("PATCH", f"/repos/{REPO}/pulls/{number}", {"state": "closed"})
    assert "no open pull request" in nothing_written(forge, say(forge, tmp_path, sha))


def test_two_pull_requests_with_the_same_head(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    _, sha = proposed
    forge.git(REPO, "update-ref", "refs/heads/twin", sha)
    forge.open("twin")
    assert "2 open pull requests have" in nothing_written(forge, say(forge, tmp_path, sha))


def test_same_head_against_another_branch_is_ambiguous_too(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    """Else a run with an old branch's plan.yml would be taken for one of main's."""
    _, sha = proposed
    forge.git(REPO, "update-ref", "refs/heads/old", "refs/heads/main")
    forge.open("new", base="old")
    assert "2 open pull requests have" in nothing_written(forge, say(forge, tmp_path, sha))


def test_only_against_another_branch(forge: Forge, tmp_path: Path) -> None:
    forge.git(REPO, "update-ref", "refs/heads/old", "refs/heads/main")
    sha = forge.push("new", NEW)
    forge.open("new", base="old")
    assert "is not against main" in nothing_written(forge, say(forge, tmp_path, sha))


def test_same_commit_in_another_repository(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    _, sha = proposed
    assert "no open pull request" in nothing_written(forge, say(forge, tmp_path, sha, head="mallory/saes"))


@pytest.mark.parametrize("changes", [{"event": "push"}, {"path": ".github/workflows/other.yml"}], ids=str)
def test_another_run(forge: Forge, tmp_path: Path, proposed: tuple[int, str], changes: dict[str, str]) -> None:
    """A workflow that merely calls itself plan is not ours."""
    _, sha = proposed
    assert "the run is not of" in nothing_written(forge, say(forge, tmp_path, sha, **changes))


# ------------------------------------------------------------------------------------------------ forged artefacts


def test_another_pull_request_claimed_by_the_artefact(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    forge.push("other", {"manifests/other.yaml": "release: other\n"})
    other = forge.open("other")
    forged = {
        **a_plan(),
        "pull_request": other,
        "number": other,
        "head_sha": "f" * 40,
        "commit": "f" * 40,
        "conclusion": "success",
    }
    assert f"Pull request #{number}: comment posted" in say(forge, tmp_path, sha, forged)
    assert forge.said(other) == []
    assert "f" * 8 not in forge.said(number)[0]


def _deep() -> str:
    return json.dumps(a_plan())[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}"


FORGED: dict[str, Any] = {
    "not JSON": "{",
    "a list": "[]",
    "NaN": json.dumps(a_plan())[:-1] + ', "x": NaN}',
    "deep": _deep(),
    "twice": json.dumps(a_plan())[:-1] + ', "digest": "x"}',
    "huge number": json.dumps(a_plan())[:-1] + ', "x": 1e999}',
    "no digest": {**a_plan(), "digest": "<b>"},
    "other digest": {**a_plan(), "digest": "0" * 64},
    "steps are words of ours": {**a_plan(), "items": [{**a_plan()["items"][0], "steps": ["![x](http://evil)"]}]},
    "verb": {**a_plan(), "items": [{**a_plan()["items"][0], "verb": "<script>"}]},
    "totals": {**a_plan(), "totals": {"saes": "<script>"}},
    "negative totals": {**a_plan(), "totals": {"saes": 1, "publish": -1}},
    "items": {**a_plan(), "items": {"a": 1}},
    "nested basis": {**a_plan(), "items": [{**a_plan()["items"][0], "basis": {"asked.target": {}}}]},
    "review": {**a_plan(), "review": [{"kind": "trust"}]},
    "changed": {**a_plan(), "changed": {"added": 3}},
    "half a surrogate": json.dumps(a_plan())[:-1] + ', "x": "\\ud800"}',
    "long text": {**a_plan(), "x": "x" * 5000},
    "version": {**a_plan(), "version": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_plan_is_not_shown(forge: Forge, tmp_path: Path, proposed: tuple[int, str], name: str) -> None:
    number, sha = proposed
    assert "concludes neutral" in say(forge, tmp_path, sha, FORGED[name])
    (body,) = forge.said(number)
    assert body.startswith(f"{MARKER}\n### saesync · plan not available\n\nThe run's plan.json is not shown: ")
    assert "Digest" not in body


def test_artefact_that_is_no_file(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    number, sha = proposed
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(a_plan()))
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "plan.json").symlink_to(secret)
    assert "concludes neutral" in say(forge, tmp_path, sha, "")
    assert "it is a link" in forge.said(number)[0]
    (folder / "plan.json").unlink()
    os.mkfifo(folder / "plan.json")
    assert "concludes neutral" in say(forge, tmp_path, sha, "")
    assert "not a regular file" in forge.said(number)[0]
    (folder / "plan.json").unlink()
    (folder / "plan.json").mkdir()
    assert "concludes neutral" in say(forge, tmp_path, sha, "")
    (folder / "plan.json").rmdir()
    with (folder / "plan.json").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    assert "concludes neutral" in say(forge, tmp_path, sha, "")
    assert f"more than {MAX_BYTES:,} bytes" in forge.said(number)[0]
    (folder / "plan.json").unlink()
    assert "concludes neutral" in say(forge, tmp_path, sha, "")
    assert "The run left no plan." in forge.said(number)[0]


# ---------------------------------------------------------------------------------------------------------- trouble


@pytest.fixture
def patient(forge: Forge) -> GitHub:
    return GitHub(forge.api, TOKEN, sleep=forge.waits.append)


def run_here(github: GitHub, tmp_path: Path, sha: str) -> str:
    return commenting.comment(github, read_run(run_event(tmp_path / "event.json", sha)), artifact(tmp_path / "a", a_plan()))


def test_short_trouble_is_waited_out(forge: Forge, tmp_path: Path, proposed: tuple[int, str], patient: GitHub) -> None:
    number, sha = proposed
    forge.fault(route="compare", status=502)
    forge.fault(route="comments.list", action="reset")
    forge.fault(route="check-runs.list", status=429, headers={"Retry-After": "7"})
    body = json.dumps({"message": "You have exceeded a secondary rate limit."})
    forge.fault(route="check-runs.post", status=403, body=body, headers={"Content-Type": "application/json"})
    assert "comment posted" in run_here(patient, tmp_path, sha)
    assert forge.waits == [1.0, 7.0, 30.0, 1.0]
    assert len(forge.said(number)) == len(forge.checks(sha)) == 1


@pytest.mark.parametrize("route", ["comments.post", "check-runs.post"])
@pytest.mark.parametrize("action", ["reset", "status"])
def test_a_lost_answer_makes_no_second_one(
    forge: Forge, tmp_path: Path, proposed: tuple[int, str], patient: GitHub, route: str, action: str
) -> None:
    number, sha = proposed
    forge.fault(route=route, action=action, status=502, when="after")
    assert "concludes success" in run_here(patient, tmp_path, sha)
    assert len(forge.said(number)) == len(forge.checks(sha)) == 1
    assert forge.count(route) == 1


def test_a_long_wait_is_refused_at_once(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    _, sha = proposed
    forge.fault(route="repos.pulls.get", status=429, headers={"Retry-After": "3600"}, times=-1)
    done = saesync(forge, *words_for(tmp_path, sha))
    assert done.code == 1
    assert "error: GitHub's rate limit is used up" in done.err
    assert "for 3,600 s" in done.err
    assert forge.count("repos.pulls.get") == 1


def test_trouble_that_lasts_ends_in_one_message(forge: Forge, tmp_path: Path, proposed: tuple[int, str], patient: GitHub) -> None:
    _, sha = proposed
    forge.fault(route="comments.post", status=503, times=-1)
    with pytest.raises(Unavailable, match="GitHub is in trouble"):
        run_here(patient, tmp_path, sha)
    assert sum(forge.waits) <= 60
    assert 3 <= len(forge.waits) <= 8


def test_a_token_that_may_not_write(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    _, sha = proposed
    words = words_for(tmp_path, sha)
    done = saesync(forge, *words, token="ghs_read")
    assert done.code == 1
    assert "error: GitHub does not show it" in done.err
    assert "Resource not accessible by integration" in done.err
    canary = "ghp_canary_1b2c3d"
    done = saesync(forge, *words, token=canary)
    assert done.code == 1
    assert "error: GitHub refuses the token" in done.err
    assert canary not in done.out + done.err
    done = saesync(forge, *words, token="")
    assert "error: No GitHub token" in done.err


def test_the_token_is_in_no_message(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    """Whatever goes wrong, and with --debug's tracebacks too."""
    _, sha = proposed
    github = GitHub(forge.api, TOKEN, sleep=lambda _: None)
    for fault in ({"status": 500}, {"status": 404}, {"status": 401}, {"status": 422}, {"action": "reset"}):
        forge.fault(route="compare", times=20, **fault)
        with pytest.raises((Unavailable, NotVisible, Refused)) as caught:
            run_here(github, tmp_path, sha)
        chain: BaseException | None = caught.value
        while chain is not None:
            assert TOKEN not in str(chain)
            assert TOKEN not in repr(chain)
            chain = chain.__cause__ or chain.__context__
        forge.admin("reset", {})


def test_an_answer_of_another_form(forge: Forge, tmp_path: Path, proposed: tuple[int, str]) -> None:
    """A proxy's page with status 200 is no list of pull requests, and no comparison either."""
    _, sha = proposed
    github = GitHub(forge.api, TOKEN)
    for route in ("repos.pulls.get", "comments.list"):
        forge.fault(route=route, status=200, body="<html>")
        with pytest.raises(Unavailable, match="not understood"):
            run_here(github, tmp_path, sha)
    forge.fault(route="compare", status=200, body="<html>")
    assert "concludes action_required" in run_here(github, tmp_path, sha)


def test_addresses_that_would_leak_the_token() -> None:
    for url in ("http://github.example.org", "ftp://x", "https://user:pw@x", "https://", "api.github.com", "https://[x"):
        with pytest.raises(Refused, match="GitHub address is refused"):
            GitHub(url, TOKEN)


def _of(repository: str, **event: Any) -> str:
    return json.dumps({"workflow_run": {}, "repository": {"full_name": repository, "default_branch": "main"}, **event})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a JSON object"),
        ("{}", 'no "workflow_run"'),
        (json.dumps({"workflow_run": {}, "action": "requested"}), 'no "repository"'),
        (_of("a/../b"), "names no repository"),
        (_of("other/saes"), "it is of other/saes"),
        (_of(REPO), '"action" is not'),
        (_of(REPO, action="completed", workflow_run={"head_sha": "main"}), '"head_sha" is not a commit hash'),
    ],
)
def test_events_that_are_not_ours(forge: Forge, tmp_path: Path, text: str, said: str) -> None:
    event = tmp_path / "event.json"
    event.write_text(text)
    done = saesync(forge, "ci", "comment", "--event", str(event), "--artifact", str(tmp_path))
    assert done.code == 1
    assert "error: Not the event this command is for" in done.err
    assert said in done.err
    assert forge.writes() == 0
