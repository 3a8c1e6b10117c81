"""What a change of manifests has to be looked at for, and that it is shown first, whole and inert."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from planning import SPEC, World, golden, release, sae

from saesync.errors import Origin
from saesync.model import PublishSpec, RegisterSpec, Release, Requirement, SourceSpec
from saesync.planfile import plan_json
from saesync.render import markdown, plan_text
from saesync.render.markdown import MAX_CHARACTERS
from saesync.render.review import _WORDS, review_markdown, review_text
from saesync.review import ReviewItem, ReviewKind, review_items

HERE = Origin("manifests/res.yaml", 25, 25)


def kinds(before: list[Release], after: Release) -> list[tuple[ReviewKind, dict[str, Any]]]:
    return [(item.kind, dict(item.data)) for item in review_items(before, [after])]


def bound(metric: str, kind: str, value: float) -> Requirement:
    return Requirement(metric, kind, value, HERE)


def validated(*bounds: Requirement, **changes: Any) -> Release:
    spec = replace(SPEC, require=bounds, **changes)
    return release(saes=(sae(validate=spec), sae(sae_id="layer_1", validate=spec)))


def test_nothing_new_is_nothing_to_look_at() -> None:
    one = release(ids=["layer_0", "layer_1"])
    assert kinds([one], one) == []
    assert kinds([one], release(ids=["layer_0", "layer_1", "layer_2"])) == []


def test_a_new_release_names_its_place_its_owners_and_that_it_is_public() -> None:
    known = release("known", location="acme/known")
    assert kinds([known], release("new", location="acme/new")) == [
        (ReviewKind.NEW_TARGET, {"section": "publish", "value": "huggingface:acme/new", "before": None}),
        (ReviewKind.PUBLIC, {"value": "acme/new"}),
    ]
    source = SourceSpec("evil/raw", "a" * 40, "ae.pt", "goodfire")
    found = kinds([], release("new", saes=(sae("new", source=source), sae("new", "layer_1", source=source))))
    owners = [data for kind, data in found if kind is ReviewKind.NEW_OWNER]
    assert owners == [
        {"what": "source", "value": "evil"},
        {"what": "model", "value": "google"},
        {"what": "dataset", "value": "monology"},
    ]


def test_places_that_move() -> None:
    one = release()
    moved = replace(one, publish=PublishSpec("huggingface", "acme/other", "mit", origin=HERE))
    (item,) = review_items([one], [moved])
    assert (item.kind, item.data["before"], item.origin) == (ReviewKind.NEW_TARGET, "huggingface:acme/saes", HERE)
    registered = replace(one, register=RegisterSpec("evil/SAELens", origin=HERE))
    assert [(kind, data["value"]) for kind, data in kinds([one], registered)] == [(ReviewKind.NEW_TARGET, "saelens:evil/SAELens")]
    recorded = replace(one, records=PublishSpec("huggingface", "acme/records"))
    assert [data["section"] for _, data in kinds([one], recorded)] == ["records"]


def test_becoming_public_and_retiring() -> None:
    private = release(publish=PublishSpec("huggingface", "acme/saes", private=True))
    assert kinds([private], release()) == [(ReviewKind.PUBLIC, {"value": "acme/saes"})]
    assert kinds([release()], private) == []
    assert kinds([release()], replace(release(), retire=True)) == [(ReviewKind.RETIRED, {})]


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (bound("explained_variance", "min", 0.7), bound("explained_variance", "min", 0.6), True),
        (bound("explained_variance", "min", 0.7), bound("explained_variance", "min", 0.8), False),
        (bound("l0", "max", 100), bound("l0", "max", 150), True),
        (bound("l0", "max", 100), bound("l0", "max", 50), False),
        (bound("l0", "max", 100), bound("l0", "min", 100), True),
    ],
)
def test_a_requirement_that_lets_more_through(before: Requirement, after: Requirement, found: bool) -> None:
    items = review_items([validated(before)], [validated(after)])
    assert [item.kind for item in items] == [ReviewKind.LOWERED] * found


def test_dropped_requirements_and_fewer_tokens() -> None:
    both = validated(bound("explained_variance", "min", 0.7), bound("l0", "max", 100))
    assert [data["name"] for _, data in kinds([both], validated())] == ["explained_variance min", "l0 max"]
    none = release(saes=(sae(validate=None), sae(sae_id="layer_1", validate=None)))
    assert [data["after"] for _, data in kinds([both], none)] == [None, None, None]
    assert [data["name"] for _, data in kinds([validated()], validated(tokens=100))] == ["validate.tokens"]
    partly = replace(release(), register=RegisterSpec("a/b", partial=True))
    assert [data["name"] for _, data in kinds([replace(release(), register=RegisterSpec("a/b"))], partly)] == ["register.partial"]


def test_trust_and_native_are_said_once() -> None:
    source = SourceSpec("acme/raw", "a" * 40, "ae.pt", "goodfire", {"trust": "f" * 64})
    one = release(saes=(sae(source=source), sae(sae_id="layer_1", source=source)))
    one = replace(one, publish=PublishSpec("huggingface", "acme/saes", native=True))
    assert kinds([release()], one) == [(ReviewKind.TRUST, {"value": "f" * 64}), (ReviewKind.NATIVE, {})]
    assert kinds([one], one) == []


EXAMPLES: list[tuple[ReviewKind, dict[str, Any]]] = [
    (ReviewKind.GONE, {"manifest": "manifests/old.yaml"}),
    (ReviewKind.RETIRED, {}),
    (ReviewKind.NEW_TARGET, {"section": "publish", "value": "huggingface:acme/x", "before": None}),
    (ReviewKind.NEW_TARGET, {"section": "register", "value": "saelens:acme/SAELens", "before": "saelens:a/b"}),
    (ReviewKind.PUBLIC, {"value": "acme/x"}),
    (ReviewKind.NEW_OWNER, {"what": "source", "value": "evil"}),
    (ReviewKind.LOWERED, {"name": "explained_variance min", "before": 0.7, "after": 0.6}),
    (ReviewKind.LOWERED, {"name": "l0 max", "before": 100.0, "after": None}),
    (ReviewKind.LOWERED, {"name": "register.partial", "before": False, "after": True}),
    (ReviewKind.TRUST, {"value": "f" * 64}),
    (ReviewKind.NATIVE, {}),
]
EVIL = "`|<!-- x --><img src=x>\u202e\x1b[31m@everyone\n![i](http://b)"


def test_every_kind_has_a_wording_and_an_example() -> None:
    assert set(_WORDS) == set(ReviewKind) == {kind for kind, _ in EXAMPLES}
    items = [ReviewItem(kind, "res", data, HERE).to_json() for kind, data in EXAMPLES]
    lines = [line for item in items for line in (review_text(item), review_markdown(item))]
    golden("review.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize(("kind", "data"), EXAMPLES)
def test_foreign_text_does_nothing(kind: ReviewKind, data: dict[str, Any]) -> None:
    item = ReviewItem(kind, EVIL, dict.fromkeys(data, EVIL), Origin(EVIL, 1, 1)).to_json()
    assert review_text(item).isprintable()
    shown = review_markdown(item)
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"<code>.*?</code>", "", shown))
    assert not set("<>|@!`\u202e\x1b\n") & set(outside)


def test_a_kind_of_a_newer_saesync_is_quoted() -> None:
    assert "`later`" in review_markdown({"kind": "later", "release": "res", "data": {}, "origin": None})


def reviewed(saes: int, items: int) -> dict[str, Any]:
    world = World([release(ids=[f"layer_{n}/width_16k/average_l0_{n}" for n in range(saes)])])
    found = [
        ReviewItem(ReviewKind.NEW_OWNER, f"release-{n}", {"what": "source", "value": f"owner-{n}"}, HERE) for n in range(items)
    ]
    data: dict[str, Any] = json.loads(json.dumps(plan_json(world.plan(), scope={"review": [item.to_json() for item in found]})))
    return data


def test_they_come_first_and_are_never_cut_for_the_rest() -> None:
    data = reviewed(500, 300)
    text = markdown(data)
    assert len(text) <= MAX_CHARACTERS
    assert text.index("**Needs review** (300)") < text.index("| | SAEs |")
    assert all(f"`owner-{n}`" in text for n in range(300))
    assert "<details>" not in text[: text.index("| | SAEs |")]
    plain = plan_text(data)
    assert plain.index("Needs review:") < plain.index("manifests/res.yaml\n")
    assert plain.count("new owner of the source") == 300


def test_500_saes_fit_and_what_is_cut_is_counted_and_said_where_to_find() -> None:
    text = markdown(reviewed(500, 5))
    assert len(text) < MAX_CHARACTERS
    shown = text.count("`blocks.")
    assert 0 < shown < 500
    assert f"… and {500 - shown:,} more" in text
    assert "plan.json" in text


def test_more_than_a_comment_can_hold_is_said_as_loudly() -> None:
    text = markdown(reviewed(10, 5_000))
    assert len(text) <= MAX_CHARACTERS
    left = re.search(r"\*\*([\d,]+) more of these do not fit here\. Do not approve from this text alone\.\*\*", text)
    assert left is not None
    assert int(left[1].replace(",", "")) == 5_000 - text.count("new owner of the")
