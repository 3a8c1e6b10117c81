"""What a source holds, from headers alone: no torch, no weights read, on this disk or on the Hub by ranged reads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Missing, Refused
from saesync.formats import _npz, _safetensors, _torchzip, formats, get
from saesync.formats._checks import MAX_JSON, MAX_YAML, parse_json, parse_yaml
from saesync.formats.base import Candidate, Format, Headers, TensorInfo
from saesync.inspection.places import HubPlace, LocalPlace, Place, commit_of
from saesync.inspection.reference import Reference, parse_reference
from saesync.manifest.paths import unexpanded

if TYPE_CHECKING:
    from saesync.hub import Hub

__all__ = [
    "Found",
    "Inspection",
    "Reference",
    "headers",
    "inspect_hub",
    "inspect_local",
    "inspect_source",
    "natural",
    "parse_reference",
]

TENSOR_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz")
WEIGHT_SUFFIXES = (*TENSOR_SUFFIXES, ".pkl.gz")  # the last is known by its name alone
# Headers cost a few ranged requests each; a repository with more SAEs than this is of one kind, which its first ones show.
LIMIT = 64
_MOST_LOOKED_AT = 4 * LIMIT  # with what lies beside SAEs


@dataclass(frozen=True, slots=True)
class Found:
    """One SAE, or what may be one. ``path`` is what a manifest's ``source.path`` says, relative to the place looked at.

    ``candidates`` are ranked, best first; ``problem`` is set when headers cannot be read, and says why.
    """

    path: str
    headers: Headers
    candidates: tuple[Candidate, ...] = ()
    problem: str | None = None

    @property
    def best(self) -> Candidate | None:
        """The most likely format, or None when nothing fits."""
        return self.candidates[0] if self.candidates else None

    @property
    def able(self) -> bool:
        """Whether the most likely format can be converted."""
        return self.best is not None and self.best.refusal is None

    @property
    def rivals(self) -> tuple[Candidate, ...]:
        """All candidates that are as likely as the best one and can be converted; more than one: somebody has to choose."""
        able = [one for one in self.candidates if one.refusal is None]
        return tuple(one for one in able if one.score == able[0].score)


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything found at one place. ``revision`` is the Hub commit that was looked at; ``unread`` are paths beyond LIMIT."""

    reference: Reference
    revision: str | None
    saes: tuple[Found, ...]
    unread: tuple[str, ...] = ()

    @property
    def convertible(self) -> tuple[Found, ...]:
        """Those whose best candidate can be converted."""
        return tuple(found for found in self.saes if found.able)


def inspect_source(text: str, hub: Callable[[], Hub]) -> Inspection:
    """``hf://owner/repo[/path][@revision]`` or a local path. ``hub`` is only called for the former.

    Raises:
        Refused: the reference is malformed, or nothing that looks like weights is there.
        Missing: no such file, folder, repo or revision.
        NotVisible, Unavailable: the Hub does not say.
    """
    reference = parse_reference(text)
    return inspect_local(Path(text)) if reference.repo is None else inspect_hub(hub(), reference)


def inspect_local(path: Path) -> Inspection:
    """Look at a local file or folder. See ``inspect_source``."""
    if not path.exists():
        word = unexpanded(str(path))
        quoted = "A repository on the Hub is named hf://owner/repo."
        if word is not None:
            quoted = f"A shell puts your folder in the place of {word} only outside of quotes."
        raise Missing("Source not found", f"{path} does not exist. {quoted}")
    root = path if path.is_dir() else path.parent
    inside = "" if path.is_dir() else path.name
    return _inspect(LocalPlace(root), inside, Reference(None, str(path), None), None)


def inspect_hub(hub: Hub, reference: Reference) -> Inspection:
    """Look at a Hub repo at the commit its revision points to now. See ``inspect_source``."""
    repo, sha = commit_of(hub, reference)
    return _inspect(HubPlace(hub, repo, sha), reference.path, reference, sha)


def headers(place: Place, files: Mapping[str, str], where: str = "") -> Headers:
    """Headers of ``files`` (relative name -> name at ``place``). ``where`` becomes ``Headers.place``.

    Raises:
        Refused: one of them is damaged or oversized.
    """
    json: dict[str, Any] = {}
    tensors: dict[str, Mapping[str, TensorInfo]] = {}
    globals_: dict[str, tuple[str, ...]] = {}
    values: dict[str, Mapping[str, Any]] = {}
    notes: dict[str, Mapping[str, str]] = {}
    others: dict[str, tuple[str, ...]] = {}
    for name, listed in files.items():
        source = place.open(listed)
        if name.endswith(".json"):
            if source.size > MAX_JSON:
                raise Refused("Damaged file", f"{name} is larger than {MAX_JSON >> 20} MiB; a config is a few kilobytes.")
            json[name] = parse_json(source.read(0, source.size), name)
        elif name.endswith((".yaml", ".yml")):
            json[name] = parse_yaml(source.read(0, MAX_YAML + 1), name)
        elif name.endswith(".safetensors"):
            tensors[name] = {tensor: extent.info for tensor, extent in _safetensors.parse(source, name).items()}
            notes[name] = _safetensors.notes(source, name)
        elif name.endswith(".npz"):
            tensors[name] = _npz.parse(source, name)
        elif name.endswith(TENSOR_SUFFIXES):
            file = _torchzip.parse(source, name)
            tensors[name], globals_[name], values[name], others[name] = file.tensors, file.globals, file.values, file.others
    return Headers(tuple(sorted(files)), json, tensors, globals_, where, values, notes, others)


def _inspect(place: Place, path: str, reference: Reference, revision: str | None) -> Inspection:
    names = sorted(place.names())
    spots = _spots(names, path.strip("/"))
    if not spots:
        raise Refused("Nothing to inspect", f"No file ending in {', '.join(WEIGHT_SUFFIXES)} is at {reference}.")
    paths = sorted(spots, key=natural)
    kept: list[Found] = []
    homes: set[str] = set()
    looked = 0
    for spot in paths:
        if len(kept) >= LIMIT or looked >= _MOST_LOOKED_AT:
            break
        looked += 1
        found = _look_closely(place, names, spot, spots[spot], reference)
        homes |= {each.path for each in found if each.candidates}
        # A folder's side files (feature densities ...) are not SAEs of their own when the folder, which comes first, holds one.
        kept += [each for each in found if each.candidates or _folder(each.path) not in homes]
    left = paths[looked:]
    files, beside = set(names), homes | set(left)
    unread = tuple(spot for spot in left if spot not in files or _folder(spot) not in beside)
    return Inspection(reference, revision, tuple(kept), unread)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _spots(names: Sequence[str], path: str) -> dict[str, dict[str, str]]:
    """Path of each possible SAE -> its files: folders that some format accepts, then weight files no folder claimed."""
    inside = [path] if path in names else _under(names, path)
    weights = [name for name in inside if name.endswith(WEIGHT_SUFFIXES)]
    if path in names:
        return {path: _claims(names, path) or {path.rsplit("/", 1)[-1]: path}}
    # A format may keep its weights one folder below its config, so parents are asked too, inside of what was asked for.
    folders = {name.rpartition("/")[0] for name in weights}
    folders |= {parent for folder in folders if (parent := folder.rpartition("/")[0]).startswith(path)}
    spots = {folder: claim for folder in sorted(folders, key=natural) if (claim := _claims(_under(names, folder), folder))}
    claimed = {listed for claim in spots.values() for listed in claim.values()}
    for name in weights:
        if name not in claimed:
            spots[name] = _claims(names, name) or {name.rsplit("/", 1)[-1]: name}
    # A file that another one brings along (a decoder of its own) is no SAE.
    brought = {listed for path, claim in spots.items() for listed in claim.values() if listed != path}
    return {path: claim for path, claim in spots.items() if path not in brought or len(claim) > 1}


def _claims(names: Sequence[str], path: str) -> dict[str, str]:
    """Files any format would read for ``path``."""
    files: dict[str, str] = {}
    for known in formats().values():
        claim = _claim(known, names, path)
        files |= {} if isinstance(claim, Refused) else claim
    return files


def _claim(known: Format, names: Sequence[str], path: str) -> Mapping[str, str] | Refused:
    """Files the format would read for ``path``, or why it would not."""
    try:
        return known.files(names, path)
    except Refused as refusal:
        return refusal


def _look_closely(
    place: Place, names: Sequence[str], path: str, files: Mapping[str, str], reference: Reference
) -> tuple[Found, ...]:
    """What is at ``path``; its weight files, each by itself, where a format that does not read the folder reads one of them."""
    found = _look(place, names, path, files, reference)
    elsewhere = any(isinstance(_claim(get(one.format), names, path), Refused) for one in found.candidates)
    if found.able or not elsewhere or path in names:
        return (found,)
    inner = [listed for listed in files.values() if listed.endswith(WEIGHT_SUFFIXES)]
    each = tuple(_look(place, names, name, _claims(names, name), reference) for name in sorted(inner, key=natural))
    return each if any(one.able for one in each) else (found,)


def _look(place: Place, names: Sequence[str], path: str, files: Mapping[str, str], reference: Reference) -> Found:
    where = Path(reference.path).absolute().as_posix() if reference.repo is None else reference.repo
    where = where if path in ("", where.rsplit("/", 1)[-1]) else f"{where}/{path}"
    try:
        found = headers(place, files, where)
    except Refused as refusal:
        return Found(path, Headers(tuple(sorted(files))), problem=refusal.diagnostics[0].detail)
    return Found(path, found, _candidates(names, path, found))


def _candidates(names: Sequence[str], path: str, found: Headers) -> tuple[Candidate, ...]:
    """What the formats say of it, best first. One that would not read ``path`` itself comes last, with the reason: all it can
    say is why."""
    ranked: list[tuple[bool, float, str, Candidate]] = []
    for known in formats().values():
        claim = _claim(known, names, path)
        refused = isinstance(claim, Refused)
        candidate = known.sniff(found if isinstance(claim, Refused) else found.of(claim))
        if candidate is None:
            continue
        if isinstance(claim, Refused) and candidate.refusal is None:
            candidate = replace(candidate, refusal=claim.diagnostics[0].detail)
        ranked.append((refused, -candidate.score, candidate.format, candidate))
    return tuple(candidate for *_, candidate in sorted(ranked, key=lambda one: one[:3]))


def _under(names: Sequence[str], folder: str) -> Sequence[str]:
    """Sorted ``names`` inside ``folder``, found by bisection: a repository may hold many thousand."""
    if not folder:
        return names
    start = bisect_left(names, f"{folder}/")
    return names[start : bisect_left(names, f"{folder}0", lo=start)]


def natural(path: str) -> list[tuple[int, str]]:
    """layer_2 before layer_10."""
    digits, parts = "", []
    for character in f"{path}\0":
        if character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((len(digits.lstrip("0")), digits.lstrip("0")))
            digits = ""
        parts.append((0, character))
    return parts
