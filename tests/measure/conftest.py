"""The world of ``measure_world``, made once, and what tests on pretended devices share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
from measure_world import make_world

from saesync.executors import validate


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def world(shared_world: SimpleNamespace) -> SimpleNamespace:
    return shared_world


@pytest.fixture(scope="module")
def own_world(shared_world: SimpleNamespace, request: pytest.FixtureRequest) -> SimpleNamespace:
    """The world that all share, with a cache of the module's own."""
    cache = str(shared_world.root / request.module.__name__)
    return SimpleNamespace(**{**vars(shared_world), "job": replace(shared_world.job, cache=cache)})


@pytest.fixture
def no_model_stays() -> Iterator[None]:
    """The executor keeps the last model; one on a pretended device must not outlive it, nor one of the CPU be taken for it."""
    validate.forget()
    yield
    validate.forget()
