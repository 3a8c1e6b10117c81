"""The parts of a record, as JSON that anybody may have written: what each may be, and how large.

msgspec reads JSON into typed dataclasses and checks it as it goes; what its types cannot say is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from saesync.errors import SaesyncError

Name = Annotated[str, Meta(max_length=100)]
_MOST_DEEP, _MOST_VALUES, _MOST_TEXT = 8, 5_000, 20_000  # of one part; manifests ask for far less
Value = Annotated[str, Meta(max_length=_MOST_TEXT)] | int | float | bool | None | list[Any] | dict[str, Any]
Flat = Annotated[Mapping[Annotated[str, Meta(max_length=200)], Value], Meta(max_length=200)]
"""A small mapping of names to JSON values, as is: it is only compared and shown, and written again (``check_flat``)."""

_NESTED = frozenset({dict, list})
_T = TypeVar("_T")


class RecordUnreadable(SaesyncError):
    """The record is not of the form saesync writes."""

    def __init__(self, detail: str) -> None:
        super().__init__("Record is unreadable", detail)


def decode(data: bytes, decoder: msgspec.json.Decoder[_T]) -> _T:
    """The value that ``data`` holds: no NaN, no infinity, no half characters, nothing that could not be written again.

    Raises:
        RecordUnreadable: it is no JSON, or not of the decoder's type. The text names the place, never a value.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RecordUnreadable(f"It is not as saesync writes it: {_said(error)}.") from error


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, msgspec.DecodeError) else "this is not JSON"


def check_flat(part: Mapping[str, Any]) -> None:
    """What is nested is small.

    Raises:
        RecordUnreadable: it is not.
    """
    if not _NESTED.isdisjoint(map(type, part.values())):
        for value in part.values():
            _check_nested(value)


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
