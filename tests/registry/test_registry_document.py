"""Editing the registry: one release's lines and no other byte, on the real file and on files laid out in every other way."""

from __future__ import annotations

import difflib
import random
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from saesync.errors import Refused
from saesync.registry.document import Document, edited, parse, written
from saesync.registry.entry import Entry, SaeEntry, from_yaml, same_meaning

NEW = Entry(
    "my-new-res",
    "acme/saes",
    "gemma-2-2b",
    None,
    tuple(SaeEntry(f"layer_{n}", f"layer_{n}", 60 + n, 0.8, f"gemma-2-2b/{n}-res-acme") for n in range(3)),
)
NESTED = "gpt2-small-res_scefr-ajt"
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def some(real: Document) -> list[str]:
    names = list(real.releases)
    return [names[0], names[len(names) // 2], NESTED, names[-1]]


def canonical(data: bytes) -> bool:
    """Whether the bytes are what PyYAML makes of them, as the shipped file is."""
    value = yaml.load(data, Loader=LOADER)
    return bool(yaml.dump(value, Dumper=DUMPER, sort_keys=False).encode() == data)


def lines_of(real: Document, release: str) -> tuple[int, int]:
    """First and last line (from 0, past the end) of a release in the canonical file, found by its own dumping."""
    lines = real.data.split(b"\n")
    start = lines.index(f"{release}:".encode())
    size = yaml.dump({release: real.releases[release]}, Dumper=DUMPER, sort_keys=False).count("\n")
    return start, start + size


def diff(before: bytes, after: bytes) -> tuple[list[str], list[str]]:
    """Lines removed and added, by difflib: of the part in which the two differ, for it is slow."""
    old, new = before.decode().splitlines(), after.decode().splitlines()
    same = next((number for number, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    end = next((n for n, (a, b) in enumerate(zip(old[:same:-1], new[:same:-1], strict=False)) if a != b), 0)
    told = list(difflib.unified_diff(old[same : len(old) - end], new[same : len(new) - end], n=0, lineterm=""))[2:]
    return [line[1:] for line in told if line[0] == "-"], [line[1:] for line in told if line[0] == "+"]


def own_lines(real: Document, release: str, after: bytes) -> bytes:
    """The release in the edited file; every byte before and after its lines must be as it was."""
    start, stop = lines_of(real, release)
    lines = real.data.splitlines(keepends=True)
    before, behind = b"".join(lines[:start]), b"".join(lines[stop:])
    assert after.startswith(before)
    assert after.endswith(behind)
    return after[len(before) : len(after) - len(behind)]


def test_the_shipped_file_is_what_pyyaml_writes(real: Document) -> None:
    assert canonical(real.data)
    assert len(real.releases) >= 170


def test_a_new_release_stands_at_the_end(real: Document) -> None:
    after = edited(real, NEW.release, NEW)
    assert after.startswith(real.data)
    assert after[len(real.data) :] == written([NEW])
    assert edited(parse(after, "x"), NEW.release, None) == real.data


def test_removing_takes_its_lines_and_nothing_else(real: Document) -> None:
    for release in some(real):
        start, stop = lines_of(real, release)
        lines = real.data.splitlines(keepends=True)
        assert edited(real, release, None) == b"".join([*lines[:start], *lines[stop:]]), release


def test_an_update_changes_the_lines_of_what_differs(real: Document) -> None:
    for release in some(real):
        entry = from_yaml(release, real.releases[release])
        first, _, *rest = entry.saes
        asked = replace(entry, saes=(SaeEntry("new", "new", 5.5), *rest, replace(first, l0=777)))
        after = edited(real, release, asked)
        assert canonical(own_lines(real, release, after)), release
        removed, added = diff(real.data, after)
        old = {f"    l0: {first.l0}"} if first.l0 is not None else set()
        gone = real.releases[release]["saes"][1]
        assert set(removed) == {*old, *dumped_item(gone)}, release
        assert set(added) == {"    l0: 777", "  - id: new", "    path: new", "    l0: 5.5"}, release


def dumped_item(item: dict[str, Any]) -> list[str]:
    return [f"  {line}" for line in yaml.dump([item], Dumper=DUMPER, sort_keys=False).splitlines()]


def test_keys_of_a_release_change_alone(real: Document) -> None:
    for release in some(real):
        entry = from_yaml(release, real.releases[release])
        asked = replace(entry, model="another/model", config_overrides={"fold_ln": {"deep": True}})
        after = edited(real, release, asked)
        assert canonical(own_lines(real, release, after)), release
        removed, added = diff(real.data, after)
        assert removed == [f"  model: {entry.model}"], release
        assert added == ["  model: another/model", "  config_overrides:", "    fold_ln:", "      deep: true"], release
        if release == NESTED:
            assert edited(parse(after, "x"), release, entry) == real.data


def test_what_means_the_same_is_left_as_it_is(real: Document) -> None:
    for release in some(real):
        entry = from_yaml(release, real.releases[release])
        turned = replace(entry, saes=tuple(replace(s, l0=None if s.l0 is None else float(s.l0)) for s in reversed(entry.saes)))
        assert edited(real, release, turned) is real.data
    assert edited(real, "never-heard-of", None) is real.data


# ----------------------------------------------------------------------------------------- other people's layouts

COMMENTED = """\
# The list.
%(quote)sfirst%(quote)s:   # the first one
    repo_id: a/b
    model: "m"
    conversion_func: null
    saes:
        # embeddings
        - id: 'x'
          path: px   # here
        - path: py
          id: y
          l0: 3
        # the last one
        - {id: z, path: pz}

# about the second
second:
    conversion_func: gemma_2
    model: m2
    repo_id: a/c
    saes: [{id: q, path: 7}]
# the end
"""


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("ending", ["", "\n", "\n...\n", "\n\n\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_comments_and_foreign_layouts_stay(quote: str, newline: str, ending: str, bom: bytes) -> None:
    text = (COMMENTED % {"quote": quote}).rstrip("\n") + ending
    data = bom + text.replace("\n", newline).encode()
    document = parse(data, "r.yaml")
    first = from_yaml("first", document.releases["first"])
    for saes, removed, added in (
        ((first.saes[0], replace(first.saes[1], l0=4), first.saes[2]), ["          l0: 3"], ["          l0: 4"]),
        ((first.saes[0], first.saes[2]), ["        - path: py", "          id: y", "          l0: 3"], []),
        ((*first.saes, SaeEntry("w", "pw", 5)), [], ["        - id: w", "          path: pw", "          l0: 5"]),
    ):
        after = edited(document, "first", replace(first, saes=saes))
        assert diff(data, after) == (removed, added)
        assert after.count(b"\r\n") == (after.count(b"\n") if newline == "\r\n" else 0)
    flow = edited(document, "first", replace(first, saes=(*first.saes[:2], replace(first.saes[2], l0=9))))
    assert diff(data, flow) == (["        - {id: z, path: pz}"], ["        - id: z", "          path: pz", "          l0: 9"])
    gone = edited(document, "second", None)
    assert diff(data, gone)[0] == COMMENTED.splitlines()[16:21]
    assert b"# the end" in gone
    assert b"# about the second" in gone
    new = edited(document, NEW.release, NEW)
    assert diff(data, new) == ([], written([NEW]).decode().splitlines())


def test_int_paths_stay_until_something_else_of_them_changes() -> None:
    document = parse(b"r:\n  model: m\n  repo_id: a/b\n  saes:\n  - id: a\n    path: 0\n  - id: b\n    path: 1\n", "r")
    entry = from_yaml("r", document.releases["r"])
    asked = replace(entry, saes=(replace(entry.saes[0], l0=5), replace(entry.saes[1], path="2")))
    assert edited(document, "r", asked) == (
        b"r:\n  model: m\n  repo_id: a/b\n  saes:\n  - id: a\n    path: 0\n    l0: 5\n  - id: b\n    path: '2'\n"
    )


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "# nothing yet", "---\n"])
def test_an_empty_file_gets_its_first_release(text: str) -> None:
    after = edited(parse(text.encode(), "r"), NEW.release, NEW)
    assert list(parse(after, "r").releases) == [NEW.release]
    assert after.decode().startswith(text)


def test_what_cannot_be_edited_is_refused() -> None:
    for text in ("{a: {model: m, repo_id: a/b, saes: []}}\n", "{}\n", "? a\n: {model: m, repo_id: a/b, saes: []}\n"):
        with pytest.raises(Refused, match="Registry cannot be edited"):
            edited(parse(text.encode(), "r"), NEW.release, NEW)
    twice = b"a: {model: m, repo_id: a/b, saes: []}\na: {model: m, repo_id: a/b, saes: []}\n"
    with pytest.raises(Refused, match="stands in the registry 2 times"):
        edited(parse(twice, "r"), "a", None)


@pytest.mark.parametrize(
    "old",
    [
        "r:\n- 1\n",
        "r: null\n",
        "r: |\n  text\n",
        "r: {model: m, repo_id: a/b, saes: []}\n",
        "r: {model: m,\n  repo_id: a/b, saes: []}\n",
        "r:\n  model: m\n  repo_id: a/b\n  saes:\n  - id: a\n    id: b\n    path: p\n  saes: []\n",
        "r:\n  model: m\n  repo_id: a/b\n  saes:\n  -\n    id: a\n    path: p\n",
        "r:\n  model: m\n  repo_id: a/b\n  saes:\n  - id: a\n    path: p\n  - id: a\n    path: q\n",
        "r:\n  <<: {model: m}\n  repo_id: a/b\n  saes:\n  - id: a\n    path: p\n",
    ],
)
def test_a_broken_entry_is_replaced_in_its_place(old: str) -> None:
    before, after = "first: {model: m, repo_id: a/b, saes: []}\n", "# kept\nlast: 3\n"
    document = parse(f"{before}{old}{after}".encode(), "r")
    found = edited(document, "r", replace(NEW, release="r"))
    assert found.startswith(before.encode())
    assert found.endswith(after.encode())
    assert same_meaning(from_yaml("r", parse(found, "r").releases["r"]), replace(NEW, release="r"))
    assert edited(document, "r", None) == f"{before}{after}".encode()


TEXTS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=12) | st.sampled_from(
    [
        "null",
        "1",
        "0x1",
        "~",
        "a: b",
        "- x",
        "# c",
        "...",
        "---",
        "'",
        '"',
        "yes",
        "1:30",
        "2001-01-01",
        "*x",
        "&x",
        "a\nb",
        "é",
        " ",
    ]
)
SAES = st.builds(
    SaeEntry,
    TEXTS,
    TEXTS,
    st.none() | st.integers(0, 1000) | st.floats(0, 1000),
    st.none() | st.floats(-9, 1),
    st.none() | TEXTS,
    st.none() | st.floats(0.1, 9),
)
ENTRIES = st.builds(
    Entry,
    st.sampled_from(["r", "s", "1", "null", "a b"]),
    TEXTS,
    TEXTS,
    st.none() | TEXTS,
    st.lists(SAES, max_size=4, unique_by=lambda sae: sae.id).map(tuple),
    st.dictionaries(TEXTS, TEXTS, max_size=2),
    st.dictionaries(TEXTS, TEXTS | st.booleans() | st.integers(), max_size=2),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(ENTRIES, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_any_sequence_of_edits_ends_where_it_should(entries: list[Entry], chance: random.Random) -> None:
    document = parse(b"# head\nfirst: {model: m, repo_id: a/b, saes: []}\n# tail\n", "r")
    wanted: dict[str, Entry] = {}
    for entry in entries:
        drop = chance.random() < 0.25
        wanted.pop(entry.release, None) if drop else wanted.update({entry.release: entry})
        document = parse(edited(document, entry.release, None if drop else entry), "r")
        assert edited(document, entry.release, None if drop else entry) is document.data
    found = {name: from_yaml(name, value) for name, value in document.releases.items() if name != "first"}
    assert found.keys() == wanted.keys()
    assert all(same_meaning(found[name], wanted[name]) for name in wanted)
    for name in wanted:
        document = parse(edited(document, name, None), "r")
    assert document.data == b"# head\nfirst: {model: m, repo_id: a/b, saes: []}\n# tail\n"


# ------------------------------------------------------------------------------------------------ what is no file


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"- a\n", "not a mapping"),
        (b"a: b: c\n", "mapping values are not allowed"),
        (b"a: \xff\n", "not UTF-8"),
        (b"a: 1\n---\nb: 2\n", "expected a single document"),
        (b"a: &x 1\nb: *x\n", "An alias is used here"),
        (b"a: " + b"[" * 100 + b"]" * 100, "Nested more than 64 deep"),
        (b"- " * 100_000, "Nested more than 64 deep"),
        (b"? " * 100_000, "Nested more than 64 deep"),
        (b"a: !!python/object/apply:os.system [x]\n", "could not determine a constructor"),
        (b"a: 2001-99-99\n", "month must be in 1..12"),
        (b"a: !!int ''\n", "index out of range"),
    ],
)
def test_what_cannot_be_read_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(data, "r.yaml")
    assert said in caught.value.diagnostics[0].detail


def test_a_broken_place_is_named() -> None:
    with pytest.raises(Refused) as caught:
        parse(b"a:\n  b: c: d\n", "r.yaml")
    assert str(caught.value.diagnostics[0].origin) == "r.yaml:2:7"
