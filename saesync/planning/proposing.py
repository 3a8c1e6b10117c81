"""Releases that go to the Hub by pull request: what cannot be brought that way, and what waits for somebody's merge. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from saesync.model import Item, Observed, Release, Status, StepKind
from saesync.reason import Reason, ReasonCode
from saesync.record import Record


def limit(release: Release, observed: Observed, items: Sequence[Item]) -> list[Item]:
    """The items of a release, held where a pull request cannot bring them: there is no repo, or they were refused before."""
    reason = _stopped(release, observed, items)
    if reason is None:
        return list(items)
    return [
        replace(item, status=Status.HELD, steps=(), held=True, reasons=(reason, *item.reasons)) if item.steps else item
        for item in items
    ]


def waiting(release: Release, observed: Observed, items: Sequence[Item]) -> Reason | None:
    """Why there is nothing to do although the main branch does not hold the release: it stands in our pull request."""
    pull = observed.pull
    if pull is None or observed.merged(release.name) or any(item.steps for item in items):
        return None
    return Reason(ReasonCode.WAITING_FOR_MERGE, {"num": pull.num, "url": pull.url, "status": pull.status})


def registration_waits(release: Release, observed: Observed, items: Sequence[Item]) -> Reason | None:
    """Why nothing may be registered yet: users would be sent to SAEs that only a pull request holds."""
    if release.publish is None or not release.publish.pull_request:
        return None
    if any(item.steps for item in items):
        return Reason(ReasonCode.AFTER_MERGE)
    return waiting(release, observed, items)


def _stopped(release: Release, observed: Observed, items: Sequence[Item]) -> Reason | None:
    publish, pull = release.publish, observed.pull
    pending = [item for item in items if item.steps]
    if publish is None or not publish.pull_request or not pending:
        return None
    if not observed.exists:
        return Reason(ReasonCode.PULL_NEEDS_REPO, {"location": observed.location})
    if pull is None or pull.status != "closed" or release.name not in pull.records:
        return None
    if all(_refused(item, pull.records[release.name]) for item in pending):
        return Reason(ReasonCode.PULL_CLOSED, {"num": pull.num, "url": pull.url})
    return None


def _refused(item: Item, record: Record) -> bool:
    """Whether the closed pull request held just what an item asks for."""
    if item.id is None:
        return StepKind.CARD not in item.steps or record.card == item.basis.get("asked.card")
    if StepKind.DELETE in item.steps:
        return item.id not in record.saes
    entry = record.saes.get(item.id)
    if entry is None or entry.build_key != item.basis.get("asked.build_key"):
        return False
    asked = item.basis.get("asked.measure_key")
    return asked is None or any(found.measure_key == asked for found in entry.evidence)
