"""A worker process whose jobs misbehave on request: what ``tests/test_workers.py`` starts instead of the real one."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saesync.errors import Diagnostic, Origin, Refused
from saesync.worker_main import JOBS, Job, Progress, main


def look(data: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
    print("noise on stdout")  # must not corrupt the protocol
    os.write(1, b"noise from native code\n")
    progress(1, 2)
    progress(2, 2)
    tokens = [str(p) for p in Path(os.environ["HF_HOME"]).rglob("*")]
    return {"environment": dict(os.environ), "tokens": tokens, "given": data, "cwd": str(Path.cwd()), "pid": os.getpid()}


def dial(data: Mapping[str, Any], progress: Progress) -> str:
    with socket.socket() as plug:
        plug.settimeout(2)
        plug.connect(("127.0.0.1", data["port"]))
    return "connected"


def swallow(data: Mapping[str, Any], progress: Progress) -> str:
    """A library that hides the refusal, with the hook out of the way: only the kernel can say no."""
    import _socket

    try:
        _socket.socket().connect(("127.0.0.1", data["port"]))
    except OSError as error:
        return type(error).__name__
    return "connected"


def interfaces(data: Mapping[str, Any], progress: Progress) -> list[str]:
    return [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]


def native(data: Mapping[str, Any], progress: Progress) -> list[int]:
    """Sockets as a native library makes them, past Python: the error numbers, 0 where it worked."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    return [0 if libc.socket(family, 1, 0) >= 0 else ctypes.get_errno() for family in data["families"]]


def peek(data: Mapping[str, Any], progress: Progress) -> str:
    """What the parent's environment is to us."""
    try:
        return Path(f"/proc/{os.getppid()}/environ").read_bytes().decode()
    except OSError as error:
        return type(error).__name__


def threads(data: Mapping[str, Any], progress: Progress) -> int:
    import torch

    return torch.get_num_threads()


def refuse(data: Mapping[str, Any], progress: Progress) -> None:
    raise Refused.of([Diagnostic("One", "First.", Origin("m.yaml", 3, 4)), Diagnostic("Two", "Second.")])


def fail(data: Mapping[str, Any], progress: Progress) -> None:
    raise ValueError("third-party trouble")


def lack(data: Mapping[str, Any], progress: Progress) -> None:
    importlib.import_module(data["module"])


def exhaust(data: Mapping[str, Any], progress: Progress) -> None:
    bytearray(1 << 62)


def fill(data: Mapping[str, Any], progress: Progress) -> None:
    """Write to a full disk, as a library would."""
    with Path("/dev/full").open("wb", buffering=0) as stream:
        if data["how"] == "numpy":
            import numpy as np

            np.zeros(100_000).tofile(stream)
        elif data["how"] == "safetensors":
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        stream.write(b"x")


def unreadable(data: Mapping[str, Any], progress: Progress) -> None:
    Path(data["path"]).read_bytes()


def drop(data: Mapping[str, Any], progress: Progress) -> str:
    """A temporary file that nobody removes."""
    with tempfile.NamedTemporaryFile("w", delete=False) as stream:
        stream.write("left")
    return stream.name


def die(data: Mapping[str, Any], progress: Progress) -> None:
    print("about to run out of memory", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(data: Mapping[str, Any], progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def wait(data: Mapping[str, Any], progress: Progress) -> None:
    progress(os.getpid(), 1 << 40)
    time.sleep(60)


def hold(data: Mapping[str, Any], progress: Progress) -> None:
    """Native code that keeps the interpreter to itself: no other thread of the process runs."""
    import ctypes

    libc = ctypes.PyDLL(None)
    progress(os.getpid(), 1 << 40)
    libc.sleep(60)


def loaded(data: Mapping[str, Any], progress: Progress) -> bool:
    return data["module"] in sys.modules


FUNCTIONS = (
    *(native, peek, threads, loaded, look, dial, swallow, interfaces),
    *(refuse, fail, lack, exhaust, fill, unreadable, drop, die, segfault, wait, hold),
)

if __name__ == "__main__":
    main({**JOBS, **{function.__name__: Job("worker_probe", function.__name__, dict) for function in FUNCTIONS}})
