"""The manifest of an entry in SAELens's registry."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from saesync.errors import Missing
from saesync.importing.layout import Contents, Imported, checked, manifest_text
from saesync.inert import plain
from saesync.registry.document import Document
from saesync.registry.entry import Entry, SaeEntry, from_yaml

_KEYS = frozenset(("conversion_func", "links", "model", "repo_id", "config_overrides", "saes"))
_SAE_KEYS = frozenset(("id", "path", "l0", "variance_explained", "neuronpedia", "norm_scaling_factor"))
_NATIVE = "saelens"  # the format of entries without a conversion_func
_GLOB = frozenset("*?[")


def names_of(document: Document, asked: str) -> list[str]:
    """The releases of a registry that a name or a glob stands for; all for "".

    Raises:
        Missing: there is none.
    """
    if not asked:
        return [str(name) for name in document.value]
    if asked in document.releases:
        return [asked]
    found = [name for name in document.releases if fnmatchcase(name, asked)] if _GLOB & set(asked) else []
    if not found:
        near = difflib.get_close_matches(asked, document.releases, n=1)
        advice = f"Did you mean {plain(near[0])}?" if near else "`saesync import --all` imports every release of it."
        raise Missing("No such release", f"{document.name} has no release {plain(asked)}. {advice}")
    return found


def manifest_of(document: Document, name: str, register: str) -> Imported:
    """The manifest of one entry; ``register`` is what its ``register.saelens`` says.

    Raises:
        Refused: it is no entry that SAELens could read, or holds what a manifest cannot say.
    """
    mapping = document.value.get(name)
    entry = from_yaml(name, mapping)
    assert isinstance(mapping, Mapping)
    text = manifest_text(
        Contents(
            entry.release,
            entry.model,
            entry.repo_id,
            None,
            _NATIVE if entry.conversion_func is None else None,
            [_row(sae) for sae in entry.saes],
            _register(entry, register),
            (
                f"{plain(entry.release)}, as SAELens's list of pretrained SAEs has it. Written by `saesync import`.",
                "",
                "Somebody else's weights: nothing is published, and they are never read. The source is not pinned to a commit,",
                "for SAELens's list is not either. To measure these SAEs add hook, format, `validate` and `records`.",
            ),
        )
    )
    return checked(Imported(name, text, tuple(_lost(mapping, entry))))


def _row(sae: SaeEntry) -> dict[str, Any]:
    return {
        "id": sae.id,
        "path": sae.path,
        "l0": sae.l0,
        "variance_explained": sae.variance_explained,
        "neuronpedia": sae.neuronpedia,
        "norm_scaling_factor": sae.norm_scaling_factor,
    }


def _register(entry: Entry, register: str) -> dict[str, Any]:
    found: dict[str, Any] = {"saelens": register}
    if entry.conversion_func is not None:
        found["conversion_func"] = entry.conversion_func
    return {**found, "links": entry.links, "config_overrides": entry.config_overrides}


def _lost(mapping: Mapping[str, Any], entry: Entry) -> Iterator[str]:
    """What the entry says and the manifest does not, by name: SAELens ignores it, or reads it otherwise."""
    if ignored := sorted(set(mapping) - _KEYS):
        yield f"{plain(entry.release)}: SAELens ignores {_listed(ignored)}; left out."
    for raw, sae in zip(mapping["saes"], entry.saes, strict=True):
        if ignored := sorted(set(raw) - _SAE_KEYS):
            yield f"{plain(entry.release)}/{plain(sae.id)}: SAELens ignores {_listed(ignored)} here; left out."
    bare = [sae.id for raw, sae in zip(mapping["saes"], entry.saes, strict=True) if not isinstance(raw["path"], str)]
    if bare:
        count = (
            f"paths of {len(bare):,} SAEs are bare numbers" if len(bare) > 1 else f"the path of {plain(bare[0])} is a bare number"
        )
        yield f"{plain(entry.release)}: {count}, which SAELens reads as text; written as text."


def _listed(names: list[str]) -> str:
    return ", ".join(plain(name) for name in names)
