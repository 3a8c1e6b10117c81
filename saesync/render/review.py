"""One wording per kind of review item; foreign text stands in ``Quoted``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from saesync.inert import code, plain
from saesync.render.reasons import Data, Parts, Quoted
from saesync.review import ReviewKind


def _value(value: Any) -> Quoted:
    if isinstance(value, bool):
        return Quoted("true" if value else "false")
    return Quoted(f"{value:.6g}" if isinstance(value, float) else value)


def _target(data: Data) -> Parts:
    before = data.get("before")
    was = (", before: ", Quoted(before)) if before else ()
    return ("new target of ", Quoted(data.get("section")), ": ", Quoted(data.get("value")), *was)


def _lowered(data: Data) -> Parts:
    after = data.get("after")
    now: Parts = ("dropped",) if after is None else (_value(after),)
    return ("lowered requirement: ", Quoted(data.get("name")), " ", _value(data.get("before")), " → ", *now)


_WORDS: Mapping[ReviewKind, Callable[[Data], Parts]] = MappingProxyType(
    {
        ReviewKind.GONE: lambda data: (
            "in no manifest any more (",
            Quoted(data.get("manifest")),
            "): its SAEs stay published, and are orphans",
        ),
        ReviewKind.RETIRED: lambda data: ("retire: what it published is deleted",),
        ReviewKind.NEW_TARGET: _target,
        ReviewKind.PUBLIC: lambda data: ("is published for everybody to see: ", Quoted(data.get("value"))),
        ReviewKind.NEW_OWNER: lambda data: ("new owner of the ", Quoted(data.get("what")), ": ", Quoted(data.get("value"))),
        ReviewKind.LOWERED: _lowered,
        ReviewKind.TRUST: lambda data: ("trust: reads a file that could run code, as ", Quoted(data.get("value"))),
        ReviewKind.NATIVE: lambda data: ("native: publishes the original files of what cannot be converted",),
    }
)


def _parts(item: Mapping[str, Any]) -> Parts:
    try:
        words = _WORDS[ReviewKind(item["kind"])]
    except ValueError:  # from a newer saesync
        return (Quoted(item["kind"]),)
    return words(item["data"])


def _at(item: Mapping[str, Any]) -> str | None:
    where = item.get("origin")
    return f"{where[0]}:{where[1]}:{where[2]}" if where else None


def review_text(item: Mapping[str, Any]) -> str:
    """For terminals and plain files: release, what, and where."""
    at = _at(item)
    what = "".join(part if isinstance(part, str) else plain(part.value) for part in _parts(item))
    return f"{plain(item['release'])}: {what}{f' ({plain(at)})' if at else ''}"


def review_markdown(item: Mapping[str, Any]) -> str:
    """For comments: foreign text stands in code elements."""
    at = _at(item)
    what = "".join(part if isinstance(part, str) else code(part.value) for part in _parts(item))
    return f"{code(item['release'])}: {what}{f' ({code(at)})' if at else ''}"
