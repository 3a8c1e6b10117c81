"""The inside of a worker process: ``python -P -m saesync.worker_main``. Foreign weights and models are only opened here.

Requests come as JSON lines on stdin, ``{"id": n, "job": name, "data": ...}``; replies go, one JSON line each, to what stdout was
at the start (prints of third parties go to stderr instead). Each has the request's id and one of::

    {"type": "progress", "done": n, "total": n}
    {"type": "result", "data": ...}
    {"type": "error", "kind": "Refused", "diagnostics": [...]}      the process goes on
    {"type": "crash", "error": "RuntimeError: ..."}                 the process ends

The process has no secret in its environment, no network, and ends when its parent does.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, BinaryIO, NoReturn

from saesync.errors import SaesyncError, disk_is_full, lacking
from saesync.garbage import no_garbage_collection
from saesync.isolation import NetworkGuard, isolate
from saesync.jobs import AdoptJob, CaptureJob, ConvertJob, DiagnoseJob, ExportJob, MeasureJob, MeasureSae
from saesync.system import os_trouble

PARENT_VARIABLE = "SAESYNC_PARENT"
PRELOAD = "preload"
_PROGRESS_EVERY = 0.1  # seconds

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of work: ``function`` of ``module``, imported when first asked for, called with (data, progress), or with
    (data) when it does not tell how far it is."""

    module: str
    function: str
    decode: Callable[[Mapping[str, Any]], Any]
    tells: bool = True


def _measure_job(data: Mapping[str, Any]) -> MeasureJob:
    saes = tuple(MeasureSae(**{**sae, "require": tuple(sae["require"])}) for sae in data["saes"])
    return MeasureJob(**{**data, "saes": saes, "dataset_files": tuple(data["dataset_files"])})


def _capture_job(data: Mapping[str, Any]) -> CaptureJob:
    return CaptureJob(**{**data, "dataset_files": tuple(data["dataset_files"])})


def _diagnose_job(data: Mapping[str, Any]) -> DiagnoseJob:
    return DiagnoseJob(**{**data, "dataset_files": tuple(data["dataset_files"])})


JOBS: Mapping[str, Job] = {
    "convert": Job("saesync.executors.convert", "run", lambda data: ConvertJob(**data)),
    "adopt": Job("saesync.executors.convert", "adopt", lambda data: AdoptJob(**data), tells=False),
    "export": Job("saesync.executors.export", "run", lambda data: ExportJob(**data)),
    "measure": Job("saesync.executors.validate", "run", _measure_job),
    "capture": Job("saesync.executors.validate", "capture", _capture_job),
    "diagnose": Job("saesync.executors.diagnose", "run", _diagnose_job),
    "devices": Job("saesync.worker_main", "devices", dict, tells=False),
    PRELOAD: Job("saesync.worker_main", "preload", dict, tells=False),
}


def encode(value: Any) -> Any:
    """Jobs and results as plain JSON: dataclasses and mappings become objects, tuples lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): encode(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [encode(entry) for entry in value]
    return value


def devices(_data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Which torch devices this machine has that can be used, best first, with their names; ``why`` no CUDA device is among them,
    and ``why_not_mps``, where there is an Apple GPU that cannot be used."""
    import torch

    from saesync.measure.devices import why_no_cuda, why_not_mps

    found = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    unusable = why_not_mps()
    if torch.backends.mps.is_available() and unusable is None:
        found["mps"] = "Apple GPU"
    why = None if torch.cuda.device_count() else why_no_cuda()
    return {"devices": {**found, "cpu": f"{torch.get_num_threads()} threads"}, "why": why, "why_not_mps": unusable}


def preload(data: Mapping[str, Any]) -> None:
    """Import ``data["modules"]`` while nobody waits for it, and have torch compute with ``data["threads"]`` unless the
    environment says how many; what is not installed is told by the job that needs it."""
    with no_garbage_collection():  # a sixth of the time it takes to import these libraries
        for name in data["modules"]:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    if data["threads"] and "torch" in sys.modules and "OMP_NUM_THREADS" not in os.environ:
        sys.modules["torch"].set_num_threads(data["threads"])


# ------------------------------------------------------------------------------------------------------- the loop


def serve(requests: BinaryIO, replies: BinaryIO, guard: NetworkGuard, jobs: Mapping[str, Job] = JOBS) -> None:
    """Answer requests until ``requests`` ends; then end the process. Returns after an error that nobody foresaw, which ends it,
    too. ``guard`` comes of ``isolate``."""
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, inbox), daemon=True, name="requests").start()

    while True:
        request = json.loads(inbox.get())
        guard.last = None

        def reply(message: Mapping[str, Any], number: int = request["id"]) -> None:
            replies.write(json.dumps({"id": number, **message}).encode() + b"\n")
            replies.flush()

        try:
            reply({"type": "result", "data": _answer(jobs[request["job"]], request["data"], reply)})
        except SaesyncError as error:
            reply(_told(error))
        except BaseException as error:  # noqa: BLE001 - told, and the process ends
            if (known := _known(error, guard)) is not None:
                reply(_told(known))
                continue
            traceback.print_exc()  # first: whoever is told does not wait for it
            said = str(error) or ("memory ran out" if isinstance(error, MemoryError) else "it says no more")
            reply({"type": "crash", "error": f"{type(error).__name__}: {said}", "network": guard.blamed(error)})
            return


def _told(error: SaesyncError) -> Mapping[str, Any]:
    found = [diagnostic.to_json() for diagnostic in error.diagnostics]
    return {"type": "error", "kind": type(error).__name__, "diagnostics": found}


def _known(error: BaseException, guard: NetworkGuard) -> SaesyncError | None:
    """What is no mistake of ours: what the operating system refused (a full disk, a file that cannot be read), and a package that
    is not installed."""
    if guard.blamed(error) is None and (disk_is_full(error) or (isinstance(error, OSError) and error.errno is not None)):
        return os_trouble(error if isinstance(error, OSError) else OSError(errno.ENOSPC, str(error)))
    return lacking(error)


def _listen(requests: BinaryIO, inbox: queue.SimpleQueue[bytes]) -> NoReturn:
    for line in requests:
        inbox.put(line)
    os._exit(0)  # the parent is gone, or wants no more


def _answer(job: Job, data: Mapping[str, Any], reply: Callable[[Mapping[str, Any]], None]) -> Any:
    said = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _PROGRESS_EVERY or done >= total:
            said = now
            reply({"type": "progress", "done": done, "total": total})

    function = getattr(importlib.import_module(job.module), job.function)
    given = job.decode(data)
    return encode(function(given, progress) if job.tells else function(given))


def main(jobs: Mapping[str, Job] = JOBS) -> None:
    """Entry point of a spawned worker."""
    guard = isolate(int(os.environ[PARENT_VARIABLE]))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, replies, guard, jobs)


if __name__ == "__main__":
    main()
