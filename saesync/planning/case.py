"""What a row of the planner's table may look at: one SAE, what is asked of it, and what stands in its folder. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from saesync.digest import FileDigest
from saesync.folders import holders, is_native
from saesync.keys import Inputs, Wanted
from saesync.model import CFG_FILE, SAE_FILES, WEIGHTS_FILE, Choices, Observed, Release, Sae
from saesync.nothing import nothing
from saesync.reason import Reason, ReasonCode
from saesync.record import Record, SaeRecord
from saesync.verdict import judge

Files = Mapping[str, FileDigest]


@dataclass(frozen=True, slots=True)
class Place:
    """One location, indexed once: files by SAE folder, and which releases' records name a folder, or one inside it."""

    observed: Observed
    folders: Mapping[str, Files]
    owners: Mapping[str, set[str]]
    owners_inside: Mapping[str, set[str]]

    def others(self, release: str, folder: str) -> list[str]:
        """Other releases that record this folder, one above it or one inside it; case and Unicode form do not count."""
        if not self.observed.records.keys() - {release}:
            return []
        folded = fold(folder)
        found = self.owners.get(folded, set()) | self.owners_inside.get(folded, set())
        for end in _slashes(folded):
            found |= self.owners.get(folded[:end], set())
        return sorted(found - {release})


def index(observed: Observed, asked: Iterable[str]) -> Place:
    """Index a location for the SAE ids ``asked`` and all that its records name. One pass over the files, which belong to
    whom ``Observed.folder`` says."""
    recorded = observed.recorded
    wanted = recorded | set(asked)
    owners: dict[str, set[str]] = {}
    inside: dict[str, set[str]] = {}
    for release, record in observed.records.items():
        for sae_id in record.saes:
            folded = fold(sae_id)
            owners.setdefault(folded, set()).add(release)
            for end in _slashes(folded):
                inside.setdefault(folded[:end], set()).add(release)
    folders: dict[str, dict[str, FileDigest]] = {}
    for path, digest in observed.files.items():
        found = [(folder, name) for folder, name in holders(path) if folder in wanted]
        if len(found) > 1:
            innermost = max((at for at, (folder, _) in enumerate(found) if folder in recorded), default=0)
            found = found[innermost:]
        for folder, name in found:
            folders.setdefault(folder, {})[name] = digest
    return Place(observed, folders, owners, inside)


def fold(folder: str) -> str:
    """The form in which two folders are the same on some file system."""
    if folder.isascii():
        return folder.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", folder).casefold())


def _slashes(path: str) -> list[int]:
    ends = []
    end = path.find("/")
    while end > 0:
        ends.append(end)
        end = path.find("/", end + 1)
    return ends


@dataclass(frozen=True, slots=True)
class Case:
    """One SAE before the table. ``damage`` says how the files differ from what the record says.

    ``spares`` maps build_key to an undamaged orphan of the same release: what a moved SAE can be copied from. ``elsewhere`` is
    what stands at ``records:``, if the release has such a place. ``freed``: all releases that have its folder are pruned.
    """

    release: Release
    sae: Sae
    wanted: Wanted
    place: Place
    record: Record | None
    entry: SaeRecord | None
    files: Files
    damage: Reason | None
    build_key: str | None
    measure_key: str | None
    others: tuple[str, ...]
    freed: bool
    adopt: bool
    replace: bool
    spares: Mapping[str, str]
    elsewhere: Observed | None

    @property
    def inputs(self) -> Inputs:
        """What the keys are made of; only rows behind ``blocked`` may ask.

        Raises:
            ValueError: the keys are not known.
        """
        if self.wanted.inputs is None:
            raise ValueError(f"the keys of {self.sae.address} are not known")
        return self.wanted.inputs

    @property
    def pending(self) -> bool:
        """Whether an interrupted run was putting this folder in place, and nobody else wrote there since."""
        return self.record is not None and self.record.half_placed(self.sae.id, self.files)

    @property
    def weights_stand(self) -> bool:
        """Whether the weights asked for are recorded, and in their place."""
        if self.entry is None or self.entry.weights_key != self.inputs.weights_key:
            return False
        recorded, found = self.entry.files.get(WEIGHTS_FILE), self.files.get(WEIGHTS_FILE)
        return recorded is not None and found is not None and found.same_bytes(recorded)

    @property
    def half_labelled(self) -> bool:
        """Whether an interrupted run left the weights asked for where they are: only a cfg.json was to be written."""
        return self.pending and self.weights_stand and CFG_FILE in self.files

    @property
    def half_built(self) -> bool:
        """Whether an interrupted run is completed by building. Bytes that were adopted are never built over unasked."""
        adopted = self.entry is not None and self.entry.adopted
        return self.pending and not self.half_labelled and not (adopted and self.weights_stand)

    @property
    def in_the_way(self) -> Reason | None:
        """The first unrecorded file where a build would write if it turns out to be of the other form (converted, or the authors'
        own files) than what is recorded."""
        if self.entry is None or self.pending:
            return None
        for name, found in sorted(self.files.items()):
            other = name in SAE_FILES if self.entry.native is not None else self.release.native and is_native(name)
            if other and name not in self.entry.files:
                return Reason(ReasonCode.FILES_CHANGED, {"file": name, "recorded": None, "found": _name_of(found)})
        return None

    @property
    def lacking(self) -> str | None:
        """The first file of SAELens's layout that is not in the folder: what stands there without it cannot be taken over."""
        return next((name for name in SAE_FILES if name not in self.files), None)

    @property
    def misses(self) -> tuple[Reason, ...]:
        """Requirements missed by unpublished evidence for these very keys."""
        spec, known = self.sae.validate, self.wanted.evidence
        return judge(known, spec.require) if spec is not None and known is not None else ()

    @property
    def builds(self) -> bool:
        """Whether weights would have to be made for this SAE: nothing usable stands in its folder, and we may write there."""
        if self.entry is None:
            return not self.files or self.pending or (self.adopt and self.lacking is None) or self.replace
        if self.damage is not None:
            return self.replace or self.half_built
        if self.entry.native is not None:
            return not self.release.native or self.entry.build_key != self.build_key
        return self.entry.build_key != self.build_key and self.entry.weights_key != self.inputs.weights_key


def damage(entry: SaeRecord, files: Files) -> Reason | None:
    """The first file of an SAE that is not there, not recorded, or holds other bytes than the record says."""
    for name in sorted({*(SAE_FILES if entry.native is None else ()), *entry.files}):
        digest, found = entry.files.get(name), files.get(name)
        if digest is None or found is None:
            return Reason(ReasonCode.FILES_MISSING, {"file": name})
        if not found.same_bytes(digest):
            return _changed(name, digest, found)
    return None


def altered(record: Record, sae_id: str, files: Files) -> Reason | None:
    """Of an SAE that no manifest names: the first recorded (or half placed) file that is there with other bytes.

    Missing ones do not count: nothing can be lost.
    """
    for name, found in sorted(files.items()):
        known = record.known(sae_id, name)
        if known and not any(found.same_bytes(digest) for digest in known):
            reason = _changed(name, known[0], found)
            return Reason(reason.code, {**reason.data, "asked": False})
    return None


def _changed(name: str, recorded: FileDigest, found: FileDigest) -> Reason:
    return Reason(ReasonCode.FILES_CHANGED, {"file": name, "recorded": _name_of(recorded), "found": _name_of(found)})


def _name_of(digest: FileDigest) -> str | None:
    return digest.sha256 or digest.blob_id


def matches(globs: Collection[str], address: str) -> bool:
    """Whether a glob of the command line matches an address."""
    return bool(globs) and any(fnmatchcase(address, glob) for glob in globs)


def make_case(
    release: Release,
    sae: Sae,
    wanted: Wanted,
    place: Place,
    spares: Mapping[str, str],
    elsewhere: Observed | None,
    choices: Choices,
) -> Case:
    """Gather what the rows look at; each key is computed once."""
    record = place.observed.records.get(release.name)
    entry = None if record is None else record.saes.get(sae.id)
    files = place.folders.get(sae.id, nothing())
    inputs = wanted.inputs
    others = tuple(place.others(release.name, sae.id))
    return Case(
        release,
        sae,
        wanted,
        place,
        record,
        entry,
        files,
        None if entry is None else damage(entry, files),
        None if inputs is None else inputs.build_key,
        None if inputs is None else inputs.measure_key,
        others,
        set(others) <= set(choices.prune),
        matches(choices.adopt, sae.address),
        matches(choices.replace, sae.address),
        spares,
        elsewhere,
    )
