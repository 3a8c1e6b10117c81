"""Worker processes: where convert and measure run, without secrets and without network.

``Worker.run(job, data)`` sends one job and waits for its result. An error that the job raised on purpose arrives here as the
same ``SaesyncError``; a process that died (killed for memory, crashed in native code) becomes one with its last words.
Two ways to start a process stand behind one interface: ``spawn`` (a fresh interpreter; the one users get) and ``fork`` (a copy
of this process, for callers that have the heavy imports done and hold no secret).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from saesync import worker_main
from saesync.cache import default_root
from saesync.errors import ERROR_TYPES, Diagnostic, Interrupted, SaesyncError
from saesync.inert import plain
from saesync.isolation import hide_memory, isolate
from saesync.scratch import scratch

Progress = Callable[[int, int], None]


class WorkerLost(SaesyncError):
    """The process ended over a job without an answer: killed, crashed, or by an error nobody foresaw."""


_KEPT = ("PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_KEPT_PREFIXES = (
    "LC_",
    "CUDA_",
    "NVIDIA_",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "KMP_",
    "GOMP_",
    "PYTORCH_",
    "TORCH_",
    "ROCR_",
    "HIP_",
    "HSA_",
    "CUBLAS_",
)
_NEVER = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "_KEY", "DSN")
_LAST_WORDS = 60  # lines of stderr kept: a traceback through torch is long
_SHOWN_WORDS = 3
_GRACE = 5.0  # seconds a worker gets to end by itself


def scrubbed(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """The environment of a worker: an allow-list, switches that keep libraries offline, and an empty home folder, so that
    no token file is found either. Temporary files are made there, too: what libraries leave behind goes with it."""
    kept = {
        name: value
        for name, value in environment.items()
        if (name in _KEPT or name.startswith(_KEPT_PREFIXES)) and not any(word in name.upper() for word in _NEVER)
    }
    return kept | {
        "HOME": str(home),
        "HF_HOME": str(home / "huggingface"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TMPDIR": str(home / "tmp"),
        "SAESYNC_CACHE": str(default_root()),  # to tell by its name what cannot be written there
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
        "DO_NOT_TRACK": "1",
        "OMP_WAIT_POLICY": "passive",  # threads that wait spinning take the cores from those that work
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",  # libraries open text files in the locale's encoding
        worker_main.PARENT_VARIABLE: str(os.getpid()),
    }


@dataclass(frozen=True)
class Child:
    """A started process: its pipes, and how to wait for it (returns the exit status; negative for a signal)."""

    pid: int
    requests: IO[bytes]
    replies: IO[bytes]
    stderr: IO[bytes]
    wait: Callable[[], int]


Launcher = Callable[[Path], Child]


def spawn(home: Path, module: str = "saesync.worker_main") -> Child:
    """A fresh interpreter in a session of its own (Ctrl-C in the terminal does not reach it). From now on, no other process may
    read this one's memory.

    Raises:
        OSError: the process cannot be started.
    """
    hide_memory()
    process = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=home,
        env=scrubbed(os.environ, home),
        start_new_session=True,
    )
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise OSError("the worker has no pipes")
    return Child(process.pid, process.stdin, process.stdout, process.stderr, process.wait)


def fork(home: Path, jobs: Mapping[str, worker_main.Job] = worker_main.JOBS) -> Child:
    """A copy of this process, cut off in the same way. Its memory holds what this process's memory holds.

    Raises:
        OSError: the process cannot be started.
    """
    pipes = [os.pipe() for _ in range(3)]
    (requests_out, requests_in), (replies_out, replies_in), (errors_out, errors_in) = pipes
    parent = os.getpid()
    environment = scrubbed(os.environ, home)
    pid = os.fork()
    if pid == 0:
        _forked(parent, home, environment, (requests_out, replies_in, errors_in), jobs)
    for end in (requests_out, replies_in, errors_in):
        os.close(end)
    return Child(
        pid,
        os.fdopen(requests_in, "wb"),
        os.fdopen(replies_out, "rb"),
        os.fdopen(errors_out, "rb"),
        lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),
    )


def _forked(
    parent: int,
    home: Path,
    environment: Mapping[str, str],
    pipes: tuple[int, int, int],
    jobs: Mapping[str, worker_main.Job],
) -> None:
    """The child's side of ``fork``; never returns."""
    requests, replies, errors = pipes
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for wanted, end in ((0, nothing), (1, errors), (2, errors)):
            os.dup2(end, wanted)
        _close_all_but(requests, replies)
        guard = isolate(parent)
        os.chdir(home)
        os.environ.clear()
        os.environ.update(environment)
        warnings.resetwarnings()  # as in a fresh interpreter
        tempfile.tempdir = None  # so is this
        sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        worker_main.serve(os.fdopen(requests, "rb"), os.fdopen(replies, "wb"), guard, jobs)
    finally:
        os._exit(1)


def _close_all_but(*kept: int) -> None:
    """Close every descriptor above stderr except some. Those keep their numbers, so that no file object inherited from the
    parent can close them when it is collected."""
    start = 3
    for end in sorted(kept):
        os.closerange(start, end)
        start = end + 1
    os.closerange(start, max(start, os.sysconf("SC_OPEN_MAX")))


class Worker:
    """One process at a time, started when first needed and again after it died. Used by one thread at a time, which must
    outlive it: the kernel ends the process with the thread that started it."""

    def __init__(self, homes: Path, start: Launcher = spawn, preload: Sequence[str] = ()) -> None:
        """Each process has a fresh home in ``homes``, which goes with it. ``preload`` names modules that every process imports
        at once, before it is asked for anything."""
        self._homes, self._start = homes.absolute(), start
        self._home = contextlib.ExitStack()
        self._preload: dict[str, Any] = {"modules": list(preload), "threads": None}
        self._asked = 0
        self._child: Child | None = None
        self._words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._drain: threading.Thread | None = None
        self._killed = False
        self._busy = False

    def warm(self) -> None:
        """Start the process if there is none.

        Raises:
            OSError: it cannot be started.
            Interrupted: ``kill`` was called.
        """
        if self._killed:
            raise Interrupted("Interrupted", "The worker was stopped before it began.")
        if self._child is None:
            self._words.clear()
            self._child = self._started()
            self._drain = threading.Thread(target=self._read_words, args=(self._child.stderr,), daemon=True, name="worker-stderr")
            self._drain.start()
            if any(self._preload.values()):
                self._ask(worker_main.PRELOAD, self._preload)

    def _started(self) -> Child:
        with contextlib.ExitStack() as until_started:
            home = until_started.enter_context(scratch(self._homes))
            (home / "tmp").mkdir()
            child = self._start(home)
            self._home = until_started.pop_all()
        return child

    def share(self, threads: int) -> None:
        """How many threads torch computes with from the next job on, unless the environment says it."""
        self._preload["threads"] = threads
        if self._child is not None:
            self._ask(worker_main.PRELOAD, self._preload)

    def run(self, job: str, data: Any, progress: Progress | None = None) -> Any:
        """Do one job and return its result as plain JSON.

        Raises:
            SaesyncError: what the job raised on purpose.
            WorkerLost: the process ended without an answer.
            Interrupted: ``kill`` was called.
        """
        self.warm()
        self._busy = True
        try:
            return self._result(job, data, progress)
        finally:
            self._busy = False

    def _result(self, job: str, data: Any, progress: Progress | None) -> Any:
        for reply in self._replies(self._ask(job, data)):
            kind = reply["type"]
            if kind == "progress" and progress is not None:
                progress(reply["done"], reply["total"])
            elif kind == "result":
                return reply["data"]
            elif kind == "error":
                raise _raised(reply)
            elif kind == "crash":
                self._reap()
                raise self._crashed(job, reply)
        raise self._died(job, self._reap())

    @property
    def last_words(self) -> tuple[str, ...]:
        """The last lines the process wrote to stderr (for ``--debug``)."""
        return tuple(self._words)

    def close(self) -> None:
        """Let the process end; kill it if it does not."""
        child = self._child
        if child is None:
            return
        timer = threading.Timer(_GRACE, _kill, (child.pid,))
        timer.start()
        self._reap()
        timer.cancel()

    def kill(self) -> None:
        """End the process now; a ``run`` that waits for it raises Interrupted. May be called from any thread."""
        self._killed = True
        if (child := self._child) is not None:
            _kill(child.pid)

    def bury(self) -> None:
        """Clear away a killed process, unless a ``run`` waits for it, which does so itself."""
        if self._killed and not self._busy:
            self._reap()

    def _ask(self, job: str, data: Any) -> int:
        """Send a request; returns its number."""
        self._asked += 1
        request = {"id": self._asked, "job": job, "data": worker_main.encode(data)}
        if self._child is not None:
            with contextlib.suppress(BrokenPipeError):  # a process that is gone is noticed when its replies end
                self._child.requests.write(json.dumps(request).encode() + b"\n")
                self._child.requests.flush()
        return self._asked

    def _replies(self, number: int) -> Iterator[Mapping[str, Any]]:
        """Replies to one request until the pipe ends; a crash over an earlier request ends this one too."""
        for line in self._child.replies if self._child is not None else ():
            reply = json.loads(line)
            if reply["id"] == number or reply["type"] == "crash":
                yield reply

    def _reap(self) -> int:
        child, self._child = self._child, None
        if child is None:
            return 0
        with contextlib.suppress(BrokenPipeError):
            child.requests.close()
        status = child.wait()
        if self._drain is not None:
            self._drain.join(_GRACE)
        child.replies.close()
        self._home.close()
        return status

    def _read_words(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._words.append(line.decode(errors="replace").rstrip())

    def _crashed(self, job: str, reply: Mapping[str, Any]) -> SaesyncError:
        if reply.get("network"):
            return self._lost(
                "Worker reached for the network",
                f"While it did {job!r}, a library tried to open a connection ({reply['network']}), which worker processes may"
                " not do. A file it needs is probably missing from what was fetched.",
            )
        return self._lost(
            "Worker failed unexpectedly",
            f"While it did {job!r}: {reply['error']}. Run again with --debug to see where."
            " If it says that memory ran out, use a machine with more of it.",
        )

    def _died(self, job: str, status: int) -> SaesyncError:
        if self._killed:
            return Interrupted("Interrupted", f"{job} was stopped before it finished.")
        words = " / ".join(list(self._words)[-_SHOWN_WORDS:])
        said = f" Its last words: {words}." if words else ""
        return self._lost("Worker process died", f"While it did {job!r}, the process {_how(status)}.{said}")

    def _lost(self, summary: str, detail: str) -> WorkerLost:
        """With the last words as a note, which stands below tracebacks."""
        error = WorkerLost(summary, detail)
        if self._words:
            error.add_note("\n".join(plain(line, 500) for line in self._words))
        return error


def _raised(reply: Mapping[str, Any]) -> SaesyncError:
    """The error a job raised, as it was."""
    found = [Diagnostic.from_json(entry) for entry in reply["diagnostics"]]
    return ERROR_TYPES.get(reply["kind"], SaesyncError).of(found)


def _how(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL), most often because memory ran out; free some, or use a machine with more"
    if status < 0:
        return f"crashed in native code ({signal.Signals(-status).name})"
    return f"ended with status {status}"


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
