"""All that a loopback server keeps, for looking for what must not be in it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from surroundings import GIT_ALONE


def holdings(root: Path) -> Iterator[tuple[str, bytes]]:
    """Its files as they are; and of its git repositories every object, unpacked: files, commits with their messages, tags."""
    for path in root.rglob("*"):
        if path.name == "state.json":  # says who its users are, too
            state = {name: value for name, value in json.loads(path.read_bytes()).items() if name != "tokens"}
            yield str(path), json.dumps(state).encode()
        elif path.is_file():
            yield str(path), path.read_bytes()
        if path.name == "objects" and (path.parent / "HEAD").is_file():
            command = ["git", f"--git-dir={path.parent}", "cat-file", "--batch", "--batch-all-objects"]
            done = subprocess.run(command, check=True, capture_output=True, env=os.environ | GIT_ALONE)
            yield str(path.parent), done.stdout
