"""The commit lane of one location: what waits, when it goes out, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from saesync.apply.batching import Batching
from saesync.apply.builds import EVIDENCE, require_whole
from saesync.apply.context import Context
from saesync.apply.scheduler import Pick, Task
from saesync.apply.steps import Steps
from saesync.apply.tagging import ReleaseTag
from saesync.apply.work import Work
from saesync.errors import Refused, SaesyncError
from saesync.executors.publish import AllChanged, Change, TagOf, no_tag, publish
from saesync.model import Observed, Release, StepKind
from saesync.nothing import nothing
from saesync.targets.base import Progress, Tagging


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a commit task stands for: an SAE to put in place, one to delete (``removed``), or the card alone (neither)."""

    release: Release
    work: Work | None = None
    removed: str | None = None


@dataclass
class CommitLane:
    """Commits to one location, one at a time. ``observed`` is what the plan was made from: every SAE must still be as it
    was then, however many commits of ours came between."""

    observed: Observed
    steps: Steps
    waiting: Mapping[str, Waiting]
    tags: Mapping[str, ReleaseTag] = field(default_factory=nothing)
    batching: Batching = field(default_factory=Batching)
    commits: int = 0
    uploaded: int = 0
    cards: int = 0  # commits of a card alone
    tagged: int = 0
    _head: str | None = None
    _noted: set[str] = field(default_factory=set)
    _since: float | None = None  # when the first SAE was ready

    def pick(self, ready: Sequence[Task], ending: bool) -> Pick:
        """See ``scheduler.Picker``."""
        if not ready[0].weight:
            return Pick(1)  # writes no file: a tag
        now = self.steps.context.clock()
        self._since = now if self._since is None else self._since
        decision = self.batching.decide(now, [task.weight for task in ready], ending, self._since)
        return Pick(decision.take, decision.wait)

    def run(self, _lane: int, tasks: Sequence[Task]) -> Mapping[str, SaesyncError]:
        """One commit; returns the errors of SAEs that were left out."""
        waiting = {task.key: self.waiting[task.key] for task in tasks}
        release = next(iter(waiting.values())).release
        works = {key: item.work for key, item in waiting.items() if item.work is not None}
        change = Change(
            {work.sae.id: work.upload(_run(work, self.steps.context)) for work in works.values()},
            frozenset(item.removed for item in waiting.values() if item.removed is not None),
            frozenset(work.sae.id for work in works.values() if work.may_overwrite),
        )
        try:
            with self.steps.step((release.name,), StepKind.PUBLISH) as (progress, _):
                after, conflicts = self._publish(release, change, list(works.values()), progress)
        except AllChanged as error:
            return _of_tasks(waiting, error.conflicts)
        finally:
            self.batching.committed(self.steps.context.clock())
        done = change.without(frozenset(conflicts))
        if release.name in self.tags:
            self.tags[release.name].committed(done.ids, after)
        self._tell(release, done, after)
        return _of_tasks(waiting, conflicts)

    def _publish(
        self, release: Release, change: Change, works: Sequence[Work], progress: Progress
    ) -> tuple[Observed, Mapping[str, SaesyncError]]:
        """One commit, without what turns out not to be what was proved: bits rot under an unchanged size and time."""
        target = self.steps.target(StepKind.PUBLISH, self.observed.target)
        send = partial(publish, target, self.observed.location, release)
        words = self.observed, progress, self._tag_of(release.name), self._note
        try:
            return send(change, *words)
        except Refused:
            damaged = self._damaged(works)
            rest = change.without(frozenset(damaged))
            if not damaged:
                raise
            if not rest.ids:
                raise AllChanged(damaged) from None
        try:
            after, conflicts = send(rest, *words)
        except AllChanged as error:
            raise AllChanged({**damaged, **error.conflicts}) from error
        return after, {**damaged, **conflicts}

    def _damaged(self, works: Sequence[Work]) -> dict[str, SaesyncError]:
        """Builds that do not hold the bytes that were proved, by SAE; they leave the cache, with their numbers."""
        cache, found = self.steps.context.cache, dict[str, SaesyncError]()
        for work in works:
            build = None if work.keeps_weights else work.build
            if build is not None:
                for name in build.files:
                    cache.forget(build.folder / name)
                try:
                    require_whole(cache, work.inputs.build_key, build)
                except Refused as error:
                    found[work.sae.id] = error
                    if work.inputs.measure_key is not None:  # nobody knows since when it is so
                        cache.discard(EVIDENCE, work.inputs.measure_key)
        return found

    def _note(self, said: str) -> None:
        if said not in self._noted:
            self._noted.add(said)
            self.steps.note(said)

    def _tag_of(self, release: str) -> TagOf:
        known = self.tags.get(release)
        return no_tag if known is None else known.shown

    def tag_with(self, release: str) -> Callable[[int, Sequence[Task]], None]:
        """What names the commit that completed a release."""

        def run(_lane: int, _tasks: Sequence[Task]) -> None:
            known = self.tags[release]
            if (at := known.due) is None:
                return
            target = self.steps.target(StepKind.TAG, at.target)
            if not isinstance(target, Tagging):
                raise Refused("Target has no tags", f"{at.target} cannot name a commit.")
            with self.steps.step((release,), StepKind.TAG):
                tag = target.tag(at.location, release, at, known.replace)
            self.tagged += tag.made
            about = {"release": release, "location": at.location, "commit": tag.commit, "tag": tag.name, "made": tag.made}
            self.steps.emit({"type": "tagged", **about})

        return run

    def _tell(self, release: Release, change: Change, after: Observed) -> None:
        if after.head is not None and after.head == (self._head or self.observed.head):
            return  # all of it was there already
        self._head = after.head
        sizes = [upload.record.files[name].size for upload in change.uploads.values() for name in upload.files]
        self.commits += 1
        self.uploaded += sum(sizes)
        self.cards += not change.ids
        about = {"release": release.name, "location": after.location, "commit": after.head}
        self.steps.emit({"type": "committed", **about, "saes": sorted(change.ids), "bytes": sum(sizes)})


def _of_tasks(waiting: Mapping[str, Waiting], conflicts: Mapping[str, SaesyncError]) -> Mapping[str, SaesyncError]:
    return {key: conflicts[sae_id] for key, item in waiting.items() if (sae_id := _id_of(item)) in conflicts}


def _id_of(item: Waiting) -> str:
    return item.work.sae.id if item.work is not None else item.removed or ""


def _run(work: Work, context: Context) -> dict[str, Any]:
    """Times, for the ``run`` part of the record."""
    finished = datetime.fromtimestamp(context.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"finished": finished, **{f"{step}_seconds": seconds for step, seconds in sorted(work.seconds.items())}}
