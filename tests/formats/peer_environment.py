"""Environments of their own for the packages of SAE authors, so that their classes can be compared with ours."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest
import torch


def peer_python(name: str, *packages: str) -> Path:
    """The Python of an environment with these packages, made once per machine; torch is the one that runs here.

    Skips the test that asks when pip cannot get them.
    """
    home = Path(tempfile.gettempdir()) / f"saesync-peer-{name}-{sys.version_info[0]}{sys.version_info[1]}"
    if not (home / "ready").exists():
        venv.create(home, with_pip=True, clear=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", *packages]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"pip cannot get {packages[0]}: {done.stderr.strip()[-300:]}")
        (own,) = (home / "lib").glob("python*/site-packages")
        (own / "shared.pth").write_text(str(Path(torch.__file__).parent.parent) + "\n")
        (home / "ready").touch()
    return home / "bin" / "python"


def run_peer(python: Path, program: str, *words: Path | str) -> str:
    """Run a program with a peer's Python; what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(python), "-c", program, *map(str, words)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout
