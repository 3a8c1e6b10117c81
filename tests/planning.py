"""A small world for planner tests: manifests, targets as they would be observed, and apply simulated as pure data."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saesync.card import make_card
from saesync.digest import FileDigest, digest_bytes
from saesync.errors import Origin
from saesync.folders import NATIVE_PREFIX, REFUSAL_FILE, path_of
from saesync.keys import Inputs, Wanted
from saesync.model import (
    CFG_FILE,
    WEIGHTS_FILE,
    Choices,
    DatasetSpec,
    Item,
    ModelSpec,
    Observed,
    Plan,
    PublishSpec,
    Release,
    Requirement,
    Sae,
    SourceSpec,
    StepKind,
    ValidateSpec,
)
from saesync.planner import plan
from saesync.planning.basis import SECTION
from saesync.planning.registration import Seen
from saesync.planning.tagging import COMPLETE
from saesync.record import Evidence, Metric, Native, Pending, Record, SaeRecord
from saesync.tags import complete, shown_tag, tag_name

GOLDEN = Path(__file__).parent / "golden"
HUB = "acme/saes"
MODEL = ModelSpec("google/gemma-2-2b", None, "c" * 40)
BOUND = Requirement("explained_variance", "min", 0.7, Origin("manifests/gemma.yaml", 25, 25))
SPEC = ValidateSpec(DatasetSpec("monology/pile-uncopyrighted", None, "d" * 40), 204800, 1024, require=(BOUND,))


def sae(release: str = "res", sae_id: str = "layer_0", validate: ValidateSpec | None = SPEC, **changes: Any) -> Sae:
    source = SourceSpec("acme/raw", "a" * 40, f"{sae_id}/ae.pt", "goodfire")
    origin = Origin("manifests/gemma.yaml", 9, 3)
    made = Sae(release, sae_id, f"blocks.{sae_id[-1]}.hook_resid_post", MODEL, source, "float32", validate, origin)
    return replace(made, **changes)


def release(name: str = "res", ids: Iterable[str] = ("layer_0",), location: str = HUB, **changes: Any) -> Release:
    publish = PublishSpec("huggingface", location, "mit")
    made = Release(name, f"manifests/{name}.yaml", publish, tuple(sae(name, sae_id) for sae_id in ids))
    return replace(made, **{"origin": Origin(f"manifests/{name}.yaml", 2, 1), **changes})


def inputs_of(asked: Sae, weights: Mapping[str, Any] | None = None, **build: Any) -> Inputs:
    """Keys as the resolver would make them, in small."""
    made = {"source.digest": digest_bytes(f"{asked.release}/{asked.id}".encode()).sha256, "dtype": asked.dtype, **(weights or {})}
    spec = asked.validate
    measure = None
    if spec is not None:
        measure = {"hook": asked.hook, "validate.tokens": spec.tokens, "validate.context": spec.context}
    return Inputs(made, {"metadata.hook_name": asked.hook, **build}, measure)


def wanted_of(asked: Sae, **changes: Any) -> Wanted:
    return replace(Wanted(asked, inputs_of(asked)), **changes)


def files_of(inputs: Inputs) -> dict[str, FileDigest]:
    """What convert would write: bytes are a function of the keys."""
    weights, cfg = digest_bytes(inputs.weights_key.encode()), digest_bytes(inputs.build_key.encode())
    return {CFG_FILE: replace(cfg, sha256=None), WEIGHTS_FILE: replace(weights, blob_id=None)}


def evidence_of(inputs: Inputs, files: Mapping[str, FileDigest], ev: float = 0.8, **metrics: float) -> Evidence:
    found = {"explained_variance": Metric(ev, 0.003), "l0": Metric(61.0, 0.4)}
    found.update({name: Metric(value) for name, value in metrics.items()})
    about = {"device": "cpu", "versions.torch": "2.13.0"}
    sha256 = files[WEIGHTS_FILE].sha256
    assert inputs.measure_key is not None
    assert sha256 is not None
    return Evidence(inputs.measure_key, sha256, found, dict(inputs.measure or {}), about)


def pending_of(inputs: Inputs) -> Pending:
    """What a folder's run would leave in the record while it puts an SAE in place."""
    return Pending(inputs.build_key, {name: (digest,) for name, digest in files_of(inputs).items()})


def entry_of(inputs: Inputs, ev: float = 0.8) -> SaeRecord:
    files = files_of(inputs)
    evidence = (evidence_of(inputs, files, ev),) if inputs.measure is not None else ()
    parts = {"weights": dict(inputs.weights), "build": dict(inputs.build)}
    return SaeRecord(inputs.weights_key, inputs.build_key, files, parts, {"max_difference": 1.2e-6}, evidence)


def native_entry_of(inputs: Inputs) -> SaeRecord:
    """What is recorded of an SAE that cannot be converted."""
    names = (f"{NATIVE_PREFIX}ae.pt", REFUSAL_FILE)
    files = {name: digest_bytes(f"{inputs.weights_key}{name}".encode()) for name in names}
    parts = {"weights": dict(inputs.weights), "build": dict(inputs.build)}
    why = Native("Cannot be expressed in SAELens", "ae.pt holds k: a TopK transcoder, and SAELens has none.", "k")
    return SaeRecord(inputs.weights_key, inputs.build_key, files, parts, native=why)


@dataclass
class World:
    """Manifests, and what is published. ``ev`` is what measuring an address will give; of those in ``inexpressible`` nothing can
    be converted."""

    releases: list[Release]
    wanted: dict[str, Wanted] = field(default_factory=dict)
    observed: dict[tuple[str, str], Observed] = field(default_factory=dict)
    ev: dict[str, float] = field(default_factory=dict)
    registries: dict[str, Seen] = field(default_factory=dict)
    inexpressible: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for one in self.releases:
            for asked in one.saes:
                self.wanted.setdefault(asked.address, wanted_of(asked))
            if one.publish is not None:
                place = (one.publish.target, one.publish.location)
                self.observed.setdefault(place, Observed(*place))

    def plan(self, **choices: tuple[str, ...]) -> Plan:
        empty = {
            one.name: Seen(one.register.registry, "github", f"{one.register.registry}@1111111")
            for one in self.releases
            if one.register is not None
        }
        return plan(self.releases, self.wanted, self.observed, Choices(**choices), registries=empty | self.registries)

    def item(self, address: str, **choices: tuple[str, ...]) -> Item:
        return next(item for item in self.plan(**choices).items if item.address == address)

    def at(self, location: str = HUB) -> Observed:
        return self.observed["huggingface", location]

    def put(self, location: str = HUB, **changes: Any) -> None:
        self.observed["huggingface", location] = replace(self.at(location), **changes)

    def apply(self, stopped: Container[str] = (), **choices: tuple[str, ...]) -> Plan:
        """Carry out the plan but for the addresses ``stopped``, as if nothing went wrong; returns what was planned."""
        made = self.plan(**choices)
        releases = {one.name: one for one in made.releases}
        completes = {item.release for item in made.items if item.basis.get(COMPLETE) is True}
        left = {(item.release, item.id) for item in made.pending if item.id is not None}
        for item in made.items:
            one = releases[item.release]
            assert one.publish is not None or not item.steps
            if one.publish is None or not item.steps or item.address in stopped or StepKind.REGISTER in item.steps:
                continue
            place = (one.publish.target, one.publish.location)
            if item.basis.get(SECTION) != "tag":
                whole = one.name in completes and not {key for key in left if key[0] == one.name} - {(one.name, item.id)}
                before = self.observed[place]
                self.observed[place] = self._done(before, one, item, whole)
                if self.observed[place] is not before:
                    left.discard((one.name, item.id or ""))
            elif not any(other.address in stopped for other in made.items if other.release == one.name):
                self.observed[place] = self._tag(self.observed[place], one)
        return made

    def _tag(self, seen: Observed, one: Release) -> Observed:
        record = seen.records.get(one.name)
        if record is None or not complete(one, self.wanted, record):
            return seen
        name = tag_name(record)
        return replace(seen, tags={**seen.tags, name: "1" * 40}, moved=seen.moved - {name})

    def _done(self, seen: Observed, one: Release, item: Item, whole: bool) -> Observed:
        """``whole``: nothing asked for is left out of the plan, and nothing is left to do after this item."""
        record = seen.records.get(one.name, Record(one.name))
        files = dict(seen.files)
        assert one.publish is not None
        if item.id is not None:
            record, files = self._sae(record, files, item, one.native and StepKind.ADOPT not in item.steps)
            if record is seen.records.get(one.name) or not (record.saes or one.name in seen.records):
                return seen  # stopped by a gate
        if item.id is None and StepKind.CARD not in item.steps:
            visibility = "private" if one.publish.private else "public"
            return replace(seen, exists=True, visibility=seen.visibility or visibility, head="1" * 40)
        pending = {sae_id: half for sae_id, half in record.pending.items() if sae_id != item.id}
        record = replace(record, pending=pending)
        tag = shown_tag(one, record, whole and complete(one, self.wanted, record), seen.tags, seen.moved)
        readme, card = make_card(one, record, seen.readme, tag)
        record = replace(record, card=card)
        visibility = seen.visibility or ("private" if one.publish.private else "public")
        return replace(
            seen,
            exists=True,
            visibility=visibility,
            head="1" * 40,
            files=files,
            records={**seen.records, one.name: record},
            readme=readme,
        )

    def _sae(
        self, record: Record, files: dict[str, FileDigest], item: Item, native: bool
    ) -> tuple[Record, dict[str, FileDigest]]:
        assert item.id is not None
        gone = {path_of(item.id, name) for name in record.saes[item.id].files} if item.id in record.saes else set()
        kept = {path: digest for path, digest in files.items() if path not in gone}
        if StepKind.DELETE in item.steps:
            return record.merged({}, frozenset({item.id})), kept
        inputs = self.wanted[item.address].inputs
        assert inputs is not None
        if item.address in self.inexpressible and StepKind.CONVERT in item.steps:
            if not native:
                return record, files
            original = native_entry_of(inputs)
            kept.update({path_of(item.id, name): digest for name, digest in original.files.items()})
            return record.merged({item.id: original}), kept
        ev = self.ev.get(item.address, 0.8)
        entry = entry_of(inputs, ev)
        spec = self.wanted[item.address].sae.validate
        gated = {StepKind.CONVERT, StepKind.MOVE} & set(item.steps)
        bounds = spec.require if spec is not None and gated else ()
        if any(bound.metric == "explained_variance" and not bound.holds(ev) for bound in bounds):
            evidence = evidence_of(inputs, entry.files, ev)
            self.wanted[item.address] = replace(self.wanted[item.address], evidence=evidence)
            return record, files
        kept.update({f"{item.id}/{name}": digest for name, digest in entry.files.items()})
        return record.merged({item.id: entry}), kept


def published(*releases: Release) -> World:
    """A world where everything asked for is in place."""
    world = World(list(releases) or [release()])
    world.apply()
    return world


def golden(name: str, text: str) -> None:
    """Compare with a golden text; UPDATE_GOLDEN=1 writes it anew, to be read in the diff."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
