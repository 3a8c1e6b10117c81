"""What holds of every plan, whatever is asked and observed."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from planning import HUB, SPEC, World, release, wanted_of

from saesync.card import card_digest, make_card
from saesync.digest import digest_bytes
from saesync.folders import path_of
from saesync.model import CFG_FILE, WEIGHTS_FILE, Item, Plan, Release, Requirement, StepKind
from saesync.planfile import compare, plan_json
from saesync.planning.basis import key_of_item
from saesync.reason import Reason, ReasonCode
from saesync.record import RecordNewer, parse_record
from saesync.record_json import RecordUnreadable
from saesync.render import markdown, plan_text

AWAY = Reason(ReasonCode.SOURCE_NOT_HERE, {"what": "model", "path": "/data/model"})
IDS = ["layer_0", "layer_1", "layer_2/width_16k", "layer_2/width_65k", "x"]
FAST = settings(max_examples=60, deadline=None)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Some releases, published in part, then changed in what is asked and in what is found."""
    names = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3, unique=True))
    free = draw(st.permutations(IDS))
    asked = []
    for number, name in enumerate(names):
        ids = free[number::3][: draw(st.integers(1, 2))]
        asked.append(release(name, ids, location=draw(st.sampled_from([HUB, "acme/more"]))))
    world = World([_permitted(draw, one) for one in asked])
    for one in asked:
        for which in one.saes:
            world.ev[which.address] = draw(st.sampled_from([0.5, 0.8]))
            if not draw(st.integers(0, 2)):
                world.inexpressible.add(which.address)
    if draw(st.booleans()):
        world.apply()
    for at, one in enumerate(world.releases):
        changed = _permitted(draw, one) if draw(st.booleans()) else one
        world.releases[at] = replace(
            changed, saes=tuple(_changed(draw, world, which) for which in one.saes if draw(st.integers(0, 4)))
        )
    for location in sorted({place for _, place in world.observed}):
        _found(draw, world, location)
    return world


def _permitted(draw: st.DrawFn, one: Release) -> Release:
    assert one.publish is not None
    return replace(one, publish=replace(one.publish, native=draw(st.booleans())))


def _changed(draw: st.DrawFn, world: World, which: Any) -> Any:
    change = draw(st.sampled_from(["", "", "dtype", "tokens", "bound", "hook", "blocked", "away", "source"]))
    asked = which
    if change in ("dtype", "source"):
        asked = replace(which, dtype="bfloat16")
        if change == "source":
            world.inexpressible ^= {which.address}
    elif change == "hook":
        asked = replace(which, hook="blocks.9.hook_mlp_out")
    elif change == "tokens":
        asked = replace(which, validate=replace(SPEC, tokens=7))
    elif change == "bound":
        asked = replace(which, validate=replace(SPEC, require=(Requirement("l0", "max", 10.0),)))
    world.wanted[which.address] = wanted_of(
        asked, not_here=AWAY if change == "away" else None, evidence=world.wanted[which.address].evidence
    )
    return asked


def _found(draw: st.DrawFn, world: World, location: str) -> None:
    files = dict(world.at(location).files)
    for path in sorted(files):
        change = draw(st.integers(0, 12))
        if change == 0:
            files[path] = digest_bytes(b"changed")
        elif change == 1:
            del files[path]
    if draw(st.booleans()):
        files[f"{draw(st.sampled_from(IDS))}/{WEIGHTS_FILE}"] = digest_bytes(b"somebody's")
    exists = bool(files) or world.at(location).exists
    world.put(location, files=files, exists=exists, visibility="public" if exists else None)


def shape(plan: Plan) -> Any:
    return sorted((key_of_item(item), item.status, item.steps, item.held, item.reasons, item.move_from) for item in plan.items)


@FAST
@given(worlds(), st.randoms(use_true_random=False))
def test_order_does_not_matter(world: World, chance: random.Random) -> None:
    before = world.plan()
    chance.shuffle(world.releases)
    for at, one in enumerate(world.releases):
        saes = list(one.saes)
        chance.shuffle(saes)
        world.releases[at] = replace(one, saes=tuple(saes))
    for place, seen in world.observed.items():
        files, records = list(seen.files.items()), list(seen.records.items())
        chance.shuffle(files)
        chance.shuffle(records)
        world.observed[place] = replace(seen, files=dict(files), records=dict(records))
    after = world.plan()
    assert after.digest == before.digest
    assert repr(shape(after)) == repr(shape(before))


@FAST
@given(worlds())
def test_nothing_is_deleted_without_being_asked_to(world: World) -> None:
    made = world.plan(adopt=("*",), replace=("*",))
    assert all(StepKind.DELETE not in item.steps for item in made.items)


@FAST
@given(worlds())
def test_nothing_foreign_or_changed_is_written_over_without_being_asked_to(world: World) -> None:
    for item in world.plan().items:
        if item.id is None or not item.steps:
            continue
        seen = world.observed[
            "huggingface", next(r.publish.location for r in world.releases if r.name == item.release and r.publish)
        ]
        record = seen.records.get(item.release)
        entry = record.saes.get(item.id) if record is not None else None
        evidence = world.wanted[item.address].evidence
        for name, digest in seen.folder(item.id).items():
            recorded = entry is not None and name in entry.files and entry.files[name].same_bytes(digest)
            measured = evidence is not None and digest.sha256 == evidence.weights_sha256
            assert recorded or measured or name == CFG_FILE, (item.address, item.status, name)


@FAST
@given(worlds())
def test_plan_after_apply_is_empty(world: World) -> None:
    choices = {"adopt": ("*",), "replace": ("*",), "prune": ("a", "b", "c")}
    world.apply(**choices)
    left = world.plan(**choices)
    assert [(item.address, item.status, item.steps) for item in left.pending if not _stopped(world, item)] == []


def _stopped(world: World, item: Item) -> bool:
    """Whether it cannot be converted, and may not be published otherwise; or waits for such a one."""
    allowed = next(one.native for one in world.releases if one.name == item.release) and StepKind.ADOPT not in item.steps
    if item.id is None:
        return StepKind.TAG in item.steps or any(_stopped(world, one) for one in world.plan(adopt=("*",)).pending if one.id)
    return item.address in world.inexpressible and not allowed


@FAST
@given(worlds(), st.sets(st.sampled_from(IDS)))
def test_a_plan_holds_of_what_it_was_made_of_and_of_its_own_results(world: World, stopped: set[str]) -> None:
    saved = json.loads(json.dumps(plan_json(world.plan())))
    assert compare(saved, world.plan()) == []
    world.apply({f"{name}/{sae_id}" for name in "abc" for sae_id in stopped})
    assert compare(saved, world.plan()) == []
    world.apply()
    assert compare(saved, world.plan()) == []


@FAST
@given(worlds(), st.booleans())
def test_held_failing_and_current_items_have_no_steps(world: World, allowed: bool) -> None:
    choices = {"adopt": ("*",), "replace": ("*",)} if allowed else {}
    for item in world.plan(**choices).items:
        assert not (item.held and item.steps)
        assert item.reasons or not item.steps
        assert plan_text(plan_json(world.plan(**choices)))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("0" * 64)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8
)
FLAT = st.dictionaries(st.sampled_from(["weights", "dtype", "source.digest", "hook", "max_x", "<!-- |\n`@a"]), JSON, max_size=4)
HEX = st.sampled_from(["0" * 64, "f" * 64])
FILE = st.fixed_dictionaries({"size": st.integers(0, 9)}, optional={"sha256": HEX, "blob_id": st.just("a" * 40)})
METRIC = st.fixed_dictionaries({"value": st.floats() | st.integers()}, optional={"stderr": st.floats()})
EVIDENCE = st.fixed_dictionaries(
    {
        "measure_key": HEX,
        "weights_sha256": HEX,
        "metrics": st.dictionaries(st.sampled_from(["l0", "explained_variance"]), METRIC),
    },
    optional={"inputs": FLAT, "about": FLAT},
)
NATIVE = st.fixed_dictionaries(dict.fromkeys(("title", "detail", "said_by"), st.text(max_size=8) | st.just("<!-- |\n`@a")))
ENTRY = st.fixed_dictionaries(
    {
        "weights_key": HEX,
        "build_key": HEX,
        "files": st.dictionaries(st.sampled_from([WEIGHTS_FILE, CFG_FILE, "x"]), FILE)
        | st.dictionaries(st.sampled_from(["native/ae.pt", "native/a/b", "native/refusal.json"]), FILE),
    },
    optional={
        "native": NATIVE,
        "inputs": st.dictionaries(st.sampled_from(["weights", "build"]), FLAT),
        "proof": FLAT,
        "evidence": st.lists(EVIDENCE, max_size=2),
        "about": FLAT,
        "run": FLAT,
        "adopted": st.booleans(),
    },
)
PENDING = st.fixed_dictionaries(
    {
        "build_key": HEX,
        "files": st.dictionaries(st.sampled_from([WEIGHTS_FILE, CFG_FILE, "native/ae.pt"]), st.lists(FILE, max_size=2)),
    }
)
RECORD = st.fixed_dictionaries(
    {
        "version": st.sampled_from([1, 2]),
        "release": st.just("res"),
        "saes": st.dictionaries(st.sampled_from(IDS), ENTRY, max_size=2),
    },
    optional={"card": HEX, "pending": st.dictionaries(st.sampled_from(IDS), PENDING, max_size=1)},
)


@settings(max_examples=150, deadline=None)
@given(RECORD | JSON, st.booleans())
def test_no_record_breaks_the_plan_the_card_or_what_is_shown(value: Any, files: bool) -> None:
    text = json.dumps(value).replace("Infinity", "1e999").replace("NaN", "1e999")
    try:
        record = parse_record(text.encode("utf-8", "surrogatepass"), "res")
    except (RecordUnreadable, RecordNewer):
        return
    world = World([release(ids=IDS[:2])])
    found = {path_of(name, file): digest for name, entry in record.saes.items() for file, digest in entry.files.items()}
    world.put(exists=True, visibility="public", records={"res": record}, files=found if files else {})
    made = world.plan(replace=("*",), prune=("res",))
    saved = plan_json(made)
    json.dumps(saved, allow_nan=False).encode()
    assert compare(saved, made) == []
    plan_text(saved).encode()
    markdown(saved).encode()
    card, digest = make_card(world.releases[0], record, None)
    assert digest == card_digest(world.releases[0], record)
    card.encode()
    assert card.count("<!--") == card.count("-->") == (3 if record.saes else 0)
