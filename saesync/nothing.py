"""The one empty mapping. By itself, so that whoever only needs that imports nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def nothing() -> Mapping[str, Any]:
    """Default of mapping fields: the one empty, read-only mapping."""
    return _NOTHING
