"""Fixtures of the apply tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "apply"))

from apply_fixtures import *  # noqa: F403  (after the folder is on the path)
