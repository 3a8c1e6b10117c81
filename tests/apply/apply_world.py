"""Plan and apply in this process, as the command line does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saesync import manifest
from saesync.apply import Context, Result, StopFlag, apply
from saesync.cache import Cache
from saesync.keys import Wanted
from saesync.model import Choices, Observed, Plan, Release
from saesync.observe import observe
from saesync.observe_registries import observe_registries
from saesync.planner import plan as make_plan
from saesync.resolve import Resolver
from saesync.targets import open_target
from saesync.workers import Launcher, spawn

Edit = Callable[[Release], Release]


@dataclass
class Run:
    """One look at the world: manifests, observation, plan; then one apply."""

    manifests: tuple[Path, ...]
    cache: Cache
    roots: tuple[Path, ...] = ()
    choices: Choices = field(default_factory=Choices)
    edit: Edit = lambda release: release
    start: Launcher = spawn
    events: list[Mapping[str, Any]] = field(default_factory=list)

    def look(self) -> tuple[Plan, Context]:
        releases = tuple(self.edit(release) for release in manifest.load(self.manifests, roots=self.roots))
        observed: Mapping[tuple[str, str], Observed] = observe(releases, self.cache)
        resolver = Resolver(self.cache)
        wanted: Mapping[str, Wanted] = resolver.resolve(releases, observed)
        registries = observe_registries(releases, self.cache)
        plan = make_plan(releases, wanted, observed, self.choices, registries=registries)
        context = Context(
            self.cache,
            resolver,
            wanted,
            observed,
            lambda name: open_target(name, self.cache),
            registries,
            choices=self.choices,
            devices=("cpu",),
            start=self.start,
        )
        return plan, context

    def plan(self) -> Plan:
        return self.look()[0]

    def apply(self, stop: StopFlag | None = None, **changes: Any) -> Result:
        plan, context = self.look()
        return apply(plan, replace(context, **changes), self.events.append, stop or StopFlag())

    def told(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


def bare_context(folder: Path) -> Context:
    """A context in which nothing is asked for."""
    cache = Cache(folder)
    return Context(cache, Resolver(cache), {}, {}, lambda name: open_target(name, cache))
