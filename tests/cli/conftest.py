"""Fixtures of the tests of the command line: worlds in which everything slow is done once for all of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cli_support import Done, Place, copy_of
from tiny import TinyWorld


@pytest.fixture(scope="session")
def cold(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A world of which nothing was published or computed. To be copied."""
    folder = tmp_path_factory.mktemp("cli")
    environment = {**os.environ, "SAESYNC_CACHE": str(folder / "cache"), "COLUMNS": "100"}
    return Place(tiny_world.copy(folder / "cold"), environment)


@pytest.fixture(scope="session")
def first_apply(cold: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Done]:
    """The same with both manifests applied, as it was left and what was said."""
    place = copy_of(cold, tmp_path_factory.mktemp("cli") / "applied")
    return place, place.run("apply", "-y")


@pytest.fixture(scope="session")
def applied(first_apply: tuple[Place, Done]) -> Place:
    """A published world: to be read, not changed."""
    return first_apply[0]


@pytest.fixture
def own(applied: Place, tmp_path: Path) -> Place:
    """A world of this test's own: nothing is published, everything slow is in the cache."""
    return copy_of(applied, tmp_path / "world", published=False)


@pytest.fixture
def own_applied(applied: Place, tmp_path: Path) -> Place:
    """A published world of this test's own. Its folder is another one, so its card and digests are looked at anew."""
    return copy_of(applied, tmp_path / "world")
