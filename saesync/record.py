"""The record: what saesync knows about a release, kept in the target beside the weights (``saesync/<release>.json``).

A record is untrusted input: anybody with write access to a repo may have written it. ``parse_record`` checks shape and
size and confines every path to its SAE's folder; what it returns can be used without further care, except that strings
must be escaped wherever they are shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

from saesync.digest import FileDigest
from saesync.errors import SaesyncError
from saesync.folders import is_native, reserved
from saesync.record_json import RecordUnreadable, flat, hex64, json_of, mapping, number, text

RECORD_VERSION = 2  # with native SAEs; a record without any is of version 1, which earlier readers know
MAX_RECORD_BYTES = 64 << 20
MAX_SAES = 20_000
_HEX40 = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_EMPTY: Mapping[str, Any] = MappingProxyType({})
_MOST_TRIES = 8


class RecordNewer(SaesyncError):
    """The record was written by a newer saesync; ``found`` is its version."""

    def __init__(self, found: int) -> None:
        self.found = found
        super().__init__("Record is newer", f"Record version {found}; this saesync reads {RECORD_VERSION}. Upgrade saesync.")


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured value with its standard error over sequences (None where none is defined)."""

    value: float
    stderr: float | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Numbers measured for certain bytes (``weights_sha256``) under one ``measure_key``.

    ``inputs`` is the flat form the key was made of; ``about`` holds what is recorded but not keyed (device, versions,
    dataset and model names, number of tokens really used).
    """

    measure_key: str
    weights_sha256: str
    metrics: Mapping[str, Metric]
    inputs: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    about: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)

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
    def from_json(cls, value: Any) -> Self:
        """Inverse of ``to_json``.

        Raises:
            RecordUnreadable: ``value`` is not of that form.
        """
        data = mapping(value, "evidence")
        metrics = {}
        for name, entry in mapping(data.get("metrics"), "metrics").items():
            fields = mapping(entry, f"metric {name!r}")
            stderr = fields.get("stderr")
            spread = None if stderr is None else number(stderr)
            if spread is not None and spread < 0:
                raise RecordUnreadable("The record holds a standard error below zero.")
            metrics[text(name, 100)] = Metric(number(fields.get("value")), spread)
        return cls(
            hex64(data.get("measure_key")),
            hex64(data.get("weights_sha256")),
            MappingProxyType(metrics),
            MappingProxyType(flat(data.get("inputs", {}))),
            MappingProxyType(flat(data.get("about", {}))),
        )


@dataclass(frozen=True, slots=True)
class Native:
    """Why an SAE is published as its authors' own files: the refusal to convert it, and the tensor or field that says so."""

    title: str
    detail: str
    said_by: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, keys in a fixed order."""
        return {"title": self.title, "detail": self.detail, "said_by": self.said_by}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Inverse of ``to_json``.

        Raises:
            RecordUnreadable: ``value`` is not of that form.
        """
        data = mapping(value, "a refusal")
        return cls(text(data.get("title"), 200), text(data.get("detail"), 2000), text(data.get("said_by"), 200))


@dataclass(frozen=True, slots=True)
class SaeRecord:
    """What is known of one published SAE. ``files`` are by their names inside it (``folders.path_of``).

    ``inputs`` holds the flat weights and build inputs, so a later plan can name what changed. ``proof`` is what convert
    measured against ``reference``. ``evidence`` holds the current measurement first and at most one earlier.
    ``run`` holds times and rates: the only part that differs between two runs of the same work. ``native`` says why the files
    are the authors' own; None of all that is converted.
    """

    weights_key: str
    build_key: str
    files: Mapping[str, FileDigest]
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _EMPTY)
    proof: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    evidence: tuple[Evidence, ...] = ()
    adopted: bool = False
    about: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    run: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    native: Native | None = None

    def with_evidence(self, new: Evidence) -> SaeRecord:
        """The record with ``new`` as its current evidence, keeping at most one earlier of another measure_key."""
        earlier = tuple(old for old in self.evidence if old.measure_key != new.measure_key)[:1]
        return replace(self, evidence=(new, *earlier))

    def evidence_for(self, measure_key: str | None, weights_sha256: str | None) -> Evidence | None:
        """Evidence under this key for these very bytes."""
        for found in self.evidence:
            if found.measure_key == measure_key and found.weights_sha256 == weights_sha256:
                return found
        return None

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

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Inverse of ``to_json``.

        Raises:
            RecordUnreadable: ``value`` is not of that form, or names a file outside its folder.
        """
        data = mapping(value, "an SAE")
        native = None if data.get("native") is None else Native.from_json(data["native"])
        files = {_file_name(name): _file_digest(entry) for name, entry in mapping(data.get("files"), "files").items()}
        if any(is_native(name) is (native is None) for name in files) or (native is not None and not files):
            raise RecordUnreadable("The record mixes an SAE's own files with those of its authors, or names none of these.")
        evidence = data.get("evidence", [])
        if not isinstance(evidence, list) or len(evidence) > 8:
            raise RecordUnreadable("The evidence of an SAE is not a short list.")
        inputs = {text(k, 100): MappingProxyType(flat(v)) for k, v in mapping(data.get("inputs", {}), "inputs").items()}
        return cls(
            hex64(data.get("weights_key")),
            hex64(data.get("build_key")),
            MappingProxyType(files),
            MappingProxyType(inputs),
            MappingProxyType(flat(data.get("proof", {}))),
            tuple(Evidence.from_json(entry) for entry in evidence),
            data.get("adopted", False) is True,
            MappingProxyType(flat(data.get("about", {}))),
            MappingProxyType(flat(data.get("run", {}))),
            native,
        )


@dataclass(frozen=True, slots=True)
class Pending:
    """An SAE being put in place: under which build_key, and by file name the digests that may be found there.

    One digest per file, and more when a run that was interrupted is followed by one that puts other files in place.
    """

    build_key: str
    files: Mapping[str, tuple[FileDigest, ...]]

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

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Inverse of ``to_json``.

        Raises:
            RecordUnreadable: ``value`` is not of that form, or names a file outside its folder.
        """
        data = mapping(value, "a pending SAE")
        files = {}
        for name, tries in mapping(data.get("files"), "files").items():
            if not isinstance(tries, list) or len(tries) > _MOST_TRIES:
                raise RecordUnreadable("The digests of a pending file are not a short list.")
            files[_file_name(name)] = tuple(_file_digest(entry) for entry in tries)
        return cls(hex64(data.get("build_key")), MappingProxyType(files))


@dataclass(frozen=True, slots=True)
class Record:
    """One release's record. ``card`` is the digest of what the card was made of; ``pending`` is the local target's
    note of folders being put in place, by id, empty everywhere else."""

    release: str
    saes: Mapping[str, SaeRecord] = field(default_factory=lambda: _EMPTY)
    card: str | None = None
    pending: Mapping[str, Pending] = field(default_factory=lambda: _EMPTY)

    @property
    def version(self) -> int:
        """The first version that can say all this: a reader of an earlier one would lose what it does not know."""
        half = any(is_native(name) for pending in self.pending.values() for name in pending.files)
        return RECORD_VERSION if half or any(sae.native is not None for sae in self.saes.values()) else 1

    def to_bytes(self) -> bytes:
        """The file's bytes: indented, sorted by SAE id, newline at the end; equal records give equal bytes."""
        data: dict[str, Any] = {"version": self.version, "release": self.release, "card": self.card}
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
    return f"saesync/{release}.json"


def parse_record(data: bytes, release: str) -> Record:
    """A record from the bytes found in a target.

    Raises:
        RecordNewer: written by a newer saesync.
        RecordUnreadable: not of the form saesync writes, or not the record of ``release``.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise RecordUnreadable(f"The record has {len(data):,} bytes; at most {MAX_RECORD_BYTES:,} are read.")
    top = mapping(json_of(data), "the record")
    version = top.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RecordUnreadable("The record has no version.")
    if version > RECORD_VERSION:
        raise RecordNewer(version)
    if top.get("release") != release:
        raise RecordUnreadable("The record is of another release than its name says.")
    saes = mapping(top.get("saes"), "saes")
    if len(saes) > MAX_SAES:
        raise RecordUnreadable(f"The record lists {len(saes):,} SAEs; at most {MAX_SAES:,} are read.")
    card = top.get("card")
    pending = {_sae_id(k): Pending.from_json(v) for k, v in mapping(top.get("pending", {}), "pending").items()}
    return Record(
        release,
        MappingProxyType({_sae_id(name): SaeRecord.from_json(entry) for name, entry in saes.items()}),
        None if card is None else hex64(card),
        MappingProxyType(pending),
    )


def safe_folder(folder: str) -> bool:
    """Whether ``folder`` is a plain relative path of ordinary names that cannot leave or shadow anything in a target."""
    if not folder or len(folder) > 255 or "\\" in folder:
        return False
    return all(part.isprintable() and part == part.strip() and not part.startswith(".") and part for part in folder.split("/"))


def _sae_id(value: Any) -> str:
    if not isinstance(value, str) or not safe_folder(value) or reserved(value):
        raise RecordUnreadable("The record names a folder that is not a plain relative path.")
    return value


def _file_name(value: Any) -> str:
    if not isinstance(value, str) or not (_NAME.fullmatch(value) or (is_native(value) and safe_folder(value))):
        raise RecordUnreadable("The record names a file that is not a plain name.")
    return value


def _file_digest(value: Any) -> FileDigest:
    data = mapping(value, "a file")
    size, sha256, blob_id = data.get("size"), data.get("sha256"), data.get("blob_id")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise RecordUnreadable("The record gives a file no size.")
    if sha256 is None and blob_id is None:
        raise RecordUnreadable("The record gives a file no digest.")
    if blob_id is not None and not (isinstance(blob_id, str) and _HEX40.fullmatch(blob_id)):
        raise RecordUnreadable("The record holds a git blob id that is not one.")
    return FileDigest(size, None if sha256 is None else hex64(sha256), blob_id)
