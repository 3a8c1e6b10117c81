"""The folder of a demo: stages that are made once, atomically, and found again.

::

    DIR/.demo/recipe        digest of the recipe: what marks DIR as a demo of ours
    DIR/.demo/<stage>.json  stamp of a finished stage: its files with sizes, its facts, its seconds
    DIR/.demo/tmp/          what is being made; swept at the next start
    DIR/<stage>/            the stage itself, renamed into place when whole

A killed run is continued: finished stages have a stamp and all their files, everything else is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from saesync.cache import settle, write_atomic
from saesync.errors import SaesyncError

Facts = Mapping[str, Any]
STAGES = ("data", "model", "sources", "manifests")


class Workshop:
    """A demo folder. Nothing is written before ``open``."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.digest = digest
        self._notes = self.folder / ".demo"

    @property
    def home(self) -> Path:
        """A home folder for the worker process."""
        return self._notes / "tmp" / "home"

    def check(self) -> None:
        """Raises SaesyncError when the folder is not ours to fill: other people's files are never replaced."""
        mark = self._notes / "recipe"
        if not mark.is_file():
            if self.folder.is_dir() and any(entry.name != ".demo" for entry in self.folder.iterdir()):
                raise SaesyncError(
                    "Folder is not empty",
                    f"{self.folder} holds other files, and a demo is only made in a new or empty folder. Name another folder.",
                )
            if self.folder.exists() and not self.folder.is_dir():
                raise SaesyncError("Not a folder", f"{self.folder} is a file. Name a new or empty folder.")
        elif mark.read_text().strip() != self.digest:
            raise SaesyncError(
                "Demo is of another version",
                f"{self.folder} holds a demo made by another version of saesync or Python. "
                "Remove that folder, or name another one.",
            )

    def open(self) -> None:
        """Mark the folder as ours.

        Raises:
            SaesyncError: see ``check``.
            OSError: no space, no permission.
        """
        self.check()
        write_atomic(self._notes / "recipe", self.digest.encode())

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for this process; the hold ends with the process, whatever happens to it.

        Raises:
            SaesyncError: another process is making this demo now.
        """
        with (self._notes / "lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                detail = f"Another process is making {self.folder} now. Wait for it, then run the same command again."
                raise SaesyncError("Demo is being made", detail) from error
            shutil.rmtree(self._notes / "tmp", ignore_errors=True)
            try:
                yield
            finally:
                shutil.rmtree(self._notes / "tmp", ignore_errors=True)

    def facts(self, stage: str) -> Facts | None:
        """What the stamp of a finished stage says; None when the stage is not there or not whole."""
        try:
            stamp = json.loads((self._notes / f"{stage}.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        for name, size in stamp["files"].items():
            path = self.folder / stage / name
            # Manifests are there to be edited; of everything else a changed size means that it is damaged.
            if not path.is_file() or (stage != "manifests" and path.stat().st_size != size):
                return None
        return {**stamp["facts"], "seconds": stamp["seconds"]}

    def all_facts(self) -> Facts | None:
        """The facts of all stages together, or None when something is missing."""
        together: dict[str, Any] = {"seconds": 0.0}
        for stage in STAGES:
            facts = self.facts(stage)
            if facts is None:
                return None
            together = {**together, **facts, "seconds": together["seconds"] + facts["seconds"]}
        return together

    def make(self, stage: str, fill: Callable[[Path], Facts]) -> None:
        """Fill a fresh folder, put it in place as a whole, then stamp it."""
        started = time.monotonic()
        fresh = self._notes / "tmp" / stage
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        facts = fill(fresh)
        settle(fresh)
        files = {str(path.relative_to(fresh)): path.stat().st_size for path in sorted(fresh.rglob("*")) if path.is_file()}
        final = self.folder / stage
        (self._notes / f"{stage}.json").unlink(missing_ok=True)
        if final.exists():
            final.rename(self._notes / "tmp" / f"{stage}.old")
        fresh.rename(final)
        stamp = {"files": files, "facts": dict(facts), "seconds": round(time.monotonic() - started, 1)}
        write_atomic(self._notes / f"{stage}.json", json.dumps(stamp, indent=1).encode())
