"""A small registry, and changes to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from saesync.forge import Proposal

REGISTRY = "acme/SAELens"
FORK = "bot/SAELens"
PATH = "sae_lens/pretrained_saes.yaml"
RELEASE = "tiny-res"
BRANCH = f"saesync/{RELEASE}"
BASE = """\
first:
  repo_id: acme/first
  saes:
  - id: a
    path: a
second:
  repo_id: acme/second
  saes:
  - id: b
    path: b
"""


def entry(release: str, value: str) -> str:
    return f"{release}:\n  repo_id: acme/{value}\n  saes:\n  - id: x\n    path: x\n    l0: 10\n"


def edit_to(value: str, release: str = RELEASE) -> Callable[[bytes], bytes]:
    """Puts the release's entry in place: where it is, else at the end of the file."""

    def edit(data: bytes) -> bytes:
        lines = data.decode().splitlines(keepends=True)
        start = next((n for n, line in enumerate(lines) if line.startswith(f"{release}:")), None)
        new = entry(release, value)
        if start is None:
            return data + new.encode()
        stop = next((n for n in range(start + 1, len(lines)) if not lines[n].startswith(" ")), len(lines))
        kept = [line for line in lines[start:stop] if line.strip().startswith("note:")]
        return "".join([*lines[:start], new, *kept, *lines[stop:]]).encode()

    return edit


def proposal(value: str = "tiny", **changes: Any) -> Proposal:
    found = Proposal(RELEASE, edit_to(value), f"feat: add {RELEASE}", "Evidence:\n\n| SAE | L0 |\n|---|---|\n| x | 10 |\n")
    return dataclasses.replace(found, **changes)
