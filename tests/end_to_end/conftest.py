"""Fixtures of the apply tests, and the loopback GitHub of the CI tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "apply"), str(TESTS / "ci")]

from apply_fixtures import *  # noqa: E402, F403  (after the folders are on the path)
from ci_support import Forge, running_forge  # noqa: E402


@pytest.fixture
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    with running_forge(tmp_path_factory.mktemp("github")) as found:
        yield found
