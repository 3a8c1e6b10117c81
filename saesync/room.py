"""How much room a plan takes, on which disk: known before anything is fetched.

Everything stays on disk until the end: downloads, converted SAEs and activations in the cache, published SAEs in the folder they
are published to. Places on one disk share its room. How large an SAE will be follows from its source's tensors and the manifest's
dtype. Their headers are read only where a bound that needs none does not fit: source files hold nothing narrower than 16 bits.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from saesync.apply import settings
from saesync.apply.batching import MOST_FILES
from saesync.apply.context import Context
from saesync.apply.steps import ACTIVATIONS
from saesync.apply.work import Work
from saesync.cache import existing
from saesync.digest import FileDigest
from saesync.errors import Diagnostic, SaesyncError
from saesync.formats._lazy import FLOATS, WIDTHS
from saesync.hub import Hub
from saesync.inspection import headers
from saesync.inspection.places import HubPlace, LocalPlace
from saesync.lanes import in_lanes
from saesync.model import CFG_FILE, SAE_FILES, Observed, StepKind
from saesync.resolve import ResolvedSource

_SPARE = 1.05  # file systems need some room of their own
_NARROWEST = 2  # bytes of a number in a source
_WIDEST = 16_384  # numbers per token at a hook, all heads together
_TOGETHER = MOST_FILES // 2  # SAEs of one commit: of these, old files stand beside the new ones until those are whole
_SMALL = 16_384  # bytes per SAE of cfg.json, notes and its part of the record, in the blocks they take
Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Claim:
    """Bytes that will be written below ``root``. ``what`` is said of them: "downloads", "converted SAEs"."""

    root: Path
    what: str
    size: int


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a source: how many floating-point numbers it holds, and how many of them there are per token (d_in)."""

    numbers: int
    width: int


@dataclass
class Room:
    """The claims of a plan's SAEs. ``works`` are all that have steps; ``hub`` opens the Hub, for headers."""

    context: Context
    works: tuple[Work, ...]
    hub: Callable[[], Hub]
    _known: dict[str, Shape] = field(default_factory=dict)

    def complaints(self, downloads: Sizes) -> tuple[Diagnostic, ...]:
        """What does not fit, per disk. ``downloads`` are sizes by content of what is fetched from the Hub."""
        found: tuple[Diagnostic, ...] = ()
        for look in (self._bound, self._read):
            found = tuple(_short(self._claims(downloads, self._shapes(look)), self.context.cache.root))
            if not found:
                break
        return found

    # ------------------------------------------------------------------------------------------------ what is claimed

    def _claims(self, downloads: Sizes, shapes: Mapping[str, Shape]) -> Iterator[Claim]:
        """``shapes`` are those of the SAEs that have to be converted, by build_key."""
        root = self.context.cache.root
        folders = {at: _folders(observed) for at, observed in {id(work.observed): work.observed for work in self.works}.items()}
        yield Claim(root, "downloads", sum({**downloads, **self._published(folders)}.values()))
        made = {work.inputs.build_key: _made(work, shapes) for work in self.works if work.has(StepKind.CONVERT)}
        yield Claim(root, "converted SAEs", sum(made[key] for key in shapes if key in made))
        yield Claim(root, "activations", sum(self._activations(shapes).values()))
        texts = {settings.dataset_key(spec): spec.tokens for work in self.works if (spec := work.sae.validate) is not None}
        yield Claim(root, "tokens", sum(4 * tokens for tokens in texts.values()))
        yield from self._targets(made, folders)

    def _published(self, folders: Mapping[int, Folders]) -> Sizes:
        """Published files that are brought here to be measured, compared or relabelled, by content."""
        found = {}
        for work in self.works:
            measures = work.has(StepKind.VALIDATE) and work.evidence is None
            if not work.keeps_weights or not (work.has(StepKind.ADOPT) or work.has(StepKind.RELABEL) or measures):
                continue
            names = None if work.has(StepKind.ADOPT) else SAE_FILES if work.has(StepKind.VALIDATE) else (CFG_FILE,)
            for name, digest in folders[id(work.observed)].get(work.home, {}).items():
                content = digest.sha256 or digest.blob_id or ""
                if (names is None or name in names) and not self.context.cache.has("blob", content):
                    found[content] = digest.size
        return found

    def _activations(self, shapes: Mapping[str, Shape]) -> Sizes:
        """Activations that proofs need, by their key."""
        rows, found = self.context.proof_rows, {}
        for work in self.works:
            shape = shapes.get(work.inputs.build_key)
            if shape is None or work.sae.validate is None:
                continue
            key = settings.capture_key(work, rows)
            if not self.context.cache.sealed(ACTIVATIONS, key):
                found[key] = 4 * rows * (_WIDEST if "attn" in work.sae.hook else shape.width)  # an SAE may read one head of many
        return found

    def _targets(self, made: Sizes, folders: Mapping[int, Folders]) -> Iterator[Claim]:
        """What folders that are published to grow by."""
        grows: dict[str, int] = defaultdict(int)
        replaced: dict[str, list[int]] = defaultdict(list)
        for work in self.works:
            place = work.observed.location
            if work.observed.target != "local":
                continue
            held = folders[id(work.observed)]
            old = _held(held.get(work.sae.id, {}))
            new = _held(held.get(work.home, {})) if work.item.move_from is not None else 0
            if not work.keeps_weights:
                new = made.get(work.inputs.build_key, 0)
                replaced[place].append(min(new, old))
            grows[place] += max(0, new - old)
        for place, size in grows.items():
            yield Claim(Path(place), "published SAEs", size + sum(sorted(replaced[place])[-_TOGETHER:]))

    # -------------------------------------------------------------------------------------------------------- sources

    def _shapes(self, look: Callable[[Work, ResolvedSource], Shape]) -> Mapping[str, Shape]:
        """Of every SAE that has to be converted, by build_key. A source that cannot be listed is complained of elsewhere."""
        fresh: dict[str, tuple[Work, ResolvedSource]] = {}
        for work in self.works:
            if work.has(StepKind.CONVERT) and work.build is None and work.sae.source is not None:
                with contextlib.suppress(SaesyncError, OSError):
                    fresh[work.inputs.build_key] = work, self.context.resolver.source(work.sae.source)
        return dict(zip(fresh, in_lanes("headers", lambda pair: look(*pair), fresh.values()), strict=True))

    def _bound(self, _work: Work, resolved: ResolvedSource) -> Shape:
        """At most, without reading anything."""
        return Shape(_size(resolved) // _NARROWEST, _WIDEST)

    def _read(self, work: Work, resolved: ResolvedSource) -> Shape:
        """What the headers say, else the bound. Sources of one repo, format and size are alike: one of them is read."""
        source, place = work.sae.source, LocalPlace(Path("/"))
        key = resolved.digest
        if source is not None and source.repo is not None:
            key = f"{source.repo} {source.revision} {source.format} {_size(resolved):.2e}"
        if key not in self._known:
            try:
                at_hub = HubPlace(self.hub(), source.repo, source.revision or "") if source is not None and source.repo else place
                self._known[key] = _shape(at_hub, resolved)
            except (SaesyncError, OSError, ValueError):
                self._known[key] = self._bound(work, resolved)
        return self._known[key]


Folders = Mapping[str, Mapping[str, FileDigest]]


def _folders(observed: Observed) -> Folders:
    """Files by folder and name: looking up one folder after the other would take the square of their number."""
    found: dict[str, dict[str, FileDigest]] = defaultdict(dict)
    for path, digest in observed.files.items():
        folder, _, name = path.rpartition("/")
        found[folder][name] = digest
    return found


def _made(work: Work, shapes: Mapping[str, Shape]) -> int:
    """Bytes of a converted SAE: of one that was made before, its own."""
    if work.build is not None:
        return _SMALL + _held(work.build.files)
    shape = shapes.get(work.inputs.build_key)
    return 0 if shape is None else _SMALL + shape.numbers * WIDTHS.get(work.sae.dtype, max(WIDTHS.values()))


def _held(files: Mapping[str, FileDigest]) -> int:
    return sum(digest.size for digest in files.values())


def _size(resolved: ResolvedSource) -> int:
    return sum(file.digest.size for file in resolved.files.values())


def _shape(place: HubPlace | LocalPlace, resolved: ResolvedSource) -> Shape:
    """A source's shape from its headers.

    Raises:
        SaesyncError, ValueError: they cannot be read, or say nothing.
    """
    found = headers(place, {name: file.place for name, file in resolved.files.items() if not name.endswith(".json")})
    shapes = [info.shape for file in found.tensors.values() for info in file.values() if info.dtype in FLOATS]
    return Shape(sum(map(math.prod, shapes)), min(min(shape) for shape in shapes if len(shape) == 2))


# ------------------------------------------------------------------------------------------------------------- disks


def _short(claims: Iterable[Claim], cache: Path) -> Iterator[Diagnostic]:
    """A diagnostic per disk that is too small for what is claimed on it. ``cache`` is where the cache is, which can be moved."""
    disks: dict[int, dict[Path, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for claim in claims:
        if claim.size:
            disks[existing(claim.root).stat().st_dev][claim.root][claim.what] += claim.size
    for places in disks.values():
        needed = sum(size for parts in places.values() for size in parts.values())
        free = shutil.disk_usage(existing(next(iter(places)))).free
        if needed * _SPARE > free:
            yield Diagnostic("Not enough disk space", _said(places, needed, free, cache))


def _said(places: Mapping[Path, Sizes], needed: int, free: int, cache: Path) -> str:
    parts = "; ".join(
        f"{root}: {', '.join(f'{_amount(size)} of {what}' for what, size in wanted.items())}" for root, wanted in places.items()
    )
    one = " on one disk" if len(places) > 1 else ""
    fewer = "apply fewer SAEs at a time (--only)"
    remedy = f"Free some, {fewer}, or set SAESYNC_CACHE to a larger disk." if cache in places else f"Free some, or {fewer}."
    return f"This plan needs {_amount(needed)}{one}, and {_amount(free)} are free there ({parts}). {remedy}"


def _amount(size: float) -> str:
    """``3.2 GB``."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"
