"""``saesync demo``: a small real world, made offline in minutes: a language model, SAEs trained on it, manifests over them.

Nothing heavy is imported here: training happens in a worker process, and a finished demo is only looked at.
"""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesync.demo.corpus import write_corpus
from saesync.demo.manifests import LOCAL, write_manifests
from saesync.demo.recipe import DEMO, Recipe
from saesync.demo.stages import Workshop
from saesync.digest import key_of
from saesync.errors import SaesyncError
from saesync.workers import Launcher, Worker, spawn

Progress = Callable[[str, int, int, str], None]

MODEL_LABEL, SOURCES_LABEL = "Training a language model", "Training SAEs on it"
_START: Launcher = functools.partial(spawn, module="saesync.demo.worker")


@dataclass(frozen=True, slots=True)
class World:
    """A finished demo. Losses are in nats per token on held-out text; ``tokens`` is what the model was trained on;
    ``seconds`` is how long making it took, whenever that was. ``good`` and ``failing`` are the manifests."""

    folder: Path
    model: Path
    held_out: Path
    sources: Path
    good: Path
    failing: Path
    published: Path
    unigram_entropy: float
    loss: float
    params: int
    tokens: int
    saes: int
    seconds: float
    cached: bool

    @property
    def manifests(self) -> tuple[Path, ...]:
        """Both manifests: the one that passes, then the one with a gate that fails."""
        return (self.good, self.failing)

    def lines(self) -> tuple[str, ...]:
        """What a user is told: what was made, how well the model learned, what to do next."""
        made = "was here already" if self.cached else f"made in {self.seconds:.0f} s"
        return (
            f"Demo in {_shown(self.folder)} ({made}).",
            f"  model      {self.params:,} parameters, trained on {self.tokens:,} tokens of Python's standard library;",
            f"             held-out loss {self.loss:.2f} nats per token, unigram entropy {self.unigram_entropy:.2f}",
            f"  sources    {self.saes} SAEs on its residual stream: SAELens, training checkpoint, legacy cfg.json, Goodfire .pth",
            "  manifests  good.yaml, whose gates hold, and failing.yaml, with one that does not",
            "",
            f"Next:  saesync plan {shlex.quote(_shown(self.good))}",
            f"       saesync apply {shlex.quote(_shown(self.good))}",
            f"       saesync apply {shlex.quote(_shown(self.failing))}",
        )


def build(folder: Path, progress: Progress, recipe: Recipe = DEMO, start: Launcher = _START) -> World:
    """Make a demo in ``folder``, or what is missing of one; at once when everything is there.

    ``progress`` is called with (label, done, total, unit) while something long runs. ``start`` starts the worker process.

    Raises:
        SaesyncError: the folder holds other files or another demo, another process is making it, or training failed.
        Missing: this Python comes without the source of its library.
        OSError: no space, no permission.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"  # the corpus is this Python's own library
    workshop = Workshop(folder, key_of([recipe.to_json(), version]))
    workshop.check()
    facts = workshop.all_facts()
    if facts is not None:
        return _world(workshop.folder, facts, cached=True)
    workshop.open()
    with workshop.alone():
        _make(workshop, recipe, progress, start)
    facts = workshop.all_facts()
    if facts is None:
        raise SaesyncError("Demo was changed", f"{workshop.folder} was changed while it was made. Run the same command again.")
    return _world(workshop.folder, facts, cached=False)


def _make(workshop: Workshop, recipe: Recipe, progress: Progress, start: Launcher) -> None:
    """Every stage that is missing. A stage made anew makes the later ones stale, except manifests: they hold no digests."""
    worker = Worker(workshop.home, start)

    def trained(stage: str, label: str, unit: str) -> Callable[[Path], Mapping[str, Any]]:
        def fill(fresh: Path) -> Mapping[str, Any]:
            job = {
                "recipe": recipe.to_json(),
                "out": str(fresh),
                "data": str(workshop.folder / "data"),
                "model": str(workshop.folder / "model"),
            }
            progress(label, 0, 1, unit)
            found: Mapping[str, Any] = worker.run(stage, job, lambda done, total: progress(label, done, total, unit))
            return found

        return fill

    stages: Mapping[str, Callable[[Path], Mapping[str, Any]]] = {
        "data": lambda fresh: write_corpus(fresh, recipe),
        "model": trained("model", MODEL_LABEL, "tokens"),
        "sources": trained("sources", SOURCES_LABEL, "activations"),
    }
    try:
        stale = False
        for stage, fill in stages.items():
            stale = stale or workshop.facts(stage) is None
            if stale:
                workshop.make(stage, fill)
        if workshop.facts("manifests") is None:
            workshop.make("manifests", lambda fresh: write_manifests(fresh, recipe, LOCAL))
    except BaseException:
        worker.kill()
        raise
    finally:
        worker.close()


def _world(folder: Path, facts: Mapping[str, Any], *, cached: bool) -> World:
    return World(
        folder=folder,
        model=folder / "model",
        held_out=folder / "data" / "held_out.jsonl",
        sources=folder / "sources",
        good=folder / "manifests" / "good.yaml",
        failing=folder / "manifests" / "failing.yaml",
        published=folder / "published",
        unigram_entropy=facts["unigram_entropy"],
        loss=facts["loss"],
        params=facts["params"],
        tokens=facts["tokens"],
        saes=facts["saes"],
        seconds=facts["seconds"],
        cached=cached,
    )


def _shown(path: Path) -> str:
    """As short as it can be typed from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
