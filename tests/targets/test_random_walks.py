"""Random months of a place: what its owner asks for changes, others write there, and apply runs now and then."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pytest
from planning import SPEC, sae
from release_world import REPO, Shop, asked
from servers.loopback import HubServer

from saesync.apply import Result
from saesync.apply.builds import read_build
from saesync.model import CARD_FILE, Release, Sae, Status

IDS = ("layer_0", "layer_1", "layer_0/a", "layer_2/wide", "x")
STRAY = ("notes.txt", "layer_0/extra.txt", "layer_0/a/cfg.json", "layer_2/wide/notes/me.md", "x/sae_weights.safetensors")
FAULTS = ({"status": 503}, {"status": 500, "times": 2}, {"action": "reset", "when": "after"})
STEPS = 20
pytestmark = pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)


class Place(Protocol):
    """A target as others see it."""

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, data: bytes | None) -> None:
        """One file; None deletes it."""
        ...

    def trouble(self, which: random.Random | None) -> None:
        """Something goes wrong at the next commit, or nothing does any more."""
        ...


@dataclass
class Folder:
    root: Path

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes | None) -> None:
        path = self.root / name
        if data is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def trouble(self, which: random.Random | None) -> None:
        """Killed processes are the conformance suite's."""


@dataclass
class Repo:
    server: HubServer

    def names(self) -> list[str]:
        there = (self.server.root / "repos" / "models" / f"{REPO}.git").exists()
        return sorted(name for name in self.server.tree_of(REPO) if name != ".gitattributes") if there else []

    def read(self, name: str) -> bytes:
        return self.server.file(REPO, name)

    def write(self, name: str, data: bytes | None) -> None:
        self.server.push(REPO, {name: data})

    def trouble(self, which: random.Random | None) -> None:
        if which is None:
            self.server.restart_counters()
        else:
            self.server.fault(route="commit", **which.choice(FAULTS))


@dataclass
class Walk:
    """``theirs`` is what others wrote, by name; ``told`` says what was done, for who has to find out why a walk went wrong."""

    shop: Shop
    place: Place
    rng: random.Random
    theirs: dict[str, bytes] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------ the owner
    @property
    def release(self) -> Release:
        return self.shop.releases[0]

    def ask(self, **changes: Any) -> None:
        self.shop.releases = [replace(self.release, **changes)]

    def change(self, **changes: Any) -> None:
        one = self.rng.choice(self.release.saes)
        self.ask(saes=tuple(replace(other, **changes) if other is one else other for other in self.release.saes))

    def add(self) -> None:
        if free := [name for name in IDS if name not in {one.id for one in self.release.saes}]:
            self.ask(saes=(*self.release.saes, sae(self.release.name, self.rng.choice(free))))

    def remove(self) -> None:
        if len(self.release.saes) > 1:
            gone = self.rng.choice(self.release.saes)
            self.ask(saes=tuple(one for one in self.release.saes if one is not gone))

    def other_weights(self) -> None:
        self.change(dtype=self.rng.choice(["float32", "bfloat16"]))

    def measure_or_not(self) -> None:
        self.change(validate=self.rng.choice([None, SPEC]))

    def other_license(self) -> None:
        spec = self.release.publish
        assert spec is not None
        self.ask(publish=replace(spec, license=self.rng.choice(["mit", "apache-2.0", None])))

    def better_or_worse(self) -> None:
        self.shop.ev[self.rng.choice(self.release.saes).address] = self.rng.choice([0.5, 0.8])

    def retire_or_not(self) -> None:
        self.ask(retire=not self.release.retire)

    # -------------------------------------------------------------------------------------------- others
    def stray_file(self) -> None:
        name = self.rng.choice(STRAY)
        if self.place.names() and name not in self.place.names():
            self.theirs[name] = f"theirs {self.rng.random()}".encode()
            self.place.write(name, self.theirs[name])

    def damage(self) -> None:
        if names := self.place.names():
            name = self.rng.choice(names)
            data = self.rng.choice([None, f"damaged {self.rng.random()}".encode()])
            self.place.write(name, data)
            self.theirs.pop(name, None)
            if data is not None and name != CARD_FILE and not name.startswith("saesync/"):
                self.theirs[name] = data

    def write_in_the_readme(self) -> None:
        if CARD_FILE in self.place.names():
            text = self.place.read(CARD_FILE)
            self.place.write(CARD_FILE, self.rng.choice([text + b"\nBy hand.\n", text[: len(text) // 2], b"# Mine\n" + text]))

    # --------------------------------------------------------------------------------------------- apply
    def apply(self) -> None:
        choices: dict[str, tuple[str, ...]] = self.rng.choice([{}, {}, {"replace": ("*",)}, {"prune": (self.release.name,)}])
        plan, context = self.shop.look(**choices)
        if self.rng.random() < 0.3:
            self.place.trouble(self.rng)
        result = self.shop.carry_out(plan, context)
        self.place.trouble(None)
        self.told.append(f"  {choices}: {result.exit_code} {[(item.address, str(item.status)) for item in plan.items]}")
        if choices:
            self.theirs = {name: data for name, data in self.theirs.items() if self._is(name, data)}
        self.check(result)

    def _is(self, name: str, data: bytes) -> bool:
        return name in self.place.names() and self.place.read(name) == data

    def check(self, result: Result) -> None:
        assert all(self._is(name, data) for name, data in self.theirs.items()), self.theirs
        plan = self.shop.plan()
        if not result.failures:
            assert plan.pending == ()
        asked_for = {one.address: one for one in self.release.saes}
        spec = self.release.publish
        assert spec is not None
        seen = self.shop.observe()[spec.target, spec.location]
        for item in plan.items:
            if item.id is not None and item.status is Status.CURRENT:
                self._right(asked_for[item.address], seen.folder(item.id))

    def _right(self, one: Sae, found: dict[str, Any]) -> None:
        inputs = self.shop.wanted(one).inputs
        assert inputs is not None
        build = read_build(self.shop.cache, inputs.build_key)
        assert build is not None
        assert all(found[name].same_bytes(digest) for name, digest in build.files.items())

    def go(self) -> None:
        owner = (
            self.add,
            self.add,
            self.remove,
            self.other_weights,
            self.measure_or_not,
            self.other_license,
            self.better_or_worse,
        )
        ways: tuple[Callable[[], None], ...] = (
            *owner,
            self.retire_or_not,
            self.stray_file,
            self.damage,
            self.write_in_the_readme,
        )
        for _ in range(STEPS):
            way = self.apply if self.rng.random() < 0.4 else self.rng.choice(ways)
            self.told.append(way.__name__)
            way()
        self.apply()


def walk(shop: Shop, place: Place, seed: int) -> None:
    made = Walk(shop, place, random.Random(seed))
    try:
        made.go()
    except Exception as error:
        error.add_note("\n".join(made.told))
        raise


@pytest.mark.parametrize("seed", range(12))
def test_a_folder(hub_server: HubServer, tmp_path: Path, seed: int) -> None:
    where = tmp_path / "saes"
    walk(Shop(hub_server, tmp_path, [asked(repo=str(where), target="local")]), Folder(where), seed)


@pytest.mark.parametrize("seed", range(4))
def test_a_hub_repo(hub_server: HubServer, tmp_path: Path, seed: int) -> None:
    hub_server.config(lfs_threshold=1000)
    walk(Shop(hub_server, tmp_path, [asked()]), Repo(hub_server), seed)
