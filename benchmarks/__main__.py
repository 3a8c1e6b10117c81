"""``python -m benchmarks [NAME...]``: run the benchmarks (all unless named) and print their tables as markdown."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import benchmarks
from benchmarks.table import machine, markdown

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import surroundings


def main() -> int:
    """Exit 1 when a target is missed."""
    surroundings.forget()
    known = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name.startswith("bench_"))
    chosen = [f"bench_{name.removeprefix('bench_')}" for name in sys.argv[1:]] or known
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine()}\n", flush=True)
    missed = 0
    for name in chosen:
        module = importlib.import_module(f"benchmarks.{name}")
        rows = module.rows()
        print(markdown(module.TITLE, rows), end="\n\n", flush=True)
        missed += sum(row.verdict == "NO" for row in rows)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
