"""The nouns of saesync, frozen: what a manifest asks for, what a target holds, and the plan between them.

Nothing here does I/O or imports a heavy package. The published side (records and evidence) stands in ``record``.
Shapes and names are the field's own: ``d_in``, ``d_sae``, ``hook``, ``explained_variance``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from saesync.digest import FileDigest
from saesync.errors import Diagnostic, Origin
from saesync.folders import NATIVE_PREFIX, own_name, roots_of
from saesync.nothing import nothing
from saesync.reason import Reason
from saesync.record import Record

Json = Any  # a value json.loads may give
WEIGHTS_FILE = "sae_weights.safetensors"
CFG_FILE = "cfg.json"
SAE_FILES = (CFG_FILE, WEIGHTS_FILE)
CARD_FILE = "README.md"


# ---------------------------------------------------------------------------------------------- what is asked


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The language model an SAE reads. Exactly one of ``name`` (Hub id, with ``revision``) and ``path`` (folder) is set."""

    name: str | None
    path: str | None
    revision: str | None
    loader: str = "TransformerBridge"
    dtype: str = "float32"
    kwargs: Mapping[str, Json] = field(default_factory=nothing)

    @property
    def label(self) -> str:
        """The name written to cfg.json and shown to people: the Hub id, or the folder's own name."""
        return self.name or str(self.path).rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """Where the original weights are. With ``repo``, ``path`` is inside it ("" is its root); else a local absolute path."""

    repo: str | None
    revision: str | None
    path: str
    format: str
    options: Mapping[str, Json] = field(default_factory=nothing)


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """Text to measure on: a Hub dataset at a pinned revision, or a local file or saved dataset (absolute ``path``)."""

    repo: str | None
    path: str | None
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    column: str = "text"

    @property
    def label(self) -> str:
        """The name shown to people."""
        return self.repo or str(self.path).rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One bound on one metric: ``metric >= bound`` for ``min``, ``metric <= bound`` for ``max``. ``origin`` is the bound's."""

    metric: str
    kind: str  # "min" | "max"
    bound: float
    origin: Origin | None = None

    def holds(self, value: float) -> bool:
        """Whether a measured value satisfies the bound. NaN satisfies nothing."""
        return value >= self.bound if self.kind == "min" else value <= self.bound


@dataclass(frozen=True, slots=True)
class ValidateSpec:
    """How an SAE is measured. ``tokens`` is the total, ``context`` the tokens per sequence including BOS."""

    dataset: DatasetSpec
    tokens: int
    context: int
    prepend_bos: bool = True
    require: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class PublishSpec:
    """Where a release is published. ``location`` is a Hub id (huggingface) or an absolute folder (local)."""

    target: str
    location: str
    license: str | None = None
    private: bool = False
    pull_request: bool = False  # commit to one pull request of ours on the Hub instead of the main branch
    native: bool = False  # what SAELens cannot express is published as its authors' own files
    origin: Origin | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class RegisterSpec:
    """In which list of pretrained SAEs a release is entered, and what the entry says beyond the manifest and the evidence.

    ``registry`` is ``owner/name`` on GitHub, a git URL, or an absolute path: of a git repository, or of a registry file.
    ``conversion_func`` names the SAELens loader of foreign files (None: the source's format says it). ``model`` is the entry's
    word for the model where it is not ``model.name``.
    """

    registry: str
    partial: bool = False
    conversion_func: str | None = None
    model: str | None = None
    links: Mapping[str, str] = field(default_factory=nothing)
    config_overrides: Mapping[str, Json] = field(default_factory=nothing)
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Sae:
    """One SAE as a manifest asks for it, after expansion. ``id`` is also its folder in the target.

    ``hook`` is empty where nothing needs it (a release that only registers). ``entry`` holds what the manifest says of this
    SAE's registry entry (``l0``, ``variance_explained``, ``neuronpedia``, ``norm_scaling_factor``): somebody else's numbers.
    ``hook_out`` is the hook a transcoder predicts; None for SAEs, and where the source's own config says it.
    ``origins`` maps dotted manifest keys ("hook", "source.revision", "validate.tokens") to their places.
    """

    release: str
    id: str
    hook: str
    model: ModelSpec
    source: SourceSpec | None
    dtype: str
    validate: ValidateSpec | None
    origin: Origin | None = None
    neuronpedia_id: str | None = None
    train: Mapping[str, Json] | None = None
    cfg: Mapping[str, Json] = field(default_factory=nothing)
    entry: Mapping[str, Json] = field(default_factory=nothing)
    origins: Mapping[str, Origin] = field(default_factory=nothing, compare=False)
    hook_out: str | None = None

    @property
    def address(self) -> str:
        """What users type: ``release/id``."""
        return f"{self.release}/{self.id}"


@dataclass(frozen=True, slots=True)
class Release:
    """One manifest. ``later`` names the sections whose executors this version does not have: planned as held, never ignored."""

    name: str
    manifest: str
    publish: PublishSpec | None
    saes: tuple[Sae, ...]
    retire: bool = False
    records: PublishSpec | None = None
    later: tuple[tuple[str, Origin], ...] = ()
    origin: Origin | None = None
    register: RegisterSpec | None = None

    @property
    def evidence_only(self) -> bool:
        """Whether only evidence is ours to publish: somebody else's SAEs are measured, and stay where they are."""
        return self.publish is None and self.records is not None and any(sae.validate is not None for sae in self.saes)

    @property
    def native(self) -> bool:
        """Whether what SAELens cannot express may be published as its authors' own files."""
        return self.publish is not None and self.publish.native

    @property
    def home(self) -> PublishSpec | None:
        """Where the record of this release stands; None when there is none to keep."""
        return self.records if self.evidence_only else self.publish


# --------------------------------------------------------------------------------------------- what is observed


@dataclass(frozen=True, slots=True)
class HubPull:
    """Our pull request on a Hub repo. ``status`` is "draft", "open", "closed" or "merged"; ``head`` its last commit, if known.

    While it is open, ``ahead`` names the releases that do not stand on the main branch as they stand in it. Of one that was
    closed unmerged, ``records`` are what it would have brought.
    """

    num: int
    url: str
    status: str
    head: str | None = None
    ahead: frozenset[str] = frozenset()
    records: Mapping[str, Record] = field(default_factory=nothing)

    @property
    def open(self) -> bool:
        """Whether it can still be added to, and merged."""
        return self.status in ("draft", "open")


@dataclass(frozen=True, slots=True)
class Observed:
    """What a target holds at one location (a Hub repo or a local folder), at one instant.

    ``head`` is the commit (None: local, or nothing there). ``files`` maps repo paths to digests. ``records`` maps
    release names to records; ``locked`` maps release names whose record cannot be read to the reason.
    ``unknown`` is set when the location is not visible; everything else is then empty and means nothing.

    ``readme`` is the README's text; None where there is none, or where it was not read because its blob id alone says that every
    release's block is as its record says (``card_vouched``).

    ``tags`` maps the repo's tags to commits, and ``moved`` are those of our own for the records here that point at something else
    than their name says; both are known from ``Target.observe`` only, and only where there is a record. ``pull`` is our pull
    request, where releases are published by one: as long as it is open, files and records are those in it.
    """

    target: str
    location: str
    exists: bool = False
    head: str | None = None
    visibility: str | None = None  # "public" | "private" | None (local or absent)
    files: Mapping[str, FileDigest] = field(default_factory=nothing)
    records: Mapping[str, Record] = field(default_factory=nothing)
    locked: Mapping[str, Reason] = field(default_factory=nothing)
    readme: str | None = None
    card_vouched: bool = False
    unknown: Reason | None = None
    tags: Mapping[str, str] = field(default_factory=nothing)
    moved: frozenset[str] = frozenset()
    pull: HubPull | None = None

    def merged(self, release: str) -> bool:
        """Whether what is observed of a release stands where users get it, and not only in an open pull request of ours."""
        return self.pull is None or not self.pull.open or release not in self.pull.ahead

    def folder(self, sae_id: str) -> dict[str, FileDigest]:
        """One SAE's files by their names inside it: those in its own folder, and its authors' under ``native/``. Those of
        another SAE that a record names further inside are that one's."""
        own, native = (f"{root}/" for root in roots_of(sae_id))
        inside = tuple(f"{root}/" for other in self.recorded if other.startswith(own) for root in roots_of(other))
        found = {}
        for path, digest in self.files.items():
            if path.startswith(own) and not path.startswith(inside):
                found[own_name(path[len(own) :])] = digest
            elif path.startswith(native) and not path.startswith(inside):
                found[NATIVE_PREFIX + path[len(native) :]] = digest
        return found

    @property
    def recorded(self) -> frozenset[str]:
        """The SAEs that some record names, or says are being put in place."""
        return frozenset(sae_id for record in self.records.values() for sae_id in (*record.saes, *record.pending))


# --------------------------------------------------------------------------------------------------- the plan


class Status(StrEnum):
    """Rows of the planner's table, in the order in which the first match wins."""

    UNKNOWN = "unknown"
    LOCKED = "locked"
    TAKEN = "taken"
    ABSENT = "absent"
    FOREIGN = "foreign"
    DRIFTED = "drifted"
    OUTDATED = "outdated"
    RELABEL = "relabel"
    MOVED = "moved"
    UNPROVEN = "unproven"
    FAILING = "failing"
    NATIVE = "native"  # as asked, as far as it can be: SAELens cannot express it, and its authors' own files are published
    CURRENT = "current"
    HELD = "held"  # asked for something this version, or this machine, cannot do
    ORPHANED = "orphaned"  # in the record, in no manifest
    RETIRED = "retired"  # to be deleted on request
    WAITING = "waiting"  # our part is done: somebody else has to review or merge


class StepKind(StrEnum):
    """What apply can do for one SAE or one release."""

    CREATE = "create"  # the repo, per release
    FETCH = "fetch"
    CONVERT = "convert"
    ADOPT = "adopt"  # prove that foreign published files are the function asked for
    RELABEL = "relabel"  # rewrite cfg.json, keep weights and evidence
    MOVE = "move"  # copy inside the target
    VALIDATE = "validate"
    PUBLISH = "publish"
    CARD = "card"  # README.md only, per release
    DELETE = "delete"
    TAG = "tag"  # name the commit that completed a release, on the Hub
    REGISTER = "register"  # the release's entry in SAELens's list, by pull request


@dataclass(frozen=True, slots=True)
class Refusal:
    """A place that a release names in ``section`` (publish, records or register), and why it is not used."""

    release: str
    section: str
    reason: Reason
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """What the plan says of one SAE (``id`` set) or of a release as a whole (``id`` None).

    ``held`` items are skipped by apply and named. ``steps`` is empty for held, failing and current items.
    ``basis`` is what was asked and observed, digested part by part; plan files are compared by it.
    """

    release: str
    id: str | None
    status: Status
    steps: tuple[StepKind, ...] = ()
    held: bool = False
    reasons: tuple[Reason, ...] = ()
    origin: Origin | None = None
    basis: Mapping[str, Json] = field(default_factory=nothing)
    move_from: str | None = None

    @property
    def address(self) -> str:
        """``release/id``, or the release's name."""
        return self.release if self.id is None else f"{self.release}/{self.id}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All items in manifest order, release items after their SAEs. ``digest`` covers every item's steps and basis,
    ``release_digests`` by release (``planning.digests``)."""

    items: tuple[Item, ...]
    releases: tuple[Release, ...]
    digest: str
    release_digests: Mapping[str, str]

    @property
    def pending(self) -> tuple[Item, ...]:
        """Items with something to do."""
        return tuple(item for item in self.items if item.steps)


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user allowed on the command line. Globs over addresses; ``prune`` holds release names, typed out."""

    adopt: tuple[str, ...] = ()
    replace: tuple[str, ...] = ()
    prune: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """One SAE that did not make it, and why; ``origin`` is a place in the manifest."""

    address: str
    step: StepKind
    diagnostics: tuple[Diagnostic, ...]
