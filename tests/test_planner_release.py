"""The planner on releases as wholes: their tag, and the pull request they may stand in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planning import HUB, World, entry_of, inputs_of, published, release, sae, wanted_of

from saesync.card import card_digest
from saesync.digest import digest_bytes
from saesync.model import WEIGHTS_FILE, Choices, HubPull, Item, PublishSpec, Release, Status, StepKind
from saesync.planfile import plan_json
from saesync.planner import plan, select
from saesync.reason import Reason, ReasonCode
from saesync.record import Record
from saesync.tags import complete, tag_name

IDS = ["layer_0", "layer_1"]
URL = "https://hub/acme/saes/discussions/7"


def whole(world: World, **choices: tuple[str, ...]) -> tuple[Item, Item | None]:
    """The release's item, and its tag's."""
    found = [item for item in world.plan(**choices).items if item.id is None and item.release == "res"]
    return found[0], next((item for item in found if item.basis.get("asked.section") == "tag"), None)


def tag(world: World, **choices: tuple[str, ...]) -> Item:
    found = whole(world, **choices)[1]
    assert found is not None
    return found


def drift(world: World, sae_id: str = "layer_0") -> None:
    world.put(files={**world.at().files, f"{sae_id}/{WEIGHTS_FILE}": digest_bytes(b"changed")})


# ----------------------------------------------------------------------------------------------------- the name


def test_the_digest_is_of_keys_files_and_evidence_alone() -> None:
    entry = entry_of(inputs_of(sae()))
    record = Record("res", {"layer_0": entry})
    name = tag_name(record)
    assert name == f"saesync-res-{record.saes_digest[:8]}"
    evidence = entry.evidence[0]
    other_numbers = replace(evidence, metrics={}, about={"device": "cuda"})
    for same in (
        replace(entry, run={"finished": "2026-01-01T00:00:00Z"}, about={"saesync": "9"}, proof={}),
        replace(entry, evidence=(other_numbers, replace(evidence, measure_key="a" * 64))),
    ):
        assert tag_name(Record("res", {"layer_0": same}, card="c" * 64)) == name
    for other in (
        replace(entry, build_key="b" * 64),
        replace(entry, files={**entry.files, "more": digest_bytes(b"more")}),
        replace(entry, evidence=()),
        replace(entry, evidence=(replace(evidence, measure_key="a" * 64),)),
    ):
        assert tag_name(Record("res", {"layer_0": other})) != name
    assert tag_name(Record("res", {"layer_1": entry})) != name


@pytest.mark.parametrize("name", ["a..b", "a...b", "v1.0", "x.lock", "A-b_c.d"])
def test_git_takes_the_name(name: str) -> None:
    found = tag_name(Record(name, {"layer_0": entry_of(inputs_of(sae()))}))
    assert ".." not in found
    assert not found.endswith((".lock", "."))


def test_complete() -> None:
    one = release(ids=IDS)
    world = published(one)
    record = world.at().records["res"]
    assert complete(one, world.wanted, record)
    assert not complete(one, world.wanted, None)
    assert not complete(one, {}, record)
    assert not complete(replace(one, retire=True), world.wanted, record)
    assert not complete(replace(one, saes=()), world.wanted, record)
    assert not complete(one, world.wanted, record.merged({}, frozenset({"layer_1"})))
    entry = record.saes["layer_1"]
    assert not complete(one, world.wanted, record.merged({"layer_1": replace(entry, build_key="0" * 64)}))
    assert not complete(one, world.wanted, record.merged({"layer_1": replace(entry, evidence=())}))
    failing = entry_of(inputs_of(one.saes[1]), 0.5)
    assert not complete(one, world.wanted, record.merged({"layer_1": failing}))
    assert complete(one, world.wanted, record.merged({"orphan": failing})), "what nobody asks for does not count"


# ------------------------------------------------------------------------------------------------------ the tag


def test_a_new_release_is_tagged_at_its_end() -> None:
    world = World([release(ids=IDS)])
    item = tag(world)
    assert (item.status, item.steps, item.reasons) == (
        Status.ABSENT, (StepKind.TAG,), (Reason(ReasonCode.NOT_TAGGED, {"tag": None}),),
    )  # fmt: skip
    world.apply()
    assert (tag(world).status, tag(world).steps) == (Status.CURRENT, ())
    assert list(world.at().tags) == [tag_name(world.at().records["res"])]


def test_no_tag_while_something_is_held_failing_or_unknown() -> None:
    held = published(release(ids=IDS))
    held.put(tags={})
    drift(held)
    assert (tag(held).status, tag(held).steps) == (Status.CURRENT, ())
    assert tag(held, replace=("res/*",)).steps == (StepKind.TAG,)
    failing = World([release(ids=IDS)], ev={"res/layer_1": 0.5})
    failing.apply()
    assert tag(failing).steps == ()
    unseen = World([release(ids=IDS)])
    unseen.put(unknown=Reason(ReasonCode.NOT_VISIBLE, {"location": HUB}))
    assert tag(unseen).steps == ()


def test_releases_without_a_tag() -> None:
    for one in (
        release(publish=PublishSpec("local", "/srv/saes")),
        release(publish=PublishSpec("huggingface", HUB, pull_request=True)),
        replace(release(), retire=True),
    ):
        assert whole(World([one]))[1] is None
    world = published(release("res"), release("old", ["layer_9"]))
    world.releases = world.releases[:1]
    assert [item.basis.get("asked.section") for item in world.plan().items if item.release == "old"] == [None, None]


def test_an_orphan_that_goes_makes_another_release() -> None:
    world = published(release(ids=IDS))
    world.releases = [release(ids=IDS[:1])]
    assert tag(world).steps == (), "the tag of what stands there"
    assert tag(world, prune=("res",)).steps == (StepKind.TAG,)
    world.apply(prune=("res",))
    assert len(world.at().tags) == 2
    assert world.plan().pending == ()


def test_only_part_of_a_release() -> None:
    world = World([release(ids=IDS)])
    part = select(world.plan(), ("res/layer_0",))
    assert [item.steps for item in part.items if item.id is None] == [(StepKind.CREATE,), ()]
    world.apply(stopped=("res/layer_1",))
    assert world.at().tags == {}
    last = select(world.plan(), ("res/layer_1",))
    assert StepKind.TAG in last.items[-1].steps, "nothing else is missing"


def test_the_card_names_the_tag_of_what_stands_there() -> None:
    one = release(ids=IDS)
    world = published(one)
    record = world.at().records["res"]
    assert record.card == card_digest(one, record, tag_name(record))
    drift(world)
    assert whole(world)[0].steps == (), "incomplete now, but the tag still holds what the record says"
    world.put(tags={})
    assert whole(world)[0].steps == (StepKind.CARD,), "and now it does not"


def test_a_moved_tag_is_drift() -> None:
    world = published(release(ids=IDS))
    (name,) = world.at().tags
    world.put(tags={name: "2" * 40}, moved=frozenset({name}))
    item = tag(world)
    assert (item.status, item.held, item.steps) == (Status.DRIFTED, True, ())
    assert item.reasons == (Reason(ReasonCode.TAG_MOVED, {"tag": name, "found": "2" * 8, "release": "res"}),)
    assert plan_json(world.plan())["totals"] == {"saes": 2, "current": 2, "held": 1}
    assert whole(world)[0].steps == (), "the card is right"
    assert tag(world, replace=("other", "res/*")).held
    allowed = tag(world, replace=("res",))
    assert (allowed.steps, allowed.basis["asked.choice"]) == ((StepKind.TAG,), "replace")
    world.apply(replace=("res",))
    assert world.plan().pending == ()
    assert not tag(world).held


def test_what_is_rebuilt_leaves_a_moved_tag_behind() -> None:
    world = published(release(ids=["layer_0"]))
    (name,) = world.at().tags
    world.put(moved=frozenset({name}))
    asked = sae(dtype="bfloat16")
    world.releases, world.wanted = [release(saes=(asked,))], {asked.address: wanted_of(asked)}
    assert (tag(world).held, tag(world).steps) == (False, (StepKind.TAG,))


# ---------------------------------------------------------------------------------------------- by pull request


def proposed(**changes: Any) -> World:
    """A release that stands in our open pull request #7, or in what ``changes`` say of it."""
    publish = PublishSpec("huggingface", HUB, "mit", pull_request=True)
    world = World([release(ids=IDS, publish=publish)])
    world.put(exists=True, visibility="public")
    world.apply()
    pull = HubPull(7, URL, "open", "1" * 40, frozenset({"res"}))
    world.put(pull=replace(pull, **changes))
    return world


def test_what_stands_in_the_pull_request_waits_for_its_merge() -> None:
    world = proposed()
    item, no_tag = whole(world)
    assert (item.status, item.steps, item.held, no_tag) == (Status.WAITING, (), False, None)
    assert item.reasons == (Reason(ReasonCode.WAITING_FOR_MERGE, {"num": 7, "url": URL, "status": "open"}),)
    assert plan_json(world.plan())["totals"] == {"saes": 2, "current": 2, "waiting": 1}
    assert not world.at().merged("res")
    assert world.at().merged("another")
    for merged in (proposed(ahead=frozenset()), proposed(status="merged")):
        assert whole(merged)[0].status is Status.CURRENT
        assert merged.at().merged("res")


def test_more_is_added_before_it_waits() -> None:
    world = proposed()
    world.releases = [replace(world.releases[0], saes=(*world.releases[0].saes, sae("res", "layer_2")))]
    world.wanted["res/layer_2"] = wanted_of(world.releases[0].saes[2])
    assert whole(world)[0].status is Status.CURRENT
    assert [item.id for item in world.plan().pending] == ["layer_2"]


def test_one_that_was_closed_holds_what_it_held() -> None:
    world = proposed()
    record = world.at().records["res"]
    world.put(files={}, records={}, pull=HubPull(7, URL, "closed", "1" * 40, records={"res": record}))
    made = world.plan()
    assert made.pending == ()
    assert {item.status for item in made.items if item.id is not None} == {Status.HELD}
    assert all(item.reasons[0] == Reason(ReasonCode.PULL_CLOSED, {"num": 7, "url": URL}) for item in made.items if item.held)
    asked = replace(world.releases[0].saes[0], dtype="bfloat16")
    world.releases = [replace(world.releases[0], saes=(asked, world.releases[0].saes[1]))]
    world.wanted[asked.address] = wanted_of(asked)
    assert [item.id for item in world.plan().pending] == IDS, "something else is asked: all of it is proposed again"


def test_one_that_was_closed_and_held_nothing_of_this_release() -> None:
    world = proposed(status="closed", records={"other": Record("other")})
    world.put(files={}, records={})
    assert len(world.plan().pending) == 2


def test_a_closed_one_that_would_have_deleted() -> None:
    world = proposed()
    record = world.at().records["res"]
    world.releases = [replace(world.releases[0], retire=True)]
    world.put(pull=HubPull(7, URL, "closed", "1" * 40, records={"res": record.merged({}, frozenset(IDS))}))
    assert {item.held for item in world.plan().items if item.id is not None} == {True}
    world.put(pull=HubPull(7, URL, "closed", "1" * 40, records={"res": record}))
    assert len(world.plan().pending) == 2


def test_a_closed_one_with_another_card() -> None:
    world = proposed()
    record = world.at().records["res"]
    one = world.releases[0]
    assert one.publish is not None
    world.releases = [replace(one, publish=replace(one.publish, license="apache-2.0"))]
    world.put(pull=HubPull(7, URL, "closed", "1" * 40, records={"res": record}))
    assert whole(world)[0].steps == (StepKind.CARD,)
    refused = replace(record, card=card_digest(world.releases[0], record))
    world.put(pull=HubPull(7, URL, "closed", "1" * 40, records={"res": refused}))
    assert (whole(world)[0].steps, whole(world)[0].held) == ((), True)


def test_no_repo_to_propose_to() -> None:
    world = World([release(ids=IDS, publish=PublishSpec("huggingface", HUB, pull_request=True))])
    made = world.plan()
    assert made.pending == ()
    assert {item.reasons[0].code for item in made.items} == {ReasonCode.PULL_NEEDS_REPO}
    assert plan_json(made)["totals"] == {"saes": 2, "held": 2}


def test_an_unlisted_release_of_the_repo_goes_the_same_way() -> None:
    world = proposed()
    other: Release = replace(world.releases[0], name="other", saes=())
    found = plan([other], {}, world.observed, Choices(prune=("res",)))
    pruned = next(one for one in found.releases if one.name == "res")
    assert pruned.publish is not None
    assert pruned.publish.pull_request
