"""The record: what saesync knows about a release, kept in the target beside the weights (``saesync/<release>.json``).

A record is untrusted input: anybody with write access to a repo may have written it. ``parse_record`` checks shape and
size and confines every path to its SAE's folder; what it returns can be used without further care, except that strings
must be escaped wherever they are shown.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

from saesync.digest import FileDigest
from saesync.errors import SaesyncError

RECORD_VERSION = 1
MAX_RECORD_BYTES = 64 << 20
MAX_SAES = 20_000
_HEX64 = re.compile(r"[0-9a-f]{64}")
_HEX40 = re.compile(r"[0-9a-f]{40}")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_EMPTY: Mapping[str, Any] = MappingProxyType({})
_MOST_DEEP, _MOST_VALUES, _MOST_TEXT, _MOST_TRIES = 8, 5_000, 20_000, 8  # of one part; manifests ask for far less


class RecordNewer(SaesyncError):
    """The record was written by a newer saesync; ``found`` is its version."""

    def __init__(self, found: int) -> None:
        self.found = found
        super().__init__("Record is newer", f"Record version {found}; this saesync reads {RECORD_VERSION}. Upgrade saesync.")


class RecordUnreadable(SaesyncError):
    """The record is not of the form saesync writes."""

    def __init__(self, detail: str) -> None:
        super().__init__("Record is unreadable", detail)


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
        data = _mapping(value, "evidence")
        metrics = {}
        for name, entry in _mapping(data.get("metrics"), "metrics").items():
            fields = _mapping(entry, f"metric {name!r}")
            stderr = fields.get("stderr")
            spread = None if stderr is None else _number(stderr)
            if spread is not None and spread < 0:
                raise RecordUnreadable("The record holds a standard error below zero.")
            metrics[_text(name, 100)] = Metric(_number(fields.get("value")), spread)
        return cls(
            _hex64(data.get("measure_key")),
            _hex64(data.get("weights_sha256")),
            MappingProxyType(metrics),
            MappingProxyType(_flat(data.get("inputs", {}))),
            MappingProxyType(_flat(data.get("about", {}))),
        )


@dataclass(frozen=True, slots=True)
class SaeRecord:
    """What is known of one published SAE. ``files`` is relative to its folder.

    ``inputs`` holds the flat weights and build inputs, so a later plan can name what changed. ``proof`` is what convert
    measured against ``reference``. ``evidence`` holds the current measurement first and at most one earlier.
    ``run`` holds times and rates: the only part that differs between two runs of the same work.
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
        data = _mapping(value, "an SAE")
        files = {_file_name(name): _file_digest(entry) for name, entry in _mapping(data.get("files"), "files").items()}
        evidence = data.get("evidence", [])
        if not isinstance(evidence, list) or len(evidence) > 8:
            raise RecordUnreadable("The evidence of an SAE is not a short list.")
        inputs = {_text(k, 100): MappingProxyType(_flat(v)) for k, v in _mapping(data.get("inputs", {}), "inputs").items()}
        return cls(
            _hex64(data.get("weights_key")),
            _hex64(data.get("build_key")),
            MappingProxyType(files),
            MappingProxyType(inputs),
            MappingProxyType(_flat(data.get("proof", {}))),
            tuple(Evidence.from_json(entry) for entry in evidence),
            data.get("adopted", False) is True,
            MappingProxyType(_flat(data.get("about", {}))),
            MappingProxyType(_flat(data.get("run", {}))),
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
        data = _mapping(value, "a pending SAE")
        files = {}
        for name, tries in _mapping(data.get("files"), "files").items():
            if not isinstance(tries, list) or len(tries) > _MOST_TRIES:
                raise RecordUnreadable("The digests of a pending file are not a short list.")
            files[_file_name(name)] = tuple(_file_digest(entry) for entry in tries)
        return cls(_hex64(data.get("build_key")), MappingProxyType(files))


@dataclass(frozen=True, slots=True)
class Record:
    """One release's record. ``card`` is the digest of what the card was made of; ``pending`` is the local target's
    note of folders being put in place, by id, empty everywhere else."""

    release: str
    saes: Mapping[str, SaeRecord] = field(default_factory=lambda: _EMPTY)
    card: str | None = None
    pending: Mapping[str, Pending] = field(default_factory=lambda: _EMPTY)

    def to_bytes(self) -> bytes:
        """The file's bytes: indented, sorted by SAE id, newline at the end; equal records give equal bytes."""
        data: dict[str, Any] = {"version": RECORD_VERSION, "release": self.release, "card": self.card}
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
    top = _mapping(_json(data), "the record")
    version = top.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RecordUnreadable("The record has no version.")
    if version > RECORD_VERSION:
        raise RecordNewer(version)
    if top.get("release") != release:
        raise RecordUnreadable("The record is of another release than its name says.")
    saes = _mapping(top.get("saes"), "saes")
    if len(saes) > MAX_SAES:
        raise RecordUnreadable(f"The record lists {len(saes):,} SAEs; at most {MAX_SAES:,} are read.")
    card = top.get("card")
    pending = {_sae_id(k): Pending.from_json(v) for k, v in _mapping(top.get("pending", {}), "pending").items()}
    return Record(
        release,
        MappingProxyType({_sae_id(name): SaeRecord.from_json(entry) for name, entry in saes.items()}),
        None if card is None else _hex64(card),
        MappingProxyType(pending),
    )


def safe_folder(folder: str) -> bool:
    """Whether ``folder`` is a plain relative path of ordinary names that cannot leave or shadow anything in a target."""
    if not folder or len(folder) > 255 or "\\" in folder:
        return False
    return all(part.isprintable() and part == part.strip() and not part.startswith(".") and part for part in folder.split("/"))


def _sae_id(value: Any) -> str:
    if not isinstance(value, str) or not safe_folder(value):
        raise RecordUnreadable("The record names a folder that is not a plain relative path.")
    return value


def _file_name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise RecordUnreadable("The record names a file that is not a plain name.")
    return value


def _file_digest(value: Any) -> FileDigest:
    data = _mapping(value, "a file")
    size, sha256, blob_id = data.get("size"), data.get("sha256"), data.get("blob_id")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise RecordUnreadable("The record gives a file no size.")
    if sha256 is None and blob_id is None:
        raise RecordUnreadable("The record gives a file no digest.")
    if blob_id is not None and not (isinstance(blob_id, str) and _HEX40.fullmatch(blob_id)):
        raise RecordUnreadable("The record holds a git blob id that is not one.")
    return FileDigest(size, None if sha256 is None else _hex64(sha256), blob_id)


def _hex64(value: Any) -> str:
    if not isinstance(value, str) or not _HEX64.fullmatch(value):
        raise RecordUnreadable("The record holds a digest that is not 64 hexadecimal digits.")
    return value


def _text(value: Any, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise RecordUnreadable("The record holds a name that is not a short text.")
    return value


def _number(value: Any) -> float:
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordUnreadable("The record holds a metric that is not a number.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecordUnreadable("The record holds a number too large to be measured.")
    return number


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RecordUnreadable(f"In the record, {what} is not a mapping.")
    return value


def _flat(value: Any) -> dict[str, Any]:
    """A small mapping of names to JSON values, as is: it is only compared and shown, and written again."""
    if not isinstance(value, dict) or len(value) > 200:
        raise RecordUnreadable("A part of the record is not a mapping of at most 200 entries.")
    for name, entry in value.items():
        if len(name) > 200 or (isinstance(entry, str) and len(entry) > _MOST_TEXT):
            raise RecordUnreadable("A part of the record holds a text that is too long.")
        if isinstance(entry, dict | list) and entry:
            _check_nested(entry)
    return value


def _check_nested(value: Any) -> None:
    level, count = [value], 0
    for _ in range(_MOST_DEEP):
        level = [below for entry in level for below in _below(entry)]
        count += len(level)
        if count > _MOST_VALUES or any(isinstance(entry, str) and len(entry) > _MOST_TEXT for entry in level):
            raise RecordUnreadable("A part of the record is too large.")
    if level:
        raise RecordUnreadable(f"A part of the record is nested more than {_MOST_DEEP} deep.")


def _below(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def _json(data: bytes) -> Any:
    """The JSON value of a record, if nothing stands in it that could not be written again."""
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant, parse_float=_finite)
        if _HALF.search(data):  # an escape that means nothing by itself; two of them may be one character
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RecordUnreadable("The record is not JSON.") from error
    return value


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is not JSON that can be kept")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
