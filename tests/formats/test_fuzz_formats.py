"""Mutated files over every reader: each ends in weights or in a refusal; nothing runs, hangs, or takes much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "fuzz_worker.py"


@pytest.mark.parametrize(("count", "seed"), [(300, 1), pytest.param(10_000, 2, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(count: int, seed: int, tmp_path: Path) -> None:
    command = [sys.executable, str(WORKER), str(count), str(seed), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["executed"] == []
    assert set(found["ends"]) == {"read", "refused"}
    assert sum(found["ends"].values()) == count
    assert found["ends"]["read"] > count // 20  # mutations are small: many files stay readable
    assert found["slowest_s"] < 5
    assert found["peak_mib"] < 1024
