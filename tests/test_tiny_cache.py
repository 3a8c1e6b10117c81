"""The tiny world's fixtures work with and without pytest's cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TEST = "def test_there(tiny_cache):\n    assert tiny_cache.is_dir()\n    print(f'kept in {tiny_cache}')\n"


@pytest.mark.parametrize(("options", "kept"), [([], ".pytest_cache"), (["-p", "no:cacheprovider"], "made")])
def test_with_and_without_pytests_cache(tmp_path: Path, options: list[str], kept: str) -> None:
    (tmp_path / "test_one.py").write_text(TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-s", "-p", "tiny.plugin", "--basetemp", str(tmp_path / "made"), *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "kept in " in line)
    assert kept in line
