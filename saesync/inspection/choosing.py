"""One SAE out of what was found at a place: which format reads it, with which options and files. Never by guessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats import get, require_known
from saesync.formats.base import Candidate
from saesync.inspection import Found, Inspection
from saesync.inspection.places import HubPlace, LocalPlace, Place, require_text
from saesync.nothing import nothing
from saesync.schema.options import check_options, say_them, unsaid

if TYPE_CHECKING:
    from saesync.hub import Hub


@dataclass(frozen=True, slots=True)
class Chosen:
    """``files`` are by relative name, as listed at the place (on this disk: absolute paths)."""

    format: str
    options: Mapping[str, Any]
    files: Mapping[str, str]
    facts: Mapping[str, Any]


def choose(
    inspection: Inspection, format_: str | None = None, options: Mapping[str, Any] | None = None, hub: Hub | None = None
) -> Chosen:
    """The one SAE of an inspection. ``format_`` and ``options`` are what the user declared.

    Raises:
        Refused: there is none or more than one, two formats fit equally well, something must be declared, or what was declared
            is not what it may be.
    """
    found = _only(inspection, format_)
    candidate = _candidate(found, format_)
    values = {**candidate.options, **(options or {})}
    chosen = get(candidate.format)
    require_known(chosen, values)
    check_options(chosen.Options, values)
    if open_ := unsaid(chosen.Options, candidate.needs, values):
        detail = f"The files do not say {' and '.join(open_)}. Say it: {say_them(chosen.Options, open_)}"
        raise Refused("Needs a declaration", detail)
    return Chosen(candidate.format, values, _files(inspection, found, candidate.format, hub), candidate.facts)


def _only(inspection: Inspection, format_: str | None) -> Found:
    able = [found for found in inspection.saes if format_ is not None or found in inspection.convertible]
    if len(able) == 1:
        return able[0]
    if able:
        shown = ", ".join(found.path or "(root)" for found in able[:5]) + (" ..." if len(able) > 5 else "")
        raise Refused("More than one SAE", f"{inspection.reference} holds {len(able)}: {shown}. Name one of them.")
    reasons = [found.problem or (found.best.refusal if found.best else None) for found in inspection.saes]
    said = next((reason for reason in reasons if reason), "No known format fits; `saesync formats` lists them.")
    raise Refused("Nothing here can be converted", said)


def _candidate(found: Found, format_: str | None) -> Candidate:
    if format_ is not None:
        get(format_)
        return next((one for one in found.candidates if one.format == format_), Candidate(format_, 0.0, facts=nothing()))
    if len(found.rivals) > 1:
        names = " and ".join(one.format for one in found.rivals)
        raise Refused("Format is ambiguous", f"{found.path or 'It'} can be {names}. Say which: --from FORMAT.")
    return found.rivals[0]


def _files(inspection: Inspection, found: Found, format_: str, hub: Hub | None) -> Mapping[str, str]:
    reference = inspection.reference
    if reference.repo is not None and hub is not None:
        place: Place = HubPlace(hub, reference.repo, inspection.revision or "")
        return get(format_).files(sorted(place.names()), found.path)
    typed = Path(reference.path)
    root = typed if typed.is_dir() else typed.parent
    listed = get(format_).files(sorted(LocalPlace(root).names()), found.path)
    for path in listed.values():
        require_text(root / path)
    return {name: str((root / path).absolute()) for name, path in listed.items()}
