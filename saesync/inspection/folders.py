"""All SAELens folders of a Hub repository by their cfg.json: one listing and one small read for each, however many there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from saesync.digest import FileDigest
from saesync.errors import Refused
from saesync.formats._checks import MAX_JSON, parse_json
from saesync.formats._saelens_cfg import CFG, SCALED, parse_cfg
from saesync.formats.saelens import SCALER, WEIGHTS
from saesync.hub import Hub
from saesync.inspection import natural
from saesync.inspection.places import commit_of
from saesync.inspection.reference import Reference
from saesync.lanes import in_lanes
from saesync.nothing import nothing


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder with cfg.json and weights. ``path`` is in the repository, "" its root.

    ``metadata`` is what cfg.json says of model and data, in today's names. ``scaled``: inputs need a factor, which is ``factor``
    if a file says it. ``problem`` is set when saesync could not read the SAE, and says why.
    """

    path: str
    metadata: Mapping[str, Any] = field(default_factory=nothing)
    scaled: bool = False
    factor: float | None = None
    problem: str | None = None


def saelens_folders(hub: Hub, reference: Reference) -> tuple[str, tuple[Folder, ...]]:
    """The commit that was looked at, and every SAELens folder at or below ``reference``, layer_2 before layer_10.

    Raises:
        Missing: no such repo or revision.
        Refused: there is no such folder.
        NotVisible, Unavailable: the Hub does not say.
    """
    repo, sha = commit_of(hub, reference)
    tree = hub.tree(repo, sha)
    paths = sorted(_paths(tree, reference.path), key=natural)
    if not paths:
        detail = f"No folder at {reference} holds {CFG} beside {WEIGHTS}. `saesync init {reference}` looks for other formats."
        raise Refused("No SAELens folder", detail)
    return sha, tuple(in_lanes("folders", partial(_look, hub, repo, sha, tree), paths))


def _paths(tree: Mapping[str, FileDigest], below: str) -> Iterator[str]:
    for name in tree:
        folder, _, file = name.rpartition("/")
        inside = not below or folder == below or folder.startswith(f"{below}/")
        if file == CFG and inside and _in(folder, WEIGHTS) in tree:
            yield folder


def _look(hub: Hub, repo: str, sha: str, tree: Mapping[str, FileDigest], folder: str) -> Folder:
    try:
        config = parse_cfg(_json(hub, repo, sha, tree, _in(folder, CFG)))
        if config.norm != SCALED:
            return Folder(folder, config.metadata)
        scaler = _in(folder, SCALER)
        hint = _json(hub, repo, sha, tree, scaler).get("scaling_factor") if scaler in tree else None
        factor = float(hint) if isinstance(hint, int | float) and not isinstance(hint, bool) and hint > 0 else None
        return Folder(folder, config.metadata, scaled=True, factor=factor)
    except Refused as refusal:
        return Folder(folder, problem=refusal.diagnostics[0].detail)


def _json(hub: Hub, repo: str, sha: str, tree: Mapping[str, FileDigest], path: str) -> dict[str, Any]:
    return parse_json(hub.read(repo, sha, path, tree[path], limit=MAX_JSON), path)


def _in(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
