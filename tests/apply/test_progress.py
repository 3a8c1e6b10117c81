"""What the events of an apply look like, drawn from recorded events."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import saesync.events
from saesync.progress import Look, amount, reporter

PLAN = {"type": "plan", "digest": "9df79254" + "0" * 56, "steps": 5, "releases": ["gemma"]}
DONE = {
    "type": "sae_finished",
    "address": "gemma/layer_0",
    "outcome": "published",
    "seconds": 242.0,
    "metrics": {"explained_variance": 0.8123, "ce_loss_score": 0.987, "l0": 61.2, "mse": 1.0},
    "proof": {"max_feature_diff": 1.2e-6, "max_reconstruction_diff": 1e-7, "rows": 10, "tolerance": 1e-5},
}
MISSED = {
    "summary": "Requirement not met",
    "detail": "explained_variance 0.614, manifest asks for at least 0.70.",
    "origin": ["m.yaml", 25, 25, 4],
}
FAILED = {"type": "step_failed", "address": "gemma/layer_2", "step": "validate", "diagnostics": [MISSED]}
UNDONE = {
    "type": "sae_finished",
    "address": "gemma/layer_2",
    "outcome": "failed",
    "seconds": 1.0,
    "metrics": {"l0": 60.0},
    "proof": {},
}
SHARED = {"type": "step_failed", "address": "model tiny", "step": "fetch", "diagnostics": [{**MISSED, "detail": "It is gated."}]}
SUMMARY = {
    "type": "summary",
    "outcomes": {"published": 1, "failed": 1},
    "failures": [{"address": "gemma/layer_2", "step": "validate", "diagnostics": [MISSED]}],
    "exit_code": 1,
    "seconds": 300.0,
}
PROGRESS = {
    "type": "progress",
    "address": "gemma/layer_3",
    "step": "validate",
    "done": 143_360,
    "total": 204_800,
    "unit": "tokens",
}


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


def drawn(kind: str, *events: Mapping[str, Any], color: bool = False, stream: io.StringIO | None = None) -> str:
    stream = stream if stream is not None else io.StringIO()
    with reporter(kind, stream, Look(color, addresses=["gemma/layer_0", "gemma/layer_10"])) as emit:
        for event in events:
            emit(event)
    return stream.getvalue()


def test_one_line_per_sae_without_a_terminal() -> None:
    lines = drawn("lines", PLAN, PROGRESS, DONE, FAILED, UNDONE, SUMMARY).splitlines()
    assert lines[0] == "Plan 9df79254: 5 steps for gemma."
    assert lines[1] == "gemma"
    assert lines[2] == "  ✓ layer_0   converted  max|Δ| 1.2e-06  EV  0.812  CE  0.987  L0   61.2  published  4m02s"
    assert lines[3].startswith("  ✗ layer_2   L0   60.0  not published")
    assert "0.614" in lines[3]
    assert "layer_2   L0   60.0  stays as it was published" in drawn("lines", FAILED, {**UNDONE, "stays": True})
    assert not any("143" in line for line in lines), "no animation"
    assert any("m.yaml:25:25" in line for line in lines)


def test_what_is_shared_is_said_by_itself() -> None:
    assert "  ✗ model tiny: It is gated." in drawn("lines", SHARED)


def test_a_card_by_itself_has_a_line_and_one_that_goes_with_saes_has_none() -> None:
    committed = {"type": "committed", "release": "gemma", "location": "acme/saes", "commit": "a" * 40, "bytes": 0}
    assert drawn("lines", {**committed, "saes": []}) == "  ✓ gemma: card written\n"
    assert drawn("lines", {**committed, "saes": ["layer_0"]}) == ""


@pytest.mark.parametrize(
    ("made", "said"), [(True, "tagged saesync-gemma-4be14be1"), (False, "tag saesync-gemma-4be14be1 stands already")]
)
def test_a_tag_that_stood_already_is_not_told_as_made(made: bool, said: str) -> None:
    tagged = {"type": "tagged", "release": "gemma", "location": "acme/saes", "commit": "a" * 40, "tag": "saesync-gemma-4be14be1"}
    assert drawn("lines", {**tagged, "made": made}) == f"  ✓ gemma: {said}\n"


def test_color_only_when_asked() -> None:
    assert "\x1b[" not in drawn("lines", DONE, SUMMARY)
    assert "\x1b[32m✓" in drawn("lines", DONE, color=True)


def test_json_is_one_event_per_line() -> None:
    lines = drawn("json", {"type": "version", "saesync": "1", "format": 1}, PLAN, PROGRESS).splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["version", "plan", "progress"]


def test_foreign_text_cannot_act() -> None:
    evil = {**DONE, "address": "gemma/\x1b[2Jlayer[bold]\n::error::"}
    for kind in ("lines", "terminal"):
        text = drawn(kind, evil)
        assert "\x1b[2J" not in text
        assert "\n::error::" not in text
        assert "[bold]" in text


def test_a_terminal_gets_the_same_lines() -> None:
    text = drawn("terminal", PLAN, PROGRESS, DONE, SUMMARY)
    assert "✓ layer_0" in text
    assert "m.yaml:25:25" in text


@pytest.mark.parametrize("columns", ["60", "80"])
def test_on_a_narrow_terminal_a_task_stays_on_one_line(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = drawn("terminal", PLAN, {**PROGRESS, "address": "gemma-2-2b-res-acme/layer_3"}, stream=Terminal())
    lines = [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines() if line.strip()]
    assert lines[0] == "Plan 9df79254: 5 steps for gemma."
    assert len(lines) > 1
    for line in lines[1:]:
        assert line.startswith("  ▸ validating gemma-2-2b-res")
    assert any("143,360" in line for line in lines[1:])


@pytest.mark.parametrize(("unit", "rate"), [("tokens", r" \d[\d,]* tokens/s"), ("B", r" [\d.]+ [kM]B/s")])
def test_a_terminal_shows_the_rate(monkeypatch: pytest.MonkeyPatch, unit: str, rate: str) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with reporter("terminal", stream, Look()) as emit:
        for done in range(10_000, 200_000, 20_000):
            emit({**PROGRESS, "done": done, "unit": unit})
            time.sleep(0.05)
    assert re.search(rate, stream.getvalue())


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="no reporter"), reporter("html", io.StringIO(), Look()):
        pass


def test_amounts() -> None:
    assert amount(143_360, 204_800, "tokens", 12_300.4) == "143,360 / 204,800 tokens  12,300 tokens/s"
    assert amount(212e6, 302e6, "B", 48e6) == "212 / 302 MB  48 MB/s"
    assert amount(0, 10, "B", None) == "0 / 10 B"


def test_every_event_that_is_told_is_described() -> None:
    package = Path(saesync.events.__file__).parent
    told = [package / "events.py", *(package / "apply").glob("*.py")]
    sources = "".join(path.read_text(encoding="utf-8") for path in told)
    names = set(re.findall(r'\{\s*"type": "(\w+)"', sources))
    assert {"version", "step_failed", "tagged", "registered", "summary", "ended"} <= names
    described = set(re.findall(r"(?m)^(\w+) {2,}\S", saesync.events.__doc__ or ""))
    assert names <= described, names - described
