"""The world of ``measure_world``, made once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from measure_world import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return make_world(tmp_path_factory.mktemp("world"))
