"""What a reviewer of a plan must look at: said first, never folded. The JSON form's ``review`` list is made elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from saesync.inert import code

_KIND = re.compile(r"[a-z][a-z_ -]{0,40}")
_DETAIL = 400


def review_rows(review: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table with one row per entry: ``kind``, ``release``, ``id`` (or none) and ``detail``. Empty without entries."""
    if not review:
        return []
    head = [f"**Needs review** ({len(review):,})", "", "| | what | where | how |", "|---|---|---|---|"]
    return [*head, *(_row(entry) for entry in review)]


def _row(entry: Mapping[str, Any]) -> str:
    where = entry["release"] if entry.get("id") is None else f"{entry['release']}/{entry['id']}"
    detail = code(entry["detail"], _DETAIL) if entry["detail"] else ""
    return f"| **!** | {_kind(entry['kind'])} | {code(where, _DETAIL)} | {detail} |"


def _kind(kind: str) -> str:
    """Our own words as words; anything else as foreign text."""
    return kind.replace("_", " ") if _KIND.fullmatch(kind) else code(kind)
