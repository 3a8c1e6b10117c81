"""Whether what a registry names is really on the Hub: one listing per repository, whatever the number of SAEs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import yaml

from saesync.errors import SaesyncError
from saesync.hub import Hub
from saesync.inert import plain
from saesync.lanes import in_lanes
from saesync.model import SAE_FILES
from saesync.registry.document import Document
from saesync.registry.lint import Finding
from saesync.registry.nodes import items, pairs, text_of, value_of

_STEMS = (".pt", ".safetensors", ".npz")  # some loaders add the suffix to the path themselves
_CLT = "mntss_clt_layer_transcoder"

Listing = Collection[str] | str  # names of files, or why they cannot be seen


def missing_paths(document: Document, hub: Hub, progress: Callable[[int, int], None] | None = None) -> tuple[Finding, ...]:
    """Paths that are not in their repository; and, once each, repositories that cannot be seen, which proves nothing."""
    repos = _repos(document)
    listings: dict[str, Listing] = {}
    for repo, listing in zip(repos, in_lanes("listing", lambda repo: _listing(hub, repo), repos), strict=True):
        listings[repo] = listing
        if progress is not None:
            progress(len(listings), len(repos))
    found = itertools.chain.from_iterable(_of_repo(document, repo, releases, listings[repo]) for repo, releases in repos.items())
    return tuple(sorted(found, key=lambda finding: finding.place))


def is_there(path: str, conversion_func: str | None, names: Collection[str], folders: Collection[str]) -> bool:
    """Whether the loader of a release finds ``path``: a folder, a file, or a file without its suffix.

    ``names`` are all files of the repository, ``folders`` all folders in it.
    """
    path = "" if path == "." else path.strip("/")
    if conversion_func is None:
        return all((f"{path}/{name}" if path else name) in names for name in SAE_FILES)
    if conversion_func == _CLT:
        return f"W_enc_{path}.safetensors" in names
    return path in names or path in folders or any(path + suffix in names for suffix in _STEMS)


def _repos(document: Document) -> dict[str, list[tuple[str, yaml.Node]]]:
    """Releases (name and node) by the repo they name, in the file's order."""
    found: dict[str, list[tuple[str, yaml.Node]]] = {}
    for name, (_, node) in pairs(document.root).items():
        if name in document.releases and (repo := text_of(value_of(node, "repo_id"))):
            found.setdefault(repo, []).append((name, node))
    return found


def _listing(hub: Hub, repo: str) -> Listing:
    try:
        head = hub.head(repo)
        if head is None:
            return "The Hub knows no such repository, or the token may not see it."
        if head.renamed_to is not None:
            return f"The repository is called {plain(head.renamed_to)} now."
        return frozenset(hub.tree(repo, head.sha))
    except SaesyncError as error:
        return error.diagnostics[0].detail


def _of_repo(document: Document, repo: str, releases: Sequence[tuple[str, yaml.Node]], listing: Listing) -> Iterator[Finding]:
    if isinstance(listing, str):
        node = value_of(releases[0][1], "repo_id")
        assert node is not None
        detail = f"The files of {plain(repo)} cannot be seen, so its paths were not checked: {listing}"
        yield Finding("repo-not-visible", detail, document.origin(node))
        return
    folders = {"", *(folder for name in listing for folder in _above(name))}
    for name, node in releases:
        value = document.releases[name]
        for item, sae in zip(items(value_of(node, "saes")), _list(value.get("saes")), strict=False):
            path = sae.get("path") if isinstance(sae, Mapping) else None
            if not isinstance(path, str | int) or is_there(str(path), value.get("conversion_func"), listing, folders):
                continue
            detail = f"{plain(path)} of {plain(name)} is not in {plain(repo)}; loading it fails."
            yield Finding("path-missing", detail, document.origin(pairs(item)["path"][1]))


def _above(name: str) -> Iterator[str]:
    """The folders a file is in."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
