"""From a plan to tasks: which steps each SAE still needs, what they share, and what waits for what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from saesync.apply import settings
from saesync.apply.builds import read_build
from saesync.apply.commits import CommitLane, Waiting
from saesync.apply.context import Context
from saesync.apply.registration import Registration
from saesync.apply.scheduler import Pick, Resource, Task
from saesync.apply.steps import ACTIVATIONS, Steps
from saesync.apply.tagging import ReleaseTag, release_tags
from saesync.apply.work import Work
from saesync.errors import Origin, SaesyncError
from saesync.model import Item, ModelSpec, Plan, PublishSpec, Release, Sae, StepKind, ValidateSpec
from saesync.observe import Place

NETWORK, CONVERT, DEVICE, LOCAL = "network", "convert", "device", "local"
NETWORK_LANES = 4
REGISTRY = "registry"  # and its name: one registration at a time in each
MOST_TOGETHER = 32  # SAEs in one measuring job: more share forward passes, fewer are published sooner
_FILES = 2  # of a whole SAE; one whose weights stay counts once


@dataclass(frozen=True, slots=True)
class Duty:
    """What a task is, to people: whose step, and where the manifest asks for it. ``final`` tasks decide an SAE's outcome."""

    address: str
    step: StepKind
    origin: Origin | None
    work: Work | None = None
    final: bool = False
    registration: Registration | None = None


@dataclass
class Graph:
    """Tasks and what is known about them, filled from a plan by ``build``."""

    plan: Plan
    context: Context
    steps: Steps
    tasks: dict[str, Task] = field(default_factory=dict)
    duties: dict[str, Duty] = field(default_factory=dict)
    lanes: dict[str, CommitLane] = field(default_factory=dict)
    models: list[tuple[ModelSpec, Origin | None]] = field(default_factory=list)
    texts: list[tuple[ValidateSpec, Origin | None]] = field(default_factory=list)
    contexts: dict[str, dict[int, Origin | None]] = field(default_factory=dict)  # tokens read at once, by model key
    _waiting: dict[str, Waiting] = field(default_factory=dict)
    _tags: dict[str, ReleaseTag] = field(default_factory=dict)
    _captures: dict[str, list[Work]] = field(default_factory=dict)
    _capturing: set[str] = field(default_factory=set)
    _moves: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def build(self) -> None:
        """Make all tasks."""
        releases = {release.name: release for release in self.plan.releases}
        saes = {sae.address: sae for release in self.plan.releases for sae in release.saes}
        pending = [item for item in self.plan.items if item.steps and not item.held]
        self._tags = release_tags(self.plan, self.context)
        works = [work for item in pending if (work := self._work(item, releases[item.release], saes)) is not None]
        for work in works:
            self._prepare(work)
        for work in works:
            self._add_sae(work)
        for item in pending:
            self._add_rest(item, releases[item.release])
        for item in pending:
            if StepKind.REGISTER in item.steps:
                self._add_registration(item, releases[item.release])

    def resources(self) -> Mapping[str, Resource]:
        """The pools the tasks run in."""
        devices = max(1, len(self.steps.crew.devices))

        def together(ready: Sequence[Task], ending: bool) -> Pick:
            return Pick(min(MOST_TOGETHER, -(-len(ready) // devices)))

        commits = {name: Resource(1, lane.pick) for name, lane in self.lanes.items()}
        pools = {
            NETWORK: Resource(NETWORK_LANES),
            CONVERT: Resource(len(self.steps.crew.converters)),
            DEVICE: Resource(devices, together),
            LOCAL: Resource(),
        }
        registries = {task.resource: Resource() for task in self.tasks.values() if task.resource.startswith(REGISTRY)}
        return {**pools, **commits, **registries}

    def uses(self, resource: str) -> bool:
        """Whether any task needs a resource."""
        return any(task.resource == resource for task in self.tasks.values())

    # ------------------------------------------------------------------------------------------------ one SAE

    def _work(self, item: Item, release: Release, saes: Mapping[str, Sae]) -> Work | None:
        if item.id is None or StepKind.PUBLISH not in item.steps:
            return None
        sae, wanted = saes[item.address], self.context.wanted[item.address]
        if wanted.inputs is None:
            raise ValueError(f"{item.address} is planned without keys")
        observed = self.context.observed[_place(release.home)]
        record = observed.records.get(release.name)
        entry = record.saes.get(item.move_from or sae.id) if record is not None else None
        work = Work(item, release, sae, wanted.inputs, observed, entry)
        if entry is not None:
            work.kept = entry.files
        return work

    def _prepare(self, work: Work) -> None:
        """Look into the cache: what is there is not made again."""
        if work.has(StepKind.CONVERT):
            work.build = read_build(self.context.cache, work.inputs.build_key)
        if work.has(StepKind.VALIDATE) and not work.has(StepKind.ADOPT):
            work.evidence = self.steps.known_evidence(work)
        if self._captures_for(work):
            self._captures.setdefault(settings.capture_group(work), []).append(work)
            self._capturing.add(work.address)

    def _captures_for(self, work: Work) -> bool:
        proves = work.has(StepKind.ADOPT) or (work.has(StepKind.CONVERT) and work.build is None)
        if not proves or work.sae.validate is None:
            return False
        return not self.context.cache.sealed(ACTIVATIONS, settings.capture_key(work, self.context.proof_rows))

    def _add_sae(self, work: Work) -> None:
        """The chain of one SAE. Each link needs the one before; what is shared is needed where it is used."""
        name = work.address
        chain: list[str] = []
        measures = work.has(StepKind.VALIDATE) and work.evidence is None and work.native is None
        converts = work.has(StepKind.CONVERT) and work.build is None
        if converts or work.has(StepKind.ADOPT) or work.has(StepKind.RELABEL) or (measures and work.keeps_weights):
            chain.append(self._add(f"fetch {name}", NETWORK, self._one(self.steps.fetch, work), self._duty(work, StepKind.FETCH)))
        if work.has(StepKind.CONVERT):
            needs = [*chain[-1:], *([self._capture(work)] if work.address in self._capturing else [])]
            duty = self._duty(work, StepKind.CONVERT)
            chain.append(
                self._add(f"convert {name}", CONVERT if converts else LOCAL, self._in(self.steps.convert, work), duty, needs)
            )
        if work.has(StepKind.ADOPT):
            duty = self._duty(work, StepKind.ADOPT)
            chain.append(self._add(f"adopt {name}", CONVERT, self._in(self.steps.adopt, work), duty, chain[-1:]))
        if work.has(StepKind.RELABEL):
            duty = self._duty(work, StepKind.RELABEL)
            chain.append(self._add(f"relabel {name}", LOCAL, self._one(self.steps.relabel, work), duty, chain[-1:]))
        if work.has(StepKind.VALIDATE):
            chain.append(self._add_validate(work, measures, chain[-1:]))
        self._add_publish(work, chain[-1:])

    def _add_validate(self, work: Work, measures: bool, needs: Sequence[str]) -> str:
        shared = self._shared(work) if measures else ()
        resource, group = (DEVICE, settings.measure_group(work)) if measures else (LOCAL, "")
        return self._add(
            f"validate {work.address}", resource, self._validate, self._duty(work, StepKind.VALIDATE), [*needs, *shared], group
        )

    def _add_publish(self, work: Work, needs: Sequence[str]) -> None:
        key = f"publish {work.address}"
        self._waiting[key] = Waiting(work.release, work)
        lane = self._lane(work.release)
        weight = _FILES if work.has(StepKind.CONVERT) and not work.has(StepKind.ADOPT) else 1
        duty = Duty(work.address, StepKind.PUBLISH, work.sae.origin, work, final=True)
        self._add(key, lane, self.lanes[lane].run, duty, needs, work.release.name, weight, finishing=True)
        if work.item.move_from is not None:
            self._moves.setdefault((work.release.name, work.item.move_from), []).append(key)

    # ---------------------------------------------------------------------------------------------- what is shared

    def _shared(self, work: Work) -> tuple[str, ...]:
        """Tasks that bring an SAE's model and dataset; made once for all that use them."""
        sae, spec = work.sae, work.sae.validate
        if spec is None:
            return ()
        model, text = f"model {settings.model_key(sae.model)}", f"dataset {settings.dataset_key(spec)}"
        if model not in self.tasks:
            duty = Duty(f"model {sae.model.label}", StepKind.FETCH, origin_of(sae, "model.name", "model.path", "model"))
            self.models.append((sae.model, duty.origin))
            self._add(model, NETWORK, lambda _lane, _tasks: self.steps.fetch_model(sae.model), duty)
        if text not in self.tasks:
            duty = Duty(f"dataset {spec.dataset.label}", StepKind.FETCH, origin_of(sae, "validate.dataset", "validate"))
            self.texts.append((spec, duty.origin))
            self._add(text, NETWORK, lambda _lane, _tasks: self.steps.fetch_text(spec), duty)
        contexts = self.contexts.setdefault(settings.model_key(sae.model), {})
        contexts.setdefault(spec.context, origin_of(sae, "validate.context", "validate"))
        return model, text

    def _capture(self, work: Work) -> str:
        group = settings.capture_group(work)
        key = f"capture {group}"
        if key not in self.tasks:
            works = self._captures[group]
            duty = Duty(f"activations of {work.sae.model.label}", StepKind.CONVERT, origin_of(work.sae, "hook", "validate"))

            def run(lane: int, _tasks: Sequence[Task]) -> None:
                self.steps.capture(lane, works)

            self._add(key, DEVICE, run, duty, self._shared(work), key)
        return key

    # ------------------------------------------------------------------------------------------- what is not an SAE

    def _add_rest(self, item: Item, release: Release) -> None:
        """Deletions, cards that no SAE's commit would bring, and tags."""
        if StepKind.DELETE in item.steps and item.id is not None:
            self._add_commit(f"delete {item.address}", item, release, StepKind.DELETE, Waiting(release, removed=item.id))
        elif StepKind.CARD in item.steps:
            self._add_commit(f"card {item.address}", item, release, StepKind.CARD, Waiting(release))
        elif StepKind.TAG in item.steps:
            self._add_tag(item, release)

    def _add_tag(self, item: Item, release: Release) -> None:
        """After the release's last commit, and only when none of its SAEs failed. A tag is no commit: it waits for no batch."""
        lane = self._lane(release)
        needs = [key for key, waiting in self._waiting.items() if waiting.release.name == release.name]
        run = self.lanes[lane].tag_with(release.name)
        key = f"tag {release.name}"
        self._add(key, lane, run, Duty(item.address, StepKind.TAG, item.origin, final=True), needs, key, weight=0)

    def _add_commit(self, key: str, item: Item, release: Release, step: StepKind, waiting: Waiting) -> None:
        self._waiting[key] = waiting
        lane = self._lane(release)
        needs = self._moves.get((release.name, item.id or ""), [])  # what is copied from here goes first
        duty = Duty(item.address, step, item.origin, final=True)
        self._add(key, lane, self.lanes[lane].run, duty, needs, release.name, _FILES)

    def _add_registration(self, item: Item, release: Release) -> None:
        """After all that changes the release. A release registered whole waits for all of it to succeed."""
        registration = Registration(item, release, self.context.registries[release.name], self.steps)
        before = [key for key, duty in self.duties.items() if duty.final and _release_of(duty) == release.name]
        partial = release.register is not None and release.register.partial
        needs, after = ([], before) if partial else (before, [])
        duty = Duty(item.address, StepKind.REGISTER, item.origin, final=True, registration=registration)
        resource = f"{REGISTRY} {registration.seen.registry}"
        self._add(f"register {item.address}", resource, lambda _lane, _tasks: registration.run(), duty, needs, after=after)

    def _lane(self, release: Release) -> str:
        place = _place(release.home)
        name = f"commit {place[0]} {place[1]}"
        if name not in self.lanes:
            self.lanes[name] = CommitLane(self.context.observed[place], self.steps, self._waiting, self._tags)
        return name

    # -------------------------------------------------------------------------------------------------- making tasks

    def _add(
        self,
        key: str,
        resource: str,
        run: Callable[[int, Sequence[Task]], Mapping[str, SaesyncError] | None],
        duty: Duty,
        needs: Sequence[str] = (),
        group: str = "",
        weight: int = 1,
        finishing: bool = False,
        after: Sequence[str] = (),
    ) -> str:
        self.tasks[key] = Task(key, resource, run, frozenset(needs), group, weight, finishing, frozenset(after))
        self.duties[key] = duty
        return key

    def _one(self, step: Callable[[Work], None], work: Work) -> Callable[[int, Sequence[Task]], None]:
        return lambda _lane, _tasks: step(work)

    def _in(self, step: Callable[[int, Work], None], work: Work) -> Callable[[int, Sequence[Task]], None]:
        return lambda lane, _tasks: step(lane, work)

    def _validate(self, lane: int, tasks: Sequence[Task]) -> Mapping[str, SaesyncError]:
        works = {task.key: work for task in tasks if (work := self.duties[task.key].work) is not None}
        errors = self.steps.validate(lane, list(works.values()))
        return {key: errors[work.address] for key, work in works.items() if work.address in errors}

    def _duty(self, work: Work, step: StepKind) -> Duty:
        names = ("validate", "hook") if step is StepKind.VALIDATE else ("source.path", "source.repo", "source")
        return Duty(work.address, step, origin_of(work.sae, *names), work)


def _release_of(duty: Duty) -> str:
    return duty.work.release.name if duty.work is not None else duty.address.partition("/")[0]


def origin_of(sae: Sae, *names: str) -> Origin | None:
    """The first of some manifest keys that has a place, else the SAE's own."""
    return next((sae.origins[name] for name in names if name in sae.origins), sae.origin)


def _place(spec: PublishSpec | None) -> Place:
    if spec is None:
        raise ValueError("a release without a place has no commits")
    return spec.target, spec.location
