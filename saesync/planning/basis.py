"""The basis of a plan's item: what was asked and what was observed, as flat JSON, so that two plans can be compared by name.

Names begin with ``asked.`` or ``observed.``; anything else (``at``) only helps to say where, and is not compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from saesync.digest import short
from saesync.model import Item, Observed, Release
from saesync.nothing import nothing
from saesync.planning.case import Case, Files, Place
from saesync.record import SaeRecord
from saesync.verdict import by_name, shown

ASKED = "asked."
OBSERVED = "observed."
SECTION = "asked.section"
_COMPARED = (ASKED, OBSERVED)
INPUTS = "asked.inputs."
REQUIRE = "asked.require."

Basis = dict[str, Any]


def of_sae(case: Case, choice: str | None, full: bool) -> Basis:
    """Basis of one SAE. With ``full`` the inputs of its keys stand in it one by one, so that a later change can be named."""
    basis: Basis = {
        "at": _at(case.place.observed),
        "asked.build_key": case.build_key,
        "asked.measure_key": case.measure_key,
        "asked.target": _target(case.release),
        "asked.choice": choice,
        **_observed(case.place, case.entry, case.files),
        "observed.pending": case.record.pending[case.sae.id].build_key if case.record is not None and case.pending else None,
        "observed.others": ", ".join(case.others) or None,
    }
    if case.release.native:
        basis["asked.native"] = True
    if case.wanted.blocked is not None:
        basis["asked.blocked"] = str(case.wanted.blocked.code)
    if case.sae.validate is not None:
        for bound in case.sae.validate.require:
            basis[f"{REQUIRE}{bound.metric}.{bound.kind}"] = shown(bound.bound)
    if full and case.wanted.inputs is not None:
        inputs = case.wanted.inputs
        parts = {"weights": inputs.weights, "build": inputs.build, "measure": inputs.measure or nothing()}
        basis.update(
            {f"{INPUTS}{part}.{name}": shown(value) for part, flat in parts.items() for name, value in by_name(flat).items()}
        )
    return basis


def of_orphan(release: Release, place: Place, sae_id: str, choice: str | None) -> Basis:
    """Basis of a recorded SAE that no manifest asks for."""
    entry = place.observed.records[release.name].saes.get(sae_id)
    observed = _observed(place, entry, place.folders.get(sae_id, nothing()))
    return {"at": _at(place.observed), "asked.target": _target(release), "asked.choice": choice, **observed}


def of_release(release: Release, observed: Observed, card: str | None, found_card: str | None) -> Basis:
    """Basis of a release as a whole. ``card`` is the digest of the card that the observed record would give, ``found_card`` that
    of the card that is there."""
    publish, pull = release.publish, observed.pull
    proposed = {"asked.pull_request": True} if publish is not None and publish.pull_request else {}
    found = {"observed.pull": f"#{pull.num} {pull.status}"} if pull is not None else {}
    if release.name in observed.locked:
        found["observed.record"] = "locked"
    elsewhere = release.records if publish is not None else None
    kept = {"asked.records": f"{elsewhere.target}:{elsewhere.location}"} if elsewhere is not None else {}
    return {
        **proposed,
        **kept,
        **found,
        "at": _at(observed),
        "asked.target": _target(release),
        "asked.license": publish.license if publish else None,
        "asked.private": publish.private if publish else None,
        "asked.retire": release.retire,
        "asked.card": card,
        "observed.card": found_card,
        "observed.exists": observed.exists,
        "observed.visibility": observed.visibility,
        "observed.visible": observed.unknown is None,
    }


def of_tag(release: Release, observed: Observed, state: str) -> Basis:
    """Basis of a release's tag: whether the one that the observed record asks for is there."""
    return {"at": _at(observed), "asked.target": _target(release), "observed.tag": state}


def key_of_item(item: Item) -> tuple[str, str, str]:
    """What tells the items of a plan apart: release, SAE id, and the manifest's section for release-level ones."""
    return item.release, item.id or "", str(item.basis.get(SECTION, ""))


def compared(basis: Mapping[str, Any]) -> Basis:
    """The part of a basis that counts."""
    return {name: value for name, value in basis.items() if name.startswith(_COMPARED)}


def _observed(place: Place, entry: SaeRecord | None, files: Files) -> Basis:
    return {
        "observed.visible": place.observed.unknown is None,
        "observed.files": _digest(files),
        "observed.weights_key": entry.weights_key if entry is not None else None,
        "observed.build_key": entry.build_key if entry is not None else None,
        "observed.evidence": ",".join(evidence.measure_key for evidence in entry.evidence) if entry is not None else None,
    }


def _digest(files: Files) -> str | None:
    if not files:
        return None
    lines = "\n".join(f"{digest.sha256 or digest.blob_id} {name}" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode("utf-8", "backslashreplace")).hexdigest()


def _at(observed: Observed) -> str:
    return f"{observed.location}@{short(observed.head)}" if observed.head else observed.location


def _target(release: Release) -> str | None:
    return f"{release.home.target}:{release.home.location}" if release.home else None
