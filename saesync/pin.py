"""``saesync pin``: full commit hashes for what a manifest names by repo alone, by branch or by tag.

The file is changed by splices at the places of nodes: comments, quoting and every other byte stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from saesync.cache import write_named
from saesync.errors import ManifestError, Origin, SaesyncError
from saesync.manifest import read_bytes
from saesync.manifest.yaml12 import Node, Unresolved, decode, parse
from saesync.manifest.yaml12 import resolve as resolve_scalar

Resolve = Callable[[str, str, str | None], str]
"""(repo, "model" or "dataset", branch or tag or None) -> 40-digit commit hash."""

# Where manifests name repos: path of the section, key of the repo in it, kind of the repo.
PLACES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("model",), "name", "model"),
    (("saes", "source"), "repo", "model"),
    (("saes", "train", "dataset"), "repo", "dataset"),
    (("validate", "dataset"), "repo", "dataset"),
    (("dashboards", "dataset"), "repo", "dataset"),
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


@dataclass(frozen=True, slots=True)
class Change:
    """One hash that was filled in. ``key`` is dotted; ``before`` is the branch or tag that stood there, if any."""

    key: str
    repo: str
    before: str | None
    after: str
    origin: Origin

    def __str__(self) -> str:
        was = f" (was {self.before})" if self.before is not None else ""
        return f"{self.origin}: {self.key} of {self.repo} is {self.after}{was}"


@dataclass(frozen=True, slots=True)
class _Splice:
    """Replace ``text[start:end]`` by ``new``, where "{commit}" in it stands for the hash."""

    start: int
    end: int
    new: str


def only_registers(root: Node) -> bool:
    """Whether a manifest does nothing but register, and may leave its source and model unpinned."""
    used = ("publish", "validate", "dashboards", "neuronpedia")
    return root.get("register") is not None and not any(root.get(name) for name in used)


def pin(path: Path, resolve: Resolve, everything: bool = False) -> list[Change]:
    """Fill in the commit hashes that the manifest at ``path`` lacks; those that stand there stay. Returns what changed.

    Where a release that only registers says no revision at all, none is needed, and none is filled in unless ``everything`` is.
    Nothing is written unless everything was resolved, and nothing when nothing changed.

    Raises:
        ManifestError: the file is no YAML, or names a repo where no hash can be filled in.
        SaesyncError: whatever ``resolve`` raises.
    """
    file = str(path)
    mark, text = decode(read_bytes(path), file)
    root = parse(text, file)
    changes: list[Change] = []
    splices: list[_Splice] = []
    seen: list[Node] = []
    for section, repo_key, kind in PLACES:
        node = root.get(*section)
        if node is None or any(node is each for each in seen):  # an alias brings one section to several places
            continue
        seen.append(node)
        if not everything and only_registers(root) and isinstance(node.value, dict) and node.get("revision") is None:
            continue
        found = _unpinned(node, section, repo_key, text, file)
        if found is None:
            continue
        repo, before, splice = found
        origin = root.place((*section, repo_key)).origin(file)
        commit = _resolved(resolve, repo, kind, before, origin)
        changes.append(Change(".".join((*section, "revision")), repo, before, commit, origin))
        splices.append(_Splice(splice.start, splice.end, splice.new.replace("{commit}", _written(commit))))
    if changes:
        pinned = _spliced(text, splices)
        _verify(parse(pinned, file), changes)
        write_named(path, (mark + pinned).encode())
    return changes


def _resolved(resolve: Resolve, repo: str, kind: str, before: str | None, origin: Origin) -> str:
    """What ``resolve`` says, its errors placed where the repo is named."""
    try:
        commit = resolve(repo, kind, before)
    except SaesyncError as error:
        raise type(error).of([each.at(origin) for each in error.diagnostics]) from error
    if not _COMMIT.fullmatch(commit):
        raise ManifestError("Not a commit", f"{repo} was resolved to something that is no 40-digit commit hash.", origin)
    return commit


def _written(commit: str) -> str:
    """A hash as YAML writes it: in quotes where all its digits make a number."""
    try:
        return commit if resolve_scalar(commit) == commit else f'"{commit}"'
    except Unresolved:
        return f'"{commit}"'


def _verify(root: Node, changes: list[Change]) -> None:
    """The file is written only if it then says what it should, however oddly it was laid out."""
    for change in changes:
        node = root.get(*change.key.split("."))
        if node is None or node.value != change.after:
            detail = f"{change.key} could not be written without touching more of the file. Write it by hand: {change.after}"
            raise ManifestError("Cannot be pinned", detail, change.origin)


def _spliced(text: str, splices: list[_Splice]) -> str:
    for splice in sorted(splices, key=lambda each: each.start, reverse=True):
        text = text[: splice.start] + splice.new + text[splice.end :]
    return text


def _unpinned(
    node: Node, section: tuple[str, ...], repo_key: str, text: str, file: str
) -> tuple[str, str | None, _Splice] | None:
    """The repo, the branch or tag given for it, and where the hash goes; None where nothing is to be pinned."""
    if isinstance(node.value, str):
        return _bare_name(node, section, repo_key, text, file)
    repo = node.get(repo_key)
    if not isinstance(node.value, dict) or repo is None or not isinstance(repo.value, str):
        return None
    revision = node.get("revision")
    if revision is None:
        _refuse_template(repo, file)
        return repo.value, None, _insertion(node, repo, repo_key, text, file)
    if revision.value is None:
        _refuse_template(repo, file)
        gap = "" if text[revision.start - 1 : revision.start].isspace() else " "
        return repo.value, None, _Splice(revision.start, revision.end, f"{gap}{{commit}}")
    before = revision.value if isinstance(revision.value, str) else text[revision.start : revision.end]
    if _COMMIT.fullmatch(before) or "{" in before:
        return None
    _refuse_template(repo, file)
    return repo.value, before, _replacement(revision, node.keys["revision"], text, file, "{commit}")


def _bare_name(
    node: Node, section: tuple[str, ...], repo_key: str, text: str, file: str
) -> tuple[str, str | None, _Splice] | None:
    """``dataset: owner/name`` becomes ``dataset: {repo: owner/name, revision: ...}``. Paths are left alone."""
    if section[-1] == "source" or not _HUB_ID.fullmatch(node.value):
        return None
    written = text[node.start : node.end]
    return node.value, None, _replacement(node, node, text, file, f"{{{repo_key}: {written}, revision: {{commit}}}}")


def _insertion(node: Node, repo: Node, repo_key: str, text: str, file: str) -> _Splice:
    """A new ``revision`` after the repo: beside it in a flow mapping, else on a line of its own after the repo's."""
    key = node.keys[repo_key]
    _refuse_elsewhere(repo, key, text, file)
    if node.flow:
        return _Splice(repo.end, repo.end, ", revision: {commit}")
    found = re.compile("\r\n|\r|\n").search(text, repo.end)
    at = found.start() if found is not None else len(text)
    newline = found[0] if found is not None else "\n"
    return _Splice(at, at, f"{newline}{' ' * (key.column - 1)}revision: {{commit}}")


def _replacement(node: Node, key: Node, text: str, file: str, new: str) -> _Splice:
    _refuse_elsewhere(node, key, text, file)
    return _Splice(node.start, node.end, new)


def _refuse_elsewhere(node: Node, key: Node, text: str, file: str) -> None:
    """Aliases and texts over several lines have no single place to write to."""
    if node.start < key.start or "\n" in text[key.start : node.end]:
        detail = "This value stands elsewhere (`*alias`) or runs over several lines. Write the commit hash by hand."
        raise ManifestError("Cannot be pinned", detail, key.origin(file))


def _refuse_template(repo: Node, file: str) -> None:
    if "{" in repo.value:
        detail = (
            "This repo has placeholders, so each SAE may need its own commit. "
            'Make the commits a value of for_each and write `revision: "{revision}"`.'
        )
        raise ManifestError("Cannot be pinned", detail, repo.origin(file))
