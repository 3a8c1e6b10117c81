"""Sets of files that are one layer each: every layer is an SAE by itself, but the tool they are made for loads all or nothing."""

from __future__ import annotations

from collections.abc import Sequence

from saesync.formats import get
from saesync.formats.base import SetPart
from saesync.inspection import Found, Inspection

_NAMED = 8


def incomplete_sets(inspection: Inspection) -> list[str]:
    """What is amiss with each set, a line each. One file alone is no set, and one that was not looked at whole tells nothing."""
    sets: dict[tuple[str, str], dict[int, tuple[SetPart, Found]]] = {}
    for found in inspection.saes:
        part = _part(found)
        if part is not None and found.best is not None:
            folder = found.path.rpartition("/")[0]
            sets.setdefault((folder, found.best.format), {})[part.layer] = (part, found)
    whole = {folder for folder, _ in sets} - {path.rpartition("/")[0] for path in inspection.unread}
    lines = []
    for (folder, format_), parts in sets.items():
        if folder in whole and len(parts) > 1:
            lines += [f"{folder or 'The folder'} is an incomplete set of {format_}: {what}" for what in _amiss(parts)]
    return lines


def _part(found: Found) -> SetPart | None:
    if not found.able or found.best is None:
        return None
    part_of = getattr(get(found.best.format), "part_of_set", None)
    part: SetPart | None = part_of(found.headers) if part_of is not None else None
    return part


def _amiss(parts: dict[int, tuple[SetPart, Found]]) -> list[str]:
    said = {part.layers for part, _ in parts.values() if part.layers is not None}
    found = []
    if len(said) > 1:
        found.append(f"its files are of sets of {_listed(sorted(said))} layers.")
    count = max(*parts, *(layers - 1 for layers in said)) + 1
    if missing := [layer for layer in range(count) if layer not in parts]:
        which = f"layers {_listed(missing)} of 0 to {count - 1} are" if len(missing) > 1 else f"layer {missing[0]} is"
        found.append(f"{which} not there. Each of the others can be converted; circuit-tracer loads all of a set or none.")
    widths = {one.best.facts.get("d_sae") for _, one in parts.values() if one.best is not None}
    if len(widths) > 1:
        found.append(f"its layers have {_listed(sorted(map(str, widths)))} features; circuit-tracer needs one number.")
    return found


def _listed(values: Sequence[object]) -> str:
    shown = [str(value) for value in values[:_NAMED]]
    return ", ".join(shown) + (f" and {len(values) - _NAMED} more" if len(values) > _NAMED else "")
