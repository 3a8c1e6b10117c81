"""Fixtures over the tiny world. Named in tests/conftest.py: ``pytest_plugins = ["tiny.plugin"]``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import TinyWorld, make


@pytest.fixture(scope="session")
def kept(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of what is made once: in pytest's cache, or for this run alone where ``-p no:cacheprovider`` leaves it out."""
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)
    return tmp_path_factory.mktemp if cache is None else cache.mkdir


@pytest.fixture(scope="session")
def tiny_cache(kept: Callable[[str], Path]) -> Path:
    """Where trained worlds are kept."""
    return kept("tiny-worlds")


@pytest.fixture(scope="session")
def tiny_world(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """A world that the whole session shares: to be read, not changed. Trained once, then kept in ``tiny_cache``."""
    return make(tmp_path_factory.mktemp("tiny") / "world", tiny_cache)


@pytest.fixture
def own_tiny_world(tiny_world: TinyWorld, tmp_path: Path) -> TinyWorld:
    """A copy for one test, which may change it."""
    return tiny_world.copy(tmp_path / "world")
