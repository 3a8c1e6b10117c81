"""What a pull request's run left behind: files that anybody may have written. Read as data, within limits, or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from saesync.ci.form import wrong
from saesync.errors import Refused

PLAN_FILE = "plan.json"
MAX_BYTES = 128 << 20  # a plan of as many SAEs as there may be in one run (20,000) has 60 MB


def read(folder: Path) -> dict[str, Any]:
    """The plan in a folder of artefacts, checked.

    Raises:
        Refused: there is none, or none that may be shown. The detail is in words of ours alone.
    """
    data = _bytes(folder / PLAN_FILE)
    try:
        value = json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _refused("it is not JSON") from error
    found = wrong(value)
    if found is not None:
        raise _refused(found)
    checked: dict[str, Any] = value
    return checked


def _bytes(path: Path) -> bytes:
    """The content of a regular file, opened without following a link or waiting for a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise Refused("Plan is not available", "The run left no plan.") from error
    except OSError as error:
        raise _refused("it is a link, or cannot be read") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _refused("it is not a regular file")
    with os.fdopen(handle, "rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _refused(f"it has more than {MAX_BYTES:,} bytes")
    return data


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate name")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refused(what: str) -> Refused:
    return Refused("Plan is not available", f"The run's {PLAN_FILE} is not shown: {what}.")
