"""What each step does, for one SAE or for what several share. Runs in the scheduler's lanes; knows nothing of the queue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesync.apply import settings
from saesync.apply.builds import (
    BUILDS,
    failed_proofs_kept,
    keep_evidence,
    read_build,
    read_evidence,
    read_whole,
    remembered,
    require_whole,
    seal,
    usable,
)
from saesync.apply.ground import Ground, Progress
from saesync.apply.numbers import evidence_of, numbers
from saesync.apply.regroup import in_groups
from saesync.apply.result import gate_diagnostics
from saesync.apply.settings import Text
from saesync.apply.work import Work, source_said
from saesync.convert.said import recalled, require_source_hooks, settled
from saesync.convert.writer import rewrite_cfg
from saesync.digest import digest_bytes, digest_file
from saesync.errors import Diagnostic, Missing, Refused, SaesyncError, keyed
from saesync.executors import fetch
from saesync.executors.publish import publish_evidence
from saesync.jobs import AdoptJob, ConvertJob
from saesync.model import CFG_FILE, SAE_FILES, ModelSpec, PublishSpec, StepKind, ValidateSpec
from saesync.record import Evidence
from saesync.resolve import metadata_for
from saesync.workers import WorkerLost

ACTIVATIONS = "activations"
ACTIVATIONS_FILE = "x.safetensors"


class GateMissed(SaesyncError):
    """Measured, and short of a requirement: not published."""


@dataclass
class Steps(Ground):
    """The steps of one apply. ``models`` and ``texts`` hold what was fetched, by key; ``uncaptured`` why there are no
    activations under a key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.models: dict[str, Path] = {}
        self.texts: dict[str, Text] = {}
        self.uncaptured: dict[str, Sequence[Diagnostic]] = {}
        self._types: dict[str, str | None] = {}

    # ----------------------------------------------------------------------------------------------------- fetch

    def fetch_model(self, spec: ModelSpec) -> None:
        """Bring a model and its tokenizer here."""
        hub = self.hub(StepKind.FETCH)
        parcel = fetch.model_parcel(spec, hub)
        if parcel is None:
            folder = Path(str(spec.path))
        else:
            with self.step((f"model {spec.label}",), StepKind.FETCH) as (progress, _):
                folder = fetch.bring(parcel, hub, self.context.cache, progress)
        self.models[settings.model_key(spec)] = folder

    def fetch_text(self, spec: ValidateSpec) -> None:
        """Bring as much of a dataset here as is needed."""
        hub = self.hub(StepKind.FETCH)
        parcel = fetch.dataset_parcel(spec.dataset, spec.tokens, hub)
        if parcel is None:
            text = Text(Path(str(spec.dataset.path)))
        else:
            with self.step((f"dataset {spec.dataset.label}",), StepKind.FETCH) as (progress, _):
                text = Text(fetch.bring(parcel, hub, self.context.cache, progress), tuple(parcel.files))
        self.texts[settings.dataset_key(spec)] = text

    def fetch(self, work: Work) -> None:
        """Bring the source, and what is published, as far as the SAE's steps need them."""
        with self.timed((work,), StepKind.FETCH), self.step((work.address,), StepKind.FETCH) as (progress, _):
            builds = work.has(StepKind.CONVERT) and work.build is None
            if builds or work.has(StepKind.RELABEL):
                work.model_type = self._model_type(work.sae.model)
            if builds or work.has(StepKind.ADOPT):
                expected = str(work.inputs.weights["source.digest"])
                hub = lambda: self.hub(StepKind.FETCH)  # noqa: E731  (opened only for a source on the Hub)
                work.source = fetch.source_files(work.sae, self.context.resolver, expected, hub, self.context.cache, progress)
            if work.keeps_weights:
                with keyed(work.home_key):
                    self._fetch_published(work, progress)

    def _fetch_published(self, work: Work, progress: Progress) -> None:
        if not work.has(StepKind.ADOPT) and not work.has(StepKind.RELABEL):
            own = read_whole(self.context.cache, work.inputs.build_key)
            if own is not None and own.weights_sha256 == work.weights_sha256:
                work.published = own.folder
                return
        names: Sequence[str] | None = SAE_FILES if work.has(StepKind.VALIDATE) else (CFG_FILE,)
        if work.has(StepKind.ADOPT):
            names = None
        target = self.target(StepKind.FETCH, work.observed.target)
        work.published = fetch.published_files(target, work.observed, work.home, names, self.context.cache, progress)
        if work.has(StepKind.ADOPT):
            work.kept = {path.name: digest_file(path) for path in sorted(work.published.iterdir())}

    def _model_type(self, spec: ModelSpec) -> str | None:
        """``model_type`` of config.json: what hf_hook_name depends on."""
        key = settings.model_key(spec)
        if key not in self._types:
            self._types[key] = _type_of(self._config(spec), spec.label)
        return self._types[key]

    def _config(self, spec: ModelSpec) -> bytes:
        if spec.path is not None:
            try:
                return (Path(spec.path) / "config.json").read_bytes()
            except FileNotFoundError as error:
                raise Missing("Model is not here", f"There is no {error.filename}. Correct model.path.") from error
        found = fetch.model_config(spec, self.hub(StepKind.FETCH))
        if found is None:
            raise Refused("Model has no config.json", f"{spec.name} at {(spec.revision or '')[:8]} has none. Correct model.name.")
        return found

    # ---------------------------------------------------------------------------------------- convert and its kin

    def capture(self, lane: int, works: Sequence[Work]) -> None:
        """Real activations at the hooks of several SAEs, for their proofs."""
        rows, cache = self.context.proof_rows, self.context.cache
        first = works[0]
        model, text = self._shared(first)
        hooks = {work.sae.hook: settings.capture_key(work, rows) for work in works}
        label = f"activations of {first.sae.model.label}"
        with self.step((label,), StepKind.CONVERT, "tokens") as (progress, _), cache.scratch() as scratch:
            out = {hook: scratch / key for hook, key in hooks.items() if not cache.sealed(ACTIVATIONS, key)}
            job = settings.capture_job(first, model, text, self.crew.devices[lane], rows, out, cache.root)
            worker = self.crew.measurers[lane]
            try:
                failures = self._work(worker, "capture", job, progress)["failures"]
            except WorkerLost:  # many SAEs wait for it, and it may have been somebody else's need of memory
                self.note(f"The worker that captured {label} died. Trying once more.")
                failures = self._work(worker, "capture", job, progress)["failures"]
            for hook, path in out.items():
                if hook in failures:
                    self.uncaptured[hooks[hook]] = [Diagnostic.from_json(value) for value in failures[hook]]
                    continue
                with cache.making(ACTIVATIONS, hooks[hook], seal=True) as folder:
                    path.rename(folder / ACTIVATIONS_FILE)

    def convert(self, lane: int, work: Work) -> None:
        """Build the SAE in our layout and prove it against the authors' own forward pass."""
        cache, key = self.context.cache, work.inputs.build_key
        work.build = work.build or read_build(cache, key)
        if work.build is not None:
            require_whole(cache, key, work.build)
            work.require_allowed(work.build)
            if work.unbounded:
                require_source_hooks(recalled(work.build.proof), metadata_for(work.sae))
            self.cached(work, StepKind.CONVERT, proof=dict(work.build.proof))
            return
        with self.timed((work,), StepKind.CONVERT), self.step((work.address,), StepKind.CONVERT) as (progress, more):
            with cache.making(BUILDS, key) as folder, failed_proofs_kept(cache, key):
                result = self._work(self.crew.converters[lane], "convert", self._convert_job(work, folder), progress)
                self._check_source(work)
                seal(folder, result["proof"], result["digests"], result["native"])
            work.build = remembered(cache, key)
            more[work.address] = {"proof": result["proof"]}

    def _convert_job(self, work: Work, out: Path) -> ConvertJob:
        sae = work.sae
        if sae.source is None:
            raise Refused("SAE has no source", f"{sae.address} is to be trained, which this version does not do.")
        return ConvertJob(
            sae.address,
            sae.source.format,
            dict(sae.source.options),
            {name: str(path) for name, path in work.source.items()},
            sae.dtype,
            dict(sae.cfg),
            metadata_for(sae, work.model_type),
            str(out),
            self._activations(work),
            source_said(sae.source) if work.may_be_native else None,
            unbounded=work.unbounded,
        )

    def _activations(self, work: Work) -> str | None:
        """Where those that were captured for an SAE's proof are; None where its model is not at hand."""
        if work.sae.validate is None:
            return None
        key = settings.capture_key(work, self.context.proof_rows)
        if key in self.uncaptured:
            at = work.sae.origins.get("hook", work.sae.origin)
            raise Missing.of(diagnostic.at(at) for diagnostic in self.uncaptured[key])
        return str(self.context.cache.path(ACTIVATIONS, key) / ACTIVATIONS_FILE)

    def _check_source(self, work: Work) -> None:
        """A local source may be written to while it is read."""
        source = work.sae.source
        if source is None or source.repo is not None:
            return
        if self.context.resolver.source(source).digest != work.inputs.weights["source.digest"]:
            raise fetch.source_changed(work.sae)

    def adopt(self, lane: int, work: Work) -> None:
        """Prove that what somebody published is the function asked for."""
        source = work.sae.source
        if source is None or work.published is None:
            raise Refused("SAE has no source", f"{work.address} has nothing to be compared with.")
        files = {name: str(path) for name, path in work.source.items()}
        said = metadata_for(work.sae, work.model_type)
        told = (work.place, work.home_key, said, self._activations(work))
        job = AdoptJob(work.address, source.format, dict(source.options), files, str(work.published), *told)
        with self.timed((work,), StepKind.ADOPT), self.step((work.address,), StepKind.ADOPT) as (progress, more):
            work.adoption = self._work(self.crew.converters[lane], "adopt", job, progress)["proof"]
            more[work.address] = {"proof": work.adoption}

    def relabel(self, work: Work) -> None:
        """A new cfg.json for the same weights."""
        if work.published is None or work.entry is None:
            raise Refused("SAE has no published files", f"{work.address} has nothing to be relabelled.")
        before = work.entry.inputs.get("build", {})
        gone = {name.removeprefix("metadata."): None for name in before if name.startswith("metadata.")}
        metadata, said = {**gone, **metadata_for(work.sae, work.model_type)}, recalled(work.entry.proof)
        with self.step((work.address,), StepKind.RELABEL):
            if work.unbounded:
                require_source_hooks(said, metadata)
            text = rewrite_cfg((work.published / CFG_FILE).read_bytes(), work.sae.cfg, settled(said, metadata))
            digest = digest_bytes(text)
            work.relabelled = self.context.cache.write("cfg", str(digest.sha256), text)
            work.kept = {**work.kept, CFG_FILE: digest}

    # -------------------------------------------------------------------------------------------------- validate

    def known_evidence(self, work: Work) -> Evidence | None:
        """A measurement of these very bytes under this very key, from the record, ``records:`` or the cache."""
        key, sha256 = work.inputs.measure_key, work.weights_sha256
        if key is None or sha256 is None or work.sae.validate is None:
            return None
        recorded = work.entry.evidence if work.entry is not None else ()
        wanted = self.context.wanted.get(work.address)
        for found in (*recorded, wanted.evidence if wanted else None, read_evidence(self.context.cache, key)):
            if usable(found, key, sha256, work.sae.validate.require):
                return found
        return None

    def validate(self, lane: int, works: Sequence[Work]) -> Mapping[str, SaesyncError]:
        """Measure what was not measured yet, then judge all. Returns errors by address."""
        errors: dict[str, SaesyncError] = {}
        for work in works:
            work.evidence = work.evidence or self.known_evidence(work)
            if work.evidence is not None:
                self.cached(work, StepKind.VALIDATE, metrics=numbers(work.evidence))
        if fresh := [work for work in works if work.evidence is None and work.native is None]:
            errors |= self._measure(lane, fresh)
        for work in works:
            if work.misses and not work.stands and work.sae.validate is not None:
                errors[work.address] = GateMissed.of(gate_diagnostics(work.misses, work.sae.validate.require))
        return errors

    def _measure(self, lane: int, works: Sequence[Work]) -> Mapping[str, SaesyncError]:
        model, text = self._shared(works[0])
        addresses = [work.address for work in works]
        errors: dict[str, SaesyncError] = {}
        with self.timed(works, StepKind.VALIDATE), self.step(addresses, StepKind.VALIDATE, "tokens") as (progress, more):

            def measure(group: Sequence[Work]) -> Mapping[str, Any]:
                job = settings.measure_job(group, model, text, self.crew.devices[lane], self.context.cache.root)
                found: Mapping[str, Any] = self._work(self.crew.measurers[lane], "measure", job, progress)
                return found

            for group, found in in_groups(works, measure, self.note):
                for work in group:
                    if isinstance(found, WorkerLost):
                        errors[work.address] = found
                    elif (failed := found["failures"].get(work.address)) is not None:
                        errors[work.address] = SaesyncError.of(Diagnostic.from_json(value) for value in failed)
                    else:
                        work.evidence = evidence_of(work, found, self.context.cache)
                        keep_evidence(self.context.cache, work.evidence)
                        more[work.address] = {"metrics": numbers(work.evidence)}
        return errors

    def keep_evidence(self, records: PublishSpec, works: Sequence[Work]) -> None:
        """Publish evidence of SAEs that are not published themselves.

        Raises:
            SaesyncError: as the target says.
        """
        entries = {work.sae.id: work.evidence_only() for work in works}
        observed = self.context.observed[records.target, records.location]
        publish_evidence(self.target(StepKind.PUBLISH, records.target), records, works[0].release, entries, observed)

    def _shared(self, work: Work) -> tuple[Path, Text]:
        if work.sae.validate is None:
            raise Refused("SAE is not to be measured", f"{work.address} has no validate section.")
        return self.models[settings.model_key(work.sae.model)], self.texts[settings.dataset_key(work.sae.validate)]


def _type_of(config: bytes, label: str) -> str | None:
    try:
        found = json.loads(config).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise Refused("Model file is unreadable", f"config.json of {label} is not a JSON object.") from error
    return found if isinstance(found, str) else None
