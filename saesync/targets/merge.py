"""What a batch changes in a target, computed without I/O: the same for a Hub repo and a local folder.

Every part of a batch (an SAE's files, its entry in the record) must now be as the caller expected it or already as the
batch wants it. Everything else in the target belongs to others and is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from saesync.digest import FileDigest, canonical, digest_bytes
from saesync.errors import Conflict, Refused
from saesync.folders import path_of, reserved
from saesync.model import CARD_FILE, Observed
from saesync.record import CardFile, Record, SaeRecord, record_path, safe_folder
from saesync.targets.base import Batch, Upload


@dataclass(frozen=True, slots=True)
class Put:
    """A local file to put in place; its bytes must hash to ``digest``."""

    source: Path
    digest: FileDigest


@dataclass(frozen=True, slots=True)
class Merge:
    """The changes, by path in the target. ``record`` is the release's record afterwards; ``record_bytes`` and ``card_bytes`` are
    None where the file stays as it is. ``folders`` are the SAEs whose files change."""

    record: Record
    folders: frozenset[str]
    puts: Mapping[str, Put]
    copies: Mapping[str, str]
    deletes: frozenset[str]
    record_bytes: bytes | None
    card_bytes: bytes | None

    @property
    def nothing(self) -> bool:
        """Whether everything is in place already."""
        changes = self.puts or self.copies or self.deletes
        return not changes and self.record_bytes is None and self.card_bytes is None

    def written(self) -> Iterator[str]:
        """Every path in the target that it touches."""
        yield from (*self.puts, *self.copies, *self.deletes, record_file(self.record))
        if self.card_bytes is not None:
            yield CARD_FILE


@dataclass(slots=True)
class _Changes:
    puts: dict[str, Put]
    copies: dict[str, str]
    deletes: set[str]
    folders: set[str]


def merge(batch: Batch, expect: Observed, now: Observed) -> Merge:
    """What has to be done to ``now`` so that it holds the batch.

    Raises:
        Conflict: a part of the batch is neither as in ``expect`` nor as in the batch, or foreign files stand in the way.
        Refused: the batch does not have what its own record promises, or the README is not text.
    """
    if batch.release in now.locked:
        raise Conflict(
            "Record cannot be merged", f"The record of {batch.release} in {now.location} cannot be read. See the plan."
        )
    old = now.records.get(batch.release, Record(batch.release))
    before = expect.records.get(batch.release, Record(batch.release))
    found = _Changes({}, {}, set(), set())
    entries: dict[str, SaeRecord] = {}
    removed = frozenset(batch.removed - set(batch.uploads))
    for sae_id, upload in sorted(batch.uploads.items()):
        _check_free(batch.release, sae_id, upload, now)
        _check_entry(sae_id, old, before, upload.record, now)
        _check_files(sae_id, upload, expect, now, old)
        _collect(sae_id, upload, batch, now, old, found)
        known = old.saes.get(sae_id)
        entries[sae_id] = known if known is not None and _same_entry(known, upload.record) else upload.record
    for sae_id in sorted(removed):
        _check_entry(sae_id, old, before, None, now)
        _remove(sae_id, expect, now, old, found)
    pending = {sae_id: half for sae_id, half in old.pending.items() if sae_id not in batch.uploads and sae_id not in removed}
    record = replace(old.merged(entries, removed), pending=MappingProxyType(pending))
    text, card = batch.card(record, _text_of_card(now))
    record = replace(record, card=card)
    unchanged = batch.release in now.records and text == now.readme and record.to_bytes() == old.to_bytes()
    if not unchanged and now.head is not None:  # where files are at hand, nobody need be vouched for
        record = replace(record, card_file=_card_file(old, text, now))
    return Merge(
        record,
        frozenset(found.folders),
        MappingProxyType(found.puts),
        MappingProxyType(found.copies),
        frozenset(found.deletes),
        None if unchanged else record.to_bytes(),
        None if text == (now.readme or "") else text.encode(),  # an empty README is not made where there is none
    )


def _check_free(release: str, sae_id: str, upload: Upload, now: Observed) -> None:
    if not safe_folder(sae_id) or reserved(sae_id):
        raise Refused("Folder name is not usable", f"{sae_id!r} is not a plain relative path.")
    if not upload.record.files:
        return  # evidence alone: no folder is claimed
    for other, record in now.records.items():
        if other != release and sae_id in record.saes:
            raise Conflict("Folder belongs to another release", f"{sae_id} in {now.location} stands in the record of {other}.")


def _check_entry(sae_id: str, old: Record, before: Record, wanted: SaeRecord | None, now: Observed) -> None:
    here, then = old.saes.get(sae_id), before.saes.get(sae_id)
    if _same_entry(here, then) or _same_entry(here, wanted):
        return
    detail = f"The record of {old.release}/{sae_id} in {now.location} was changed since the plan looked. Make a new plan."
    raise Conflict("Target changed meanwhile", detail)


def _check_files(sae_id: str, upload: Upload, expect: Observed, now: Observed, old: Record) -> None:
    here, then, wanted = now.folder(sae_id), expect.folder(sae_id), upload.record.files
    for name in sorted({*here, *then}):
        if _same(here.get(name), then.get(name)) or (name in here and _same(here[name], wanted.get(name))):
            continue
        if sae_id in old.pending and (name not in here or _ours(sae_id, name, here[name], old)):
            continue  # interrupted while it was put in place: any mixture of old, new and missing is our own
        detail = f"{path_of(sae_id, name)} in {now.location} was changed since the plan looked. Make a new plan."
        raise Conflict("Target changed meanwhile", detail)


def _collect(sae_id: str, upload: Upload, batch: Batch, now: Observed, old: Record, found: _Changes) -> None:
    here = now.folder(sae_id)
    recorded = old.saes[sae_id].files if sae_id in old.saes else {}
    if unknown := sorted(set(upload.files) - set(upload.record.files)):
        raise Refused("Batch and record differ", f"{path_of(sae_id, unknown[0])} is to be published but stands in no record.")
    for name, digest in sorted(upload.record.files.items()):
        path, there = path_of(sae_id, name), here.get(name)
        if _same(there, digest):
            continue
        if there is not None and sae_id not in batch.replace and not _ours(sae_id, name, there, old):
            detail = f"{path} in {now.location} was not written by saesync; only --replace or --adopt may touch it."
            raise Conflict("File is not ours", detail)
        found.folders.add(sae_id)
        if name in upload.files:
            found.puts[path] = Put(upload.files[name], digest)
        elif upload.copy_from is not None and _same(now.folder(upload.copy_from).get(name), digest):
            found.copies[path] = path_of(upload.copy_from, name)
        else:
            detail = f"{path} should be kept or copied, but {now.location} does not hold it any more. Make a new plan."
            raise Conflict("Target changed meanwhile", detail)
    for name, digest in recorded.items():
        if name not in upload.record.files and _same(here.get(name), digest):
            found.folders.add(sae_id)
            found.deletes.add(path_of(sae_id, name))


def _remove(sae_id: str, expect: Observed, now: Observed, old: Record, found: _Changes) -> None:
    here, then = now.folder(sae_id), expect.folder(sae_id)
    for name, digest in sorted(here.items()):
        if not _same(digest, then.get(name)):
            detail = f"{path_of(sae_id, name)} in {now.location} was changed since the plan looked. Make a new plan."
            raise Conflict("Target changed meanwhile", detail)
    for name, digest in here.items():
        if _ours(sae_id, name, digest, old):
            found.folders.add(sae_id)
            found.deletes.add(path_of(sae_id, name))


def _ours(sae_id: str, name: str, found: FileDigest, old: Record) -> bool:
    """Whether a file is one that we wrote, or were about to."""
    return any(found.same_bytes(digest) for digest in old.known(sae_id, name))


def _same(one: FileDigest | None, other: FileDigest | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.same_bytes(other)


def _same_entry(one: SaeRecord | None, other: SaeRecord | None) -> bool:
    """Equal but for ``run``, the part that differs between two runs of the same work."""
    if one is None or other is None:
        return one is other
    left, right = one.to_json(), other.to_json()
    return canonical({**left, "run": None}) == canonical({**right, "run": None})


def _text_of_card(now: Observed) -> str | None:
    """The README found, if writing it back would not lose a byte of it.

    Raises:
        Refused: it is not UTF-8 text.
    """
    there = now.files.get(CARD_FILE)
    if there is None:
        return None
    if now.readme is None:
        raise ValueError(f"the README of {now.location} was not read, and would be lost")
    if not there.same_bytes(digest_bytes(now.readme.encode())):
        raise Refused(
            "README is not text", f"{CARD_FILE} in {now.location} is not UTF-8, or too long. Save it as UTF-8 and run again."
        )
    return now.readme


def _card_file(old: Record, text: str, now: Observed) -> CardFile:
    """Which README the record's commits found and leave: one that they alone left they did not find."""
    there, left = now.files.get(CARD_FILE), digest_bytes(text.encode()).blob_id
    found, earlier = None if there is None else there.blob_id, old.card_file
    others = (record.card_file for name, record in now.records.items() if name != old.release)
    left_by_others = any(other is not None and other.after == found for other in others)
    own = earlier is not None and earlier.after == found and not left_by_others
    return CardFile(earlier.before if own and earlier is not None else found, str(left))


def record_file(record: Record) -> str:
    """Where the record stands in the target."""
    return record_path(record.release)
