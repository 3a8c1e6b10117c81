"""The parts of a record, as JSON that anybody may have written: what each may be, and how large."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from saesync.errors import SaesyncError

_HEX64 = re.compile(r"[0-9a-f]{64}")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_MOST_DEEP, _MOST_VALUES, _MOST_TEXT = 8, 5_000, 20_000  # of one part; manifests ask for far less


class RecordUnreadable(SaesyncError):
    """The record is not of the form saesync writes."""

    def __init__(self, detail: str) -> None:
        super().__init__("Record is unreadable", detail)


def hex64(value: Any) -> str:
    """A sha256.

    Raises:
        RecordUnreadable: it is none.
    """
    if not isinstance(value, str) or not _HEX64.fullmatch(value):
        raise RecordUnreadable("The record holds a digest that is not 64 hexadecimal digits.")
    return value


def text(value: Any, limit: int) -> str:
    """A text of at most ``limit`` characters.

    Raises:
        RecordUnreadable: it is none.
    """
    if not isinstance(value, str) or len(value) > limit:
        raise RecordUnreadable("The record holds a name that is not a short text.")
    return value


def number(value: Any) -> float:
    """A finite number.

    Raises:
        RecordUnreadable: it is none.
    """
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordUnreadable("The record holds a metric that is not a number.")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise RecordUnreadable("The record holds a number too large to be measured.")
    return found


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """A JSON object, called ``what``.

    Raises:
        RecordUnreadable: it is none.
    """
    if not isinstance(value, dict):
        raise RecordUnreadable(f"In the record, {what} is not a mapping.")
    return value


def flat(value: Any) -> dict[str, Any]:
    """A small mapping of names to JSON values, as is: it is only compared and shown, and written again.

    Raises:
        RecordUnreadable: it is none.
    """
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


def json_of(data: bytes) -> Any:
    """The JSON value of a record, if nothing stands in it that could not be written again.

    Raises:
        RecordUnreadable: it is none.
    """
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant, parse_float=_finite)
        if _HALF.search(data):  # an escape that means nothing by itself; two of them may be one character
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RecordUnreadable("The record is not JSON.") from error
    return value


def _finite(written: str) -> float:
    found = float(written)
    if math.isinf(found):
        raise ValueError(f"{written} is not JSON that can be kept")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
