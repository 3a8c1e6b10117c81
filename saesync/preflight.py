"""Before any work: everything a plan needs that is not here, all at once, so that nobody learns it after hours of work."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from saesync.apply.context import Context
from saesync.apply.crew import Crew
from saesync.apply.graph import CONVERT, DEVICE, Graph, origin_of
from saesync.apply.settings import dataset_key, model_key
from saesync.apply.steps import Steps
from saesync.errors import Diagnostic, Origin, Refused, SaesyncError
from saesync.executors import fetch
from saesync.executors.fetch import Parcel
from saesync.folders import path_of
from saesync.hub import Hub
from saesync.lanes import in_lanes
from saesync.measure.folder import check_context, check_files, longest_context
from saesync.model import CARD_FILE, SAE_FILES, Item, ModelSpec, Plan, PublishSpec, SourceSpec, Status, StepKind, ValidateSpec
from saesync.nothing import nothing
from saesync.record import record_path
from saesync.room import Room
from saesync.system import os_trouble
from saesync.targets.base import Placing, Proposing

_MOVING = frozenset({StepKind.CONVERT, StepKind.RELABEL, StepKind.MOVE, StepKind.DELETE})  # steps that change an SAE's files
_PACKAGES = {CONVERT: ("torch", "sae_lens"), DEVICE: ("torch", "sae_lens", "transformers", "transformer_lens", "pyarrow")}


@dataclass(frozen=True)
class _Found:
    """The answer of one check: complaints, and bytes that have to be downloaded, by content."""

    complaints: tuple[Diagnostic, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=nothing)


def check(plan: Plan, context: Context) -> tuple[Diagnostic, ...]:
    """What is missing, each with the place in the manifest that needs it; empty when the plan can be carried out."""
    crew = Crew(context.cache, context.start, 1, context.devices)
    steps = Steps(context, crew, lambda event: None)
    graph = Graph(plan, context, steps)
    graph.build()
    if not graph.tasks:
        return ()
    found = _answers(_Checks(_needs(graph), context, steps, crew))
    works = {duty.work.address: duty.work for duty in graph.duties.values() if duty.work is not None}
    room = Room(context, tuple(works.values()), lambda: steps.hub(StepKind.FETCH))
    return tuple(dict.fromkeys([*_packages(graph), *found.complaints, *room.complaints(found.sizes)]))


def check_unseen(plan: Plan, context: Context) -> tuple[Diagnostic, ...]:
    """What else would be missing for SAEs that are held because their place or their source cannot be seen."""
    needs = _needs_of_unseen(plan, context)
    crew = Crew(context.cache, context.start, 1, context.devices)
    return _answers(_Checks(needs, context, Steps(context, crew, lambda event: None), crew)).complaints


def _answers(checks: _Checks) -> _Found:
    """All answers together."""
    try:
        answers = list(in_lanes("preflight", lambda pair: _answer(*pair), list(checks.all())))
    except BaseException:  # Ctrl-C: nobody waits for a driver that hangs
        checks.crew.kill()
        checks.crew.bury()
        raise
    checks.crew.close()
    complaints = dict.fromkeys(diagnostic for answer in answers for diagnostic in answer.complaints)
    return _Found(tuple(complaints), {name: size for answer in answers for name, size in answer.sizes.items()})


Sizes = Mapping[str, int]
Check = tuple[Callable[[], Sizes], Origin | None]


@dataclass(frozen=True)
class _Needs:
    """What has to be there, each with the place in the manifest that asks for it. ``contexts`` holds how many tokens a model
    has to read at once, by its key; ``registries`` are the names of lists."""

    places: Mapping[tuple[str, str], tuple[PublishSpec, Origin | None]]
    paths: Mapping[tuple[str, str], set[str]]
    models: Sequence[tuple[ModelSpec, Origin | None]]
    texts: Sequence[tuple[ValidateSpec, Origin | None]]
    contexts: Mapping[str, Mapping[int, Origin | None]]
    sources: Sequence[tuple[SourceSpec, Origin | None]]
    registries: Mapping[str, Origin | None]
    devices: bool


def _needs(graph: Graph) -> _Needs:
    """What the tasks of a plan need."""
    publishing = [item for item in graph.plan.pending if not item.held and set(item.steps) != {StepKind.REGISTER}]
    sources = [
        (duty.work.sae.source, duty.origin)
        for key, duty in graph.duties.items()
        if duty.work is not None and duty.work.sae.source is not None and graph.tasks[key].resource == CONVERT
    ]
    named = [(duty.registration.seen.registry, duty.origin) for duty in graph.duties.values() if duty.registration is not None]
    return _Needs(
        _places(graph.plan, publishing),
        _paths(graph.plan, publishing),
        graph.models,
        graph.texts,
        graph.contexts,
        sources,
        dict(named),
        graph.uses(DEVICE),
    )


def _needs_of_unseen(plan: Plan, context: Context) -> _Needs:
    """What SAEs that cannot be planned are sure to need if they are not published yet. Devices only where the plan itself does
    not ask for them. While the Hub cannot be asked at all, nothing more is asked."""
    unknown = [item for item in plan.items if item.status is Status.UNKNOWN]
    unseen = {item.address for item in unknown if not any(reason.data.get("later") for reason in item.reasons)}
    saes = [sae for release in plan.releases for sae in release.saes if sae.address in unseen]
    places = _places(plan, [item for item in plan.items if item.address in unseen])
    measured = [(sae, sae.validate) for sae in saes if sae.validate is not None]
    contexts: dict[str, dict[int, Origin | None]] = {}
    for sae, spec in measured:
        contexts.setdefault(model_key(sae.model), {}).setdefault(spec.context, origin_of(sae, "validate.context", "validate"))
    models = {model_key(sae.model): (sae.model, origin_of(sae, "model.name", "model.path", "model")) for sae, _ in measured}
    texts = {dataset_key(spec): (spec, origin_of(sae, "validate.dataset", "validate")) for sae, spec in measured}
    return _Needs(
        {place: asked for place, asked in places.items() if context.observed[place].unknown is None},
        defaultdict(set),
        list(models.values()),
        list(texts.values()),
        contexts,
        [],
        {},
        bool(measured) and not any(StepKind.VALIDATE in item.steps for item in plan.pending),
    )


def _places(plan: Plan, items: Iterable[Item]) -> dict[tuple[str, str], tuple[PublishSpec, Origin | None]]:
    """Where the releases of some items are published, or their evidence is kept."""
    names = {item.release for item in items}
    found: dict[tuple[str, str], tuple[PublishSpec, Origin | None]] = {}
    for release in plan.releases:
        for spec in (release.publish, release.records):
            if release.name in names and spec is not None:
                found.setdefault((spec.target, spec.location), (spec, spec.origin or release.origin))
    return found


def _paths(plan: Plan, items: Iterable[Item]) -> Mapping[tuple[str, str], set[str]]:
    """What will be written in each place, as far as it is known before: records, cards, and SAEs by their two files."""
    releases = {release.name: release for release in plan.releases}
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for item in items:
        release = releases[item.release]
        for spec in (release.publish, release.records):
            if spec is not None:
                found[spec.target, spec.location].add(record_path(release.name))
        if (spec := release.publish) is not None:
            moves = item.id is not None and not _MOVING.isdisjoint(item.steps) and StepKind.ADOPT not in item.steps
            saes = [path_of(str(item.id), name) for name in SAE_FILES] if moves else []
            found[spec.target, spec.location].update([CARD_FILE, *saes])
    return found


@dataclass(frozen=True)
class _Checks:
    """Each check returns the bytes it finds have to be downloaded, or raises what is missing. ``readable`` are the
    commits of which we know that we may read files: hundreds of SAEs may come from one; ``asked`` has a lock for each."""

    needs: _Needs
    context: Context
    steps: Steps
    crew: Crew
    asked: dict[tuple[str, str, str], threading.Lock] = field(default_factory=dict)
    readable: set[tuple[str, str, str]] = field(default_factory=set)

    def all(self) -> Iterator[Check]:
        """Every check with the place in the manifest that makes it necessary."""
        needs = self.needs
        for (target, location), (spec, origin) in needs.places.items():
            yield partial(self.write_access, target, spec, needs.paths[target, location]), origin
        for model, origin in needs.models:
            yield partial(self.model, model), origin
        for text, origin in needs.texts:
            yield partial(self.text, text), origin
        for source, origin in needs.sources:
            yield partial(self.source, source), origin
        for name, origin in needs.registries.items():
            yield partial(self.registry, name), origin
        if needs.devices and any(name != "cpu" for name in self.crew.devices):
            yield self.devices, None

    @property
    def hub(self) -> Hub:
        return self.steps.hub(StepKind.FETCH)

    def write_access(self, target: str, spec: PublishSpec, paths: Iterable[str]) -> Sizes:
        """May we publish there, and does nothing stand in the way?"""
        place = self.steps.target(StepKind.PUBLISH, target)
        if not spec.pull_request:
            place.check_write(spec.location, spec.private)
            if isinstance(place, Placing):
                place.check_paths(spec.location, paths)
        elif isinstance(place, Proposing):
            place.check_proposing(spec.location)
        else:
            raise Refused("Target has no pull requests", f"{target} cannot be published to by pull request: remove pull_request.")
        return nothing()

    def model(self, spec: ModelSpec) -> Sizes:
        """Is the model there, safe to load, and ours to read, and can it read as much at once as it is to?"""
        if spec.path is None:
            sizes = self._remote(fetch.model_parcel(spec, self.hub))
            config = _read(fetch.model_config(spec, self.hub))
        else:
            sizes, config = nothing(), check_files(Path(spec.path))
        longest = longest_context(config)
        complaints: list[Diagnostic] = []
        for context, origin in self.needs.contexts.get(model_key(spec), {}).items():
            try:
                check_context(context, longest)
            except Refused as error:
                complaints += [diagnostic.at(origin) for diagnostic in error.diagnostics]
        if complaints:
            raise Refused.of(complaints)
        return sizes

    def text(self, spec: ValidateSpec) -> Sizes:
        """Is the dataset there, readable as text, and ours to read?"""
        wanted = spec.dataset
        if wanted.path is None:
            return self._remote(fetch.dataset_parcel(wanted, spec.tokens, self.hub))
        from saesync.measure.dataset import TextSpec, sources  # imports numpy

        sources(TextSpec(wanted.path, (), wanted.column, wanted.split))
        return nothing()

    def source(self, spec: SourceSpec) -> Sizes:
        """Is the source there?"""
        resolved = self.context.resolver.source(spec)
        return self._remote(fetch.source_parcel(spec, resolved))

    def registry(self, name: str) -> Sizes:
        """May we propose a change there?"""
        from saesync.forge import check_access

        check_access(name)
        return nothing()

    def devices(self) -> Sizes:
        """Are the devices there that were named?"""
        self.crew.check_devices()
        return nothing()

    def _remote(self, parcel: Parcel | None) -> Sizes:
        absent = parcel.missing(self.context.cache) if parcel is not None else nothing()
        if parcel is not None and absent:
            self._may_read(parcel)
        return absent

    def _may_read(self, parcel: Parcel) -> None:
        """Asked once per commit of a repo, however many files of it are needed."""
        repo = parcel.repo, parcel.sha, parcel.kind
        with self.asked.setdefault(repo, threading.Lock()):
            if repo not in self.readable:
                fetch.may_read(parcel, self.hub)
                self.readable.add(repo)


def _read(config: bytes | None) -> Mapping[str, Any]:
    """A config.json; empty when there is none, or none that can be read, which its loader tells."""
    try:
        value = json.loads(config or b"{}")
    except (ValueError, RecursionError):
        return nothing()
    return value if isinstance(value, dict) else nothing()


def _answer(action: Callable[[], Sizes], origin: Origin | None) -> _Found:
    """A complaint is an answer, not an end."""
    try:
        return _Found(sizes=action())
    except SaesyncError as error:
        return _Found(tuple(diagnostic.at(origin) for diagnostic in error.diagnostics))
    except FileNotFoundError as error:
        detail = f"There is no {error.filename}. Correct the path in the manifest."
        return _Found((Diagnostic("File is not here", detail, origin),))
    except OSError as error:
        return _Found(tuple(diagnostic.at(origin) for diagnostic in os_trouble(error).diagnostics))


def _packages(graph: Graph) -> Iterator[Diagnostic]:
    wanted = dict.fromkeys(name for resource, names in _PACKAGES.items() if graph.uses(resource) for name in names)
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            package = name.replace("_", "-")
            yield Diagnostic("Package is missing", f"This plan needs the package {package}. Install it: pip install {package}.")
