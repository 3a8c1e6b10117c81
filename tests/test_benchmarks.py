"""``python -m benchmarks`` says by its exit code whether a target was missed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import runpy, sys, benchmarks
benchmarks.__path__.append(sys.argv.pop(1))
runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
"""


def benchmarked(folder: Path, *measured: str) -> tuple[int, str]:
    """Exit code and output of one benchmark whose rows say (value, target)."""
    lines = ["from benchmarks.table import Row", "TITLE = 'Made up'", "def rows():", f"    return [{', '.join(measured)}]"]
    (folder / "bench_made_up.py").write_text("\n".join(lines))
    command = [sys.executable, "-c", PROGRAM, str(folder), "made_up"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_targets_that_are_met(tmp_path: Path) -> None:
    code, said = benchmarked(tmp_path, "Row('a', 2.0, 's', '', '<= 2')", "Row('b', 2.0, 'x', '', '>= 2')", "Row('c', 9.0, 's')")
    assert code == 0, said
    assert [line.split("|")[-2].strip() for line in said.splitlines()[-4:] if line.startswith("| ")] == ["yes", "yes", ""]


@pytest.mark.parametrize(
    "missed", ["2.01, 's', '', '<= 2'", "1.99, 'x', '', '>= 2'", "float('nan'), 's', '', '<= 2'", "float('nan'), 'x', '', '>= 2'"]
)
def test_one_that_is_missed(tmp_path: Path, missed: str) -> None:
    code, said = benchmarked(tmp_path, "Row('met', 1.0, 's', '', '<= 2')", f"Row('missed', {missed})")
    assert code == 1, said
    assert said.rstrip().endswith("| NO |")


def test_a_benchmark_that_fails_measured_nothing(tmp_path: Path) -> None:
    code, said = benchmarked(tmp_path, "Row('a', 1 / 0, 's')")
    assert code not in (0, None)
    assert "ZeroDivisionError" in said
