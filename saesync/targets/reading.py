"""Records and README of a target, from a function that reads one file: the same for every kind of place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from saesync.digest import FileDigest
from saesync.folders import RECORD_FOLDER
from saesync.model import CARD_FILE
from saesync.reason import Reason, ReasonCode
from saesync.record import MAX_RECORD_BYTES, RECORD_VERSION, Record, RecordNewer, parse_record
from saesync.record_json import RecordUnreadable

MAX_CARD_BYTES = 4 << 20
_RECORD = re.compile(rf"{RECORD_FOLDER}/([^/]+)\.json")


def read_records(
    files: Mapping[str, FileDigest], read: Callable[[str], bytes]
) -> tuple[dict[str, Record], dict[str, Reason]]:  # fmt: skip
    """Records by release, and the reason for each that cannot be read. ``read`` is called once per record."""
    records: dict[str, Record] = {}
    locked: dict[str, Reason] = {}
    for path, digest in sorted(files.items()):
        found = _RECORD.fullmatch(path)
        if found is None:
            continue
        release = found[1]
        if digest.size > MAX_RECORD_BYTES:
            detail = f"The record has {digest.size:,} bytes; at most {MAX_RECORD_BYTES:,} are read."
            locked[release] = Reason(ReasonCode.RECORD_UNREADABLE, {"detail": detail})
            continue
        try:
            records[release] = parse_record(read(path), release)
        except RecordNewer as error:
            locked[release] = Reason(ReasonCode.RECORD_NEWER, {"found": error.found, "known": RECORD_VERSION})
        except RecordUnreadable as error:
            locked[release] = Reason(ReasonCode.RECORD_UNREADABLE, {"detail": error.diagnostics[0].detail})
    return records, locked


def read_card(files: Mapping[str, FileDigest], read: Callable[[str], bytes]) -> str | None:
    """The README's text; None without one. Bytes that are not UTF-8 are replaced, which ``merge`` notices before writing."""
    there = files.get(CARD_FILE)
    if there is None:
        return None
    return "" if there.size > MAX_CARD_BYTES else read(CARD_FILE).decode(errors="replace")
