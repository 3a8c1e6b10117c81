"""Rows of a benchmark: what was measured, against what, and the target."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saesync.apply.crew import cores


@dataclass(frozen=True, slots=True)
class Row:
    """One measured number. ``target`` is a limit ("<= 2.0"), or "" for numbers that are only reported."""

    what: str
    value: float
    unit: str
    against: str = ""
    target: str = ""

    @property
    def verdict(self) -> str:
        """Whether the target is met; "" without one."""
        if not self.target:
            return ""
        kind, limit = self.target.split()
        met = self.value <= float(limit) if kind == "<=" else self.value >= float(limit)
        return "yes" if met else "NO"


@dataclass(frozen=True, slots=True)
class Run:
    """A finished child process: wall seconds, its own CPU seconds, peak resident bytes, output."""

    wall: float
    cpu: float
    peak: int
    output: str
    code: int


def run(words: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | None = None) -> Run:
    """Run a program and measure it (rusage of that child alone, by wait4)."""
    start = time.perf_counter()
    process = subprocess.Popen(
        words, env=None if env is None else dict(env), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, output, process.returncode)


def best_of(times: int, words: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | None = None) -> Run:
    """The fastest of several runs: the least disturbed one."""
    return min((run(words, env, cwd) for _ in range(times)), key=lambda done: done.wall)


def markdown(title: str, rows: Sequence[Row]) -> str:
    """A table for docs/benchmarks.md."""
    lines = [f"### {title}", "", "| what | measured | against | target | met |", "|---|---|---|---|---|"]
    lines += [f"| {r.what} | {r.value:,.3g} {r.unit} | {r.against} | {r.target} | {r.verdict} |" for r in rows]
    return "\n".join(lines)


def machine() -> str:
    """One line about where this ran."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system = {"Darwin": "macOS"}.get(platform.system(), platform.system())
    return f"{cores()} cores, {pages / 2**30:.0f} GiB, {platform.machine()}, Python {platform.python_version()}, {system}"
