"""What the tests of the registry share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from saesync.registry.document import Document, parse
from saesync.registry.shipped import shipped


@pytest.fixture(scope="session")
def real() -> Document:
    """The file of the installed sae-lens."""
    return parse(shipped().read_bytes(), "pretrained_saes.yaml")
