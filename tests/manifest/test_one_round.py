"""Errors that do not depend on each other are told in one round, and one mistake is told once."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest_support import GOOD, changed, complaints, said

AXES = "    layer: {first: 0, last: 25}\n"


def test_every_key_that_is_missing_is_told(here: Path) -> None:
    found = complaints(here, "apiVersion: saesync/v1\n")
    assert [each.detail.split()[0] for each in found] == ['"release"', '"model"', '"saes"', "the"]
    assert {str(each.origin) for each in found} == {"a.yaml:1:1"}


def test_every_key_that_many_saes_lack_is_told_once(here: Path) -> None:
    formats = ["goodfire_tied", "mistudio_export", "mistudio_export"]
    rows = "  for_each:\n" + "".join(f"    - {{layer: {layer}, f: {name}}}\n" for layer, name in enumerate(formats))
    text = changed(("  for_each:\n" + AXES, rows), ("format: goodfire", 'format: "{f}"'))
    details = [each.detail for each in complaints(here, text)]
    assert [detail.split()[0] for detail in details] == ['"threshold"', '"k"', '"normalize_activations"', '"b_dec"']
    assert details[0].endswith("calibrated on data; the file does not hold it.")  # what an option is, is said, too


def test_wrong_values_of_for_each_hide_nothing_else(here: Path) -> None:
    text = changed(
        (AXES, "    layer: {first: 5, last: 4}\n    seed: {first: 2, last: 1}\n    except: [{seeed: 1}]\n"),
        ("id: layer_{layer}", "id: layer_{leyer}_{seed}"),
        ("format: goodfire", "format: goodfyre"),
    )
    assert said(complaints(here, text)) == [
        "Range runs backwards @ a.yaml:10:29",
        "Range runs backwards @ a.yaml:11:28",
        "Unknown placeholder @ a.yaml:12:15",
        "Unknown placeholder @ a.yaml:13:7",
        "Unknown value @ a.yaml:19:13",
    ]


def test_formats_that_do_not_fit_hide_nothing_else(here: Path) -> None:
    text = changed((AXES, "    layer: [a, b]\n"), ("hook: blocks.{layer}", "hook: blocks.{layer:d}"), ("license:", "licence:"))
    assert said(complaints(here, text)) == [
        "Placeholder does not fit @ a.yaml:12:9",
        "Placeholder does not fit @ a.yaml:16:11",
        "Unknown key @ a.yaml:31:3",
    ]


def test_more_saes_than_fit_hide_nothing_else(here: Path) -> None:
    found = complaints(here, changed((AXES, "    layer: {first: 0, last: 30000}\n"), ("license:", "licence:")))
    assert said(found) == ["Too many SAEs @ a.yaml:9:3", "Unknown key @ a.yaml:31:3"]
    assert found[0].detail.endswith("Move some to another folder.")


def test_a_misspelt_for_each_is_the_only_mistake(here: Path) -> None:
    assert said(complaints(here, changed(("  for_each:", "  foreach:")))) == ["Unknown key @ a.yaml:9:3"]


def test_a_key_in_the_wrong_place_is_not_missing_from_the_right_one(here: Path) -> None:
    hook = "  hook: blocks.{layer}.hook_resid_post\n"
    (found,) = complaints(here, changed((hook, ""), ("    format:", "  " + hook + "    format:")))
    assert found.detail == '"hook" is not a key of saes.source. It is a key of saes.'


def test_a_key_of_another_section_is_no_misspelling(here: Path) -> None:
    found = complaints(here, GOOD + "require: {}\ntokens: 1\n")
    assert [each.detail for each in found] == [
        '"require" is not a key of the manifest. It is a key of validate.',
        '"tokens" is not a key of the manifest. It is a key of saes.train and of validate.',
    ]


def test_what_stands_twice_is_named(here: Path) -> None:
    (found,) = complaints(here, changed((AXES, "    layer: [7, 8, 9, 8]\n")))
    assert str(found.origin) == "a.yaml:10:22"
    assert found.detail == "saes.for_each.layer[3] is the number 8, which stands already at a.yaml:10:16. Remove one of them."


def test_all_that_stands_twice_is_named(here: Path) -> None:
    found = complaints(here, changed((AXES, "    layer: [7, 8, 7, 8, 7]\n")))
    assert said(found) == [f"Value is out of range @ a.yaml:10:{column}" for column in (19, 22, 25)]
    assert [each.detail.split("already at ")[1] for each in found] == [
        f"a.yaml:10:{column}. Remove one of them." for column in (13, 16, 13)
    ]


def test_a_value_is_told_every_rule_it_breaks(here: Path) -> None:
    """Also where one SAE of the template breaks one rule, and another SAE another."""
    rows = "    - {layer: 0, name: /a}\n    - {layer: 1, name: 'b:'}\n    - {layer: 2, name: /c}\n"
    text = changed((AXES, rows), ("id: layer_{layer}/width_16k", 'id: "{name}"'), ("license: mit", "license: MIT" + "t" * 200))
    found = complaints(here, text)
    assert [each.detail for each in found[:2]] == [
        '"/a" does not do for saes.id: an id is a relative path: it does not begin with `/`.'
        " The value stands at a.yaml:10:24. The same goes for 1 other SAE of this template.",
        '"b:" does not do for saes.id: an id has no backslash, no control or invisible characters, and none of `<>:"|?*#%{}`.'
        " The value stands at a.yaml:11:24.",
    ]
    assert [each.summary for each in found[2:]] == ["Value is out of range", "Invalid value"]


@pytest.mark.parametrize(
    ("value", "rules"),
    [
        ("a/b/c", ["a Hub id looks like `owner/name`"]),
        ("gpt2", ["a repository to write to has an owner: `owner/name`"]),
        ("acme/x--y.git", ["a Hub id holds no `--` and no `..`", "the name of a repository does not end with `.git`"]),
    ],
)
def test_rules_do_not_say_the_same_in_other_words(here: Path, value: str, rules: list[str]) -> None:
    found = complaints(here, changed(("huggingface: acme/gemma-saes", f"huggingface: {value}")))
    assert [each.detail for each in found] == [f'"{value}" does not do for publish.huggingface: {rule}.' for rule in rules]


def test_equal_rows_are_not_called_equal_ids(here: Path) -> None:
    text = changed((AXES, "    - {layer: 0}\n    - &r {layer: 1}\n    - {layer: 0}\n    - *r\n"))
    assert said(complaints(here, text)) == ["Rows are equal @ a.yaml:12:7", "Rows are equal @ a.yaml:11:10"][::-1]


def test_an_unknown_placeholder_that_is_all_of_a_value_is_no_value(here: Path) -> None:
    text = changed(
        (AXES, "    - {layer: 0}\n    - {layer: 1}\n"), ("format: goodfire", 'format: "{f}"'), ("license: mit", "license: MIT")
    )
    assert said(complaints(here, text)) == ["Unknown placeholder @ a.yaml:18:13", "Invalid value @ a.yaml:32:12"]


def test_line_ends_in_a_value_are_shown_as_such(here: Path) -> None:
    (found,) = complaints(here, changed(("license: mit", "license: |\n    mit\n")))
    assert found.detail == '"mit\\n" does not do for publish.license: a license id is in lower case, without spaces.'


def test_what_is_wrong_with_single_values_hides_nothing_else(here: Path) -> None:
    text = changed(
        ("tokens: 204800", "tokens: 204800\n  tokens: 1"),
        ("{min: 0.70}", "{min: .nan}"),
        ("format: goodfire", "format: goodfyre"),
        ("license: mit", "<<: {private: true}\n  license: !!str mit\n  license: mit"),
    )
    assert said(complaints(here, text)) == [
        "Unknown value @ a.yaml:17:13",
        "Duplicate key @ a.yaml:24:3",
        "Number is out of range @ a.yaml:27:31",
        "Merge keys are not used @ a.yaml:32:3",
        "Tags are not used @ a.yaml:33:12",
        "Duplicate key @ a.yaml:34:3",
    ]


def test_what_was_wrong_before_the_file_broke_off_is_told_too(here: Path) -> None:
    text = changed(("tokens: 204800", "tokens: 204800\n  tokens: 1"), ("license: mit", "license: 'mit"))
    assert said(complaints(here, text)) == ["Duplicate key @ a.yaml:24:3", "Not YAML @ a.yaml:32:12"]


@pytest.mark.parametrize(
    ("change", "place", "detail"),
    [
        (("license: mit", "license:mit"), "31:3", "No `: ` follows this key."),
        (("tokens: 204800", "tokens:204800"), "23:3", "No `: ` follows this key."),
        (("license: mit", "license\uff1a mit"), "31:3", "No `: ` follows this key."),
        (("l0: {max: 150}", "l0: {max: 150"), "27:9", "What begins here is never closed"),
        (("l0: {max: 150}", "l0: {max: [\n      1,\n      2}"), "29:8", "The parser says"),
        (("license: mit", 'license: "mit'), "31:12", "What begins here is never closed"),
    ],
)
def test_syntax_errors_are_told_where_they_are(here: Path, change: tuple[str, str], place: str, detail: str) -> None:
    (found,) = complaints(here, changed(change))
    assert str(found.origin) == f"a.yaml:{place}"
    assert found.detail.startswith(detail)


@pytest.mark.parametrize(
    ("for_each", "place", "others"),
    [
        (
            '    - {layer: 0, h: a}\n    - {layer: 1, h: "?"}\n    - {layer: 2, h: "?"}\n',
            "a.yaml:11:21",
            " The same goes for 1 other",
        ),
        ('    layer: [0, 1]\n    h: ["?"]\n', "a.yaml:11:9", ""),
    ],
)
def test_a_wrong_value_of_a_row_is_shown_where_it_stands(here: Path, for_each: str, place: str, others: str) -> None:
    (found,) = complaints(here, changed((AXES, for_each), ("hook: blocks.{layer}.hook_resid_post", 'hook: "{h}"')))
    assert found.summary == "Invalid value"
    assert found.detail.startswith('"?" does not do for saes.hook')
    assert f"The value stands at {place}.{others}" in found.detail


def test_of_many_errors_the_others_are_counted(here: Path) -> None:
    found = complaints(here, GOOD + "  license: mit\n" * 300)
    assert len(found) == 101
    assert found[-1].detail == "a.yaml has 200 more errors. Fix those shown first."
