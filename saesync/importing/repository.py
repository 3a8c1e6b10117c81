"""The manifest of a Hub repository of SAELens folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from saesync.formats._saelens_cfg import processing
from saesync.importing.layout import Contents, Imported, checked, manifest_text
from saesync.inert import plain
from saesync.inspection.folders import Folder
from saesync.inspection.reference import Reference
from saesync.inspection.text import slug
from saesync.record import safe_folder

_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_NEURONPEDIA = re.compile(r"[^/\s{}]+/[^/\s{}]+")
_HOOK = re.compile(r"[A-Za-z][^\s{}]*")


def manifest_of(
    reference: Reference, sha: str, folders: Sequence[Folder], release: str, model: str | None, register: str
) -> Imported:
    """The manifest of all folders that could be read. ``model`` is what the user says, else the files have to.

    Raises:
        Refused: none could be read, or what they hold cannot be said in a manifest.
    """
    repo = reference.repo or ""
    chosen = [folder for folder in folders if folder.problem is None]
    notes = [
        f"{plain(folder.path) or '(root)'} is left out: {plain(folder.problem, 1000)}" for folder in folders if folder.problem
    ]
    said = model or _model(chosen, notes)
    rows = _rows(chosen, notes)
    parts = ({"saelens": register}, _head(reference, sha), _tail(repo), _kwargs(chosen, notes))
    contents = Contents(release, said, repo, sha, "saelens", rows, *parts)
    found = Imported(release, manifest_text(contents), tuple(notes))
    return found if said is None else checked(found)


def _model(folders: Sequence[Folder], notes: list[str]) -> str | None:
    """The one model that the files name."""
    names = {str(name) for folder in folders if (name := folder.metadata.get("model_name")) is not None}
    if len(names) == 1 and _HUB_ID.fullmatch(name := names.pop()):
        return name
    listed = ", ".join(sorted(plain(name) for name in names)[:3])
    why = f"the files name {listed}" if names else "the files do not say it"
    notes.append(f"The model is left open: {why}. Give it with --model, or write it as model.name.")
    return None


def _kwargs(folders: Sequence[Folder], notes: list[str]) -> str | None:
    """How the model is processed that all files speak of; without it, measuring would be on other activations."""
    ways = {processing(folder.metadata) for folder in folders}
    if len(ways) > 1:
        notes.append("The files do not agree on how the model's weights are processed. Write a manifest for each way.")
    return ways.pop() if len(ways) == 1 else None


def _rows(folders: Sequence[Folder], notes: list[str]) -> list[dict[str, Any]]:
    hooks = [folder.metadata.get("hook_name") for folder in folders]
    hooked = all(isinstance(hook, str) and _HOOK.fullmatch(hook) for hook in hooks)
    if not hooked and any(hooks):
        notes.append("Not all files say their hook, so none is written. Only measuring needs it.")
    if bare := [folder.path for folder in folders if folder.scaled and folder.factor is None]:
        more = f" and {len(bare) - 1:,} more" if len(bare) > 1 else ""
        notes.append(f"{plain(bare[0]) or '(root)'}{more}: inputs need a norm_scaling_factor, which no file says. Write it.")
    return [
        {
            "id": _id(folder),
            "path": folder.path or ".",
            **({"hook": hook} if hooked else {}),
            "neuronpedia": _neuronpedia(folder),
            "norm_scaling_factor": folder.factor,
        }
        for folder, hook in zip(folders, hooks, strict=True)
    ]


def _id(folder: Folder) -> str:
    """The folder, which is what SAELens takes for an id; a repository's root has none."""
    if folder.path and safe_folder(folder.path):
        return folder.path
    return slug(folder.path) or slug(str(folder.metadata.get("hook_name") or "")) or "sae"


def _neuronpedia(folder: Folder) -> str | None:
    found = folder.metadata.get("neuronpedia_id")
    return found if isinstance(found, str) and _NEURONPEDIA.fullmatch(found) else None


def _head(reference: Reference, sha: str) -> Sequence[str]:
    return (
        f"Every SAELens folder of {plain(str(reference))} at {sha[:8]}. Written by `saesync import`.",
        "",
        "Nothing is published: as it stands, these SAEs are only registered, where SAELens's users find them by name.",
    )


def _tail(repo: str) -> Sequence[str]:
    return (
        "If the repository is yours, `publish` takes it over; `saesync plan --adopt` proves its files to be what they should be:",
        "publish:",
        f"  huggingface: {plain(repo)}",
        "",
        "To measure the SAEs, wherever they stand (`saesync pin` fills in the commits of model and dataset):",
        "validate:",
        "  dataset: monology/pile-uncopyrighted",
        "  tokens: 204800",
        "  context: 1024",
        "records:",
        "  local: ../records                     # or `huggingface:`; not needed with `publish`",
    )
