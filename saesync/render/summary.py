"""The last lines of ``saesync apply``, from its ``summary`` event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saesync.errors import Diagnostic
from saesync.inert import pad, plain, width
from saesync.render.style import Style, show_command
from saesync.render.style import command as command_text

_OUTCOMES = (
    ("published", "published"),
    ("native", "published as original files"),
    ("failed", "failed"),
    ("failing", "failing"),
    ("deleted", "deleted"),
    ("registered", "registered"),
    ("held", "held"),
    ("unknown", "unknown"),
    ("skipped", "skipped"),
    ("unsure", "in doubt"),
    ("stopped", "not started"),
)
_LEFT = ("cards_left", "tags_left", "entries_left")  # of whole releases, not come to
_LONG = 2000
_MOST_NAMED = 20
INTERRUPTED = 130
GATE_MISSED = "Requirement not met"  # the diagnostic of an SAE that was measured, and fell short


def summary_text(
    summary: Mapping[str, Any], command: Sequence[str] = (), asked: Mapping[str, Sequence[str]] | None = None, color: bool = False
) -> str:
    """What came of it: counts, each failure with its place in the manifest, and the next command.

    ``summary`` is the event (``saesync.events``); ``command`` what the user typed, and ``asked`` the same as a
    plan file holds it.
    """
    style = Style(color)
    outcomes = summary["outcomes"]
    known = [f"{outcomes[name]:,} {words}" for name, words in _OUTCOMES if outcomes.get(name)]
    other = [f"{count:,} {plain(name)}" for name, count in sorted(outcomes.items()) if count and name not in dict(_OUTCOMES)]
    left = outcomes.get("stopped") or any(summary.get(name) for name in _LEFT)
    stopped = summary["exit_code"] == INTERRUPTED or bool(left)
    counts = ", ".join([*known, *other, *_of_releases(summary)]) or "nothing to do"
    took = f" in {duration(summary['seconds'])}" if summary.get("seconds") is not None else ""
    unsure = summary.get("unsure") or ()
    whole = "" if unsure else "; nothing is half-done"
    first = f"Stopped. {_capital(counts)}{whole}." if stopped else f"Done{took}. {_capital(counts)}."
    rows = [style.paint(first, "bold")]
    failures = summary["failures"]
    if unsure:
        they = "It was" if len(unsure) == 1 else "They were"
        rows.append(f"In doubt: {_named(unsure)}. {they} being published and may have landed; the next plan tells.")
    if stopped:
        rows.append("Run the same command to continue: finished SAEs are skipped.")
    groups = _folded(failures)
    widest = max((width(label) for label, _ in groups), default=0)
    for label, failure in groups:
        rows += _failure(label, failure, widest, style, asked or {})
    if failures and command and not stopped:
        rows.append(f"After mending what failed:  {command_text(*command)}")
    return "\n".join(rows)


def _of_releases(summary: Mapping[str, Any]) -> list[str]:
    """What was done to releases as a whole."""
    counts = {name: summary.get(name, 0) for name in ("cards", "tags", *_LEFT)}
    said = {
        "cards": f"card{_s(counts['cards'])} written",
        "tags": "tagged",
        "cards_left": f"card{_s(counts['cards_left'])} not written",
        "tags_left": f"tag{_s(counts['tags_left'])} not made",
        "entries_left": f"registry entr{'y' if counts['entries_left'] == 1 else 'ies'} not written",
    }
    return [f"{count:,} {said[name]}" for name, count in counts.items() if count]


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _named(addresses: Sequence[str]) -> str:
    more = f" and {len(addresses) - _MOST_NAMED:,} more" if len(addresses) > _MOST_NAMED else ""
    return ", ".join(plain(address) for address in addresses[:_MOST_NAMED]) + more


def _folded(failures: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Failures with what they are called: more than two that say the same are one, named by the first. What several tasks of one
    name say (a model's activations, hook by hook) is said once."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for failure in failures:
        groups.setdefault((failure["step"], *(value["detail"] for value in failure["diagnostics"])), []).append(failure)
    found = []
    for group in groups.values():
        members = list({member["address"]: member for member in reversed(group)}.values())[::-1]
        if len(members) > 2:
            found.append((f"{plain(members[0]['address'])} and {len(members) - 1:,} more", members[0]))
        else:
            found += [(plain(member["address"]), member) for member in members]
    return found


def _failure(label: str, failure: Mapping[str, Any], left: int, style: Style, asked: Mapping[str, Sequence[str]]) -> list[str]:
    """Every diagnostic of one failure, then where all the numbers are, if it is about numbers."""
    head = style.paint(pad(label, left), "fail")
    blank = " " * left
    rows: list[str] = []
    for value in failure["diagnostics"]:
        diagnostic = Diagnostic.from_json(value)
        place = f" ({plain(str(diagnostic.origin))})" if diagnostic.origin is not None else ""
        rows.append(f"  {blank if rows else head}  {plain(diagnostic.detail.rstrip('.'), _LONG)}{place}")
    if any(value["summary"] == GATE_MISSED for value in failure["diagnostics"]):
        rows.append(f"  {blank}  {show_command(failure['address'], asked)} for all numbers")
    return rows


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def duration(seconds: float) -> str:
    """``4m02s``, ``1h 50m``, ``7.1s``."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"
