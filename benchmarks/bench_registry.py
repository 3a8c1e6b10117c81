"""Editing SAELens's registry file and checking it, against what PyYAML alone needs to read and write the whole file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import yaml

from benchmarks.table import Row
from saesync.registry.document import edited, parse
from saesync.registry.entry import Entry, from_yaml
from saesync.registry.lint import lint
from saesync.registry.shipped import shipped

TITLE = "Editing and checking SAELens's registry (the shipped file)"
TIMES = 3
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def rows() -> list[Row]:
    """CPU seconds of one add, update and removal from bytes to bytes; ratios to a plain load and dump in the same run."""
    data = shipped().read_bytes()
    document = parse(data, "registry")
    last = from_yaml(name := list(document.releases)[-1], document.releases[name])
    renamed = replace(last, release="new-release")
    changed = replace(last, saes=(replace(last.saes[0], l0=777), *last.saes[1:]))
    whole = _best(lambda: yaml.dump(yaml.load(data, _LOADER), Dumper=_DUMPER, sort_keys=False))
    edits = {"add": (renamed.release, renamed), "update": (name, changed), "remove": (name, None)}
    timed = {verb: _best(lambda asked=asked: _edit(data, *asked)) for verb, asked in edits.items()}
    told = f"PyYAML loads and dumps it in {whole:.2f} s"
    found = [Row(f"{verb} one release", seconds, "s", told, "<= 1.5") for verb, seconds in timed.items()]
    found += [Row("slowest edit / load and dump", max(timed.values()) / whole, "", "", "<= 1.5")]
    return [
        *found,
        Row("lint / load and dump", _best(lambda: lint(data, "registry")) / whole, "", f"{len(data):,} bytes", "<= 2.0"),
    ]


def _edit(data: bytes, release: str, entry: Entry | None) -> bytes:
    return edited(parse(data, "registry"), release, entry)


def _best(action: Callable[[], Any]) -> float:
    taken = []
    for _ in range(TIMES):
        start = time.process_time()
        action()
        taken.append(time.process_time() - start)
    return min(taken)
