"""What upstream asks of a change to the registry, checked before anything is pushed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

import yaml

from saesync.errors import Diagnostic, Origin, Refused
from saesync.inert import plain
from saesync.registry.document import Document
from saesync.registry.entry import Entry
from saesync.registry.nodes import items, pairs, repeated_keys, text_of, value_of

ADD, UPDATE, REMOVE = "add", "update", "remove"
_TITLES: Mapping[str, str] = {
    ADD: "feat: add {} to the pretrained SAEs",
    UPDATE: "fix: update {} in the pretrained SAEs",
    REMOVE: "fix: remove {} from the pretrained SAEs",
}
_SHIPS = re.compile(r"(feat|fix)(\([^()\s]+\))?: \S.*")
# "12-res-jb"; "e" is the embedding's layer.
_NEURONPEDIA = re.compile(r"[^\s/]+/(?:\d+|e)-[^\s/]+")


def check(document_after: Document, release: str, entry: Entry) -> tuple[Diagnostic, ...]:
    """What upstream would refuse of the file once ``entry`` is in it; empty when nothing.

    Ids are unique in the release, Neuronpedia ids well-formed and unique in the whole file, and no key stands twice anywhere.
    """
    nodes = _sae_nodes(document_after, release)
    found = list(_repeated_ids(document_after, release, entry, nodes))
    found += _neuronpedia(document_after, release, entry, nodes)
    for key, first in repeated_keys(document_after.root):
        line = first.start_mark.line + 1
        detail = f"{plain(key.value)} stands in the same mapping on line {line}; the second silently wins. Remove one."
        found.append(Diagnostic("Key stands twice", detail, document_after.origin(key)))
    return tuple(found)


def well_formed(neuronpedia: str) -> bool:
    """Whether a Neuronpedia id is ``model/{layer}-{set}``, with one slash."""
    return _NEURONPEDIA.fullmatch(neuronpedia) is not None


def title_of(release: str, verb: str) -> str:
    """The title of the commit and the pull request; ``verb`` is ``add``, ``update`` or ``remove``.

    Upstream makes a version of a push to main by the title's first word: ``feat`` and ``fix`` ship, ``chore`` never does.

    Raises:
        KeyError: another verb.
    """
    return _TITLES[verb].format(plain(release))


def check_title(title: str) -> None:
    """Whether a change under this title would be released.

    Raises:
        Refused: it would not.
    """
    if not _SHIPS.fullmatch(title):
        detail = (
            f"{plain(title)}: SAELens releases a change only when its title begins with `feat:` (new SAEs) or `fix:` (changes); "
            "under any other it never reaches users."
        )
        raise Refused("Title never ships", detail)


def _sae_nodes(document: Document, release: str) -> dict[str, yaml.Node]:
    """The nodes of one release's SAEs by id."""
    saes = items(value_of(value_of(document.root, release), "saes"))
    return {sae_id: sae for sae in saes if (sae_id := text_of(value_of(sae, "id"))) is not None}


def _repeated_ids(document: Document, release: str, entry: Entry, nodes: Mapping[str, yaml.Node]) -> Iterator[Diagnostic]:
    for sae_id, count in Counter(sae.id for sae in entry.saes).items():
        if count > 1:
            detail = f"{plain(sae_id)} stands {count} times in {plain(release)}; SAELens would see the last. Name each SAE once."
            yield Diagnostic("Id stands twice", detail, _origin(document, nodes, sae_id))


def _neuronpedia(document: Document, release: str, entry: Entry, nodes: Mapping[str, yaml.Node]) -> Iterator[Diagnostic]:
    named = [(sae.id, sae.neuronpedia) for sae in entry.saes if sae.neuronpedia is not None]
    owners: dict[str, str] = {}
    for other, value in document.releases.items():
        if other != release:
            owners.update((found, f"{other}/{sae_id}") for sae_id, found in _named(value))
    for sae_id, neuronpedia in named:
        where = _origin(document, nodes, sae_id)
        if not well_formed(neuronpedia):
            detail = f"{plain(neuronpedia)} of {plain(sae_id)} is not a Neuronpedia id: model/LAYER-SET, as gpt2-small/8-res-jb."
            yield Diagnostic("Neuronpedia id is malformed", detail, where)
        if (owner := owners.get(neuronpedia)) is not None:
            detail = f"{plain(neuronpedia)} of {plain(sae_id)} belongs to {plain(owner)} already. Neuronpedia ids are unique."
            yield Diagnostic("Neuronpedia id is taken", detail, where)
        owners.setdefault(neuronpedia, f"{release}/{sae_id}")


def _named(release: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    saes = release.get("saes")
    for sae in saes if isinstance(saes, list) else ():
        found = sae.get("neuronpedia") if isinstance(sae, dict) else None
        if isinstance(found, str):
            yield str(sae.get("id")), found


def _origin(document: Document, nodes: Mapping[str, yaml.Node], sae_id: str) -> Origin | None:
    node = nodes.get(sae_id)
    if node is None:
        return None
    found = pairs(node)
    return document.origin(found["neuronpedia"][1] if "neuronpedia" in found else node)
