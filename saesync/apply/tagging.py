"""The tag of one release in one apply: whether a commit completes the release, and so which tag its card names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from saesync.apply.context import Context
from saesync.keys import Wanted
from saesync.model import Observed, Plan, Release, StepKind
from saesync.observe import Place
from saesync.planning.basis import SECTION
from saesync.planning.tagging import COMPLETE, TAG
from saesync.record import Record
from saesync.tags import complete, shown_tag


@dataclass
class ReleaseTag:
    """``completes``: the plan leaves nothing out that is asked for. ``left`` are its SAEs that are not committed yet."""

    release: Release
    wanted: Mapping[str, Wanted]
    planned: Observed
    completes: bool
    left: set[str]
    replace: bool = False
    after: Observed | None = field(default=None)

    def shown(self, record: Record, put: frozenset[str]) -> str | None:
        """The tag that a card names which is committed with ``record`` and the SAEs ``put``."""
        return shown_tag(self.release, record, self._done(record, put), self.planned.tags, self.planned.moved)

    def committed(self, ids: frozenset[str], after: Observed) -> None:
        """Note what a commit did."""
        self.left -= ids
        self.after = after

    @property
    def due(self) -> Observed | None:
        """The commit to tag, and the tags before; None while the release is not complete: an SAE may stand and be failing."""
        now = replace(self.after or self.planned, tags=self.planned.tags)
        record = now.records.get(self.release.name)
        return now if record is not None and self._done(record, frozenset()) else None

    def _done(self, record: Record, put: frozenset[str]) -> bool:
        return self.completes and self.left <= put and complete(self.release, self.wanted, record)


def release_tags(plan: Plan, context: Context) -> dict[str, ReleaseTag]:
    """By release, for those whose commits can be tagged."""
    releases = {release.name: release for release in plan.releases}
    found = {}
    for item in plan.items:
        publish = releases[item.release].publish
        if item.basis.get(SECTION) == TAG and publish is not None:
            place: Place = publish.target, publish.location
            left = {other.id for other in plan.pending if other.release == item.release and other.id is not None}
            back = item.basis.get("asked.choice") == "replace" and StepKind.TAG in item.steps
            completes = item.basis.get(COMPLETE) is True
            found[item.release] = ReleaseTag(
                releases[item.release], context.wanted, context.observed[place], completes, left, back
            )
    return found
