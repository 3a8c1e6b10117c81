"""The packages of SAE authors, kept apart from ours, so that their classes can be compared with what we make of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from surroundings import PROXIES


def peer_packages(kept: Callable[[str], Path], name: str, *packages: str) -> Path:
    """A folder with these packages and none that they need, made once per checkout and version of Python.

    Skips the test that asks when pip cannot get them.
    """
    home = kept(f"peers-{sys.version_info[0]}.{sys.version_info[1]}")
    if not (home / name).exists():
        with tempfile.TemporaryDirectory(dir=home) as unfinished:
            folder = Path(unfinished) / name
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
            done = subprocess.run(pip, env=os.environ | PROXIES, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"pip cannot get {packages[0]}: {done.stderr.strip()[-300:]}")
            folder.rename(home / name)
    return home / name


def run_peer(packages: Path, program: str, *words: Path | str) -> str:
    """Run a program that finds a peer's packages before ours; what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"PYTHONPATH": str(packages)}
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout
