"""The process that trains: ``python -m saesync.demo.worker``, or a fork with these ``JOBS``.

A process of its own because training libraries print, draw bars and set global seeds and threads: here that disturbs nobody.
It is an ordinary worker otherwise: no secret, no network, gone when its parent goes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from saesync import worker_main
from saesync.demo.recipe import Recipe, recipe_from_json
from saesync.worker_main import Job, Progress

_MAX_THREADS = 8  # more only get in each other's way on matrices this small


@dataclass(frozen=True, slots=True)
class DemoJob:
    """Fill the folder ``out`` with one stage. ``data`` and ``model`` are the stages before it."""

    recipe: Recipe
    out: str
    data: str
    model: str


def model(job: DemoJob, progress: Progress) -> Mapping[str, Any]:
    """Train tokenizer and language model.

    Raises:
        SaesyncError: the model did not learn.
    """
    _prepare()
    from saesync.demo.language import make_model

    return make_model(Path(job.out), Path(job.data), job.recipe, progress)


def sources(job: DemoJob, progress: Progress) -> Mapping[str, Any]:
    """Train the SAEs and save them in their layouts."""
    _prepare()
    from saesync.demo.dictionaries import make_dictionaries

    return make_dictionaries(Path(job.out), Path(job.data), Path(job.model), job.recipe, progress)


def _decode(data: Mapping[str, Any]) -> DemoJob:
    return DemoJob(recipe_from_json(data["recipe"]), data["out"], data["data"], data["model"])


JOBS: Mapping[str, Job] = MappingProxyType(
    {name: Job("saesync.demo.worker", name, _decode) for name in ("model", "sources")},
)


def _prepare() -> None:
    """All cores for this process alone (unless the user said how many), and no bars of others in its log.

    Threads that wait asleep instead of spinning: on matrices this small, spinning costs ten times the work itself as soon
    as another program wants a core. OpenMP reads the setting when torch is first imported.
    """
    os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(os.cpu_count() or 1, _MAX_THREADS))


if __name__ == "__main__":
    worker_main.main(JOBS)
