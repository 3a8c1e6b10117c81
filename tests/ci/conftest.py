"""One loopback GitHub for all tests here, emptied before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ci_support import Forge, running_forge


@pytest.fixture(scope="session")
def forge_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    with running_forge(tmp_path_factory.mktemp("github")) as forge:
        yield forge


@pytest.fixture
def forge(forge_process: Forge) -> Forge:
    forge_process.reset()
    forge_process.seed()
    return forge_process
