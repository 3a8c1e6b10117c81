"""Fixtures over the tiny world. Named in tests/conftest.py: ``pytest_plugins = ["tiny.plugin"]``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import TinyWorld, make


@pytest.fixture(scope="session")
def tiny_world(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """A world that the whole session shares: to be read, not changed. Trained once, then kept in pytest's cache."""
    cache = pytestconfig.cache.mkdir("tiny-worlds") if pytestconfig.cache else tmp_path_factory.mktemp("tiny-cache")
    return make(tmp_path_factory.mktemp("tiny") / "world", cache)


@pytest.fixture
def own_tiny_world(tiny_world: TinyWorld, tmp_path: Path) -> TinyWorld:
    """A copy for one test, which may change it."""
    return tiny_world.copy(tmp_path / "world")
