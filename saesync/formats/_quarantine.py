"""Unsafe pickles, rewritten as safetensors in a process of their own. Nothing the file names is imported or called.

The child reads the pickle as a structure: classes nobody knows become inert descriptions, tensors stay where they are in the
file. It has no network, a limit on memory, processor time and file size, and writes two files: the tensors, and what the inert
objects said, as JSON. The parent checks the tensors' sha256, which is kept with what is published.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesync.digest import digest_file
from saesync.errors import Diagnostic, Refused
from saesync.formats._checks import read_json

TENSORS, FACTS, ANSWER = "tensors.safetensors", "facts.json", "answer.json"
TIMEOUT_S = 900
REFUSED_EXIT = 3


@dataclass(frozen=True, slots=True)
class Rewritten:
    """``tensors`` is a safetensors file with dotted names; ``facts`` is the rest of the pickle as JSON: an inert object is its
    ``state`` where that is a mapping. Their folder is removed when another pickle is rewritten; mappings of them stay valid."""

    tensors: Path
    facts: Any
    pickle_sha256: str
    tensors_sha256: str


_kept: dict[tuple[str, int, int], Rewritten] = {}


def rewrite(path: Path, name: str) -> Rewritten:
    """The file at ``path``, rewritten; ``name`` is its name for messages. The last one is kept: a proof reads it many times.

    Raises:
        Refused: it is damaged, holds something else than tensors and plain data, or exceeds a limit.
    """
    status = path.stat()
    key = (str(path), status.st_mtime_ns, status.st_size)
    if key not in _kept:
        _forget()
        _kept[key] = _rewrite(path, name)
    return _kept[key]


@atexit.register
def _forget() -> None:
    for rewritten in _kept.values():
        shutil.rmtree(rewritten.tensors.parent, ignore_errors=True)
    _kept.clear()


def _rewrite(path: Path, name: str) -> Rewritten:
    out = Path(tempfile.mkdtemp(prefix="saesync-pickle-"))
    try:
        return _run(path, name, out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _run(path: Path, name: str, out: Path) -> Rewritten:
    command = [sys.executable, "-P", "-m", "saesync.formats._quarantine_child", str(os.getpid()), str(path), name, str(out)]
    try:
        done = subprocess.run(  # noqa: S603  (our own interpreter and module)
            command, capture_output=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL, env=_bare(), cwd=out
        )
    except subprocess.TimeoutExpired as error:
        raise _exceeded(name, f"more than {TIMEOUT_S} s") from error
    if done.returncode == REFUSED_EXIT:
        raise Refused.of([Diagnostic.from_json(read_json(out / ANSWER, ANSWER))])
    if done.returncode != 0:
        raise _exceeded(name, "more memory or time than a checkpoint of its size needs")
    before, after = digest_file(path), digest_file(out / TENSORS)
    if read_json(out / ANSWER, ANSWER) != {"tensors": after.sha256}:
        raise Refused("Damaged file", f"{name} could not be rewritten: the result is not what was written. Try again.")
    facts = read_json(out / FACTS, f"{name}: {FACTS}")
    return Rewritten(out / TENSORS, facts, str(before.sha256), str(after.sha256))


def _bare() -> dict[str, str]:
    """No token, no proxy: what an interpreter needs to start."""
    kept = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _exceeded(name: str, what: str) -> Refused:
    return Refused("Pickle exceeds a limit", f"Reading {name} took {what}. Ask its authors for safetensors.")
