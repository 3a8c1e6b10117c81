"""Before any work: everything a plan needs that is not here, all at once, so that nobody learns it after hours of work."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from saesync.apply.context import Context
from saesync.apply.crew import Crew
from saesync.apply.graph import CONVERT, DEVICE, Graph
from saesync.apply.steps import Steps
from saesync.apply.work import Work
from saesync.errors import Diagnostic, Origin, SaesyncError
from saesync.executors import fetch
from saesync.executors.fetch import Parcel
from saesync.hub import Hub
from saesync.model import ModelSpec, Plan, PublishSpec, StepKind, ValidateSpec

LANES = 4
_PACKAGES = {CONVERT: ("torch", "sae_lens"), DEVICE: ("torch", "sae_lens", "transformers", "transformer_lens", "pyarrow")}
_SPARE = 1.05  # file systems need some room of their own


@dataclass(frozen=True)
class _Found:
    """The answer of one check: complaints, and bytes that have to be written to the cache."""

    complaints: tuple[Diagnostic, ...] = ()
    size: int = 0


def check(plan: Plan, context: Context) -> tuple[Diagnostic, ...]:
    """What is missing, each with the place in the manifest that needs it; empty when the plan can be carried out."""
    crew = Crew(context.cache, context.start, 1, context.devices)
    steps = Steps(context, crew, lambda event: None)
    graph = Graph(plan, context, steps)
    graph.build()
    if not graph.tasks:
        return ()
    checks = list(_Checks(graph, steps, crew).all())
    with ThreadPoolExecutor(LANES, thread_name_prefix="preflight") as pool:
        answers = list(pool.map(lambda pair: _answer(*pair), checks))
    crew.close()
    complaints = [diagnostic for answer in answers for diagnostic in answer.complaints]
    needed = sum(answer.size for answer in answers)
    return tuple(dict.fromkeys([*_packages(graph), *complaints, *_disk(context.cache.root, needed)]))


Check = tuple[Callable[[], int], Origin | None]


@dataclass(frozen=True)
class _Checks:
    """Each check returns the bytes it finds have to be written, or raises what is missing."""

    graph: Graph
    steps: Steps
    crew: Crew

    def all(self) -> Iterator[Check]:
        """Every check with the place in the manifest that makes it necessary."""
        for (target, _), (spec, origin) in self._places().items():
            yield partial(self.write_access, target, spec), origin
        for model, origin in self.graph.models:
            yield partial(self.model, model), origin
        for text, origin in self.graph.texts:
            yield partial(self.text, text), origin
        for key, duty in self.graph.duties.items():
            if duty.work is not None and self.graph.tasks[key].resource == CONVERT:
                yield partial(self.source, duty.work), duty.origin
        if self.graph.uses(DEVICE) and any(name != "cpu" for name in self.crew.devices):
            yield self.devices, None

    def _places(self) -> dict[tuple[str, str], tuple[PublishSpec, Origin | None]]:
        pending = {item.release for item in self.graph.plan.pending if not item.held}
        found: dict[tuple[str, str], tuple[PublishSpec, Origin | None]] = {}
        for release in self.graph.plan.releases:
            for spec in (release.publish, release.records):
                if release.name in pending and spec is not None:
                    found.setdefault((spec.target, spec.location), (spec, release.origin))
        return found

    @property
    def hub(self) -> Hub:
        return self.steps.hub(StepKind.FETCH)

    def write_access(self, target: str, spec: PublishSpec) -> int:
        """May we publish there?"""
        self.steps.target(StepKind.PUBLISH, target).check_write(spec.location, spec.private)
        return 0

    def model(self, spec: ModelSpec) -> int:
        """Is the model there, safe to load, and ours to read?"""
        return self._local(spec.path) if spec.path is not None else self._remote(fetch.model_parcel(spec, self.hub))

    def text(self, spec: ValidateSpec) -> int:
        """Is the dataset there, readable as text, and ours to read?"""
        path = spec.dataset.path
        return self._local(path) if path is not None else self._remote(fetch.dataset_parcel(spec.dataset, spec.tokens, self.hub))

    def source(self, work: Work) -> int:
        """Is the source there? Counts what is made of it, too."""
        spec = work.sae.source
        if spec is None:
            return 0
        resolved = self.graph.context.resolver.source(spec)
        made = sum(file.digest.size for file in resolved.files.values())
        return made + self._remote(fetch.source_parcel(spec, resolved))

    def devices(self) -> int:
        """Are the devices there that were named?"""
        self.crew.check_devices()
        return 0

    def _remote(self, parcel: Parcel | None) -> int:
        absent = parcel.missing(self.graph.context.cache) if parcel is not None else 0
        if parcel is not None and absent:
            fetch.may_read(parcel, self.hub)
        return absent

    def _local(self, path: str) -> int:
        if not Path(path).exists():
            raise FileNotFoundError(2, "No such file or folder", path)
        return 0


def _answer(action: Callable[[], int], origin: Origin | None) -> _Found:
    """A complaint is an answer, not an end."""
    try:
        return _Found(size=action())
    except SaesyncError as error:
        return _Found(tuple(diagnostic.at(origin) for diagnostic in error.diagnostics))
    except FileNotFoundError as error:
        detail = f"There is no {error.filename}. Correct the path in the manifest."
        return _Found((Diagnostic("File is not here", detail, origin),))


def _packages(graph: Graph) -> Iterator[Diagnostic]:
    wanted = dict.fromkeys(name for resource, names in _PACKAGES.items() if graph.uses(resource) for name in names)
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            package = name.replace("_", "-")
            yield Diagnostic("Package is missing", f"This plan needs the package {package}. Install it: pip install {package}.")


def _disk(root: Path, needed: int) -> Iterator[Diagnostic]:
    place = root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed * _SPARE > free:
        yield Diagnostic(
            "Not enough disk space",
            f"The cache {root} needs {needed / 1e9:.1f} GB for this plan; {free / 1e9:.1f} GB are free. "
            "Free some, or set SAESYNC_CACHE to a larger disk.",
        )
