"""A plan for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saesync.digest import short
from saesync.inert import pad, plain, width
from saesync.render.fold import LAST, Line, by_release, changed_said, counted, lines_of, place_of, section_of, totals_said
from saesync.render.reasons import reason_text, reasons_joined
from saesync.render.review import review_text
from saesync.render.style import Style, command, show_command

_LABEL, _WHAT, _HEAD = 36, 27, 60
_PLACES = {"huggingface": "repository", "local": "folder"}
_FEW, _ALL = 3, 1000
_NAMED = 10
_PLAN_FILE = "plan.json"


def plan_text(
    data: Mapping[str, Any],
    *,
    arguments: Sequence[str] = (),
    approval: Sequence[str] = (),
    plan_file: Path | str | None = None,
    next_commands: bool = True,
    verbose: bool = False,
    color: bool = False,
) -> str:
    """The plan in its JSON form as text.

    ``arguments`` are the words the user gave to ``saesync plan``, for the next command, and ``approval`` those that ``saesync
    apply`` needs beside the plan file; ``plan_file`` is where the plan was saved. ``next_commands`` says which commands come
    next. ``verbose`` unfolds like changes, and lists what is current.
    """
    style = Style(color)
    blocks = [_header(data), _review(data, style)]
    manifests = {release["name"]: release["manifest"] for release in data["releases"]}
    parts = {name: lines_of(items, verbose) for name, items in by_release(data["items"]).items()}
    columns = _columns([line for lines in parts.values() for line in lines])
    for name, items in by_release(data["items"]).items():
        block = _release(name, manifests.get(name) or "in no manifest", items, parts[name], columns, style, verbose)
        blocks += [block] if block else []
    blocks.append("\n".join(_end(data, style)))
    if next_commands:
        blocks.append("\n".join(_next(data, arguments, approval, plan_file)))
    return "\n\n".join(block for block in blocks if block)


def _header(data: Mapping[str, Any]) -> str:
    manifests = len({release["manifest"] for release in data["releases"] if release["manifest"]})
    homes = [place for release in data["releases"] for place in (release, release.get("records")) if place is not None]
    places = {(place["target"], place["location"]) for place in homes if place["target"]}
    hub = sum(target == "huggingface" for target, _ in places)
    seen = [counted(hub, "Hub repository")] if hub else []
    seen += [counted(len(places) - hub, "folder")] if len(places) > hub else []
    registries = sorted({release["registry"] for release in data["releases"] if release.get("registry")})
    seen += [plain(registries[0])] if len(registries) == 1 else [counted(len(registries), "registry")] if registries else []
    looked = f" Looked at {_listed(seen)}." if seen else ""
    changed = f"\n{changed_said(data['changed'], plain)}" if data.get("changed") else ""
    return f"Read {counted(manifests, 'manifest')}, {counted(data['totals']['saes'], 'SAE')}.{looked}{changed}"


def _review(data: Mapping[str, Any], style: Style) -> str:
    """What somebody has to look at, before all else and without folding."""
    items = data.get("review") or ()
    rows = [f"  {style.symbol('!')} {review_text(item)}" for item in items]
    return "\n".join([style.paint("Needs review:", "bold"), *rows]) if rows else ""


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _columns(lines: Sequence[Line]) -> tuple[int, int]:
    """Widths of the label and of what is done, alike in the whole plan."""
    labels = max((min(width(label_of(line)), _LABEL) for line in lines), default=0)
    return labels, max((min(width(line.what), _WHAT) for line in lines), default=0)


def label_of(line: Line) -> str:
    """``layer_0 … layer_25 (26)``, or what a release-level line is about."""
    first = line.items[0]
    if first["id"] is None:
        if line.verb == "card":
            return "README.md"
        if line.verb == "create":
            return _PLACES.get(str(first["basis"].get("asked.target")).partition(":")[0], plain(place_of(first)))
        return plain(section_of(first) or place_of(first) or first["release"])
    ids = [plain(item["id"]) for item in line.items]
    if len(ids) < 3:
        return ", ".join(ids)
    return f"{ids[0]} … {ids[-1]} ({len(ids):,})"


def _release(
    name: str,
    manifest: str,
    items: list[Mapping[str, Any]],
    lines: Sequence[Line],
    columns: tuple[int, int],
    style: Style,
    verbose: bool,
) -> str:
    current = [item for item in items if item["verb"] == "current" and item["id"] is not None]
    if not lines:
        return ""
    title = pad(plain(name), _HEAD)
    rows = [f"{style.paint(title, 'bold')} {style.paint(plain(manifest), 'dim')}"]
    for line in lines:
        why = reasons_joined(line.items[0]["reasons"], reason_text, _ALL if verbose or line.verb in LAST else _FEW)
        row = f"{pad(label_of(line), columns[0])}  {pad(line.what, columns[1])}  {why}"
        rows.append(f"  {style.symbol(line.symbol)} {row.rstrip()}")
    if current and not verbose:
        absent = sum(bool(item["reasons"]) for item in current)
        note = f" ({absent:,} compared by record: their source is not here)" if absent else ""
        others = "other is" if len(current) == 1 else "others are"
        rows.append(style.paint(f"    {len(current):,} {others} up to date{note}", "dim"))
    return "\n".join(rows)


def _end(data: Mapping[str, Any], style: Style) -> list[str]:
    totals = data["totals"]
    said = totals_said(totals)
    pending = any(item["steps"] for item in data["items"])
    if not said:
        first = f"Nothing to do{'' if totals['saes'] else ': no SAE is asked for'}."
    elif pending:
        first = f"Plan: {', '.join(said)}."
    elif set(totals) <= {"saes", "current"}:
        first = f"Nothing to do: {counted(totals['current'], 'SAE')} up to date."
    else:
        first = f"Nothing to do: {', '.join(said)}."
    unmeasured = [plain(release["name"]) for release in data["releases"] if release["manifest"] and not release["validate"]]
    notes = [f"Not measured (no validate section): {_several(unmeasured)}."] if unmeasured and pending else []
    loose = [plain(release["name"]) for release in data["releases"] if not release["pinned"]]
    notes += [f"Source not pinned to a commit: {_several(loose)}."] if loose else []
    return [style.paint(first, "bold"), *notes, f"Digest: {short(data['digest'])}"]


def _several(names: Sequence[str]) -> str:
    """Names, the first of very many."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _next(data: Mapping[str, Any], arguments: Sequence[str], approval: Sequence[str], plan_file: Path | str | None) -> list[str]:
    """The commands that come next, with the user's own words."""
    rows = []
    if any(item["steps"] for item in data["items"]):
        saved = str(plan_file or _PLAN_FILE)
        plan = "" if plan_file else f"{command('saesync', 'plan', *arguments, '--out', saved)} && "
        rows.append(f"To do exactly this:  {plan}{command('saesync', 'apply', saved, *approval)}")
    seen = set()
    for item in data["items"]:
        if item["id"] is None or not (item["held"] or item["status"] == "native") or item["status"] in seen:
            continue
        if item["status"] == "foreign" and any("missing" in reason["data"] for reason in item["reasons"]):
            continue  # not to be taken over
        address = f"{item['release']}/{item['id']}"
        if item["status"] == "drifted":
            rows.append(f"To see what changed in {plain(item['id'])}:  {show_command(address, data['asked'])}")
        elif item["status"] == "native":
            rows.append(f"To see why {plain(item['id'])} is not converted:  {show_command(address, data['asked'])}")
        elif item["status"] == "foreign":
            rows.append(f"To take over {plain(item['id'])}:  {command('saesync', 'plan', *arguments, '--adopt', address)}")
        seen.add(item["status"])
    return rows
