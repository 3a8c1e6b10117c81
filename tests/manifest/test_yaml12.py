"""YAML as manifests are written in: scalars, places, limits, and that any bytes end in a tree or a diagnostic."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saesync.errors import Diagnostic, ManifestError
from saesync.manifest.yaml12 import MAX_BYTES, Node, decode, parse


def tree(text: str | bytes) -> Node:
    data = text.encode() if isinstance(text, str) else text
    return parse(decode(data, "m.yaml")[1], "m.yaml")


def refused(text: str | bytes) -> Diagnostic:
    with pytest.raises(ManifestError) as caught:
        tree(text)
    (diagnostic,) = caught.value.diagnostics
    return diagnostic


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3e-4", 3e-4),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("010", 10),
        ("-7", -7),
        ("+7", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:26", "1:26"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("1e", "1e"),
        ("-", [None]),
        ("--", "--"),
        (".", "."),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_12(text: str, value: object) -> None:
    found = tree(f"key:\n {text}\n").plain_value()["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", [".inf", "-.Inf", ".nan", "1e999", "9" * 40, "0x" + "f" * 20, "9223372036854775808"])
def test_numbers_out_of_range_are_refused_with_advice(text: str) -> None:
    diagnostic = refused(f"key: {text}")
    assert diagnostic.summary == "Number is out of range"
    assert "in quotes" in diagnostic.detail
    assert str(diagnostic.origin) == "m.yaml:1:6"


def test_every_node_keeps_its_place() -> None:
    root = tree('# c\na:\n  - x\n  - {b: "é😀", c: 1}\nd: &n long\ne: *n\n')
    places = {
        ("a",): (2, 1, 1),  # a block list: its key
        ("a", 0): (3, 5, 1),
        ("a", 1): (4, 5, 15),  # a flow mapping: itself
        ("a", 1, "b"): (4, 9, 4),
        ("a", 1, "c"): (4, 18, 1),
        ("d",): (5, 7, 4),  # without its anchor
        ("e",): (5, 7, 4),
        ("a", 7, "nowhere"): (2, 1, 1),
    }
    for path, place in places.items():
        node = root.place(path)
        assert (node.line, node.column, node.width) == place, path


def test_indices_point_into_the_text_with_any_line_ends() -> None:
    text = "a: é\r\nb:\r\n  c: 'q'  # x\r\n"
    root = tree("\ufeff" + text)
    for path, raw in ((("a",), "é"), (("b", "c"), "'q'")):
        node = root.get(*path)
        assert node is not None
        assert text[node.start : node.end] == raw


def test_duplicate_keys_name_both_places() -> None:
    diagnostic = refused("a: 1\nb:\n  c: 1\n  c: 2\n")
    assert diagnostic.summary == "Duplicate key"
    assert str(diagnostic.origin) == "m.yaml:4:3"
    assert "m.yaml:3:3" in diagnostic.detail
    assert refused("1: a\n'1': b\n").summary == "Duplicate key"


def test_keys_are_words_as_written() -> None:
    assert tree("on: 1\n1: 2\nnull: 3\n").plain_value() == {"on": 1, "1": 2, "null": 3}


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        (LAUGHS, "Aliases copy too much"),
        ("a: &a [*a]\n", "Unknown alias"),
        ("a: *b\n", "Unknown alias"),
        ("[" * 50 + "]" * 50, "Nested too deeply"),
        ("[" * 100_000, "Nested too deeply"),
        ("- " * 100_000, "Nested too deeply"),
        ("x: [" + "a," * 500_000 + "]", "Manifest is too large"),
        (b"#" * (MAX_BYTES + 1), "Manifest is too large"),
        ("a: " + "x" * 20_000, "Text is too long"),
        ("x" * 20_000 + ": 1", "Text is too long"),
        ("a: !!python/object:os.system x", "Tags are not used"),
        ("a: !x {b: 1}", "Tags are not used"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "Merge keys are not used"),
        ("? [a]\n: b", "Key is not a text"),
        ("a: 1\n---\nb: 2\n", "More than one document"),
        ("", "Manifest is empty"),
        ("# only a comment\n", "Manifest is empty"),
        ("a: b: c", "Not YAML"),
        ("a: 'x", "Not YAML"),
        ("a:\n\tb: 1", "Not YAML"),
        ("a: `x`", "Not YAML"),
        ("a: \x00", "Character is not allowed"),
        (b"a: \xff", "Not UTF-8"),
        ("a: 1".encode("utf-16"), "Not UTF-8"),
    ],
)
def test_what_is_refused(text: str | bytes, summary: str) -> None:
    start = time.process_time()
    diagnostic = refused(text)
    assert diagnostic.summary == summary
    assert diagnostic.detail.endswith((".", "?"))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("a:\n\tb: 1", "Indent with spaces"),
        ("id: {layer}/x", "put the whole value in quotes"),
        ("a: b: c", "second `: `"),
        ("a: `x`", "cannot begin with this character"),
    ],
)
def test_syntax_errors_say_what_to_do(text: str, advice: str) -> None:
    assert advice in refused(text).detail


def test_aliases_are_values_of_their_own_kind() -> None:
    assert tree("a: &x {b: 1}\nc: *x\n").plain_value() == {"a": {"b": 1}, "c": {"b": 1}}


def harmless(data: bytes) -> None:
    """Read it; anything but a value or a proper diagnostic fails the test."""
    diagnostics: tuple[Diagnostic, ...] = ()
    try:
        tree(data).plain_value()
    except ManifestError as error:
        diagnostics = error.diagnostics
    assert all(each.summary and each.detail.endswith((".", "?")) for each in diagnostics)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
@example(b"\xef\xbb\xbf")
@example(b"%YAML 9.9\n---\n")
@example(b"%TAG ! !\n--- !a b")
@example(b"? ? ? a")
@example(b"{? : }")
@example(b"- !<tag:x> a")
@example(b"a: &\n")
@example(b'"\\ud800"')
@example(b'"\\xff\\u0000"')
def test_any_bytes_end_in_a_tree_or_a_diagnostic(data: bytes) -> None:
    harmless(data)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="ab1{}[]-,:&*!|>'\"%@`#?~ \n\t.é\x85\u2028\r\\", max_size=40))
def test_any_text_ends_in_a_tree_or_a_diagnostic(text: str) -> None:
    harmless(text.encode())
