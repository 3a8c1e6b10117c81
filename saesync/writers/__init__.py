"""Layouts other than SAELens's that SAEs can be written in, found by name: a module in this package with a ``WRITER`` object
is one; nothing else has to be edited."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from saesync.errors import Refused
from saesync.writers.base import Writer


@functools.cache
def writers() -> Mapping[str, Writer]:
    """All known writers by name."""
    found: dict[str, Writer] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_") and module.name != "base":
            writer = importlib.import_module(f"{__name__}.{module.name}").WRITER
            found[writer.name] = writer
    return MappingProxyType(dict(sorted(found.items())))


def get(name: str) -> Writer:
    """The writer of that name.

    Raises:
        Refused: there is none.
    """
    try:
        return writers()[name]
    except KeyError:
        raise Refused("Unknown layout", f"{name!r} cannot be written. Known: {', '.join(writers())}.") from None
