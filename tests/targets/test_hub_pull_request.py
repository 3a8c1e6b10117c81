"""Publishing by pull request: one of ours per repo, found again and updated. By bob, who may not write to alice's repo."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from release_world import REPO, Shop, asked
from servers.holdings import holdings
from servers.loopback import ALICE, ALICE_READ, BOB, SECRETS, HubServer
from target_support import batch, upload

from saesync import preflight
from saesync.apply import Outcome
from saesync.errors import Conflict, Missing, SaesyncError, Unavailable
from saesync.model import Item, Status, StepKind
from saesync.planfile import compare, plan_json
from saesync.reason import ReasonCode
from saesync.render import plan_text
from saesync.targets.pulls import TITLE

PR = "refs/pr/1"


@pytest.fixture
def shop(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """At the end no secret stands in what the Hub keeps: files, commits, what pull requests say."""
    hub_server.create_repo(REPO)
    monkeypatch.setenv("HF_TOKEN", BOB)
    hub_server.restart_counters()
    yield Shop(hub_server, tmp_path, [asked(pull_request=True)])
    for where, data in holdings(hub_server.root):
        assert not [secret for secret in SECRETS if secret.encode() in data], where


def pulls(shop: Shop) -> list[dict[str, Any]]:
    """All pull requests, oldest first."""
    found = shop.server.call("GET", f"/api/models/{REPO}/discussions?type=pull_request")["discussions"]
    return sorted(found, key=lambda one: int(one["num"]))


def act(shop: Shop, num: int, what: str, token: str = ALICE, **body: Any) -> None:
    """What the repo's owner does to a pull request: merge, or a status."""
    shop.server.call("POST", f"/api/models/{REPO}/discussions/{num}/{what}", json.dumps(body).encode(), token)


def whole(shop: Shop, **choices: tuple[str, ...]) -> Item:
    (item,) = shop.items(**choices)
    return item


def commits_in(shop: Shop, num: int = 1) -> int:
    """Commits of a pull request; none while it has no branch yet."""
    branch = f"refs/pr/{num}"
    if not shop.server.git(REPO, "for-each-ref", branch).strip():
        return 0
    return len(shop.server.git(REPO, "rev-list", f"main..{branch}").split())


# ------------------------------------------------------------------------------------------------ the ordinary way


def test_opened_once_updated_and_merged(shop: Shop) -> None:
    main = shop.server.head(REPO)
    assert preflight.check(*shop.look()) == ()
    result = shop.apply()
    assert result.exit_code == 0, result.failures
    assert [(pull["title"], pull["author"]["name"], pull["status"]) for pull in pulls(shop)] == [(TITLE, "bob", "open")]
    assert shop.server.head(REPO) == main, "nothing on the main branch"
    tree = shop.server.tree_of(REPO, PR)
    assert {"layer_0/sae_weights.safetensors", "layer_1/cfg.json", "saesync/res.json", "README.md"} <= set(tree)
    assert "snapshot_download" not in shop.card(PR)
    assert shop.tags() == {}
    assert shop.server.stats()["auth_leaks"] == 0

    item = whole(shop)
    assert (item.status, item.steps, item.held) == (Status.WAITING, (), False)
    url = f"{shop.server.base}/{REPO}/discussions/1"
    assert item.reasons[0].data == {"num": 1, "url": url, "status": "open"}
    text = plan_text(plan_json(shop.plan()))
    assert f"… alice/saes  waiting  waiting for merge of #1 ({url})" in text
    assert "Nothing to do: 1 waiting for others, 2 up to date." in text
    assert not shop.seen().merged("res")
    shop.server.restart_counters()
    assert shop.apply().exit_code == 0
    assert shop.server.count("commit") == shop.server.count("discussions.create") == 0

    shop.ask("res", dtype="bfloat16")
    assert whole(shop).status is Status.CURRENT
    assert shop.apply().exit_code == 0
    assert len(pulls(shop)) == 1
    assert commits_in(shop) == 2

    act(shop, 1, "merge")
    seen = shop.seen()
    assert seen.merged("res")
    assert seen.head == shop.server.head(REPO)
    assert shop.plan().pending == ()
    assert whole(shop).status is Status.CURRENT
    assert shop.tags() == {}, "a tag needs write access"


def test_after_the_merge_a_change_opens_another(shop: Shop) -> None:
    shop.apply()
    act(shop, 1, "merge")
    shop.ask("res", dtype="bfloat16")
    assert shop.apply().exit_code == 0
    assert [(pull["num"], pull["status"]) for pull in pulls(shop)] == [(1, "merged"), (2, "open")]
    assert whole(shop).reasons[0].data["num"] == 2
    act(shop, 2, "merge")
    assert shop.plan().pending == ()


def test_what_was_published_directly_meanwhile_waits_for_nobody(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pull request is left open, and holds what main does."""
    shop.apply()
    (proposed,) = shop.releases
    monkeypatch.setenv("HF_TOKEN", ALICE)
    shop.releases = [asked()]
    time.sleep(1)  # times are recorded to the second
    assert shop.apply().exit_code == 0
    assert shop.plan().pending == ()
    monkeypatch.setenv("HF_TOKEN", BOB)
    shop.releases = [proposed]
    assert shop.plan().pending == ()
    assert whole(shop).status is Status.CURRENT


def test_two_releases_share_the_one(shop: Shop) -> None:
    shop.apply()
    shop.releases.append(asked("mlp", ("layer_8",), pull_request=True))
    assert shop.apply().exit_code == 0
    assert len(pulls(shop)) == 1
    assert {item.status for name in ("res", "mlp") for item in shop.items(name)} == {Status.WAITING}
    act(shop, 1, "merge")
    shop.ask("mlp", dtype="bfloat16")
    shop.apply()
    assert [item.status for name in ("res", "mlp") for item in shop.items(name)] == [Status.CURRENT, Status.WAITING]


def test_deleting_goes_by_pull_request_too(shop: Shop) -> None:
    shop.apply()
    act(shop, 1, "merge")
    shop.releases = [replace(shop.releases[0], retire=True)]
    assert shop.apply().exit_code == 0
    assert "layer_0/cfg.json" in shop.server.tree_of(REPO)
    assert "layer_0/cfg.json" not in shop.server.tree_of(REPO, "refs/pr/2")
    assert whole(shop).status is Status.WAITING
    act(shop, 2, "merge")
    assert shop.plan().pending == ()
    assert whole(shop).status is Status.CURRENT


def test_another_machine_finds_it(shop: Shop) -> None:
    shop.apply()
    fresh = Shop(shop.server, shop.folder / "other", shop.releases)
    assert whole(fresh).status is Status.WAITING
    fresh.ask("res", dtype="bfloat16")
    assert fresh.apply().exit_code == 0
    assert len(pulls(shop)) == 1


def test_cost_of_looking(shop: Shop) -> None:
    shop.apply()
    shop.look()
    shop.server.restart_counters()
    target = shop.target()
    first = target.observe_proposed(REPO)
    assert shop.server.count() == 4, "who we are, the repo, our pull requests, the head of ours"
    assert target.observe_proposed(REPO) == first
    assert shop.server.count() == 7


# ----------------------------------------------------------------------------------------------- whose is whose


def test_somebody_elses_of_the_same_title_is_not_ours(shop: Shop) -> None:
    body = json.dumps({"title": TITLE, "description": "", "pullRequest": True}).encode()
    shop.server.call("POST", f"/api/models/{REPO}/discussions", body, "hf_carol_fine")
    shop.server.call("POST", f"/api/models/{REPO}/discussions", body.replace(b"(saesync)", b"(mine)"), BOB)
    assert shop.apply().exit_code == 0
    assert [(pull["num"], pull["author"]["name"]) for pull in pulls(shop)] == [(1, "carol"), (2, "bob"), (3, "bob")]
    assert "saesync/res.json" in shop.server.tree_of(REPO, "refs/pr/3")
    assert commits_in(shop, 1) == commits_in(shop, 2) == 0


def test_without_a_token_it_cannot_be_told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert shop.seen().unknown is None, "there is no pull request of that title: nothing is in doubt"
    monkeypatch.setenv("HF_TOKEN", BOB)
    shop.apply()
    monkeypatch.delenv("HF_TOKEN")
    item = whole(shop)
    assert (item.status, item.held) == (Status.UNKNOWN, True)
    assert "cannot be told without a token" in item.reasons[0].data["detail"]


def test_who_may_open_one(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    target = shop.target()
    target.check_proposing(REPO)
    with pytest.raises(Missing, match="write access"):
        target.check_write(REPO, private=False)
    with pytest.raises(Missing, match="does not exist"):
        target.check_proposing("alice/nothing")
    monkeypatch.setenv("HF_TOKEN", ALICE_READ)
    with pytest.raises(Missing, match="not read-only"):
        target.check_proposing(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    with pytest.raises(Missing, match="not accept the token") as caught:
        target.check_proposing(REPO)
    assert "hf_revoked" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(Missing, match="needs a token"):
        target.check_proposing(REPO)
    with pytest.raises(Missing, match="opened by somebody"):
        target.publish(REPO, batch("res", {"layer_0": upload(shop.folder / "x", 1)}, pull_request=True), target.observe(REPO))


def test_a_read_only_token_is_refused_before_anything_is_made(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE_READ)
    (found,) = preflight.check(*shop.look())
    assert "not read-only" in found.detail
    result = shop.apply()
    assert result.exit_code == 1
    assert not any(secret in f"{result.failures} {shop.events}" for secret in SECRETS)
    assert pulls(shop) == []


def test_a_repo_that_does_not_exist_is_held(shop: Shop) -> None:
    shop.releases = [asked(repo="alice/nothing", pull_request=True)]
    plan = shop.plan()
    assert plan.pending == ()
    assert {item.reasons[0].code for item in plan.items} == {ReasonCode.PULL_NEEDS_REPO}


# --------------------------------------------------------------------------------------------------- its end


def test_closed_unmerged_is_held_until_something_else_is_asked(shop: Shop) -> None:
    shop.apply()
    act(shop, 1, "status", status="closed")
    plan = shop.plan()
    assert plan.pending == ()
    assert [(item.status, item.held, item.reasons[0].code) for item in plan.items if item.id is not None] == [
        (Status.HELD, True, ReasonCode.PULL_CLOSED)
    ] * 2
    assert "#1 was closed without merging: reopen it, or remove pull_request" in plan_text(plan_json(plan))
    result = shop.apply()
    assert (result.exit_code, set(result.outcomes.values())) == (1, {Outcome.HELD})
    assert len(pulls(shop)) == 1

    act(shop, 1, "status", status="open")
    assert whole(shop).status is Status.WAITING
    act(shop, 1, "status", status="closed")
    shop.ask("res", dtype="bfloat16")
    assert shop.apply().exit_code == 0
    assert [(pull["num"], pull["status"]) for pull in pulls(shop)] == [(1, "closed"), (2, "open")]
    assert {"layer_0/cfg.json", "layer_1/cfg.json"} <= set(shop.server.tree_of(REPO, "refs/pr/2"))
    assert whole(shop).reasons[0].data["num"] == 2


def test_the_branch_of_a_closed_one_may_be_gone(shop: Shop) -> None:
    shop.apply()
    act(shop, 1, "status", status="closed")
    shop.server.git(REPO, "update-ref", "-d", PR)
    seen = shop.seen()
    assert (seen.unknown, seen.pull is not None and seen.pull.status) == (None, "closed")
    assert len(shop.plan().pending) == 2, "what it held is not known"


@pytest.mark.parametrize("status", ["closed", "merged"])
def test_ended_while_it_is_added_to(shop: Shop, status: str) -> None:
    target = shop.target()
    seen = target.observe_proposed(REPO)
    one = batch("res", {"layer_0": upload(shop.folder / "one", 1)}, pull_request=True)
    target.publish(REPO, one, seen)
    act(shop, 1, "merge") if status == "merged" else act(shop, 1, "status", status=status)
    two = batch("res", {"layer_1": upload(shop.folder / "two", 2)}, pull_request=True)
    with pytest.raises(Conflict, match=f"#1 on alice/saes was {status} while it was added to"):
        target.publish(REPO, two, seen)
    assert len(pulls(shop)) == 1
    if status == "merged":
        assert target.publish(REPO, one, seen).head == shop.server.head(REPO), "what was merged is in place"


def test_closed_while_a_reply_is_lost(shop: Shop) -> None:
    """Before we look again whether our commit landed, somebody closes it: said, and no other is opened."""
    target = shop.target()
    seen = target.observe_proposed(REPO)
    work = batch("res", {"layer_0": upload(shop.folder / "one", 1)}, pull_request=True)
    shop.server.fault({"route": "commit", "when": "after", "status": 503, "headers": {"Retry-After": "3"}})
    errors: list[BaseException] = []

    def run() -> None:
        try:
            target.publish(REPO, work, seen)
        except SaesyncError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not pulls(shop) or not commits_in(shop):
        time.sleep(0.02)
    act(shop, 1, "status", status="closed")
    thread.join()
    assert [type(error) for error in errors] == [Conflict]
    assert "was closed while it was added to" in str(errors[0])
    assert len(pulls(shop)) == 1


# ------------------------------------------------------------------------------------------------------- faults


FAULTS: dict[str, dict[str, Any]] = {
    "lost reply of the opening": {"route": "discussions.create", "when": "after", "action": "reset"},
    "503 of the opening that took place": {"route": "discussions.create", "when": "after", "status": 503},
    "listed before it has a branch": {
        "route": "repo.info",
        "path": "refs(%2F|/)pr",
        "status": 404,
        "headers": {"X-Error-Code": "RevisionNotFound"},
        "times": 2,
    },
    "reset before the opening": {"route": "discussions.create", "action": "reset"},
    "details fail": {"route": "discussions.get", "status": 503},
    "503 of the list": {"route": "discussions.list", "status": 503},
    "list that is not one": {"route": "discussions.list", "action": "truncate", "after_bytes": 5},
    "reset of the status": {"route": "discussions.status", "when": "after", "action": "reset"},
    "lost reply of the commit": {"route": "commit", "when": "after", "action": "reset"},
    "503 of the commit that landed": {"route": "commit", "when": "after", "status": 503},
    "reset before the commit": {"route": "commit", "action": "reset", "times": 2},
    "429 of the commit": {"route": "commit", "status": 429, "headers": {"Retry-After": "1"}},
    "head of the branch fails": {"route": "repo.info", "path": "refs", "status": 503},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_transient_trouble_ends_in_one_pull_request_with_one_commit(shop: Shop, fault: dict[str, Any]) -> None:
    plan, context = shop.look()
    shop.server.fault(fault)
    assert shop.carry_out(plan, context).exit_code == 0
    assert shop.server.stats()["faults"][0]["hits"] >= 1
    assert [pull["status"] for pull in pulls(shop)] == ["open"]
    assert commits_in(shop) == 1
    assert whole(shop).status is Status.WAITING


def test_a_draft_that_cannot_be_opened_is_used_and_named(shop: Shop) -> None:
    shop.server.fault(route="discussions.status", status=403, times=-1)
    assert shop.apply().exit_code == 0
    assert [pull["status"] for pull in pulls(shop)] == ["draft"]
    assert whole(shop).reasons[0].data["status"] == "draft"
    assert "#1, a draft" in plan_text(plan_json(shop.plan()))


def test_killed_between_opening_and_commit(shop: Shop) -> None:
    """The next run finds the empty one and fills it."""
    shop.patience = 1
    shop.server.fault(route="commit", status=503, times=-1)
    assert shop.apply().exit_code == 1
    assert len(pulls(shop)) == 1
    assert commits_in(shop) == 0
    shop.server.restart_counters()
    assert whole(shop).status is Status.CURRENT, "it holds nothing yet: nothing waits"
    assert len(shop.plan().pending) == 2
    assert shop.apply().exit_code == 0
    assert len(pulls(shop)) == 1
    assert commits_in(shop) == 1


def test_two_creators_at_once_end_in_the_older(shop: Shop) -> None:
    seen = shop.seen()
    shop.server.fault(route="discussions.list", action="delay", when="after", delay=0.5, times=3)  # all look before any opens
    errors: list[BaseException] = []

    def run(number: int) -> None:
        work = batch("res", {f"layer_{number}": upload(shop.folder / str(number), number)}, pull_request=True)
        try:
            shop.target().publish(REPO, work, seen)
        except SaesyncError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found = pulls(shop)
    assert len(found) > 1, "they did race"
    assert [pull["status"] for pull in found] == ["open", *["closed"] * (len(found) - 1)]
    assert set(shop.seen().records["res"].saes) == {"layer_0", "layer_1", "layer_2"}
    assert commits_in(shop) == 3


def test_of_two_open_ones_the_older_is_ours(shop: Shop) -> None:
    body = json.dumps({"title": TITLE, "description": "", "pullRequest": True}).encode()
    for _ in range(2):
        shop.server.call("POST", f"/api/models/{REPO}/discussions", body, BOB)
    assert shop.apply().exit_code == 0
    assert (commits_in(shop, 1), commits_in(shop, 2)) == (1, 0)


def test_many_pull_requests_are_paged(shop: Shop) -> None:
    shop.apply()
    shop.server.config(discussions_page=2)
    other = json.dumps({"title": "something else", "description": "", "pullRequest": True}).encode()
    for _ in range(5):
        shop.server.call("POST", f"/api/models/{REPO}/discussions", other, BOB)
    assert whole(shop).reasons[0].data["num"] == 1


def test_lasting_trouble_is_one_message(shop: Shop) -> None:
    shop.patience = 1
    seen = shop.seen()
    shop.server.fault(route="discussions.create", status=503, times=-1)
    work = batch("res", {"layer_0": upload(shop.folder / "one", 1)}, pull_request=True)
    with pytest.raises(Unavailable, match="open a pull request on alice/saes"):
        shop.target().publish(REPO, work, seen)


# --------------------------------------------------------------------------------------------------- plan files


def test_a_plan_file_holds_while_it_is_carried_out(shop: Shop) -> None:
    saved = plan_json(shop.plan())
    plan, context = shop.look(only=("res/layer_0",))
    shop.carry_out(plan, context)
    assert compare(saved, shop.plan()) == [], "our own pull request is no difference"
    shop.apply()
    assert compare(saved, shop.plan()) == []
    saved = plan_json(shop.plan())
    act(shop, 1, "status", status="closed")
    assert "pull #1 open → #1 closed" in " ".join(found.what for found in compare(saved, shop.plan()))


def test_the_card_of_the_release_alone(shop: Shop) -> None:
    shop.apply()
    publish = shop.releases[0].publish
    assert publish is not None
    shop.releases = [replace(shop.releases[0], publish=replace(publish, license="apache-2.0"))]
    assert whole(shop).steps == (StepKind.CARD,)
    assert shop.apply().exit_code == 0
    assert "license: apache-2.0" in shop.card(PR)
    assert whole(shop).status is Status.WAITING
