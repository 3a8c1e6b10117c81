"""Whole plans and applies against a loopback Hub without converting or measuring: builds and numbers are in the cache already."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from planning import evidence_of, inputs_of, release, sae
from servers.loopback import HubServer

from saesync.apply import Context, Result, StopFlag, apply
from saesync.apply.builds import BUILDS, keep_evidence, read_build, seal
from saesync.cache import Cache
from saesync.digest import digest_file
from saesync.hub import Hub
from saesync.keys import Wanted
from saesync.model import CFG_FILE, WEIGHTS_FILE, Choices, Item, Observed, Plan, PublishSpec, Release, Sae
from saesync.observe import Place
from saesync.planner import plan as make_plan
from saesync.planner import select
from saesync.resolve import Resolver
from saesync.targets import open_target
from saesync.targets.base import Target, look_at
from saesync.targets.huggingface import HuggingFace

REPO = "alice/saes"
SIZE = 40_000


@dataclass
class Shop:
    """Releases that are asked for, one user's cache, and what the user's last command told.

    ``ev`` is the explained variance that measuring an address gives (the bound is 0.7).
    """

    server: HubServer
    folder: Path
    releases: list[Release]
    ev: dict[str, float] = field(default_factory=dict)
    patience: float = 6
    events: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def cache(self) -> Cache:
        return Cache(self.folder / "cache")

    def target(self, name: str = "huggingface") -> Target:
        """As every command opens it: nothing is remembered but what is in the cache."""
        hub = HuggingFace(self.cache, Hub(self.cache, patience=self.patience))
        return hub if name == hub.name else open_target(name, self.cache)

    def wanted(self, asked: Sae) -> Wanted:
        """The keys of an SAE, whose build and numbers are put into the cache."""
        inputs = inputs_of(asked)
        if read_build(self.cache, inputs.build_key) is None:
            with self.cache.making(BUILDS, inputs.build_key) as folder:
                (folder / WEIGHTS_FILE).write_bytes(b"\0" + random.Random(inputs.weights_key).randbytes(SIZE))
                (folder / CFG_FILE).write_text(f'{{"key": "{inputs.build_key}"}}\n')
                digests = {name: digest_file(folder / name).to_json() for name in (CFG_FILE, WEIGHTS_FILE)}
                seal(folder, {"max_difference": 1.0e-6}, digests)
        build = read_build(self.cache, inputs.build_key)
        assert build is not None
        if inputs.measure is not None:
            keep_evidence(self.cache, evidence_of(inputs, build.files, self.ev.get(asked.address, 0.8)))
        return Wanted(asked, inputs)

    def look(self, only: Sequence[str] = (), **choices: tuple[str, ...]) -> tuple[Plan, Context]:
        observed = self.observe()
        wanted = {asked.address: self.wanted(asked) for one in self.releases for asked in one.saes}
        chosen = Choices(**choices)
        plan = select(make_plan(self.releases, wanted, observed, chosen), only)
        context = Context(self.cache, Resolver(self.cache), wanted, observed, self.target, chosen, ("cpu",))
        return plan, context

    def observe(self) -> Mapping[Place, Observed]:
        specs = {(spec.target, spec.location): spec for one in self.releases if (spec := one.publish) is not None}
        return {place: look_at(self.target(place[0]), place[1], spec.pull_request) for place, spec in specs.items()}

    def seen(self, repo: str = REPO) -> Observed:
        return self.observe()["huggingface", repo]

    def plan(self, **choices: tuple[str, ...]) -> Plan:
        return self.look(**choices)[0]

    def items(self, name: str = "res", **choices: tuple[str, ...]) -> list[Item]:
        """What the plan says of a release as a whole: the release, then its tag."""
        return [item for item in self.plan(**choices).items if item.id is None and item.release == name]

    def apply(self, only: Sequence[str] = (), **choices: tuple[str, ...]) -> Result:
        plan, context = self.look(only, **choices)
        return self.carry_out(plan, context)

    def carry_out(self, plan: Plan, context: Context, stop: StopFlag | None = None) -> Result:
        self.events = []
        return apply(plan, context, self.events.append, stop or StopFlag())

    def told(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def ask(self, name: str, **changes: Any) -> None:
        """Every SAE of a release is asked for otherwise."""
        at = next(n for n, one in enumerate(self.releases) if one.name == name)
        self.releases[at] = replace(self.releases[at], saes=tuple(replace(one, **changes) for one in self.releases[at].saes))

    # ------------------------------------------------------------------------------------------ the Hub's side
    def tags(self, repo: str = REPO) -> dict[str, str]:
        lines = self.server.git(repo, "for-each-ref", "--format=%(refname:short) %(*objectname)%(objectname)", "refs/tags").split(
            "\n"
        )
        return {line.split()[0]: line.split()[1][:40] for line in lines if line}

    def card(self, revision: str = "main", repo: str = REPO) -> str:
        return self.server.file(repo, "README.md", revision.replace("/", "%2F")).decode()


def asked(
    name: str = "res", ids: Sequence[str] = ("layer_0", "layer_1"), repo: str = REPO, target: str = "huggingface", **publish: Any
) -> Release:
    """A release of tiny SAEs, published to ``repo``."""
    made = release(name, (), location=repo, publish=PublishSpec(target, repo, "mit", **publish))
    return replace(
        made, saes=tuple(sae(name, sae_id, hook=f"blocks.{number}.hook_resid_post") for number, sae_id in enumerate(ids))
    )
