"""``publish.pull_request``: only on the Hub, and one way for each repo."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest_support import GOOD, changed, complaints, release, said, write

from saesync.manifest import load

WHERE = "  huggingface: acme/gemma-saes\n"


def named(name: str, hub_id: str, *, proposed: bool | None) -> str:
    way = "" if proposed is None else f"  pull_request: {str(proposed).lower()}\n"
    folders = ("layer_{layer}/width_16k", f"{name}_{{layer}}")
    return changed(("gemma-res-acme", name), (WHERE, f"  huggingface: {hub_id}\n{way}"), folders)


def test_what_is_asked(here: Path) -> None:
    for text, asked in (
        (GOOD, False),
        (named("x", "acme/a", proposed=True), True),
        (named("x", "acme/a", proposed=False), False),
    ):
        publish = release(here, text).publish
        assert publish is not None
        assert publish.pull_request is asked
        assert publish.target == "huggingface"


def test_a_folder_has_no_pull_requests(here: Path) -> None:
    (found,) = complaints(here, changed((WHERE, "  local: ./out\n  pull_request: true\n")))
    assert said([found]) == ["Target has no pull requests @ a.yaml:31:17"]
    assert "Only the Hub has pull requests" in found.detail
    assert load(write(here, a=changed((WHERE, "  local: ./out\n  pull_request: false\n"))))


def test_it_is_true_or_false(here: Path) -> None:
    (found,) = complaints(here, named("x", "acme/a", proposed=True).replace("pull_request: true", "pull_request: 12"))
    assert str(found.origin) == "a.yaml:31:17"


def test_evidence_is_not_proposed(here: Path) -> None:
    (found,) = complaints(here, GOOD + "records: {huggingface: acme/notes, pull_request: true}\n")
    assert found.summary == "Unknown key"


@pytest.mark.parametrize(
    ("lines", "summary", "said_of_first"),
    [
        (("  license: mit\n", "  license: apache-2.0\n"), "Repository has two licenses", "under the license mit"),
        (("  private: true\n", ""), "Repository is both public and private", "as a private repository"),
    ],
)
def test_a_repo_has_one_license_and_one_visibility(here: Path, lines: tuple[str, str], summary: str, said_of_first: str) -> None:
    first, second = (
        named(name, "acme/a", proposed=None).replace("  license: mit\n", "") + more
        for name, more in zip("xy", lines, strict=True)
    )
    (found,) = complaints(here, first, second)
    assert found.summary == summary
    assert said_of_first in found.detail


def test_a_repo_is_published_to_in_one_way(here: Path) -> None:
    (found,) = complaints(here, named("x", "acme/a", proposed=None), named("y", "Acme/A", proposed=True))
    assert said([found]) == ["Repository is published to in two ways @ b.yaml:31:17"]
    assert "a.yaml:2:10" in found.detail
    assert "not by pull request" in found.detail
    (found,) = complaints(here, named("x", "acme/a", proposed=True), named("y", "acme/a", proposed=None))
    assert found.summary == "Repository is published to in two ways"
    assert "by pull request" in found.detail
    for other in (("acme/a", True), ("acme/b", None)):
        assert load(write(here, a=named("x", "acme/a", proposed=True), b=named("y", other[0], proposed=other[1])))
