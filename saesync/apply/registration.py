"""Registration in apply: one task per release, once its SAEs are settled; what is entered is judged by what stands there then."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from saesync.apply.steps import Steps
from saesync.errors import Refused
from saesync.executors.register import check_paths, desired_entry, register
from saesync.keys import Wanted
from saesync.model import WEIGHTS_FILE, Item, Observed, Release, Sae, StepKind
from saesync.observe_registries import writer_of
from saesync.planning.registration import Seen, native_saes
from saesync.record import Evidence, Record, SaeRecord
from saesync.registry.entry import Entry
from saesync.verdict import judge, unmeasured


@dataclass
class Registration:
    """One release on its way into a registry. ``said`` is what the end tells people, once it is done."""

    item: Item
    release: Release
    seen: Seen
    steps: Steps
    said: Mapping[str, object] | None = None

    def run(self) -> None:
        """Look at what is published now, make the entry, and propose it.

        Raises:
            Refused: SAEs are missing of a release that is registered whole, or a rule of the list would be broken.
            SaesyncError: as the Hub, git or GitHub say.
        """
        with self.steps.step((self.release.name,), StepKind.REGISTER):
            place = self._place()
            record = place.records.get(self.release.name) if place is not None else None
            fit = fit_now(self.release, self.steps.context.wanted, record, self.seen.entry)
            self._whole(fit, len(native_saes(self.release, record)))
            self._trusted(place, record)
            entry = desired_entry(self.release, record, fit)
            if entry is not None:
                check_paths(entry, self._files(entry, place))
            done = register(self.release, record, entry, self.seen.entry is not None, self.steps.context.cache)
        pull = done.pull
        self.said = {
            "registry": self.seen.registry,
            "branch": done.branch,
            "changed": done.changed,
            "number": pull.number if pull is not None else None,
            "url": pull.url if pull is not None else None,
            "compare": done.compare,
        }

    def _place(self) -> Observed | None:
        spec = self.release.publish or self.release.records
        return None if spec is None else self.steps.target(StepKind.REGISTER, spec.target).observe(spec.location)

    def _whole(self, fit: Collection[str], native: int) -> None:
        spec, left = self.release.register, len(self.release.saes) - len(fit)
        if self.release.retire or spec is None or not left or (spec.partial and fit):
            return
        of = f"{left} of {len(self.release.saes)} SAEs of {self.release.name}"
        detail = f"{of} are not published as asked. Run apply again."
        if native == left:
            detail = f"{of} are published as original files, which SAELens does not load. `partial: true` registers the others."
        raise Refused("Release is not complete", detail)

    def _trusted(self, place: Observed | None, record: Record | None) -> None:
        """The record may have been written again since the plan looked."""
        policy = self.steps.context.policy
        if policy.file is None or place is None or record is None or place.target != "huggingface":
            return
        writer, trusted = writer_of(place, self.release.name, policy, self.steps.hub(StepKind.REGISTER))
        if not trusted:
            by = writer or "somebody unknown"
            detail = (
                f"The record of {self.release.name} was last written by {by}, whom {policy.file} does not name as a publisher."
            )
            raise Refused("Record is somebody else's", detail)

    def _files(self, entry: Entry, place: Observed | None) -> Collection[str]:
        """What the entry's repo holds now: its own place is known, another repo is listed."""
        if self.release.publish is not None and place is not None:
            return place.files
        hub = self.steps.hub(StepKind.REGISTER)
        head = hub.head(entry.repo_id)
        if head is None:
            raise Refused("Repository is not there", f"{entry.repo_id} is not on the Hub, or not visible with this token.")
        return hub.tree(entry.repo_id, head.sha)


def fit_now(release: Release, wanted: Mapping[str, Wanted], record: Record | None, registered: Entry | None) -> frozenset[str]:
    """The SAEs of a release that may stand in its entry: published as asked and passing, or registered already."""
    before = {sae.id for sae in registered.saes} if registered is not None else set()
    entries = record.saes if record is not None else {}
    native = native_saes(release, record)
    return frozenset(
        sae.id for sae in release.saes if sae.id not in native and (sae.id in before or _stands(sae, wanted, entries.get(sae.id)))
    )


def _stands(sae: Sae, wanted: Mapping[str, Wanted], entry: SaeRecord | None) -> bool:
    asked = wanted.get(sae.address)
    if asked is None:  # nothing is published or measured: the manifest's word is all there is
        return True
    if entry is None or asked.inputs is None or entry.build_key != asked.inputs.build_key:
        return False
    if sae.validate is None:
        return True
    evidence = _evidence(entry, asked.inputs.measure_key)
    bounds = sae.validate.require
    return evidence is not None and not judge(evidence, bounds) and not unmeasured(evidence, bounds)


def _evidence(entry: SaeRecord, measure_key: str | None) -> Evidence | None:
    """Evidence under this key: of the recorded bytes, or of somebody else's, of which the record lists none."""
    weights = entry.files.get(WEIGHTS_FILE)
    if weights is not None:
        return entry.evidence_for(measure_key, weights.sha256)
    return entry.current_under(measure_key)
