"""A plan as a pull-request comment. Everything foreign is inert: no mention, link, image, HTML or marker in it works."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saesync.digest import short
from saesync.inert import code, plain
from saesync.render.fold import LAST, Line, by_release, changed_said, counted, lines_of, place_of, section_of, totals_said
from saesync.render.reasons import reason_markdown, reasons_joined
from saesync.render.review import review_markdown

MARKER = "<!-- saesync:plan -->"
"""First line: by it the comment is found again and updated in place."""

MAX_CHARACTERS = 60_000
_NOTE = 400  # room for what is said of cut parts, beside the link
_LINK_LENGTH = 600
_REASONS = 5
_LINK = re.compile(r"https?://[A-Za-z0-9.:_/%~-]{1,500}")


@dataclass(frozen=True, slots=True)
class About:
    """What the plan itself does not know: the commit it was made of, and the address of a page that holds all of it."""

    commit: str | None = None
    page: str | None = None

    def whole(self, label: str) -> str:
        """A link to the page under ``label``, words of ours; only the words where there is no page."""
        return f"[{label}]({self.page})" if self.page is not None and _LINK.fullmatch(self.page) else label


class _Budget:
    """Collects lines up to a number of characters. ``cut`` is set once anything was left out."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.lines: list[str] = []
        self.cut = False

    def add(self, line: str) -> bool:
        """Take the line in if it fits; whether it did."""
        if len(line) + 1 > self.left:
            return False
        self.left -= len(line) + 1
        self.lines.append(line)
        return True

    def leave_out(self, note: str) -> None:
        """Say what is left out. There is room for two notes."""
        self.cut = True
        self.lines.append(note)


def markdown(data: Mapping[str, Any], about: About | None = None) -> str:
    """The plan in its JSON form as GitHub Markdown, at most 60,000 characters.

    What needs review stands first, and whole if it fits at all (``review_fits``). What is cut is counted, and the page that
    holds all of it is linked.
    """
    about = about or About()
    groups = by_release(data["items"])
    lines = [line for items in groups.values() for line in lines_of(items, unfold=False)]
    lines.sort(key=lambda line: line.verb in LAST)
    end = "\n".join(_end(data, about))
    budget = _start(data, end)
    _review(budget, _review_lines(data))
    if not budget.cut:
        _table(budget, lines)
        _all_details(budget, [line for line in lines if len(line.items) > 2])
    if budget.cut:
        budget.lines.append(f"\nNot all of it fits here: {about.whole('plan.json of the run')} holds everything.")
    return "\n".join([*budget.lines, "", end]) + "\n"


def review_fits(data: Mapping[str, Any], about: About | None = None) -> bool:
    """Whether everything that needs review fits into the Markdown, so that somebody who reads it has seen all of it."""
    budget = _start(data, "\n".join(_end(data, about or About())))
    _review(budget, _review_lines(data))
    return not budget.cut


def _start(data: Mapping[str, Any], end: str) -> _Budget:
    budget = _Budget(MAX_CHARACTERS - len(end) - _NOTE - _LINK_LENGTH)
    title = ", ".join(totals_said(data["totals"], current=False)) or "nothing to do"
    for row in (MARKER, f"### saesync plan · {title}", ""):
        budget.add(row)
    return budget


def _review_lines(data: Mapping[str, Any]) -> list[str]:
    return [f"- {review_markdown(item)}" for item in data.get("review") or ()]


def _review(budget: _Budget, lines: Sequence[str]) -> None:
    """What somebody has to look at comes first, and is neither folded nor cut for anything that follows.

    Should it alone be longer than a comment can be, that is said as loudly: such a change cannot be reviewed here.
    """
    if not lines:
        return
    budget.add(f"**Needs review** ({len(lines):,})\n")
    for number, line in enumerate(lines):
        if not budget.add(line):
            budget.leave_out(f"\n**{len(lines) - number:,} more of these do not fit here. Do not approve from this text alone.**")
            return
    budget.add("")


def _all_details(budget: _Budget, folded: Sequence[Line]) -> None:
    for number, line in enumerate(folded):
        if not _details(budget, line):
            budget.leave_out(f"\n… details of {counted(len(folded) - number, 'more group')} are left out.")
            return


def _table(budget: _Budget, lines: Sequence[Line]) -> None:
    if not lines:
        return
    budget.add("| | SAEs | steps | why |\n|---|---|---|---|")
    for number, line in enumerate(lines):
        why = reasons_joined(line.items[0]["reasons"], reason_markdown, _REASONS)
        loud = line.verb in LAST
        row = [f"**{line.symbol}**" if loud else _sign(line), _label(line), f"**{line.what}**" if loud else line.what, why]
        if not budget.add(f"| {' | '.join(row)} |"):
            left = lines[number:]
            budget.leave_out(f"\n… and {counted(len(left), 'more line')} ({sum(len(one.items) for one in left):,} entries).")
            return


def _sign(line: Line) -> str:
    """Signs that Markdown would read as a list, a rule or a strike-through are written as references."""
    return {"+": "+", "-": "&minus;", "~": "&#126;", ">": "&gt;"}.get(line.symbol, line.symbol)


def _label(line: Line) -> str:
    first, last = line.items[0], line.items[-1]
    if first["id"] is None:
        what = "README.md" if line.verb == "card" else section_of(first) or place_of(first)
        return f"{code(first['release'])} {code(what)}" if what else code(first["release"])
    if len(line.items) == 1:
        return code(f"{first['release']}/{first['id']}")
    return f"{code(first['release'])} {code(first['id'])} … {code(last['id'])} ({len(line.items):,})"


def _details(budget: _Budget, line: Line) -> bool:
    """All SAEs of a folded line, as far as there is room; False when not even the first fits."""
    release = line.items[0]["release"]
    title = f"{line.what}: all {len(line.items):,} SAEs of"
    head = [f"\n<details><summary>{title} {_summary(release)}</summary>\n", "| SAE | source | hook |", "|---|---|---|"]
    tail = "\n</details>"
    rows = [_detail(item) for item in line.items]
    room = budget.left - sum(len(row) + 1 for row in head) - len(tail) - 80
    shown = 0
    while shown < len(rows) and room > len(rows[shown]):
        room -= len(rows[shown]) + 1
        shown += 1
    if shown == 0:
        return False
    for row in [*head, *rows[:shown]]:
        budget.add(row)
    if shown < len(rows):
        budget.cut = True
        budget.add(f"\n… and {len(rows) - shown:,} more.")
    budget.add(tail)
    return True


def _summary(release: str) -> str:
    """A name inside an HTML summary, where Markdown's code spans are not processed."""
    return "<code>" + "".join(c if c.isalnum() else f"&#{ord(c)};" for c in plain(release)) + "</code>"


def _detail(item: Mapping[str, Any]) -> str:
    source = item.get("source")
    if source is None:
        where = ""
    elif source["repo"] is None:
        where = code(source["path"])
    else:
        where = f"{code(source['repo'] + '@' + short(source['revision'] or 'unpinned'))} {code(source['path'] or '.')}"
    hook = code(item["hook"]) if item.get("hook") else ""
    return f"| {code(item['id'])} | {where} | {hook} |"


def _end(data: Mapping[str, Any], about: About) -> list[str]:
    current = data["totals"].get("current", 0)
    said = [f"{counted(current, 'SAE')} up to date.\n"] if current else []
    if data.get("changed"):
        said.append(f"{changed_said(data['changed'], code)}\n")
    if data.get("untrusted") and not data.get("complete", True):
        said.append("Not everything could be seen from here without a token: what is unknown is not vouched for.\n")
    unmeasured = [release["name"] for release in data["releases"] if release["manifest"] and not release["validate"]]
    loose = [release["name"] for release in data["releases"] if not release["pinned"]]
    for names, what in ((unmeasured, "Not measured (no `validate` section)"), (loose, "Source not pinned to a commit")):
        if names:
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            said.append(f"{what}: {', '.join(map(code, names[:10]))}{more}.\n")
    digest = code(short(str(data["digest"])))
    of = f" of commit {code(short(about.commit))}" if about.commit is not None else ""
    return [*said, f"<sub>Digest {digest}{of}. Apply refuses if manifests or targets change before it runs.</sub>"]
