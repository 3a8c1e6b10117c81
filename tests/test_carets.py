"""What a diagnostic looks like: golden texts, and that foreign text cannot act in a terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saesync.carets import escaped, show
from saesync.errors import Diagnostic, Origin


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("bad.yaml")
    path.write_text("one: 1\n" * 8 + "  hoook: blocks.{layer}.hook_resid_post\n\n", encoding="utf-8")
    return path


def test_two_diagnostics_as_in_the_mock_up(bad: Path) -> None:
    found = [
        Diagnostic("Unknown key", '"hoook" is not a key of saes. Did you mean "hook"?', Origin("bad.yaml", 9, 3, 5)),
        Diagnostic("Plan is stale", "Nothing was done.\nMake a new plan."),
    ]
    assert show(found, color=False) == (
        "error: Unknown key\n"
        " --> bad.yaml:9:3\n"
        "  |\n"
        "9 |   hoook: blocks.{layer}.hook_resid_post\n"
        "  |   ^^^^^\n"
        '  = "hoook" is not a key of saes. Did you mean "hook"?\n'
        "\n"
        "error: Plan is stale\n"
        "  Nothing was done.\n"
        "  Make a new plan."
    )


def test_gutter_grows_with_the_line_number(bad: Path) -> None:
    assert show([Diagnostic("S", "D.", Origin("bad.yaml", 10, 1))], color=False) == (
        "error: S\n  --> bad.yaml:10:1\n   |\n10 |\n   | ^\n   = D."
    )


def test_colour_only_adds_escapes(bad: Path) -> None:
    found = [Diagnostic("Unknown key", "Detail.", Origin("bad.yaml", 9, 3, 5))]
    painted = show(found, color=True)
    assert "\x1b[" in painted
    assert re.sub("\x1b\\[[0-9;]*m", "", painted) == show(found, color=False)


def test_missing_file_and_missing_line_leave_out_the_excerpt(bad: Path) -> None:
    for origin in (Origin("nowhere.yaml", 9, 3), Origin("bad.yaml", 99, 1), Origin("bad.yaml", 0, 1), Origin("a\0b", 1, 1)):
        lines = show([Diagnostic("S", "D.", origin)], color=False).splitlines()
        assert len(lines) == 3, lines


@pytest.mark.parametrize(
    ("line", "column", "width", "shown", "carets"),
    [
        ("\tkey: x", 2, 3, "    key: x", "    ^^^"),
        ("名前: x", 1, 2, "名前: x", "^^^^"),
        ("名前: x", 5, 1, "名前: x", "      ^"),
        ("e\u0301a: x", 3, 1, "e\u0301a: x", " ^"),
        ("a: \x1b[31mred", 4, 1, "a: \\x1b[31mred", "   ^^^^"),
        ("a: \u202eb", 4, 9, "a: \\u202eb", "   ^^^^^^^"),
        ("short", 99, 5, "short", "     ^"),
    ],
)
def test_carets_stand_under_what_they_mean(tmp_path: Path, line: str, column: int, width: int, shown: str, carets: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(line + "\n", encoding="utf-8")
    block = show([Diagnostic("S", "D.", Origin(str(path), 1, column, width))], color=False).splitlines()
    assert block[3] == f"1 | {shown}"
    assert block[4] == f"  | {carets}"


def test_long_lines_are_cut_around_the_caret(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("x" * 5000 + "HERE" + "y" * 5000, encoding="utf-8")
    block = show([Diagnostic("S", "D.", Origin(str(path), 1, 5001, 4))], color=False).splitlines()
    assert len(block[3]) < 140
    assert block[3][block[4].index("^") : block[4].rindex("^") + 1] == "HERE"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.tuples(st.integers(-2, 5), st.integers(-2, 80), st.integers(-2, 80)))
def test_any_text_is_shown_without_acting(
    tmp_path_factory: pytest.TempPathFactory, text: str, place: tuple[int, int, int]
) -> None:
    path = tmp_path_factory.mktemp("carets") / "f.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    line, column, width = place
    out = show([Diagnostic(text, text, Origin(str(path), line, column, width))], color=False)
    assert all(char.isprintable() or char == "\n" for char in out)


@given(st.text(max_size=40))
def test_printable_text_stays(text: str) -> None:
    assert escaped(text).isprintable()
    if text.isprintable():
        assert escaped(text) == text
