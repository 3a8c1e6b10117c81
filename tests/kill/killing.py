"""Apply in a child that is killed at a chosen instant, and what must be true after it was run again.

A child is forked from this process, which has the heavy imports done. It counts *moments*: every event apply emits but progress,
and every operation of its main process that changes a file or folder, or opens one to write. ``at`` is the moment at which it
gets SIGKILL: before the operation is done. ``step`` counts the events alone: a step has begun, or ended, or its result is
committed. Its workers die with it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apply_world import Run

from saesync.apply import StopFlag, apply

_CHANGES = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.copyfile"})
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Moments:
    """Counts what happens in one process, and kills it at the moment ``at`` or the event ``step``."""

    at: int | None
    step: int | None
    pid: int
    seen: int = 0
    steps: int = 0

    def pass_one(self) -> None:
        """One more moment."""
        self.seen += 1
        if self.seen == self.at:
            self._kill()

    def pass_step(self) -> None:
        """One more event, which is a moment, too."""
        self.steps += 1
        if self.steps == self.step:
            self._kill()
        self.pass_one()

    def _kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        time.sleep(60)  # SIGKILL takes the whole process, but not within this instruction

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook."""
        changes = event in _CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & _WRITES)
        if changes and os.getpid() == self.pid:
            self.pass_one()


@dataclass(frozen=True)
class Ended:
    """How a child ended: its result, or None when it was killed; and how many moments there were."""

    exit_code: int | None
    moments: int
    events: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0


def run_in_child(
    make: Callable[[], Run], report: Path, at: int | None = None, after: float | None = None, step: int | None = None
) -> Ended:
    """Apply in a fresh child. Killed at the moment ``at``, at the event ``step``, or ``after`` so many seconds."""
    begun = time.monotonic()
    pid = start_child(make, report, at, step)
    timer = threading.Timer(after, os.kill, (pid, signal.SIGKILL)) if after is not None else None
    if timer is not None:
        timer.start()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if timer is not None:
        timer.cancel()
        timer.join()
    seconds = time.monotonic() - begun
    if status == -signal.SIGKILL:
        return Ended(None, at or 0, seconds=seconds)
    found = json.loads(report.read_text())
    assert status == 0, found
    return Ended(found["exit_code"], found["moments"], tuple(found["events"]), seconds)


def start_child(make: Callable[[], Run], report: Path, at: int | None = None, step: int | None = None) -> int:
    """Fork a child that applies; returns its process id."""
    report.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _child(make, report, at, step)
    return pid


def _child(make: Callable[[], Run], report: Path, at: int | None, step: int | None) -> None:
    """The child's life; never returns."""
    gc.freeze()
    code = 1
    try:
        import huggingface_hub

        huggingface_hub.close_session()  # connections of the parent are not ours to use
        moments = Moments(at, step, os.getpid())
        run = make()
        plan, context = run.look()
        sys.addaudithook(moments.hook)

        def emit(event: Mapping[str, Any]) -> None:
            if event["type"] != "progress":  # how often that comes is a question of time
                moments.pass_step()
            run.events.append(event)

        result = apply(plan, context, emit, StopFlag())
        moments.at = moments.step = None
        events = [dict(event) for event in run.events if event["type"] != "progress"]
        report.write_text(json.dumps({"exit_code": result.exit_code, "moments": moments.seen, "events": events}))
        code = 0
    except BaseException:
        report.write_text(json.dumps(traceback.format_exc()))
        raise
    finally:
        os._exit(code)


def without_runs(data: bytes) -> Any:
    """A record without the only part that may differ between two runs of the same work."""
    record = json.loads(data)
    record.pop("run", None)
    for entry in record["saes"].values():
        entry.pop("run")
    return record


def comparable(tree: Mapping[str, bytes]) -> dict[str, Any]:
    """A target's tree for comparing: bytes, and records without ``run``."""
    return {name: without_runs(data) if name.startswith("saesync/") else data for name, data in tree.items()}


def points(total: int, count: int, part: int, parts: int) -> list[int]:
    """``count`` moments spread evenly over ``total``; of several parts, the one that starts at ``part``."""
    every = [1 + round(i * (total - 1) / (count * parts - 1)) for i in range(count * parts)]
    return every[part::parts]
