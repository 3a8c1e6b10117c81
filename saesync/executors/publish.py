"""Publish: whole SAEs, the record and the card in one commit. With fetch, the only step that has the network and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from saesync.card import make_card
from saesync.digest import key_of
from saesync.errors import Conflict, SaesyncError
from saesync.model import CARD_FILE, Observed, PublishSpec, Release
from saesync.record import Record, SaeRecord
from saesync.targets.base import Batch, Progress, Target, Upload, look_at

TagOf = Callable[[Record, frozenset[str]], str | None]
_CHANGED, _NAMED = "Target changed meanwhile", 3
_FRONT_STAYS = (
    f"the front matter of {CARD_FILE} cannot be edited safely and stays as it is, without license, tags, models and datasets. "
    "Write it as YAML with one key per line, each key once; the next change of the card puts them in."
)
# The Hub warns of a README without front matter.
_ABOUT_RECORDS = (
    "---\ntags:\n- saesync\n---\n\nEvidence that cannot stand beside the weights it is about, kept by saesync in `saesync/`.\n"
)


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit does to one release: SAEs put in place (``replace``: over files that are not ours) or removed."""

    uploads: Mapping[str, Upload]
    removed: frozenset[str] = frozenset()
    replace: frozenset[str] = frozenset()

    def without(self, sae_ids: frozenset[str]) -> Change:
        """The same for the other SAEs."""
        uploads = {name: upload for name, upload in self.uploads.items() if name not in sae_ids}
        return Change(uploads, self.removed - sae_ids, self.replace - sae_ids)

    @property
    def ids(self) -> frozenset[str]:
        """All SAEs it concerns."""
        return frozenset(self.uploads) | self.removed


class AllChanged(Conflict):
    """No SAE of a commit could be put in place, mostly for somebody else changed them: ``conflicts`` says why of each."""

    def __init__(self, conflicts: Mapping[str, SaesyncError]) -> None:
        self.conflicts = conflicts
        super().__init__(_CHANGED, f"{', '.join(sorted(conflicts))} were changed since the plan looked. Make a new plan.")


def no_tag(record: Record, put: frozenset[str]) -> str | None:
    """The card names no tag."""
    return None


def publish(
    target: Target,
    location: str,
    release: Release,
    change: Change,
    expect: Observed,
    progress: Progress | None = None,
    tag: TagOf = no_tag,
    note: Callable[[str], None] | None = None,
) -> tuple[Observed, Mapping[str, Conflict]]:
    """Put ``change`` in place in one commit. ``expect`` is what the plan was made from; ``tag`` says of a record which tag its
    card names, and is told which SAEs are put in place; ``note`` hears of what does not stop it, and may hear it again.

    An SAE that somebody else changed since then is left out and named in the second value; the others go on.

    Raises:
        AllChanged: that are all of them.
        Conflict: somebody else changed something, and it is none of them.
        NotVisible, Unavailable, Missing, Refused: as the target says.
    """
    try:
        return target.publish(location, _batch(release, change, tag, note), expect, progress), {}
    except Conflict as error:
        proposed = release.publish is not None and release.publish.pull_request
        touched = _touched(change, release.name, expect, look_at(target, location, proposed))
        if not touched:
            raise
        conflicts = {sae_id: error if len(touched) == 1 else _changed(sae_id, location) for sae_id in touched}
        if touched == change.ids:
            raise AllChanged(conflicts) from error
        rest = change.without(touched)
        return target.publish(location, _batch(release, rest, tag, note), expect, progress), conflicts


def _changed(sae_id: str, location: str) -> Conflict:
    """The target names the first file it stumbles over, which is one SAE's."""
    detail = f"{sae_id} in {location} was changed since the plan looked. Make a new plan."
    return Conflict(_CHANGED, detail)


def publish_evidence(
    target: Target, records: PublishSpec, release: Release, entries: Mapping[str, SaeRecord], expect: Observed
) -> Observed:
    """Put evidence of SAEs that are not published into ``records:``, beside the evidence of others.

    Raises:
        Conflict, NotVisible, Unavailable, Missing, Refused: as the target says.
    """
    change = Change({sae_id: Upload(entry) for sae_id, entry in entries.items()})
    return target.publish(records.location, _evidence_batch(release, records, change), expect)


def _batch(release: Release, change: Change, tag: TagOf, note: Callable[[str], None] | None) -> Batch:
    spec = release.publish
    if spec is None and release.home is not None:
        return _evidence_batch(release, release.home, change)

    def card(record: Record, readme: str | None) -> tuple[str, str]:
        tell = None if note is None else partial(note, f"{release.name}: {_FRONT_STAYS}")
        return make_card(release, record, readme, tag(record, change.ids), tell)

    return Batch(
        release.name,
        change.uploads,
        card,
        change.removed,
        _message(release.name, change),
        change.replace,
        spec is not None and spec.private,
        spec is not None and spec.pull_request,
    )


def _evidence_batch(release: Release, records: PublishSpec, change: Change) -> Batch:
    """A batch of evidence alone: the place says in a sentence what it is for, and has no card to keep up."""

    def card(record: Record, readme: str | None) -> tuple[str, str]:
        return readme or _ABOUT_RECORDS, key_of([_ABOUT_RECORDS, sorted(record.saes)])

    message = _message(release.name, change, put="evidence of")
    return Batch(release.name, change.uploads, card, change.removed, message, private=records.private)


def _message(release: str, change: Change, put: str = "publish") -> str:
    """The commit's first line: what happened to which SAEs, the first few by name."""
    said = [f"{verb} {_listed(ids)}" for verb, ids in ((put, change.uploads), ("delete", change.removed)) if ids]
    return f"{release}: {', '.join(said) or 'update the card'}"


def _listed(ids: Iterable[str]) -> str:
    names = sorted(ids)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _touched(change: Change, release: str, then: Observed, now: Observed) -> frozenset[str]:
    """SAEs whose files or record entry are not as they were."""
    before, here = then.records.get(release, Record(release)), now.records.get(release, Record(release))
    return frozenset(
        sae_id
        for sae_id in change.ids
        if then.folder(sae_id) != now.folder(sae_id) or before.saes.get(sae_id) != here.saes.get(sae_id)
    )
