"""Plan files: their form, what is read from them, and what makes them stale."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning import (
    BOUND,
    HUB,
    SPEC,
    World,
    entry_of,
    files_of,
    golden,
    inputs_of,
    pending_of,
    published,
    release,
    sae,
    wanted_of,
)

from saesync.digest import digest_bytes
from saesync.errors import Missing, Origin, PlanStale, Refused
from saesync.model import SAE_FILES, WEIGHTS_FILE, PublishSpec
from saesync.planfile import Difference, check, compare, digests, plan_json, read, show_json, unedited, write
from saesync.planner import select
from saesync.reason import Reason, ReasonCode
from saesync.record import Record

A = "res/layer_0"


def saved_of(world: World, **choices: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(plan_json(world.plan(**choices))))
    return found


def said(saved: dict[str, Any], world: World, **choices: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(found.address, found.what) for found in compare(saved, world.plan(**choices))]


# ------------------------------------------------------------------------------------------------------- the form


def test_form_and_totals() -> None:
    world = published(release(ids=["layer_0", "layer_1", "layer_2"]))
    world.releases = [release(ids=["layer_0", "layer_1", "layer_3"], later=(("neuronpedia.export", Origin("m.yaml", 30, 1)),))]
    world.wanted["res/layer_3"] = wanted_of(world.releases[0].saes[2])
    data = plan_json(world.plan(), asked={"paths": ["manifests"]})
    assert (data["type"], data["version"]) == ("saesync-plan", 1)
    assert data["asked"] == {"paths": ["manifests"], "roots": [], "only": [], "adopt": [], "replace": [], "prune": []}
    assert data["totals"] == {"saes": 3, "card": 1, "current": 2, "held": 1, "orphaned": 1, "publish": 1, "tag": 1}
    new = next(item for item in data["items"] if item["id"] == "layer_3")
    assert new["verb"] == "publish"
    assert new["steps"] == ["fetch", "convert", "validate", "publish"]
    assert new["source"] == {"repo": "acme/raw", "revision": "a" * 40, "path": "layer_3/ae.pt", "format": "goodfire"}
    assert data["releases"][0]["location"] == HUB


def test_written_and_read_back(tmp_path: Path) -> None:
    world = World([release()])
    path = tmp_path / "plan.json"
    write(path, world.plan())
    assert read(path) == saved_of(world)
    write(path, plan_json(world.plan(), asked={"only": ["res/*"]}))
    assert read(path)["asked"]["only"] == ["res/*"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


def broken(change: Callable[[dict[str, Any]], object]) -> bytes:
    saved = saved_of(World([release()]))
    change(saved)
    return json.dumps(saved).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x80\x04", "It is not JSON"),
        (b"[" * 100_000, "It is not JSON"),
        (b"[]", "It is not a plan"),
        (b'{"type": "saesync-plan", "version": 2}', "version 2, this saesync reads version 1"),
        (broken(lambda saved: saved.pop("digest")), '"digest"'),
        (broken(lambda saved: saved.update(asked={"paths": [1]})), '"asked"'),
        (broken(lambda saved: saved.update(items={})), '"items"'),
        (broken(lambda saved: saved.update(changed=[])), '"changed"'),
        (broken(lambda saved: saved.update(changed={"others": {"a.yaml": 1}})), '"changed"'),
        (broken(lambda saved: saved["items"].append("x")), "item 4"),
        (broken(lambda saved: saved["items"][0].update(steps=[1])), "item 1"),
        (broken(lambda saved: saved["items"][0]["basis"].update(at=[[]])), "item 1"),
        (broken(lambda saved: saved["items"][1].update(id=7)), "item 2"),
    ],
)
def test_a_damaged_file_is_refused_in_words(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(data)
    with pytest.raises(Refused, match="Plan file is unreadable") as caught:
        read(path)
    assert says in caught.value.diagnostics[0].detail
    assert caught.value.diagnostics[0].detail.endswith(".")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="saesync plan --out"):
        read(tmp_path / "plan.json")


# ---------------------------------------------------------------------------------------------- what is asked differs


def test_a_changed_threshold_is_named_with_its_place() -> None:
    world = World([release()])
    saved = saved_of(world)
    easier = replace(BOUND, bound=0.6)
    world.releases = [release(saes=(sae(validate=replace(SPEC, require=(easier,))),))]
    world.wanted[A] = wanted_of(world.releases[0].saes[0])
    assert compare(saved, world.plan()) == [Difference(A, "explained_variance min 0.7 → 0.6", "manifests/gemma.yaml:25:25")]
    world.releases = [release(saes=(sae(validate=replace(SPEC, require=())),))]
    world.wanted[A] = wanted_of(world.releases[0].saes[0])
    assert said(saved, world) == [(A, "explained_variance min 0.7 → none")]


def test_a_changed_input_is_named_with_its_place() -> None:
    world = World([release()])
    saved = saved_of(world)
    asked = sae(validate=replace(SPEC, tokens=7), dtype="bfloat16", origins={"validate.tokens": Origin("m.yaml", 5, 6)})
    world.releases = [release(saes=(asked,))]
    world.wanted[A] = wanted_of(asked)
    assert compare(saved, world.plan()) == [
        Difference(A, "validate.tokens 204800 → 7", "m.yaml:5:6"),
        Difference(A, "dtype float32 → bfloat16", "manifests/gemma.yaml:9:3"),
    ]


def test_a_change_to_what_was_current_is_named_too() -> None:
    world = published()
    saved = saved_of(world)
    asked = sae(dtype="bfloat16")
    world.releases, world.wanted = [release(saes=(asked,))], {A: wanted_of(asked)}
    assert said(saved, world) == [(A, "dtype float32 → bfloat16")]
    asked = sae(validate=replace(SPEC, tokens=7), origins={"validate.tokens": Origin("m.yaml", 5, 6)})
    world.releases, world.wanted = [release(saes=(asked,))], {A: wanted_of(asked)}
    assert compare(saved, world.plan()) == [Difference(A, "validate.tokens 204800 → 7", "m.yaml:5:6")]
    asked = sae(hook="blocks.0.hook_mlp_out")
    world.releases, world.wanted = [release(saes=(asked,))], {A: wanted_of(asked)}
    names = ("metadata.hook_name", "hook")  # of what cfg.json says, and of where it is measured; the weights are the same
    assert said(saved, world) == [(A, f"{name} blocks.0.hook_resid_post → blocks.0.hook_mlp_out") for name in names]
    away = Reason(ReasonCode.SOURCE_NOT_HERE, {"what": "source", "path": "x"})
    world.wanted = {A: replace(wanted_of(sae(dtype="bfloat16")), not_here=away)}
    assert (A, "dtype float32 → bfloat16") in said(saved, world), "held now, and named all the same"
    world.wanted = {A: wanted_of(sae(dtype="bfloat16"))}
    theirs = entry_of(inputs_of(sae(), weights={"dtype": "float16"}))
    files = {f"layer_0/{name}": digest for name, digest in theirs.files.items()}
    world.put(files=files, records={"res": Record("res", {"layer_0": theirs})})
    assert (A, "something else is asked for") in said(saved, world), "what is there now was never asked for"


def test_a_manifest_that_was_put_back_is_named_by_what_had_changed() -> None:
    world = published()
    asked = sae(validate=replace(SPEC, tokens=7))
    world.releases, world.wanted = [release(saes=(asked,))], {A: wanted_of(asked)}
    saved = saved_of(world)
    asked = sae(origins={"validate.tokens": Origin("m.yaml", 5, 6)})
    world.releases, world.wanted = [release(saes=(asked,))], {A: wanted_of(asked)}
    assert compare(saved, world.plan()) == [Difference(A, "validate.tokens 7 → 204800", "m.yaml:5:6")]
    for reasons in (None, [], [None], [{"code": "changed"}], [{"code": "changed", "data": []}], [{"code": "prune", "data": {}}]):
        saved["items"][0]["reasons"] = reasons  # somebody else may have written it
        saved["items"][1]["reasons"] = reasons
        assert said(saved, world) == [(A, "something else is asked for")]


def test_a_plan_of_another_version_says_so_when_it_is_stale() -> None:
    world = World([release()])
    saved = saved_of(world) | {"saesync": "0.0.9\x1b"}
    check(saved, world.plan())
    world.wanted[A] = wanted_of(sae(dtype="bfloat16"))
    with pytest.raises(PlanStale, match=r"It was made by saesync 0\.0\.9\\x1b, and this is "):
        check(saved, world.plan())


def test_where_evidence_goes_is_asked_too() -> None:
    world = published()
    saved = saved_of(world)
    world.releases = [release(records=PublishSpec("local", "/lab/records"))]
    assert said(saved, world) == [("res", "records none → local:/lab/records")]
    saved = saved_of(world)
    assert said(saved, world) == []
    world.releases = [release()]
    assert said(saved, world) == [("res", "records local:/lab/records → none")]


def test_a_release_that_is_to_retire_is_named_in_words_of_the_manifest() -> None:
    """There is no option of that name to advise."""
    world = published()
    saved = saved_of(world)
    world.releases = [replace(world.releases[0], retire=True)]
    told = said(saved, world)
    assert ("res", "retire false → true") in told
    assert (A, "retire: true came since the plan was made") in told
    assert not [what for _, what in told if "--" in what]
    saved, world.releases = saved_of(world), [release()]
    assert (A, "retire: true went since the plan was made") in said(saved, world)


@pytest.mark.parametrize("there", [True, False])
def test_a_record_that_cannot_be_read_any_more(there: bool) -> None:
    world = published() if there else World([release()])
    saved, records = saved_of(world), dict(world.at().records)
    newer = Reason(ReasonCode.RECORD_NEWER, {"found": 9, "known": 2})
    world.put(records={}, locked={"res": newer})
    told = said(saved, world)
    assert any(address == "res" and "record none → locked" in what for address, what in told), told
    unread = "in a record that this saesync cannot read"
    assert [what.rpartition(", now ")[2] for address, what in told if address == A] == ([unread] if there else [])
    saved = saved_of(world)
    world.put(records=records, locked={})
    told = said(saved, world)
    assert any(address == "res" and "record locked → none" in what for address, what in told), told
    assert not there or [what.partition(", now ")[0] for address, what in told if address == A] == [f"was {unread}"]


@pytest.mark.parametrize(
    ("publish", "what"),
    [
        (PublishSpec("huggingface", HUB, "apache-2.0"), [("res", "license mit → apache-2.0")]),
        (PublishSpec("huggingface", HUB, "mit", private=True), [("res", "private false → true")]),
    ],
)
def test_what_is_asked_of_the_release(publish: PublishSpec, what: list[tuple[str, str]]) -> None:
    world = World([release()])
    saved = saved_of(world)
    world.releases = [release(publish=publish)]
    assert said(saved, world) == what


def test_another_place() -> None:
    world = World([release()])
    saved = saved_of(world)
    other = World([release(location="acme/other")])
    assert ("res", "target huggingface:acme/saes → huggingface:acme/other") in said(saved, other)


def test_permissions_of_the_command_line() -> None:
    world = World([release()])
    theirs = {f"layer_0/{name}": digest_bytes(b"theirs") for name in SAE_FILES}
    world.put(exists=True, visibility="public", files=theirs)
    saved = saved_of(world, adopt=("*",))
    assert said(saved, world, adopt=("*",)) == []
    assert said(saved, world) == [(A, "the plan was made with --adopt")]
    assert said(saved_of(world), world, replace=("*",)) == [(A, "the plan was made without --replace")]


def test_a_source_that_cannot_be_read_any_more() -> None:
    world = World([release()])
    saved = saved_of(world)
    world.wanted[A] = replace(world.wanted[A], inputs=None, blocked=Reason(ReasonCode.SOURCE_MISSING, {"path": "x"}))
    assert (A, "cannot be known here any more") in said(saved, world)


def test_what_left_the_manifests_is_named_and_what_came_too() -> None:
    world = World([release(ids=["layer_0", "layer_1"])])
    saved = saved_of(world)
    world.releases = [release(ids=["layer_0", "layer_2"])]
    world.wanted["res/layer_2"] = wanted_of(world.releases[0].saes[1])
    assert said(saved, world) == [("res/layer_1", "is not in the plan any more"), ("res/layer_2", "not in the plan")]


def test_what_came_is_named_with_its_place_whatever_it_waits_for() -> None:
    world = World([release()])
    nothing_asked, saved = saved_of(World([])), saved_of(world)
    assert [address for address, _ in said(nothing_asked, world)] == ["res/layer_0", "res", "res"]
    world.releases = [release(ids=["layer_0", "layer_1"])]
    world.wanted["res/layer_1"] = wanted_of(world.releases[0].saes[1])
    assert compare(saved, world.plan()) == [Difference("res/layer_1", "not in the plan", "manifests/gemma.yaml:9:3")]
    missing = Reason(ReasonCode.SOURCE_MISSING, {"path": "x"})
    world.wanted["res/layer_1"] = replace(world.wanted["res/layer_1"], inputs=None, blocked=missing)
    assert said(saved, world)[0] == ("res/layer_1", "not in the plan"), "held, and asked for all the same"
    world.apply({A})
    assert said(saved, world)[0] == ("res/layer_1", "not in the plan"), "own progress does not hide it"


def test_what_came_and_is_there_already_needs_no_approval() -> None:
    world = published(release(ids=["layer_0", "layer_1"]))
    both, world.releases = world.releases, [release()]
    saved = saved_of(world)
    assert said(saved, world) == []
    world.releases = both
    assert "res/layer_1" not in {found.address for found in compare(saved, world.plan()) if found.what == "not in the plan"}


def test_only_what_the_plan_was_asked_about_counts() -> None:
    """--only stands in the file and is asked again; a plan of changed manifests is of their releases."""
    world = World([release(), release("mlp", location="acme/mlp")])
    narrow = select(world.plan(), ["res/*"])
    saved = json.loads(json.dumps(plan_json(narrow)))
    assert compare(saved, select(world.plan(), ["res/*"])) == []
    assert {found.address for found in compare(saved, world.plan())} >= {"mlp/layer_0"}
    assert compare({**saved, "changed": {"since": "HEAD"}}, world.plan()) == []


def test_a_plan_of_changed_manifests_knows_which_it_left_out() -> None:
    """The second release of the repository came, or was changed, after the plan was made: made now it would be in it."""
    world = World([release(), release("mlp")])
    narrow = select(world.plan(), ["res/*"])
    saved = json.loads(json.dumps(plan_json(narrow, scope={"changed": {"since": "HEAD", "others": {}}})))

    def told(blob: str) -> list[tuple[str, str]]:
        return [(each.address, each.what) for each in compare(saved, world.plan(), {"manifests/mlp.yaml": blob})]

    assert told("ab") == [("mlp", "was added since, and is not in the plan")]
    saved["changed"]["others"] = {"manifests/mlp.yaml": "ab"}
    assert told("ab") == []
    assert told("cd") == [("mlp", "was changed since, and is not in the plan")]


def test_orphans_to_delete_that_came_later_are_named() -> None:
    world = published(release(ids=["layer_0", "layer_1", "layer_2"]))
    world.releases = [release(ids=["layer_0", "layer_1"])]
    saved = saved_of(world, prune=("res",))
    seen = world.at()
    entry = seen.records["res"].saes["layer_2"]
    files = {f"layer_3/{name}": digest for name, digest in entry.files.items()}
    world.put(files={**seen.files, **files}, records={"res": seen.records["res"].merged({"layer_3": entry})})
    assert ("res/layer_3", "not in the plan") in said(saved, world, prune=("res",))
    assert ("res/layer_3", "not in the plan") not in said(saved, world), "nothing would be done with it"


def test_the_same_difference_of_many_is_said_once() -> None:
    ids = [f"layer_{n}" for n in range(26)]
    world = World([release(ids=ids)])
    saved = saved_of(world)
    bounds = (replace(BOUND, bound=0.6),)
    world.releases = [release(saes=tuple(sae(sae_id=name, validate=replace(SPEC, require=bounds)) for name in ids))]
    world.wanted = {one.address: wanted_of(one) for one in world.releases[0].saes}
    assert said(saved, world) == [("res", "explained_variance min 0.7 → 0.6 (26 SAEs)")]


# -------------------------------------------------------------------------------------------- what is observed differs


def test_somebody_elses_weights() -> None:
    world = World([release()])
    saved = saved_of(world)
    other = inputs_of(sae(), weights={"dtype": "float16"})
    entry = entry_of(other)
    files = {f"layer_0/{name}": digest for name, digest in entry.files.items()}
    record = Record("res", {"layer_0": entry})
    world.put(exists=True, visibility="public", head="7d1e" + "0" * 36, files=files, records={"res": record})
    assert compare(saved, world.plan()) == [
        Difference(A, f"was absent, now holding other weights ({other.build_key[:8]})", "acme/saes@7d1e0000")
    ]


def test_files_without_a_record_and_files_changed() -> None:
    world = World([release()])
    saved = saved_of(world)
    world.put(files={f"layer_0/{WEIGHTS_FILE}": digest_bytes(b"theirs")})
    assert said(saved, world) == [(A, "was absent, now holding files without a record")]
    world = published()
    saved = saved_of(world)
    world.put(files={**world.at().files, f"layer_0/{WEIGHTS_FILE}": digest_bytes(b"changed")})
    ((address, what),) = said(saved, world)
    assert address == A
    assert what.startswith("was as asked, measured ")
    assert ", now changed outside saesync, files " in what


def test_not_visible_any_more() -> None:
    world = World([release()])
    saved = saved_of(world)
    world.put(unknown=Reason(ReasonCode.NOT_VISIBLE, {"location": HUB}))
    assert said(saved, world) == [(A, "was absent, now not visible"), ("res", "visible true → false")]


def test_a_repo_made_by_another_with_other_visibility() -> None:
    world = World([release()])
    saved = saved_of(world)
    world.put(exists=True, visibility="private")
    assert said(saved, world) == [("res", "exists false → true, visibility none → private")]
    world.put(exists=True, visibility="public")
    assert said(saved, world) == []  # as the plan itself would have made it


@pytest.mark.parametrize("ev", [0.8, 0.1])
def test_own_progress_is_no_difference(ev: float) -> None:
    ids = ["layer_0", "layer_1", "layer_2"]
    world = World([release(ids=ids)], ev={"res/layer_1": ev})
    saved = saved_of(world)
    world.apply({"res/layer_2"})
    assert said(saved, world) == []
    world.apply()
    assert said(saved, world) == []


def test_own_measurement_passing_or_failing_is_no_difference() -> None:
    for ev in (0.8, 0.1):
        world = published()
        asked = sae(validate=replace(SPEC, tokens=7))
        world.releases, world.wanted, world.ev = [release(saes=(asked,))], {A: wanted_of(asked)}, {A: ev}
        saved = saved_of(world)
        world.apply()
        assert str(world.item(A).status) == ("current" if ev > 0.7 else "failing")
        assert said(saved, world) == []


def test_own_deletion_stopped_half_way() -> None:
    world = published(release(ids=["layer_0", "layer_1"]))
    world.releases = [release(ids=["layer_0"])]
    saved = saved_of(world, prune=("res",))
    files = dict(world.at().files)
    del files[f"layer_1/{WEIGHTS_FILE}"]
    world.put(files=files)
    assert said(saved, world, prune=("res",)) == []
    world.apply(prune=("res",))
    assert said(saved, world, prune=("res",)) == []


def test_own_folder_half_in_place_is_no_difference() -> None:
    world = World([release()])
    saved = saved_of(world)
    inputs = world.wanted[A].inputs
    assert inputs is not None
    record = Record("res", {}, pending={"layer_0": pending_of(inputs)})
    half = {f"layer_0/{WEIGHTS_FILE}": files_of(inputs)[WEIGHTS_FILE]}
    world.put(exists=True, visibility="public", records={"res": record}, files=half)
    assert said(saved, world) == []
    other = replace(record, pending={"layer_0": replace(pending_of(inputs), build_key="0" * 64)})
    world.put(records={"res": other})
    assert said(saved, world) != []
    world.put(records={"res": record}, files={f"layer_0/{WEIGHTS_FILE}": digest_bytes(b"theirs")})
    assert said(saved, world) != []


def test_more_work_for_the_same_reasons_is_named() -> None:
    world = World([release()], ev={A: 0.1})
    world.apply()
    saved = saved_of(world)
    world.wanted[A] = replace(world.wanted[A], evidence=None)  # another machine, without the cache
    assert said(saved, world)[0] == (A, "would now also fetch, convert, validate, publish")


def test_stale_plan_text() -> None:
    ids = [f"layer_{n}" for n in range(26)]
    world = World([release("gemma-2-2b-res-acme", ids)])
    saved = saved_of(world)
    world.apply({f"gemma-2-2b-res-acme/layer_{n}" for n in range(2, 26)})
    bounds = (replace(BOUND, bound=0.6),)
    world.releases = [
        replace(
            world.releases[0], saes=tuple(replace(one, validate=replace(SPEC, require=bounds)) for one in world.releases[0].saes)
        )
    ]
    world.wanted = {one.address: wanted_of(one) for one in world.releases[0].saes}
    seen = world.at()
    record = seen.records["gemma-2-2b-res-acme"]
    entry = entry_of(inputs_of(sae("gemma-2-2b-res-acme", "layer_20"), weights={"dtype": "float16"}))
    files = {f"layer_20/{name}": digest for name, digest in entry.files.items()}
    world.put(head="7d1e" + "0" * 36, files={**seen.files, **files}, records={record.release: record.merged({"layer_20": entry})})
    with pytest.raises(PlanStale) as caught:
        check(saved, world.plan(), "plan.json")
    assert caught.value.exit_code == 4
    golden("stale.txt", caught.value.diagnostics[0].detail + "\n")


def test_a_plan_that_holds_passes() -> None:
    world = World([release()])
    check(saved_of(world), world.plan())


# ------------------------------------------------------------------------------------------------------------- show


def test_show_json_holds_both_sides() -> None:
    world = published()
    view = show_json(world.item(A), world.wanted[A], world.at())
    assert view["desired"]["require"] == [
        {"metric": "explained_variance", "kind": "min", "bound": 0.7, "at": "manifests/gemma.yaml:25:25"}
    ]
    assert view["observed"]["files"][WEIGHTS_FILE]["recorded"] is True
    assert view["desired"]["keys"]["build"] == view["observed"]["keys"]["build"]
    assert [found["verdict"] for found in view["evidence"]] == ["passing"]
    assert json.loads(json.dumps(view)) == view


def test_show_json_of_what_is_not_published() -> None:
    world = World([release()], ev={A: 0.1})
    world.apply()
    view = show_json(world.item(A), world.wanted[A], world.at())
    assert [(found["published"], found["verdict"]) for found in view["evidence"]] == [(False, "failing")]
    assert (view["observed"]["files"], view["proof"]) == ({}, {})
    assert show_json(world.item(A), None, None)["desired"] is None


def test_own_result_that_was_changed_afterwards_is_named() -> None:
    world = World([release()])
    saved = saved_of(world)
    world.apply()
    world.put(files={**world.at().files, f"layer_0/{WEIGHTS_FILE}": digest_bytes(b"changed")})
    ((address, what),) = said(saved, world)
    assert (address, what[:36]) == (A, "was absent, now changed outside saes")


# ---------------------------------------------------------------------------------------------------------- digests


def test_digests_of_the_json_form() -> None:
    """The digest can be checked from the file alone; each release has one that the others do not move."""
    one, two = release("res", ["layer_0", "layer_1"]), release("mlp", ["layer_2"], location="acme/mlp")
    before, after = saved_of(World([one, two])), saved_of(World([replace(two, saes=(sae("mlp", "layer_3"),)), one]))
    assert digests(before).whole == before["digest"]
    assert digests(after).whole == after["digest"]
    assert digests(before).releases["res"] == digests(after).releases["res"]
    assert digests(before).releases["mlp"] != digests(after).releases["mlp"]
    unedited(Path("plan.json"), before)
    before["items"][0]["steps"] = ["publish"]
    with pytest.raises(Refused, match="edited by hand"):
        unedited(Path("plan.json"), before)
    assert digests(before).whole != before["digest"]
    assert digests(before).releases["res"] != digests(after).releases["res"]
