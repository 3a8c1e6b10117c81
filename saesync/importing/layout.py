"""A manifest of somebody else's SAEs as text, and whether it would be accepted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saesync.errors import ManifestError, Refused
from saesync.importing.fold import Row, fold, literal, scalar
from saesync.inert import plain
from saesync.manifest.check import check
from saesync.manifest.expand import Budget
from saesync.manifest.yaml12 import decode, parse

UPSTREAM = "decoderesearch/SAELens"
"""Where SAEs are registered unless somebody says otherwise."""

ENTRY = ("l0", "variance_explained", "neuronpedia", "norm_scaling_factor")
"""Columns that stand under ``saes.entry``."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A manifest that was not written yet. ``notes`` say in sentences what it does not hold, or leaves open."""

    name: str
    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Contents:
    """What a manifest holds. ``rows`` has a column per key that is said of every SAE: ``id``, ``path``, perhaps ``hook``, and
    those of ENTRY. ``register`` and ``kwargs`` (the model's) are written as they are. ``head`` and ``tail`` are comments, without
    their ``#``."""

    release: str
    model: str | None
    repo: str
    revision: str | None
    format: str | None
    rows: Sequence[Row]
    register: Mapping[str, Any]
    head: Sequence[str]
    tail: Sequence[str] = ()
    kwargs: str | None = None


def manifest_text(contents: Contents) -> str:
    """The manifest.

    Raises:
        Refused: there is no SAE, or two have the same id.
    """
    ids = [row["id"] for row in contents.rows]
    if not ids:
        raise Refused("Nothing to import", f"{plain(contents.release)} has no SAE.")
    if len(set(ids)) < len(ids):
        twice = next(sae_id for number, sae_id in enumerate(ids) if sae_id in ids[:number])
        raise Refused("Id is taken", f"{plain(contents.release)} has two SAEs called {plain(twice)}. Only one can be loaded.")
    model = f"  name: {scalar(contents.model)}" if contents.model is not None else "  # name: the files do not say it"
    lines = [
        *(f"# {line}".rstrip() for line in contents.head),
        "apiVersion: saesync/v1",
        f"release: {scalar(contents.release)}",
        "",
        "model:",
        model,
        *([f"  kwargs: {contents.kwargs}"] if contents.kwargs is not None else []),
        "",
        "saes:",
        *_saes(contents),
        "",
        "register:",
        *_register(contents.register),
        *(["", *(f"# {line}".rstrip() for line in contents.tail)] if contents.tail else []),
    ]
    return "\n".join(lines) + "\n"


def checked(imported: Imported) -> Imported:
    """The same, if `saesync check` will accept it.

    Raises:
        Refused: what is imported cannot be said in a manifest, with the first reason.
    """
    try:
        check(parse(decode(imported.text.encode(), imported.name)[1], imported.name), imported.name, Budget())
    except ManifestError as error:
        found = error.diagnostics[0]
        raise Refused("Cannot be said in a manifest", f"{plain(imported.name)}: {found.detail}") from error
    return imported


def _saes(contents: Contents) -> Iterable[str]:
    folded = fold([_said(contents, row) for row in contents.rows])
    yield from folded.for_each
    yield from (f"  {name}: {folded.values[name]}" for name in ("id", "hook") if name in folded.values)
    yield from ("  source:", f"    repo: {literal(contents.repo)}")
    if contents.revision is not None:
        yield f"    revision: {literal(contents.revision)}"
    if "path" in folded.values:
        yield f"    path: {folded.values['path']}"
    if contents.format is not None:
        yield f"    format: {literal(contents.format)}"
    entry = [name for name in ENTRY if name in folded.values]
    if entry:
        yield "  entry:"
        yield from (f"    {name}: {folded.values[name]}" for name in entry)


def _said(contents: Contents, row: Row) -> Row:
    """A row without the columns that say nothing of any SAE: no l0 at all, or all in the repo's root."""
    idle: tuple[Any, ...] = (None, ".")
    empty = {name for name in row if name != "id" and all(other[name] in idle for other in contents.rows)}
    return {name: value for name, value in row.items() if name not in empty}


def _register(register: Mapping[str, Any]) -> Iterable[str]:
    for name, value in register.items():
        if not isinstance(value, Mapping):
            yield f"  {name}: {scalar(value)}"
        elif value:
            yield f"  {name}:"
            yield from (f"    {scalar(key)}: {scalar(below)}" for key, below in value.items())
