"""The marked block that each release owns in a README. All text outside of it belongs to people and is kept byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from saesync.digest import digest_bytes, short

_MARKER = re.compile(r"^[ \t]*<!--[ \t]*saesync:(?P<kind>begin|end)[ \t]+(?P<release>\S+)[ \t]*-->[ \t]*\r?$", re.MULTILINE)
_FRONT = re.compile(r"^<!-- saesync:front (?P<json>\{.*\}) -->\r?$", re.MULTILINE)
_MAX_VALUES = 100
_TEXT = "text"  # in the note: the digest of the text behind it


def begin(release: str) -> str:
    """The line a block begins with."""
    return f"<!-- saesync:begin {_name(release)} -->"


def end(release: str) -> str:
    """The line a block ends with."""
    return f"<!-- saesync:end {_name(release)} -->"


def _name(release: str) -> str:
    """A release's name as it stands in markers: ordinary names as they are, others without anything that ends a comment."""
    return quote(release, safe="")


def find(body: str, release: str) -> tuple[int, int] | None:
    """Where the release's one well-formed block stands, both marker lines included.

    None without one: no markers, one of a pair missing, in the wrong order, twice, or another release's marker between.
    """
    markers = list(_MARKER.finditer(body))
    own = [at for at, marker in enumerate(markers) if marker["release"] == _name(release)]
    if len(own) != 2 or own[1] != own[0] + 1:
        return None
    first, last = markers[own[0]], markers[own[1]]
    return (first.start(), last.end()) if (first["kind"], last["kind"]) == ("begin", "end") else None


def put(body: str, release: str, text: str | None) -> str:
    """``body`` with the release's block replaced, added at the end, or taken out (``text`` None).

    Damaged markers are taken out and the text between them stays: nothing that could be somebody's is lost.
    """
    block = None if text is None else f"{begin(release)}\n{text.strip()}\n{end(release)}"
    place = find(body, release)
    if place is not None:
        rest = body[place[1] :]
        return body[: place[0]] + (block if block is not None else "") + rest
    body = _without_markers(body, release)
    if block is None:
        return body
    gap = "\n\n" if body and not body.endswith("\n") else "\n" if body.strip() else ""
    return f"{body}{gap}{block}\n"


def _without_markers(body: str, release: str) -> str:
    return _MARKER.sub(lambda marker: "" if marker["release"] == _name(release) else marker[0], body)


def noted(front: Mapping[str, Any], text: str) -> str:
    """A block's text behind a comment that remembers what the block put into the front matter, so that it can be taken out again,
    and a digest of the text, so that an edit is seen."""
    note = json.dumps({**front, _TEXT: _digest(text)}, sort_keys=True)
    note = note.replace("<", "\\u003c").replace(">", "\\u003e").replace("--", "-\\u002d")
    return f"<!-- saesync:front {note} -->\n\n{text}"


def stands(readme: str, release: str) -> bool:
    """Whether a README holds the release's block as it was written. A block that notes no digest is not compared."""
    place = find(readme, release)
    if place is None:
        return False
    block = readme[slice(*place)]
    note = _FRONT.search(block)
    recorded = _note(note).get(_TEXT)
    return note is None or recorded is None or recorded == _digest(block[note.end() : block.rindex("<!--")])


def _digest(text: str) -> str:
    """Identity of a text, whatever its line ends."""
    lines = (line.rstrip() for line in text.strip().splitlines())
    return short(digest_bytes("\n".join(lines).encode()).sha256 or "")


def _note(found: re.Match[str] | None) -> dict[str, Any]:
    """What a note says; empty when it is missing or no JSON object."""
    try:
        value = json.loads(found["json"]) if found else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def noted_front(text: str) -> dict[str, list[str]]:
    """What a block's note says; empty when it is missing or not of the form ``noted`` writes."""
    return {
        name: [entry for entry in entries[:_MAX_VALUES] if isinstance(entry, str)]
        for name, entries in _note(_FRONT.search(text)).items()
        if isinstance(entries, list)
    }


def noted_elsewhere(body: str, release: str) -> dict[str, list[str]]:
    """What the notes outside of the release's own block say, together."""
    place = find(body, release)
    rest = body if place is None else body[: place[0]] + body[place[1] :]
    found: dict[str, list[str]] = {}
    for note in _FRONT.finditer(rest):
        for name, values in noted_front(note[0]).items():
            found.setdefault(name, []).extend(values)
    return found
