"""Upstream's rules, on the file as it would be after an edit; and titles under which a change reaches users."""

from __future__ import annotations

from dataclasses import replace

import pytest

from saesync.errors import Refused
from saesync.registry.document import Document, edited, parse
from saesync.registry.entry import Entry, SaeEntry, from_yaml
from saesync.registry.rules import ADD, REMOVE, UPDATE, check, check_title, title_of, well_formed

NEW = Entry(
    "my-res", "acme/saes", "m", None, (SaeEntry("a", "a", neuronpedia="m/0-res-x"), SaeEntry("b", "b", neuronpedia="m/1-res-x"))
)


def checked(before: Document, entry: Entry) -> list[tuple[str, str, int | None]]:
    """Summary, detail and line of everything that is wrong once the entry is in the file."""
    after = parse(edited(before, entry.release, entry), "r.yaml")
    found = check(after, entry.release, entry)
    return [(each.summary, each.detail, each.origin.line if each.origin else None) for each in found]


def test_the_real_file_with_a_good_entry_is_fine(real: Document) -> None:
    assert checked(real, NEW) == []


def test_every_real_release_keeps_the_rules(real: Document) -> None:
    for release in list(real.releases)[::20]:
        assert check(real, release, from_yaml(release, real.releases[release])) == ()


def test_a_neuronpedia_id_of_somebody_else_is_named(real: Document) -> None:
    taken = replace(NEW, saes=(NEW.saes[0], replace(NEW.saes[1], neuronpedia="gpt2-small/8-res-jb")))
    (summary, detail, line), = checked(real, taken)  # fmt: skip
    assert summary == "Neuronpedia id is taken"
    assert "belongs to gpt2-small-res-jb/blocks.8.hook_resid_pre already" in detail
    assert line == real.data.count(b"\n") + 11


def test_an_id_twice_in_the_release_itself(real: Document) -> None:
    same = replace(NEW, saes=(NEW.saes[0], replace(NEW.saes[1], neuronpedia="m/0-res-x")))
    assert [found[0] for found in checked(parse(b"", "r"), same)] == ["Neuronpedia id is taken"]
    twice = replace(NEW, saes=(NEW.saes[0], replace(NEW.saes[0], neuronpedia=None)))
    found = check(parse(b"", "r"), "my-res", twice)
    assert [(each.summary, each.origin) for each in found] == [("Id stands twice", None)]
    assert "a stands 2 times in my-res" in found[0].detail


def test_keys_that_stand_twice_anywhere_are_named() -> None:
    before = parse(b"other:\n  model: m\n  repo_id: a/b\n  saes:\n  - id: x\n    path: p\n    id: y\n", "r.yaml")
    assert checked(before, NEW) == [
        ("Key stands twice", "id stands in the same mapping on line 5; the second silently wins. Remove one.", 7)
    ]


@pytest.mark.parametrize(
    ("neuronpedia", "fits"),
    [
        ("gpt2-small/8-res-jb", True),
        ("gemma-2-2b/12-gemmascope-res-16k__l0-82", True),
        ("pythia-70m-deduped/e-att-sm", True),
        ("gpt2-small", False),
        ("gpt2-small/res-jb", False),
        ("gpt2-small/8", False),
        ("gpt2-small/8-", False),
        ("gpt2-small/8-res/jb", False),
        ("/8-res-jb", False),
        ("gpt2 small/8-res-jb", False),
        ("https://neuronpedia.org/gpt2-small/8-res-jb", False),
    ],
)
def test_the_shape_of_neuronpedia_ids(neuronpedia: str, fits: bool) -> None:
    assert well_formed(neuronpedia) is fits
    found = checked(parse(b"", "r"), replace(NEW, saes=(replace(NEW.saes[0], neuronpedia=neuronpedia),)))
    assert [each[0] for each in found] == ([] if fits else ["Neuronpedia id is malformed"])


def test_titles_ship() -> None:
    for verb, word in ((ADD, "feat: "), (UPDATE, "fix: "), (REMOVE, "fix: ")):
        title = title_of("my-res", verb)
        assert title.startswith(word)
        assert "my-res" in title
        check_title(title)
    check_title("fix(registry): correct l0 of my-res")


@pytest.mark.parametrize(
    "title", ["chore: add my-res", "docs: x", "Add my-res", "feat:", "feat: ", "feat my-res", "", "feat!: x", "feat: a\nb"]
)
def test_other_titles_are_refused(title: str) -> None:
    with pytest.raises(Refused, match="Title never ships"):
        check_title(title)
