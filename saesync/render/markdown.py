"""A plan as a pull-request comment. Everything foreign is inert: no mention, link, image, HTML or marker in it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saesync.digest import short
from saesync.inert import code, plain
from saesync.render.fold import LAST, Line, by_release, counted, lines_of, place_of, section_of, totals_said
from saesync.render.reasons import reason_markdown, reasons_joined

MARKER = "<!-- saesync:plan -->"
"""First line: by it the comment is found again and updated in place."""

MAX_CHARACTERS = 60_000
_END = 2_000
_DETAILS = 0.9
_REASONS = 5


class _Budget:
    """Collects lines up to a number of characters."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.lines: list[str] = []

    def add(self, line: str) -> bool:
        """Take the line in if it fits; whether it did."""
        if len(line) + 1 > self.left:
            return False
        self.left -= len(line) + 1
        self.lines.append(line)
        return True


def markdown(data: Mapping[str, Any]) -> str:
    """The plan in its JSON form as GitHub Markdown, at most 60,000 characters; what is cut is counted."""
    groups = by_release(data["items"])
    lines = [line for items in groups.values() for line in lines_of(items, unfold=False)]
    lines.sort(key=lambda line: line.verb in LAST)
    budget = _Budget(MAX_CHARACTERS - _END)
    for row in (MARKER, f"### saesync plan · {', '.join(totals_said(data['totals'], current=False)) or 'nothing to do'}", ""):
        budget.add(row)
    _table(budget, lines)
    folded = [line for line in lines if len(line.items) > 2]
    for line in folded:
        if not _details(budget, line):
            budget.lines.append(f"\n… details of {counted(len(folded) - folded.index(line), 'more group')} are left out.")
            break
    return "\n".join([*budget.lines, "", *_end(data)]) + "\n"


def _table(budget: _Budget, lines: Sequence[Line]) -> None:
    if not lines:
        return
    budget.add("| | SAEs | steps | why |")
    budget.add("|---|---|---|---|")
    for number, line in enumerate(lines):
        why = reasons_joined(line.items[0]["reasons"], reason_markdown, _REASONS)
        loud = line.verb in LAST
        row = [f"**{line.symbol}**" if loud else _sign(line), _label(line), f"**{line.what}**" if loud else line.what, why]
        if not budget.add(f"| {' | '.join(row)} |"):
            left = lines[number:]
            budget.lines.append(f"\n… and {counted(len(left), 'more line')} ({sum(len(one.items) for one in left):,} entries).")
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


def _end(data: Mapping[str, Any]) -> list[str]:
    current = data["totals"].get("current", 0)
    said = [f"{counted(current, 'SAE')} up to date.\n"] if current else []
    unmeasured = [release["name"] for release in data["releases"] if release["manifest"] and not release["validate"]]
    loose = [release["name"] for release in data["releases"] if not release["pinned"]]
    for names, what in ((unmeasured, "Not measured (no `validate` section)"), (loose, "Source not pinned to a commit")):
        if names:
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            said.append(f"{what}: {', '.join(map(code, names[:10]))}{more}.\n")
    digest = code(short(str(data["digest"])))
    return [*said, f"<sub>Digest {digest}. Apply refuses if manifests or targets change before it runs.</sub>"]
