"""Targets: places that hold releases. Each module here with a ``TARGET`` is one; other packages add theirs as entry points of the
group ``saesync.targets``."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from saesync.cache import Cache
from saesync.errors import Missing
from saesync.restraint import restrained
from saesync.targets.base import Target

GROUP = "saesync.targets"


def targets() -> Mapping[str, type[Target]]:
    """All targets by name. Without plugins under restraint.

    Raises:
        Missing: a package offers a target that cannot be loaded, or one whose name is taken.
    """
    return _targets(plugins=not restrained())


@functools.cache
def _targets(plugins: bool) -> Mapping[str, type[Target]]:
    found: dict[str, type[Target]] = {}
    for module in pkgutil.iter_modules(__path__):
        kind = getattr(importlib.import_module(f"{__name__}.{module.name}"), "TARGET", None)
        if kind is not None:
            found[kind.name] = kind
    for entry in importlib.metadata.entry_points(group=GROUP) if plugins else ():
        try:
            kind = entry.load()
            name = str(kind.name)
        except (ImportError, AttributeError) as error:
            detail = f"The entry point {entry.name!r} ({entry.value}) of group {GROUP} does not load: {type(error).__name__}."
            raise Missing("Target cannot be loaded", f"{detail} Repair or remove the package that brings it.") from error
        if name in found:
            detail = f"The entry point {entry.name!r} ({entry.value}) brings a target named {name!r}, which is taken."
            raise Missing("Target name is taken", f"{detail} Remove the package that brings it.")
        found[name] = kind
    return MappingProxyType(dict(sorted(found.items())))


def open_target(name: str, cache: Cache) -> Target:
    """The target of this name.

    Raises:
        Missing: there is none.
    """
    kind = targets().get(name)
    if kind is None:
        raise Missing("Unknown target", f"There is no target {name!r}. Known: {', '.join(targets())}.")
    return kind(cache)
