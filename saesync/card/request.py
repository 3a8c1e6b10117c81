"""The text of a registration's pull request: what a maintainer needs to judge it. Pure; everything foreign is inert."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from saesync import __version__
from saesync.card import evidence
from saesync.inert import code
from saesync.model import Release
from saesync.record import Record, record_path
from saesync.registry.entry import Entry, digest_of

MAX_CHARACTERS = 60_000  # GitHub takes 65,536
_MARK = re.compile(r"<!-- saesync:entry ([0-9a-f]{64}) -->")


def request_body(release: Release, record: Record | None, entry: Entry | None) -> str:
    """Evidence first, then how to load and how to reproduce. ``entry`` None: the release is taken out of the list."""
    if entry is None:
        return f"Takes {code(release.name)} out of the list: its manifest retires it.\n"
    head = [f"<!-- saesync:entry {digest_of(entry)} -->", _about(release, entry)]
    tail = [_load(entry), _reproduce(release, record)]
    shown = _shown(record, entry)
    middle = [] if shown is None else [evidence.how(release, shown), evidence.proofs(shown)]
    room = MAX_CHARACTERS - sum(len(part) + 2 for part in [*head, *middle, *tail])
    table = evidence.table(release, shown, room) if shown is not None else _unmeasured(entry)
    return "\n\n".join(part for part in [*head, table, *middle, *tail] if part) + "\n"


def digest_in(body: str | None) -> str | None:
    """Digest of the entry that a pull request's text was written for."""
    found = _MARK.search(body or "")
    return found.group(1) if found else None


def _about(release: Release, entry: Entry) -> str:
    count = len(entry.saes)
    what = f"{count:,} SAE{'s' if count != 1 else ''} for {code(entry.model)}, loaded from {code(entry.repo_id)}"
    return f"{code(release.name)}: {what}{_through(entry)}."


def _through(entry: Entry) -> str:
    return "" if entry.conversion_func is None else f" through {code(entry.conversion_func)}"


def _shown(record: Record | None, entry: Entry) -> Record | None:
    """The record's part that is registered; None when nothing of it was recorded."""
    if record is None:
        return None
    ids = {sae.id for sae in entry.saes}
    saes = {sae_id: found for sae_id, found in record.saes.items() if sae_id in ids}
    return Record(record.release, saes) if saes else None


def _unmeasured(entry: Entry) -> str:
    declared = sum(sae.l0 is not None or sae.variance_explained is not None for sae in entry.saes)
    numbers = f" The numbers of {declared:,} are as their publisher states them." if declared else ""
    return f"Nothing was measured for this entry.{numbers}"


def _load(entry: Entry) -> str:
    call = f"SAE.from_pretrained({json.dumps(entry.release)}, {json.dumps(entry.saes[0].id)})"
    return f"### Load\n\n```python\nfrom sae_lens import SAE\n\nsae = {call}\n```"


def _reproduce(release: Release, record: Record | None) -> str:
    place = release.publish or release.records
    lines: list[str] = ["### Reproduce", ""]
    if record is not None and place is not None and place.target == "huggingface":
        lines.append(
            f"Every number, its inputs and the proofs stand in {code(record_path(release.name))} of {code(place.location)}."
        )
    lines += _steps(release)
    return "\n".join(lines)


def _steps(release: Release) -> Iterable[str]:
    measured = any(sae.validate is not None for sae in release.saes)
    manifest = release.manifest.rsplit("/", 1)[-1]
    what = "plans, converts and measures them again" if measured else "plans and checks them again"
    yield f"With saesync {__version__} and the manifest {code(manifest)}, {code(f'saesync apply {manifest}')} {what}."
