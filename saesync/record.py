"""The record: what saesync knows about a release, kept in the target beside the weights (``saesync/<release>.json``).

A record is untrusted input: anybody with write access to a repo may have written it. ``parse_record`` checks shape and
size and confines every path to its SAE's folder; what it returns can be used without further care, except that strings
must be escaped wherever they are shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Self

from msgspec import Meta, Struct, ValidationError, convert
from msgspec.json import Decoder

from saesync.digest import FileDigest, Hex40, Hex64, key_of
from saesync.errors import SaesyncError
from saesync.folders import RECORD_FOLDER, is_native, reserved
from saesync.nothing import nothing
from saesync.record_json import Flat, Name, RecordUnreadable, check_flat, decode

RECORD_VERSION = 2  # with native SAEs; a record without any is of version 1, which earlier readers know
MAX_RECORD_BYTES = 64 << 20
MAX_SAES = 20_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_PLAIN = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # nearly all folders; a short way to say yes
_MOST_TRIES = 8


class RecordNewer(SaesyncError):
    """The record was written by a newer saesync; ``found`` is its version."""

    def __init__(self, found: int) -> None:
        self.found = found
        super().__init__("Record is newer", f"Record version {found}; this saesync reads {RECORD_VERSION}. Upgrade saesync.")


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured value with its standard error over sequences (None where there are too few to tell)."""

    value: float
    stderr: Annotated[float, Meta(ge=0)] | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Numbers measured for certain bytes (``weights_sha256``) under one ``measure_key``.

    ``inputs`` is the flat form the key was made of; ``about`` holds what is recorded but not keyed (device, versions,
    dataset and model names, number of tokens really used).
    """

    measure_key: Hex64
    weights_sha256: Hex64
    metrics: Mapping[Name, Metric]
    inputs: Flat = field(default_factory=nothing)
    about: Flat = field(default_factory=nothing)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, keys in a fixed order."""
        return {
            "measure_key": self.measure_key,
            "weights_sha256": self.weights_sha256,
            "metrics": {
                name: {"value": m.value} if m.stderr is None else {"value": m.value, "stderr": m.stderr}
                for name, m in sorted(self.metrics.items())
            },
            "inputs": dict(self.inputs),
            "about": dict(self.about),
        }

    @classmethod
    def from_bytes(cls, data: bytes) -> Evidence:
        """Evidence from the JSON form of ``to_json``.

        Raises:
            RecordUnreadable: ``data`` is not of that form.
        """
        found = decode(data, _EVIDENCE)
        found.check()
        return found

    def check(self) -> None:
        """What the types of the fields do not say.

        Raises:
            RecordUnreadable: a part is too large.
        """
        check_flat(self.inputs)
        check_flat(self.about)


@dataclass(frozen=True, slots=True)
class Native:
    """Why an SAE is published as its authors' own files: the refusal to convert it, and the tensor or field that says so."""

    title: Annotated[str, Meta(max_length=200)]
    detail: Annotated[str, Meta(max_length=2000)]
    said_by: Annotated[str, Meta(max_length=200)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, keys in a fixed order."""
        return {"title": self.title, "detail": self.detail, "said_by": self.said_by}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Inverse of ``to_json``.

        Raises:
            RecordUnreadable: ``value`` is not of that form.
        """
        try:
            return convert(value, cls)
        except ValidationError as error:
            raise RecordUnreadable(f"The refusal is not as saesync writes it: {error}.") from error


@dataclass(frozen=True, slots=True)
class SaeRecord:
    """What is known of one published SAE. ``files`` are by their names inside it (``folders.path_of``).

    ``inputs`` holds the flat weights and build inputs, so a later plan can name what changed. ``proof`` is what convert
    measured against ``reference``. ``evidence`` holds the current measurement first and at most one earlier.
    ``run`` holds times and rates: the only part that differs between two runs of the same work. ``native`` says why the files
    are the authors' own; None of all that is converted.
    """

    weights_key: Hex64
    build_key: Hex64
    files: Mapping[str, FileDigest]
    inputs: Mapping[Name, Flat] = field(default_factory=nothing)
    proof: Flat = field(default_factory=nothing)
    evidence: Annotated[tuple[Evidence, ...], Meta(max_length=8)] = ()
    adopted: bool = False
    about: Flat = field(default_factory=nothing)
    run: Flat = field(default_factory=nothing)
    native: Native | None = None

    def with_evidence(self, new: Evidence) -> SaeRecord:
        """The record with ``new`` as its current evidence, keeping at most one earlier of another measure_key."""
        earlier = tuple(old for old in self.evidence if old.measure_key != new.measure_key)[:1]
        return replace(self, evidence=(new, *earlier))

    def evidence_for(self, measure_key: str | None, weights_sha256: str | None) -> Evidence | None:
        """The current evidence, if it is under this key for these very bytes. An earlier one counts nowhere: card, tag and
        registry say what the current one is, and so it has to be made that first."""
        found = self.current_under(measure_key)
        return found if found is not None and found.weights_sha256 == weights_sha256 else None

    def current_under(self, measure_key: str | None) -> Evidence | None:
        """The current evidence, if it is under this key, whatever the bytes."""
        return self.evidence[0] if self.evidence and self.evidence[0].measure_key == measure_key else None

    @property
    def published(self) -> list[Any]:
        """What ``Record.saes_digest`` is made of."""
        files = {name: digest.sha256 or digest.blob_id for name, digest in self.files.items()}
        evidence = [[found.measure_key, found.weights_sha256] for found in self.evidence[:1]]
        return [self.weights_key, self.build_key, files, evidence]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, keys in a fixed order."""
        return {
            "weights_key": self.weights_key,
            "build_key": self.build_key,
            "adopted": self.adopted,
            **({} if self.native is None else {"native": self.native.to_json()}),
            "files": {name: digest.to_json() for name, digest in sorted(self.files.items())},
            "inputs": {name: dict(part) for name, part in sorted(self.inputs.items())},
            "proof": dict(self.proof),
            "evidence": [evidence.to_json() for evidence in self.evidence],
            "about": dict(self.about),
            "run": dict(self.run),
        }

    def check(self) -> None:
        """What the types of the fields do not say.

        Raises:
            RecordUnreadable: a part is too large, or a file stands outside the SAE's folder or among files of another kind.
        """
        for name, digest in self.files.items():
            _check_file(name, (digest,))
        native = self.native is not None
        if any(is_native(name) is not native for name in self.files) or (native and not self.files):
            raise RecordUnreadable("The record mixes an SAE's own files with those of its authors, or names none of these.")
        for part in (*self.inputs.values(), self.proof, self.about, self.run):
            check_flat(part)
        for evidence in self.evidence:
            evidence.check()


@dataclass(frozen=True, slots=True)
class Pending:
    """An SAE being put in place: under which build_key, and by file name the digests that may be found there.

    One digest per file, and more when a run that was interrupted is followed by one that puts other files in place.
    """

    build_key: Hex64
    files: Mapping[str, Annotated[tuple[FileDigest, ...], Meta(max_length=_MOST_TRIES)]]

    def after(self, earlier: Pending | None) -> Pending:
        """This one, begun before ``earlier`` was finished."""
        if earlier is None:
            return self
        files: dict[str, tuple[FileDigest, ...]] = {}
        for name in {**earlier.files, **self.files}:
            tries = self.files.get(name, ())
            left = (old for old in earlier.files.get(name, ()) if not any(old.same_bytes(new) for new in tries))
            files[name] = (*tries, *left)[:_MOST_TRIES]
        return Pending(self.build_key, MappingProxyType(files))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, keys in a fixed order."""
        files = {name: [digest.to_json() for digest in tries] for name, tries in sorted(self.files.items())}
        return {"build_key": self.build_key, "files": files}

    def check(self) -> None:
        """What the types of the fields do not say.

        Raises:
            RecordUnreadable: a file stands outside the SAE's folder.
        """
        for name, tries in self.files.items():
            _check_file(name, tries)


@dataclass(frozen=True, slots=True)
class CardFile:
    """The README that the latest commits of a release left, and the one they found (None: there was none): git blob ids.

    A commit keeps all blocks of other releases byte for byte, so whoever knows these need not read the file again.
    """

    before: Hex40 | None
    after: Hex40


def vouched(records: Mapping[str, Record], current: str | None) -> bool:
    """Whether every release's block of a README is as its record says, by the README's blob id ``current`` alone: only commits of
    these releases came between."""
    steps = [record.card_file for record in records.values() if record.card_file is not None]
    kept = {current} - {None}
    for _ in steps:
        kept |= {step.before for step in steps if step.after in kept}
    return all(record.card_file is not None and record.card_file.after in kept for record in records.values() if record.saes)


@dataclass(frozen=True)
class Record:
    """One release's record. ``card`` is the digest of what the card was made of; ``pending`` is the local target's
    note of folders being put in place, by id, empty everywhere else. Two runs of the same work may differ in ``card_file``."""

    release: str
    saes: Mapping[str, SaeRecord] = field(default_factory=nothing)
    card: str | None = None
    pending: Mapping[str, Pending] = field(default_factory=nothing)
    card_file: CardFile | None = None

    @property
    def version(self) -> int:
        """The first version that can say all this: a reader of an earlier one would lose what it does not know."""
        half = any(is_native(name) for pending in self.pending.values() for name in pending.files)
        return RECORD_VERSION if half or any(sae.native is not None for sae in self.saes.values()) else 1

    @cached_property
    def saes_digest(self) -> str:
        """Identity of what is said to be published: keys, files, and the key of the current evidence. Neither card nor times."""
        return key_of({sae_id: entry.published for sae_id, entry in self.saes.items()})

    def to_bytes(self) -> bytes:
        """The file's bytes: indented, sorted by SAE id, newline at the end; equal records give equal bytes."""
        data: dict[str, Any] = {"version": self.version, "release": self.release, "card": self.card}
        if self.card_file is not None:
            data["run"] = {"card_file": {"before": self.card_file.before, "after": self.card_file.after}}
        if self.pending:
            data["pending"] = {name: pending.to_json() for name, pending in sorted(self.pending.items())}
        data["saes"] = {name: sae.to_json() for name, sae in sorted(self.saes.items())}
        return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def known(self, sae_id: str, name: str) -> tuple[FileDigest, ...]:
        """Every digest under which a file of an SAE is ours: the recorded one, and those that were being put in place."""
        entry, half = self.saes.get(sae_id), self.pending.get(sae_id)
        recorded = () if entry is None or name not in entry.files else (entry.files[name],)
        return (*recorded, *(half.files.get(name, ()) if half is not None else ()))

    def half_placed(self, sae_id: str, found: Mapping[str, FileDigest]) -> bool:
        """Whether interrupted runs were putting this SAE in place, and what stands in its folder is their work alone: every
        file is missing or known. Names that saesync never wrote do not count."""
        files = ((digest, self.known(sae_id, name)) for name, digest in found.items())
        return sae_id in self.pending and all(any(digest.same_bytes(one) for one in known) for digest, known in files if known)

    def merged(self, changes: Mapping[str, SaeRecord], removed: frozenset[str] = frozenset()) -> Record:
        """This record with some SAEs replaced and some taken out; the others untouched."""
        kept = {name: sae for name, sae in self.saes.items() if name not in removed}
        return replace(self, saes=MappingProxyType({**kept, **changes}))


def record_path(release: str) -> str:
    """Where the record of a release stands in its target."""
    return f"{RECORD_FOLDER}/{release}.json"


def parse_record(data: bytes, release: str) -> Record:
    """A record from the bytes found in a target.

    Raises:
        RecordNewer: written by a newer saesync.
        RecordUnreadable: not of the form saesync writes, or not the record of ``release``.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise RecordUnreadable(f"The record has {len(data):,} bytes; at most {MAX_RECORD_BYTES:,} are read.")
    try:
        top = decode(data, _WRITTEN)
    except RecordUnreadable:
        _check_version(decode(data, _ANY).version)  # of a newer one, that is what there is to say
        raise
    _check_version(top.version)
    if top.release != release:
        raise RecordUnreadable("The record is of another release than its name says.")
    if len(top.saes) > MAX_SAES:
        raise RecordUnreadable(f"The record lists {len(top.saes):,} SAEs; at most {MAX_SAES:,} are read.")
    for parts in (top.saes, top.pending):
        for sae_id, entry in parts.items():
            if not safe_folder(sae_id) or reserved(sae_id):
                raise RecordUnreadable("The record names a folder that is not a plain relative path.")
            entry.check()
    return Record(release, MappingProxyType(top.saes), top.card, MappingProxyType(top.pending), top.run.card_file)


def _check_version(version: int) -> None:
    if version > RECORD_VERSION:
        raise RecordNewer(version)


def safe_folder(folder: str) -> bool:
    """Whether ``folder`` is a plain relative path of ordinary names that cannot leave or shadow anything in a target."""
    if len(folder) > 255 or "\\" in folder:
        return False
    return _PLAIN.fullmatch(folder) is not None or all(
        part.isprintable() and part == part.strip() and not part.startswith(".") and part for part in folder.split("/")
    )


def _check_file(name: str, digests: Iterable[FileDigest]) -> None:
    if not _plain_name(name):
        raise RecordUnreadable("The record names a file that is not a plain name.")
    if any(digest.sha256 is None and digest.blob_id is None for digest in digests):
        raise RecordUnreadable("The record gives a file no digest.")


@lru_cache(maxsize=4096)  # nearly all SAEs have files of the same names
def _plain_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None or (is_native(name) and safe_folder(name))


class _Versioned(Struct):
    """What every record says, whatever else is in it."""

    version: Annotated[int, Meta(ge=1)]


class _Run(Struct, frozen=True):
    """What may differ between two runs of the same work."""

    card_file: CardFile | None = None


class _Written(_Versioned):
    """A record as it stands in its file."""

    release: str
    saes: dict[str, SaeRecord]
    card: Hex64 | None = None
    pending: dict[str, Pending] = {}
    run: _Run = _Run()


_ANY, _WRITTEN, _EVIDENCE = Decoder(_Versioned), Decoder(_Written), Decoder(Evidence)
