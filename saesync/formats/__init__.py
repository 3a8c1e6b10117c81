"""Weight formats, found by name. A module in this package with a ``FORMAT`` object, or an entry point of the group
``saesync.formats`` naming such an object, is a format; nothing else has to be edited."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Collection, Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from saesync.errors import Missing, Refused
from saesync.formats.base import Format
from saesync.restraint import restrained

GROUP = "saesync.formats"
# Part of every weights_key: bumped by hand when the writer's bytes for the same source should change.
WRITER_VERSION = 1


def formats() -> Mapping[str, Format]:
    """All known formats by name, built-ins first; a third party cannot replace a built-in. Without plugins under restraint."""
    return _formats(plugins=not restrained())


@functools.cache
def _formats(plugins: bool) -> Mapping[str, Format]:
    found: dict[str, Format] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_") and module.name != "base":
            candidate = importlib.import_module(f"{__name__}.{module.name}").FORMAT
            found[candidate.name] = candidate
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name) if plugins else ():
        candidate = entry.load()
        found.setdefault(candidate.name, candidate)
    return MappingProxyType(dict(sorted(found.items())))


def get(name: str) -> Format:
    """The format of that name.

    Raises:
        Refused: there is none.
    """
    known = formats()
    if name not in known:
        raise Refused("Unknown format", f"{name!r} is not a known format. Known: {', '.join(known)}.")
    return known[name]


def require_known(chosen: Format, names: Collection[str]) -> None:
    """``names`` are options of this format.

    Raises:
        Refused: one is not.
    """
    known = [option.name for option in dataclasses.fields(chosen.Options)]
    if unknown := sorted(set(names) - set(known)):
        detail = f"{unknown[0]!r} is not an option of format {chosen.name}. Options: {', '.join(known) or 'none'}."
        raise Refused("Unknown option", detail)


def make_options(chosen: Format, values: Mapping[str, Any]) -> Any:
    """The format's ``Options`` from manifest values.

    Raises:
        Refused: a value's name is not an option of this format, or a required one is missing.
    """
    require_known(chosen, values)
    try:
        return chosen.Options(**values)
    except TypeError as error:
        raise Refused("Missing option", f"Format {chosen.name} needs more options: {error}.") from error


def saelens_loader(names: Collection[str]) -> str | None:
    """The word of SAELens's registry for the loader that reads files of these formats; None is SAELens's own layout.

    Raises:
        Missing: SAELens has no loader for them, or several.
    """
    known = formats()
    loaders = {name: getattr(known.get(name), "conversion_func", None) for name in names}
    if len(set(loaders.values())) == 1 and (set(names) == {"saelens"} or None not in loaders.values()):
        return next(iter(loaders.values()))
    said = f"No one loader of SAELens is known to read {', '.join(sorted(names)) or 'files without a format'}"
    raise Missing("Loader is not known", f"{said}. Name it in register.conversion_func, or publish what is converted.")
