"""Checks every format needs, with messages that name the tensor. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from saesync.errors import Inexpressible, Refused
from saesync.formats._bytes import instead
from saesync.formats._lazy import FLOATS, WIDTHS, holds
from saesync.formats.base import TensorInfo

MAX_JSON = 4 << 20
MAX_YAML = 256 << 10


def require_tensors(
    file: str, found: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], optional: tuple[str, ...] = ()
) -> None:
    """Names, shapes and dtypes exactly as expected.

    Raises:
        Refused: a tensor is missing, unknown, of another shape, or not floating point.
    """
    if missing := sorted(set(expected) - set(found) - set(optional)):
        raise Refused("Missing tensor", f"{file} has no tensor {missing[0]!r}. It has: {_names(found)}.")
    if unknown := sorted(set(found) - set(expected)):
        raise Refused(
            "Unknown tensor",
            f"{file} holds {unknown[0][:100]!r}, which this format does not know. Leaving it out could change the function, "
            "so nothing is converted. Is the format right?",
        )
    for name, info in found.items():
        if info.shape != expected[name]:
            shape = f"{file}: {name} has shape {list(info.shape)}, expected {list(expected[name])}."
            raise Refused("Wrong shape", shape + _turned(info, expected[name]))
        if info.dtype not in FLOATS:
            raise Refused("Wrong dtype", f"{file}: {name} is {info.dtype}; weights must be one of {', '.join(FLOATS)}.")


def widest(found: Mapping[str, TensorInfo]) -> str:
    """The narrowest type that holds these tensors without rounding: that of a source whose tensors differ.

    Integers and single numbers are settings, not weights. Thresholds are stored in float32 whatever the SAE is stored in.
    """
    kinds = {
        info.dtype
        for name, info in found.items()
        if info.dtype in FLOATS and info.shape and not ("threshold" in name and WIDTHS[info.dtype] <= WIDTHS["float32"])
    }
    return next(wide for wide in reversed(FLOATS) if all(holds(wide, kind) for kind in kinds))


def unknown_value(file: str, key: str, found: Any, known: str) -> Refused:
    """Why a setting is not followed: SAELens has nothing of that name. What is no name at all is damage."""
    if not isinstance(found, str):
        return Refused("Damaged config", f"{file}: {key} is {str(found)[:50]}; known are {known}.")
    return Inexpressible.by(key, f"{file}: {key} is {found[:50]!r}; known are {known}.")


def _turned(info: TensorInfo, expected: tuple[int, ...]) -> str:
    return " It is stored transposed: is the format right?" if info.shape == expected[::-1] and len(expected) == 2 else ""


def _names(found: Mapping[str, Any]) -> str:
    shown = sorted(name[:60] for name in found)
    return ", ".join(shown[:12]) + (" ..." if len(shown) > 12 else "") if shown else "none"


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON side file that must be an object.

    Raises:
        Refused: it is too large, not JSON, or not an object.
    """
    if path.stat().st_size > MAX_JSON:
        raise Refused("Damaged file", f"{name} is larger than {MAX_JSON >> 20} MiB; a config is a few kilobytes.")
    return parse_json(path.read_bytes(), name)


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """JSON bytes that must be an object.

    Raises:
        Refused: they are not.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise instead(data, name) or Refused("Damaged file", f"{name} is not JSON: {str(error)[:200]}.") from error
    if not isinstance(value, dict):
        raise Refused("Damaged file", f"{name} is not a JSON object.")
    return value


def read_yaml(path: Path, name: str) -> dict[str, Any]:
    """A YAML side file that must be a mapping.

    Raises:
        Refused: it is too large, not YAML, or not a mapping.
    """
    if path.stat().st_size > MAX_YAML:
        raise Refused("Damaged file", f"{name} is larger than {MAX_YAML >> 10} KiB; a config is a few kilobytes.")
    return parse_yaml(path.read_bytes(), name)


def parse_yaml(data: bytes, name: str) -> dict[str, Any]:
    """YAML bytes that must be a mapping of plain values. Anchors are refused: a few of them can stand for no end of data.

    Raises:
        Refused: they are not.
    """
    import yaml

    try:
        tokens = yaml.scan(data, Loader=yaml.SafeLoader)
        if any(isinstance(token, yaml.AnchorToken | yaml.AliasToken) for token in tokens):
            raise Refused("Damaged file", f"{name} holds anchors, which no config of this kind has.")
        value = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise instead(data, name) or Refused("Damaged file", f"{name} is not YAML: {str(error)[:200]}.") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise instead(data, name) or Refused("Damaged file", f"{name} is not a YAML mapping.")
    return value


def require_only(file: str, others: Collection[str], known: Collection[str] = ()) -> None:
    """A torch checkpoint must hold nothing beside its tensors but what is ``known``.

    Raises:
        Refused: with the first other name.
    """
    if unknown := sorted(set(others) - set(known)):
        raise Refused("Unknown entry", f"{file} holds {unknown[0][:100]!r}, which is no tensor. Is the format right?")
