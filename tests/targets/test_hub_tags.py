"""A completed release is tagged once, and a tag that was moved is drift. Plans and applies against a real client's Hub."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning import BOUND
from release_world import REPO, Shop, asked
from servers.loopback import ALICE_READ, SECRETS, HubServer
from target_support import batch, upload

from saesync.apply import Outcome, StopFlag
from saesync.errors import Conflict, Missing, Refused, SaesyncError
from saesync.model import Observed, Status, StepKind
from saesync.planfile import compare, plan_json
from saesync.reason import ReasonCode
from saesync.record import parse_record
from saesync.render import summary_text
from saesync.tags import tag_name
from saesync.targets.base import Tag, Tagging

NAME = r"saesync-res-[0-9a-f]{8}"


@pytest.fixture
def shop(hub_server: HubServer, tmp_path: Path) -> Shop:
    return Shop(hub_server, tmp_path, [asked()])


def record_name(shop: Shop, revision: str = "main", release: str = "res") -> str:
    return tag_name(parse_record(shop.server.file(REPO, f"saesync/{release}.json", revision), release))


def move(shop: Shop, name: str, commit: str) -> None:
    shop.server.git(REPO, "tag", "-f", name, commit)


# ------------------------------------------------------------------------------------------------ the ordinary way


def test_the_apply_that_completes_a_release_tags_its_last_commit(shop: Shop) -> None:
    _, tag = shop.items()
    assert (tag.status, tag.steps, tag.basis["asked.section"]) == (Status.ABSENT, (StepKind.TAG,), "tag")
    assert [reason.code for reason in tag.reasons] == [ReasonCode.NOT_TAGGED]
    result = shop.apply()
    assert (result.exit_code, result.outcomes) == (0, dict.fromkeys(("res/layer_0", "res/layer_1"), Outcome.PUBLISHED))
    name = record_name(shop)
    assert shop.tags() == {name: shop.server.head(REPO)}
    assert [(event["tag"], event["commit"], event["made"]) for event in shop.told("tagged")] == [
        (name, shop.server.head(REPO), True)
    ]
    assert (result.cards, result.tags) == (0, 1), "the card went with its SAEs"
    assert f"revision={json.dumps(name)}" in shop.card()
    assert 'SAE.from_pretrained("alice/saes", "layer_0")' in shop.card(), "the unpinned snippet stays"
    shop.server.restart_counters()
    assert shop.plan().pending == ()
    asked = {route: entry["requests"] for route, entry in shop.server.stats()["routes"].items() if not route.startswith("cas.")}
    assert asked == {"refs": 1}, "head and tags at once; the client of xet says goodbye when it likes"
    assert shop.apply().exit_code == 0
    assert shop.server.count("tag.create") == shop.server.count("commit") == 0


def test_only_the_card_of_the_last_commit_names_the_tag(shop: Shop) -> None:
    """The first commit goes out at once: what it holds is not the release yet."""
    shop.apply(only=("res/layer_0",))
    assert shop.tags() == {}
    assert "snapshot_download" not in shop.card()
    assert [item.steps for item in shop.items()] == [(), (StepKind.TAG,)]
    assert shop.apply().commits == 1
    assert "snapshot_download" in shop.card()
    assert list(shop.tags()) == [record_name(shop)]


def test_the_name_depends_on_what_is_published_and_on_nothing_else(shop: Shop) -> None:
    shop.apply()
    (first,) = shop.tags()
    license_ = replace(shop.releases[0], publish=replace(shop.releases[0].publish, license="apache-2.0"))  # type: ignore[type-var]
    shop.releases = [license_]
    assert [item.steps for item in shop.items()] == [(StepKind.CARD,), ()], "another card is no other release"
    result = shop.apply()
    assert (result.exit_code, result.commits, result.cards, result.tags) == (0, 1, 1, 0)
    assert "1 card written" in summary_text(result.summary())
    assert list(shop.tags()) == [first]
    shop.ask("res", dtype="bfloat16")
    assert shop.apply().exit_code == 0
    assert set(shop.tags()) == {first, record_name(shop)}
    assert len(shop.tags()) == 2
    assert shop.plan().pending == ()


def test_an_sae_that_misses_its_gate_leaves_the_release_without_a_tag(shop: Shop) -> None:
    shop.ev["res/layer_1"] = 0.5
    result = shop.apply()
    assert result.outcomes == {"res/layer_0": Outcome.PUBLISHED, "res/layer_1": Outcome.FAILED}
    assert result.exit_code == 1
    assert shop.tags() == {}
    assert "snapshot_download" not in shop.card()
    shop.releases = [asked(ids=("layer_0",))]
    _, tag = shop.items()
    assert tag.steps == (StepKind.TAG,), "complete without it"
    assert shop.apply().exit_code == 0
    assert len(shop.tags()) == 1
    assert shop.plan().pending == ()


def test_published_and_failing_is_not_complete(shop: Shop) -> None:
    shop.apply()
    (first,) = shop.tags()
    spec = shop.releases[0].saes[0].validate
    assert spec is not None
    shop.ask("res", validate=replace(spec, tokens=7))
    shop.ev = {"res/layer_0": 0.8, "res/layer_1": 0.6}
    result = shop.apply()
    assert result.outcomes == {"res/layer_0": Outcome.PUBLISHED, "res/layer_1": Outcome.FAILING}
    assert list(shop.tags()) == [first]
    assert "snapshot_download" not in shop.card()
    assert shop.plan().pending == ()
    shop.ask("res", validate=replace(spec, tokens=7, require=(replace(BOUND, bound=0.55),)))
    assert {item.steps for item in shop.items()} == {(StepKind.CARD,), (StepKind.TAG,)}
    assert shop.apply().exit_code == 0
    assert len(shop.tags()) == 2
    assert shop.plan().pending == ()


def test_releases_that_share_a_repo_are_tagged_apart(shop: Shop) -> None:
    shop.releases.append(asked("mlp", ("layer_8",)))
    assert shop.apply().exit_code == 0
    names = {record_name(shop), record_name(shop, release="mlp")}
    assert set(shop.tags()) == names
    for name, commit in shop.tags().items():
        assert record_name(shop, commit, name.split("-")[1]) == name
    assert shop.plan().pending == ()
    fresh = Shop(shop.server, shop.folder / "other", shop.releases)
    assert fresh.plan().pending == (), "on another machine, too"
    assert fresh.seen().moved == frozenset()


def test_a_local_folder_and_a_pull_request_have_no_tags(shop: Shop) -> None:
    shop.releases = [asked(pull_request=True)]
    assert len(shop.items()) == 1


# -------------------------------------------------------------------------------------------------------- drift


def test_a_moved_tag_is_held_and_put_back_when_asked(shop: Shop) -> None:
    shop.apply(only=("res/layer_0",))
    early = shop.server.head(REPO)
    shop.apply()
    (name,) = shop.tags()
    right = shop.tags()[name]
    move(shop, name, early)
    _, tag = shop.items()
    assert (tag.status, tag.held, tag.steps) == (Status.DRIFTED, True, ())
    assert tag.reasons[0].data == {"tag": name, "found": early[:8], "release": "res"}
    result = shop.apply()
    assert result.outcomes == {"res": Outcome.HELD}
    assert result.exit_code == 1
    assert "--replace res puts it back" in result.failures[0].diagnostics[0].detail
    assert shop.tags() == {name: early}
    assert shop.apply(replace=("res/*",)).exit_code == 1, "that names SAEs, not the release"
    result = shop.apply(replace=("res",))
    assert result.exit_code == 0
    assert "1 tagged" in summary_text(result.summary()), "put back"
    assert shop.tags() == {name: right}
    assert shop.plan().pending == ()


def test_a_tag_on_the_same_record_but_other_weights_was_moved(shop: Shop) -> None:
    shop.apply()
    (name,) = shop.tags()
    shop.server.push(REPO, {"layer_0/sae_weights.safetensors": b"somebody's"})
    move(shop, name, shop.server.head(REPO))
    assert shop.seen().moved == {name}
    shop.server.push(REPO, {"saesync/res.json": b"not a record"})
    move(shop, name, shop.server.head(REPO))
    assert shop.seen().locked, "the record is what is missing now"


def test_a_tag_on_another_commit_that_holds_the_same_is_fine(shop: Shop) -> None:
    shop.apply()
    (name,) = shop.tags()
    other = shop.server.push(REPO, {"notes.txt": b"mine"})
    move(shop, name, other)
    assert shop.seen().moved == frozenset()
    assert shop.plan().pending == ()


def test_the_tag_of_a_release_that_is_put_back_stands(shop: Shop) -> None:
    """What is published again is what was tagged: the tag stays, and nothing else is said."""
    shop.apply()
    ((name, right),) = shop.tags().items()
    shop.server.push(REPO, {"layer_0/sae_weights.safetensors": b"somebody's"})
    result = shop.apply(replace=("res/layer_0",))
    assert (result.exit_code, result.commits, result.tags) == (0, 1, 0)
    assert shop.tags() == {name: right}
    assert shop.server.head(REPO) != right
    assert shop.told("tagged") == [
        {"type": "tagged", "release": "res", "location": REPO, "commit": right, "tag": name, "made": False}
    ]
    assert "tagged" not in summary_text(result.summary())
    assert shop.plan().pending == ()


def test_a_deleted_tag_is_made_again(shop: Shop) -> None:
    shop.apply()
    (name,) = shop.tags()
    shop.server.git(REPO, "tag", "-d", name)
    _, tag = shop.items()
    assert tag.reasons[0].data == {"tag": name}
    assert shop.apply().commits == 0
    assert list(shop.tags()) == [name]


# ------------------------------------------------------------------------------------------------------- faults


FAULTS: dict[str, dict[str, Any]] = {
    "lost reply by reset": {"when": "after", "action": "reset"},
    "lost reply by 503": {"when": "after", "status": 503},
    "reset before": {"action": "reset", "times": 2},
    "503 before": {"status": 503},
    "429 with Retry-After": {"status": 429, "headers": {"Retry-After": "1"}},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_transient_trouble_ends_in_one_tag(shop: Shop, fault: dict[str, Any]) -> None:
    shop.server.fault(route="tag.create", **fault)
    assert shop.apply().exit_code == 0
    assert shop.server.stats()["faults"][0]["hits"] >= 1
    assert shop.tags() == {record_name(shop): shop.server.head(REPO)}
    assert [event["made"] for event in shop.told("tagged")] == [True], "also when the reply was lost"
    assert shop.plan().pending == ()


def test_lasting_trouble_is_one_failure_and_the_next_apply_tags(shop: Shop) -> None:
    shop.patience = 1
    shop.server.fault(route="tag.create", status=503, times=-1)
    result = shop.apply()
    assert result.exit_code == 1
    assert [(failure.address, failure.step) for failure in result.failures] == [("res", StepKind.TAG)]
    assert result.outcomes["res"] is Outcome.FAILED
    shop.server.restart_counters()
    assert [item.steps for item in shop.items()] == [(), (StepKind.TAG,)], "the card is right already"
    assert shop.apply().commits == 0
    assert len(shop.tags()) == 1


def test_a_token_that_may_not(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.apply()
    (name,) = shop.tags()
    shop.server.git(REPO, "tag", "-d", name)
    monkeypatch.setenv("HF_TOKEN", ALICE_READ)
    result = shop.apply()
    (failure,) = result.failures
    assert "may not write to alice/saes" in failure.diagnostics[0].detail
    assert not any(secret in str(failure) + str(shop.events) for secret in SECRETS)
    assert shop.tags() == {}


def published(shop: Shop) -> tuple[Tagging, Observed]:
    target = shop.target()
    at = target.publish(REPO, batch("res", {"layer_0": upload(shop.folder / "one", 1)}), target.observe(REPO))
    assert isinstance(target, Tagging)
    return target, at


def test_a_tag_that_is_there_already(shop: Shop) -> None:
    target, at = published(shop)
    assert at.head is not None
    name = target.tag(REPO, "res", at).name
    tagged = replace(at, tags={name: at.head})
    stands = Tag(name, at.head, made=False)
    assert target.tag(REPO, "res", tagged) == stands, "409 at the same commit is done"
    assert shop.server.stats()["routes"]["tag.create"]["status"] == {"200": 1, "409": 1}
    move(shop, name, shop.server.commits(REPO)[-1])
    with pytest.raises(Conflict, match="--replace res"):
        target.tag(REPO, "res", at)
    shop.server.fault(route="tag.delete", when="after", action="reset")
    assert target.tag(REPO, "res", at, replace=True) == Tag(name, at.head, made=True)
    assert target.tag(REPO, "res", at, replace=True) == stands, "somebody else put it back"
    assert shop.tags() == {name: at.head}
    with pytest.raises(Missing, match="no record of other"):
        target.tag(REPO, "other", at)


def test_a_tag_that_is_refused_and_not_there_was_not_moved(shop: Shop) -> None:
    target, at = published(shop)
    shop.server.fault(route="tag.create", status=409, times=-1)
    with pytest.raises(Refused, match="and takes none"):
        target.tag(REPO, "res", at)


def test_two_that_tag_at_once_agree(shop: Shop) -> None:
    _, at = published(shop)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            shop.target().tag(REPO, "res", at)
        except SaesyncError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(shop.tags().values()) == [at.head]


# ------------------------------------------------------------------------------------------- stopped in the middle


def test_a_commit_that_nobody_waited_for_is_in_doubt(shop: Shop) -> None:
    """The second Ctrl-C comes while the Hub takes its time to say that it has the commit."""
    shop.apply()
    before = shop.server.head(REPO)
    shop.releases += [asked("mlp", ("layer_8",)), asked("att", ("layer_9",))]
    shop.server.fault(route="commit", when="after", action="delay", delay=4)
    plan, context = shop.look()
    stop = StopFlag()

    def press_twice() -> None:
        while shop.server.head(REPO) == before:
            time.sleep(0.05)
        stop.request()
        stop.request()

    threading.Thread(target=press_twice, daemon=True).start()
    result = shop.carry_out(plan, context, stop)
    assert (result.interrupted, result.exit_code) == (True, 130)
    (unsure,) = (address for address, outcome in result.outcomes.items() if outcome is Outcome.UNSURE)
    assert set(result.outcomes.values()) == {Outcome.UNSURE, Outcome.STOPPED}
    text = summary_text(result.summary())
    assert text.startswith("Stopped. 1 in doubt, 1 not started, 2 tags not made.\n")
    assert f"In doubt: {unsure}. It was being published and may have landed; the next plan tells." in text
    assert "half-done" not in text
    assert {item.address for item in shop.plan().pending if item.id is not None} == set(result.outcomes) - {unsure}


# --------------------------------------------------------------------------------------------------- plan files


def test_a_plan_file_holds_while_it_is_carried_out(shop: Shop) -> None:
    """Stopped between the last commit and the tag, it goes on; a tag that somebody moved is named."""
    saved = plan_json(shop.plan())
    shop.patience = 1
    shop.server.fault(route="tag.create", status=503, times=-1)
    shop.apply()
    assert compare(saved, shop.plan()) == []
    shop.server.restart_counters()
    shop.apply()
    assert compare(saved, shop.plan()) == []
    (name,) = shop.tags()
    saved = plan_json(shop.plan())
    move(shop, name, shop.server.commits(REPO)[-1])
    assert [found.what for found in compare(saved, shop.plan())] == ["tag there → moved"]
