"""The planner's rows for a release's entry in SAELens's list, one after the other, and what a plan file says of them later."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from planning import HUB, World, published, release, sae

from saesync import planfile
from saesync.errors import PlanStale
from saesync.model import Choices, Item, RegisterSpec, Release, Status, StepKind
from saesync.planner import part, plan, select
from saesync.planning.registration import Pull, Seen
from saesync.reason import Reason, ReasonCode
from saesync.registry.entry import Entry, SaeEntry, digest_of, entry_of
from saesync.render import markdown, plan_text

LIST = "decoderesearch/SAELens"
URL = f"https://github.com/{LIST}/pull/12"
IDS = ("layer_0", "layer_1")


def asking(ids: tuple[str, ...] = IDS, **changes: Any) -> Release:
    spec = {name: changes.pop(name) for name in ("partial", "links") if name in changes}
    return release(ids=ids, register=RegisterSpec(LIST, **spec), **changes)


def seen(**changes: Any) -> Seen:
    return replace(Seen(LIST, "github", f"{LIST}@1111111"), **changes)


def planned(world: World, found: Seen, **choices: tuple[str, ...]) -> Any:
    registries = {one.name: found for one in world.releases if one.register is not None}
    return plan(world.releases, world.wanted, world.observed, Choices(**choices), registries=registries)


def item_of(made: Any) -> Item:
    return next(item for item in made.items if item.basis.get("asked.section") == "register")


def desired(world: World) -> Entry:
    record = world.at().records.get("res")
    return entry_of(world.releases[0], record)


def line_of(made: Any) -> str:
    return next(line for line in plan_text(planfile.plan_json(made)).splitlines() if "SAELens  " in line)


def test_an_absent_entry_is_proposed_after_all_saes_pass():
    item = item_of(made := planned(World([asking()]), seen()))
    assert (item.status, item.steps) == (Status.ABSENT, (StepKind.REGISTER,))
    assert [reason.code for reason in item.reasons] == [ReasonCode.AFTER_SAES]
    assert line_of(made).split("  ")[1:] != []
    assert "open a pull request" in line_of(made)
    assert "after all 2 pass" in line_of(made)


def test_a_published_release_is_proposed():
    item = item_of(made := planned(published(asking()), seen()))
    assert item.steps == (StepKind.REGISTER,)
    assert "not in decoderesearch/SAELens yet" in line_of(made)
    assert "1 release to register" in plan_text(planfile.plan_json(made))


def test_an_entry_as_asked_is_nothing_to_do():
    world = published(asking())
    made = planned(world, seen(entry=desired(world)))
    assert item_of(made).status is Status.CURRENT
    assert not made.pending
    assert "SAELens  " not in plan_text(planfile.plan_json(made))


def test_our_open_pull_request_is_waited_for():
    world = published(asking())
    made = planned(world, seen(branch=desired(world), pull=Pull(12, URL, "open", digest_of(desired(world)))))
    item = item_of(made)
    assert (item.status, item.steps, item.held) == (Status.WAITING, (), False)
    assert "waiting for review of #12" in line_of(made)
    assert "1 waiting" in plan_text(planfile.plan_json(made))
    assert "waiting for review of #12" in markdown(planfile.plan_json(made))


def test_a_pull_request_that_is_behind_is_updated_and_says_by_what():
    world = published(asking())
    old = replace(desired(world), saes=desired(world).saes[:1])
    made = planned(world, seen(branch=old, pull=Pull(12, URL, "open", digest_of(old))))
    assert item_of(made).steps == (StepKind.REGISTER,)
    assert "update #12" in line_of(made)
    assert "SAEs 1 → 2" in line_of(made)


def test_a_changed_number_in_the_list_is_named():
    world = published(asking())
    first, second = desired(world).saes
    old = replace(desired(world), saes=(replace(first, l0=12), second))
    made = planned(world, seen(entry=old))
    assert "l0 of layer_0 12 → 61" in line_of(made)
    assert line_of(made).lstrip().startswith("~")


def test_a_branch_without_its_pull_request_is_completed():
    world = published(asking())
    item = item_of(planned(world, seen(branch=desired(world))))
    assert item.steps == (StepKind.REGISTER,)


def test_what_a_maintainer_closed_is_not_sent_again_until_it_changes():
    world = published(asking())
    closed = Pull(12, URL, "closed", digest_of(desired(world)))
    item = item_of(made := planned(world, seen(pull=closed)))
    assert (item.held, item.reasons[0].code) == (True, ReasonCode.DECLINED)
    assert "#12 was closed without merging" in line_of(made)
    assert item_of(planned(world, seen(pull=replace(closed, digest="0" * 64)))).steps == (StepKind.REGISTER,)


def test_a_merged_pull_request_whose_entry_was_changed_later_is_followed_by_another():
    world = published(asking())
    merged = Pull(12, URL, "merged", digest_of(desired(world)))
    item = item_of(planned(world, seen(entry=replace(desired(world), model="other"), pull=merged)))
    assert (item.steps, item.basis["does"]) == ((StepKind.REGISTER,), "open")


def test_a_failing_sae_keeps_the_release_waiting_unless_partial():
    world = World([asking()])
    world.ev["res/layer_1"] = 0.1
    world.apply()
    item = item_of(made := planned(world, seen()))
    assert (item.status, item.steps) == (Status.WAITING, ())
    assert "waits for 1 of 2 SAEs" in line_of(made)
    partial = World([asking(partial=True)], dict(world.wanted), dict(world.observed), world.ev)
    assert item_of(planned(partial, seen())).steps == (StepKind.REGISTER,)


def test_what_is_registered_stays_registered_when_it_misses_a_gate_later():
    world = published(asking())
    entry = desired(world)
    spec = world.releases[0].saes[0].validate
    assert spec is not None
    harder = tuple(
        replace(one, validate=replace(spec, require=(replace(spec.require[0], bound=0.9),))) for one in world.releases[0].saes
    )
    world.releases[0] = replace(world.releases[0], saes=harder)
    world.wanted.clear()
    world.__post_init__()
    made = planned(world, seen(entry=entry))
    assert {item.status for item in made.items if item.id is not None} == {Status.FAILING}
    assert item_of(made).status is Status.CURRENT


def test_an_invisible_registry_is_unknown_never_absent():
    reason = Reason(ReasonCode.NOT_VISIBLE, {"location": LIST, "detail": "no network"})
    item = item_of(planned(published(asking()), seen(unknown=reason)))
    assert (item.status, item.held, item.steps) == (Status.UNKNOWN, True, ())


def test_pull_requests_that_cannot_be_seen_are_never_doubled():
    reason = Reason(ReasonCode.NOT_VISIBLE, {"location": LIST, "detail": "rate limit"})
    world = published(asking())
    assert item_of(planned(world, seen(pulls_unknown=reason))).status is Status.UNKNOWN
    assert item_of(planned(world, seen(pulls_unknown=reason, entry=desired(world)))).status is Status.CURRENT


def test_a_record_by_a_stranger_is_no_evidence():
    world = published(asking())
    item = item_of(made := planned(world, seen(writer="mallory", trusted=False)))
    assert (item.status, item.held, item.steps) == (Status.UNPROVEN, True, ())
    assert "last written by mallory" in line_of(made)


def test_a_neuronpedia_id_of_another_release_is_held():
    saes = (sae("res", "layer_0", neuronpedia_id="gemma-2-2b/0-res-acme"),)
    world = published(replace(asking(("layer_0",)), saes=saes))
    item = item_of(made := planned(world, seen(taken={"gemma-2-2b/0-res-acme": "gemma-scope"})))
    assert item.held
    assert "gemma-2-2b/0-res-acme belongs to release gemma-scope" in line_of(made)


def test_a_plain_git_registry_waits_for_its_branch_to_be_merged():
    world = published(asking())
    git = seen(kind="git")
    assert item_of(planned(world, git)).basis["does"] == "push"
    item = item_of(made := planned(world, replace(git, branch=desired(world))))
    assert item.status is Status.WAITING
    assert "pushed to saesync/res" in line_of(made)


def test_a_registry_file_is_written():
    world = published(asking())
    assert "add to the file" in line_of(planned(world, seen(kind="file")))
    assert item_of(planned(world, seen(kind="file", entry=desired(world)))).status is Status.CURRENT


def test_a_folder_cannot_be_registered():
    local = replace(asking(), publish=replace(release().publish, target="local"))  # type: ignore[type-var]
    world = World([local])
    item = item_of(planned(world, seen()))
    assert item.reasons[0].code is ReasonCode.NOT_ON_HUB


def test_a_retiring_release_is_taken_out():
    world = published(asking())
    entry = desired(world)
    world.releases[0] = replace(world.releases[0], retire=True)
    made = planned(world, seen(entry=entry))
    assert item_of(made).steps == (StepKind.REGISTER,)
    gone = planned(world, seen(entry=entry, pull=Pull(13, URL, "open", None)))
    assert item_of(gone).status is Status.WAITING
    assert item_of(planned(world, seen())).status is Status.CURRENT


def test_a_release_of_somebody_elses_weights_needs_nothing_published():
    foreign = replace(asking(), publish=None, saes=tuple(sae("res", one, None, entry={"l0": 71}) for one in IDS))
    world = World([foreign])
    world.wanted.clear()
    made = planned(world, seen())
    assert [item.steps for item in made.items] == [(StepKind.REGISTER,)]
    entry = entry_of(foreign, None)
    assert entry.saes[0] == SaeEntry("layer_0", "layer_0/ae.pt", 71)
    assert not planned(world, seen(entry=entry)).pending


def test_only_some_saes_leave_the_entry_for_later():
    world = World([asking()])
    made = select(planned(world, seen()), ("res/layer_0",))
    assert [(item.id, item.steps != ()) for item in made.items if item.id is not None] == [("layer_0", True)]
    assert (item_of(made).status, item_of(made).steps) == (Status.WAITING, ())
    whole = select(planned(published(asking()), seen()), ("res/*",))
    assert item_of(whole).steps == (StepKind.REGISTER,)


def test_publishing_and_registering_can_be_done_apart():
    made = planned(World([asking()]), seen())
    assert [item.steps for item in part(made, registering=True).pending] == [(StepKind.REGISTER,)]
    assert StepKind.REGISTER not in {step for item in part(made, registering=False).pending for step in item.steps}


def test_a_releases_digest_is_of_what_is_asked_of_the_list_not_of_what_stands_there():
    world = published(asking())
    reason = Reason(ReasonCode.NOT_VISIBLE, {"location": LIST, "detail": "not asked"})
    digests = [planfile.digests(saved(planned(world, one))).releases for one in (seen(), seen(unknown=reason))]
    assert digests[0] == digests[1]
    world.releases[0] = replace(world.releases[0], register=RegisterSpec("acme/list"))
    assert planfile.digests(saved(planned(world, seen()))).releases != digests[0]


# ------------------------------------------------------------------------------------------------------ plan files


def saved(made: Any) -> Any:
    return json.loads(json.dumps(planfile.plan_json(made)))


def test_own_progress_up_to_the_pull_request_is_no_difference():
    world = World([asking()])
    before = saved(planned(world, seen()))
    world.apply()
    entry = desired(world)
    planfile.check(before, planned(world, seen()))
    planfile.check(before, planned(world, seen(branch=entry)))
    planfile.check(before, planned(world, seen(branch=entry, pull=Pull(12, URL, "open", digest_of(entry)))))
    planfile.check(before, planned(world, seen(entry=entry, branch=entry, pull=Pull(12, URL, "merged", digest_of(entry)))))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entry": Entry("res", HUB, "somebody", None, ())}, "entry"),
        ({"pull": Pull(12, URL, "closed", None)}, "pull none → #12 closed"),
    ],
)
def test_what_others_did_meanwhile_is_named(change: dict[str, Any], said: str):
    world = published(asking())
    before = saved(planned(world, seen()))
    with pytest.raises(PlanStale) as error:
        planfile.check(before, planned(world, seen(**change)))
    assert said in error.value.diagnostics[0].detail


def test_another_registry_makes_a_plan_stale():
    world = published(asking())
    before = saved(planned(world, seen()))
    world.releases[0] = replace(world.releases[0], register=RegisterSpec("acme/list"))
    with pytest.raises(PlanStale) as error:
        planfile.check(before, planned(world, replace(seen(), registry="acme/list")))
    assert "registry decoderesearch/SAELens → acme/list" in error.value.diagnostics[0].detail


def test_a_changed_link_makes_a_plan_stale():
    world = published(asking())
    before = saved(planned(world, seen()))
    world.releases[0] = asking(links={"model": "https://example.org"})
    with pytest.raises(PlanStale):
        planfile.check(before, planned(world, seen()))


@pytest.mark.parametrize("partial", [False, True])
def test_what_saelens_cannot_load_is_never_entered(partial: bool):
    asked = asking(partial=partial, saes=(sae(), sae(sae_id="layer_1", validate=None)))
    assert asked.publish is not None
    world = World([replace(asked, publish=replace(asked.publish, native=True))], inexpressible={"res/layer_1"})
    world.apply()
    assert [item.status for item in planned(world, seen()).items if item.id] == [Status.CURRENT, Status.NATIVE]
    item = item_of(made := planned(world, seen()))
    if partial:
        assert (item.status, item.steps) == (Status.ABSENT, (StepKind.REGISTER,))
        registered = entry_of(world.releases[0], world.at().records["res"], only=["layer_0"])
        assert item.basis["entry"] == digest_of(registered)
        both = replace(registered, saes=(*registered.saes, SaeEntry("layer_1", "layer_1")))
        taken_out = item_of(planned(world, seen(entry=both)))
        assert (taken_out.status, taken_out.steps) == (Status.OUTDATED, (StepKind.REGISTER,))
        return
    assert (item.status, item.held) == (Status.HELD, True)
    assert [reason.code for reason in item.reasons] == [ReasonCode.NATIVE_SAES]
    assert "1 of 2 SAEs cannot be loaded with SAELens" in line_of(made)
