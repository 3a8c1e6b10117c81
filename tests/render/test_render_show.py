"""show and the last lines of apply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planning import SPEC, World, evidence_of, files_of, golden, inputs_of, published, release, sae, wanted_of

from saesync.digest import digest_bytes
from saesync.errors import Diagnostic, Origin
from saesync.model import CFG_FILE
from saesync.planfile import show_json
from saesync.reason import Reason, ReasonCode
from saesync.render import GATE_MISSED, show_text, summary_text
from saesync.render.summary import duration

A = "res/layer_0"
EVIL = "x\x1b[31m\u202e\ny"


def view(world: World) -> dict[str, Any]:
    return show_json(world.item(A), world.wanted[A], world.at())


def test_show_published_and_changed() -> None:
    world = published()
    asked = sae(validate=replace(SPEC, tokens=409600))
    world.releases, world.wanted = [release(saes=(asked,))], {A: wanted_of(asked)}
    entry = world.at().records["res"].saes["layer_0"]
    inputs = inputs_of(sae())
    older = replace(evidence_of(inputs, files_of(inputs), 0.5), measure_key="0" * 64, weights_sha256="1" * 64)
    entry = replace(entry, evidence=(*entry.evidence, older), run={"seconds": 12.5})
    record = world.at().records["res"].merged({"layer_0": entry})
    world.put(files={**world.at().files, f"layer_0/{CFG_FILE}": digest_bytes(b"{}")}, records={"res": record})
    golden("show.txt", show_text(view(world)) + "\n")


def test_show_failing_and_not_published() -> None:
    world = World([release()], ev={A: 0.614})
    world.apply()
    golden("show_failing.txt", show_text(view(world)) + "\n")


def test_show_what_cannot_be_seen_and_what_nobody_asks_for() -> None:
    world = World([release()])
    world.put(unknown=Reason(ReasonCode.NOT_VISIBLE, {"location": "acme/saes", "detail": "needs a token"}))
    assert "acme/saes (not visible)" in show_text(view(world))
    world = published(release(ids=["layer_0", "layer_1"]))
    world.releases = [release(ids=["layer_1"])]
    text = show_text(show_json(world.item(A), None, world.at()))
    assert "no manifest asks for it" in text
    assert "orphaned" in text


def test_show_is_inert_and_color_is_only_color() -> None:
    world = published()
    entry = world.at().records["res"].saes["layer_0"]
    dirty = replace(entry, proof={EVIL: EVIL}, about={EVIL: [EVIL]}, run={"x": float("inf")})
    world.put(records={"res": world.at().records["res"].merged({"layer_0": dirty})})
    text = show_text(view(world))
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\x1b[1m" in show_text(view(world), color=True)


def failure(address: str, *details: str) -> dict[str, Any]:
    found = [Diagnostic(GATE_MISSED, detail, Origin("manifests/gemma.yaml", 25, 25)).to_json() for detail in details]
    return {"address": address, "step": "validate", "diagnostics": found}


@pytest.mark.parametrize(("unsure", "said"), [(["r/a"], "r/a. It was"), (["r/a", "r/b"], "r/a, r/b. They were")])
def test_what_is_in_doubt_is_one_or_several(unsure: list[str], said: str) -> None:
    summary = {"outcomes": {"unsure": len(unsure)}, "unsure": unsure, "failures": [], "exit_code": 130}
    assert f"In doubt: {said} being published and may have landed; the next plan tells." in summary_text(summary)


def test_summary_of_a_stopped_run() -> None:
    said = "explained_variance 0.614, manifest asks for at least 0.70."
    summary = {
        "type": "summary",
        "outcomes": {"published": 3, "failed": 1, "stopped": 23},
        "failures": [failure("gemma-2-2b-res-acme/layer_2", said)],
        "exit_code": 130,
        "seconds": 900,
    }
    golden("summary.txt", summary_text(summary, ("saesync", "apply", "plan.json")) + "\n")


def test_summary_of_a_finished_run_names_every_diagnostic() -> None:
    failures = [failure("res/layer_2", "One thing.", "Another thing."), failure("res/l", EVIL)]
    summary = {"outcomes": {"published": 2, "odd": 1, "failed": 2}, "failures": failures, "exit_code": 1, "seconds": 122.0}
    text = summary_text(summary, ("saesync", "apply", "my plan.json"))
    assert text.splitlines()[0] == "Done in 2m02s. 2 published, 2 failed, 1 odd."
    assert "saesync apply 'my plan.json'" in text
    assert "One thing (manifests/gemma.yaml:25:25)" in text
    assert "Another thing" in text
    assert text.count("for all numbers") == 2
    assert all(line.isprintable() for line in text.split("\n"))


def test_numbers_are_promised_only_where_something_was_measured() -> None:
    unread = Diagnostic("Dataset has no such column", "text.jsonl has no column 'text'.").to_json()
    failed = {"address": "res/layer_2", "step": "validate", "diagnostics": [unread]}
    text = summary_text({"outcomes": {"failed": 1}, "failures": [failed], "exit_code": 1, "seconds": 1.0})
    assert "has no column 'text'" in text
    assert "saesync show" not in text


@pytest.mark.parametrize("times", [2, 26])
def test_what_tasks_of_one_name_failed_with_is_said_once(times: int) -> None:
    """The activations of a model are captured hook by hook, and memory runs out at each of them."""
    failed = [failure("activations of gpt2", "Memory ran out."), failure("res/a", "Memory ran out.")]
    summary = {"outcomes": {"failed": 3}, "failures": failed * times, "exit_code": 1, "seconds": 1.0}
    lines = [line for line in summary_text(summary).splitlines() if "ran out" in line]
    assert [line.split("  ")[1] for line in lines] == ["activations of gpt2", "res/a"]


def test_summary_of_nothing() -> None:
    assert summary_text({"outcomes": {}, "failures": [], "exit_code": 0, "seconds": 0.1}) == "Done in 0.1s. Nothing to do."


def test_summary_of_what_was_done_to_whole_releases() -> None:
    done: dict[str, Any] = {"outcomes": {}, "failures": [], "exit_code": 0, "seconds": 0.1}
    left = {**done, "exit_code": 1, "outcomes": {"failed": 1}, "tags_left": 2, "cards_left": 1}
    assert summary_text(left).startswith("Stopped. 1 failed, 1 card not written, 2 tags not made; nothing is half-done.\n")
    assert summary_text({**done, "exit_code": 130, "entries_left": 1}).startswith(
        "Stopped. 1 registry entry not written; nothing"
    )
    assert "2 registry entries not written" in summary_text({**left, "entries_left": 2})
    assert summary_text({**done, "cards": 1, "tags": 1}) == "Done in 0.1s. 1 card written, 1 tagged."
    assert summary_text({**done, "outcomes": {"published": 3}, "cards": 2}) == "Done in 0.1s. 3 published, 2 cards written."


def test_duration() -> None:
    assert [duration(seconds) for seconds in (7.07, 59.99, 60, 242, 6600)] == ["7.1s", "60.0s", "1m00s", "4m02s", "1h 50m"]
