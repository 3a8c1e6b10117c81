"""Nothing that somebody else wrote acts in a comment: read back with a real CommonMark and GitHub-table parser."""

from __future__ import annotations

import contextlib
import copy
import html
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from ci_support import a_plan
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from planning import World, published, release

from saesync.ci import form, verdicts
from saesync.ci.check import Digests
from saesync.ci.event import Run
from saesync.ci.pulls import Changes
from saesync.digest import digest_bytes
from saesync.inert import code
from saesync.model import WEIGHTS_FILE, RegisterSpec
from saesync.planfile import digests, plan_json
from saesync.reason import Reason, ReasonCode

PAGE = "https://github.com/acme/saes/actions/runs/77"
RUN = Run("acme/saes", "main", "a" * 40, "acme/saes", "p", "pull_request", "success", PAGE)
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
BLOCKS = re.compile(
    r"<!-- saesync:plan -->\s*|</details>\s*|"
    r"<details><summary>[a-z, ]+: all [\d,]+ SAEs of <code>(\w|&#\d+;)*</code></summary>\s*",
)
TAGS = {"<code>", "</code>", "<sub>", "</sub>"}
STRUCTURE = {
    "heading_open", "paragraph_open", "bullet_list_open", "list_item_open", "table_open", "thead_open", "tbody_open", "tr_open",
    "th_open", "td_open", "inline", "html_block",
}  # fmt: skip
PLAIN = {"text", "code_inline", "strong_open", "strong_close", "link_open", "link_close", "html_inline", "softbreak"}
ACTIVE = re.compile(r"@\w|#\d|://|www\.|GH-\d|:\w+:|\$")
NASTY = (
    "a|b`c<img src=x>@everyone --><!-- saesync:plan -->![i](http://evil)\u202e\x1b[31m\n# h",
    "`", "``", "\\`", "|", "\\|", "\\", "&lt;b&gt;", "&#64;everyone", "@acme/team", "#1", "GH-1", "acme/saes#1", "https://evil.example",
    "www.evil.example", "<https://evil.example>",
    "me@evil.example", "[a](b)", "![a](b)", "[a]: http://evil", "<!--", "-->", "<b>",
    "</code><b>", "</details>", "<details open>", "~~a~~", "**a**", "__a__", "$`a`$", "$$a$$", ":tada:", "\n\n# h", "\r\n---\r\n",
    "- [ ] a", "> a", "\t a", "```\na\n```", "\u2028# h",
    "\u200b@everyone", "\ufeff", "\u2066a\u2069", "e\u0301" * 40, "", " ", "x" * 300,
    "<script>alert(1)</script>", "javascript:alert(1)", "=1+1", "[^1]", "[!WARNING]", "a\x00b",
)  # fmt: skip
PIECES = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=12)), min_size=1, max_size=4).map("".join)
TEXTS = PIECES.map(lambda text: text[:3000].encode("utf-8", "ignore").decode("utf-8"))


def flat(tokens: Iterable[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from flat(token.children or ())


def outside_of_code(line: Token) -> str:
    """The text of one line that is not in a code element."""
    inside, found = False, []
    for token in line.children or ():
        if token.type == "html_inline":
            inside = {"<code>": True, "</code>": False}.get(token.content, inside)
        elif token.type == "text" and not inside:
            found.append(token.content)
    return "".join(found)


def check_inert(text: str, headings: int = 1) -> None:
    """Only our own links, tags and structure."""
    tokens = PARSER.parse(text)
    assert len(text) <= 60_000
    assert text.count("<!--") == 1
    assert text.isprintable() or all(line.isprintable() for line in text.split("\n"))
    assert sum(token.type == "heading_open" for token in tokens) == headings
    for token in tokens:
        assert token.type in STRUCTURE or token.type.endswith("_close"), token
        assert token.type != "html_block" or BLOCKS.fullmatch(token.content), token.content
        assert token.type != "inline" or not ACTIVE.search(outside_of_code(token)), outside_of_code(token)
    for token in flat(tokens):
        assert token.type != "link_open" or token.attrs == {"href": PAGE}, token
        assert token.type != "html_inline" or token.content in TAGS, token
        if token.type in ("text", "code_inline", "html_block"):  # after numeric references are what they stand for
            assert all(line.isprintable() for line in html.unescape(token.content).split("\n")), token
        if token.type not in STRUCTURE and not token.type.endswith("_close"):
            assert token.type in PLAIN, token


def reasons(text: str) -> list[dict[str, Any]]:
    """Every wording, with the text wherever it takes data, and one of a newer saesync."""
    names = (
        "location", "detail", "release", "file", "recorded", "found", "path", "repo", "revision", "asked", "now", "name",
        "before", "after", "metric", "id", "section", "what", "key", "value", "at",
    )  # fmt: skip
    data = dict.fromkeys(names, text) | {"files": 3, "bound": 0.7, "known": 2, "stderr": 0.1}
    return [{"code": each, "data": data} for each in [*map(str, ReasonCode), text]]


def with_text(text: str) -> dict[str, Any]:
    """A plan with the text in every place that is free, each reason in a line of its own."""
    plan = a_plan("layer_0", "layer_1", "layer_2", "layer_3")
    for n, item in enumerate(plan["items"]):
        item |= {"release": text, "section": text, "id": None if item["id"] is None else f"{text}{n}"}
        item["basis"]["asked.target"] = f"huggingface:{text}"
        item["hook"] = text
        if item.get("source"):
            item["source"] = {"repo": text, "revision": text, "path": text, "format": text}
    for reason in reasons(text):
        plan["items"].append({**plan["items"][0], "id": json.dumps(reason)[:20] + text, "verb": "held", "reasons": [reason]})
    for one in plan["releases"]:
        one |= {"name": text, "manifest": text, "location": text, "registry": text, "validate": False}
    kinds = ("gone", "retired", "new_target", "public", "new_owner", "lowered", "trust", "native", text)
    data = dict.fromkeys(("manifest", "section", "value", "before", "after", "what", "name"), text)
    plan["review"] = [{"kind": kind, "release": text, "data": data, "origin": [text, 1, 2, 3]} for kind in kinds]
    plan["changed"] = {kind: [text] for kind in ("added", "modified", "deleted")} | {"renamed": [[text, text]], "unchanged": 3}
    plan["saesync"] = plan["asked"]["paths"] = text
    plan["digest"] = digests(plan).whole
    return plan


@settings(max_examples=60, deadline=None)
@given(TEXTS)
@example(NASTY[0])
@example("".join(NASTY))
def test_no_text_acts(text: str) -> None:
    plan = with_text(text)
    plan["asked"]["paths"] = []
    assert form.wrong(plan) is None
    verdict = verdicts.planned(RUN, plan)
    check_inert(verdict.body)
    assert "Needs review** (9)" in verdict.body


def test_plans_as_saesync_writes_them_pass() -> None:
    """The form must not be narrower than the planner: published, drifted, failing, orphaned, unknown, registered."""
    world = published(release("res", ["layer_0", "layer_1", "layer_2"]))
    world.releases = [
        release("res", ["layer_0", "layer_1"], register=RegisterSpec("decoderesearch/SAELens")),
        release("new", ["layer_0"], location="acme/new", register=RegisterSpec("decoderesearch/SAELens", partial=True)),
        release("hidden", ["layer_0"], location="acme/hidden"),
    ]
    fresh = World(world.releases)
    world.observed |= {place: seen for place, seen in fresh.observed.items() if place not in world.observed}
    world.wanted |= {address: one for address, one in fresh.wanted.items() if address not in world.wanted}
    world.put(files={**world.at().files, f"layer_1/{WEIGHTS_FILE}": digest_bytes(b"changed")})
    world.put("acme/hidden", unknown=Reason(ReasonCode.NOT_VISIBLE, {"location": "acme/hidden", "detail": "needs a token"}))
    plan = json.loads(json.dumps(plan_json(world.plan())))
    assert form.wrong(plan) is None
    assert {"held", "orphaned", "unknown", "publish", "current"} <= {item["verb"] for item in plan["items"]}
    verdict = verdicts.planned(RUN, plan)
    check_inert(verdict.body)
    assert verdict.conclusion == "neutral"
    assert "SAELens" in verdict.body, verdict.body


@pytest.mark.parametrize("text", NASTY)
def test_nasty_texts(text: str) -> None:
    check_inert(verdicts.planned(RUN, with_text(text)).body)
    check_inert(verdicts.unverified(RUN, Changes((text,) * 30, whole=False)).body)
    cells = PARSER.parse(f"| a | b |\n|---|---|\n| {code(text)} | c |\n")
    assert [token.content for token in cells if token.type == "inline"][-1] == "c"  # the cell ends where we end it


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=40), st.booleans())
def test_names_of_files_do_not_act(paths: list[str], whole: bool) -> None:
    check_inert(verdicts.unverified(RUN, Changes(tuple(paths), whole)).body)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TEXTS, st.just("0" * 64), max_size=5))
def test_digests_survive_and_stay_in_their_block(releases: dict[str, str]) -> None:
    digests = Digests("a" * 40, "b" * 64, releases)
    tokens = PARSER.parse(digests.text())
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close", "fence"]
    assert Digests.read(digests.text()) == digests


def test_more_digests_than_a_check_can_hold() -> None:
    digests = Digests("a" * 40, "b" * 64, {f"release-{n}": "0" * 64 for n in range(2000)})
    text = digests.text()
    kept = Digests.read(text)
    assert len(text) <= 65_535
    assert kept is not None
    assert f"{2000 - len(kept.releases):,} more releases have no room here." in text
    assert kept.releases.items() <= digests.releases.items()


@pytest.mark.parametrize(
    "text", [None, 3, "", "```json\n{}\n```", '```json\n{"form": "saesync-plan-check/1", "releases": []}\n```']
)
def test_texts_that_hold_no_digests(text: Any) -> None:
    assert Digests.read(text) is None


# ---------------------------------------------------------------------------------------------- forms, made up at random

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**20) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, entry in entries:
        yield from places(entry, (*path, name))


WHOLE = with_text("x") | {"asked": {}}
PLACES = [path for path in places(WHOLE) if path]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
def test_what_passes_can_be_rendered(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """Any change to a plan is refused, or shown without an error and without acting."""
    plan = copy.deepcopy(WHOLE)
    for path, value in changes:
        at: Any = plan
        try:
            for name in path[:-1]:
                at = at[name]
            at[path[-1]] = value
        except (LookupError, TypeError):  # an earlier change took the place away
            return
    with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
        plan["digest"] = digests(plan).whole
    wrong = form.wrong(plan)
    if wrong is None:
        verdict = verdicts.planned(RUN, plan)
        check_inert(verdict.body)
        assert verdict.digests is not None
        assert Digests.read(verdict.digests.text()) == verdict.digests
    else:
        check_inert(verdicts.unavailable(RUN, f"The run's plan.json is not shown: {wrong}.").body)
