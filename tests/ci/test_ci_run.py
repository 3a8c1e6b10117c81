"""``.ci/run`` makes everything that CI promises, and fails with the first of it that fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / ".ci" / "run"
TARGETS = ("test", "lint", "types", "slow")


def ran(folder: Path, failing: str = "") -> tuple[int, list[str]]:
    """Exit code, and the targets asked for in turn, with a make on PATH that writes them down; ``failing`` fails."""
    log, program = folder / "asked", folder / "bin" / "make"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\nfor word; do case $word in --version) exit 0;; -*) continue;; esac; "
        f'echo "$word" >>"{log}"; [ "$word" != "{failing}" ] || exit 2; done\n'
    )
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(SCRIPT)], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, log.read_text().split()


def test_everything_is_made(tmp_path: Path) -> None:
    assert ran(tmp_path) == (0, list(TARGETS))


@pytest.mark.parametrize("failing", TARGETS)
def test_the_first_failure_ends_it(tmp_path: Path, failing: str) -> None:
    code, asked = ran(tmp_path, failing)
    assert code != 0
    assert asked[-1] == failing
