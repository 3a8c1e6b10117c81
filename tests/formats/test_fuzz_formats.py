"""Mutated files over every reader: each ends in weights or in a refusal; nothing runs, hangs, or takes much memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from convert_support import Case, cases
from fuzz_worker import mutated, read, sources_of
from hypothesis import given, settings
from hypothesis import strategies as st

from saesync.errors import SaesyncError
from saesync.formats import _quarantine_child

WORKER = Path(__file__).parent / "fuzz_worker.py"


@pytest.mark.parametrize(("count", "seed"), [(300, 1), pytest.param(5_000, 2, marks=pytest.mark.slow)])
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
    assert found["grown_mib"] < 256


Prepared = tuple[Case, Path, dict[str, Path], dict[str, Any]]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Prepared]:
    made = []
    for number, case in enumerate(cases()):
        folder = tmp_path_factory.mktemp("source")
        options = dataclasses.asdict(case.example(folder, number))
        made.append((case, folder, {name: folder / listed for name, listed in sources_of(case, folder).items()}, options))
    return made


@settings(max_examples=300, deadline=None)
@given(which=st.integers(0, 999), file=st.integers(0, 9), chance=st.randoms(use_true_random=False))
def test_whatever_hypothesis_does_to_a_file(examples: list[Prepared], which: int, file: int, chance: random.Random) -> None:
    """The same mutations, chosen by hypothesis: what goes wrong is made small, and tried first the next time."""
    case, folder, paths, options = examples[which % len(examples)]
    path = sorted(paths.values())[file % len(paths)]
    whole = path.read_bytes()
    path.write_bytes(mutated(whole, chance))
    try:
        with contextlib.suppress(SaesyncError, *_quarantine_child.DAMAGE):
            read(case, folder, paths, options, folder.parent)
    finally:
        path.write_bytes(whole)
