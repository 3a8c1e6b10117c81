"""Writing to somebody who may have stopped reading.

In ``saesync plan | head`` the reader goes away early. That is no error, and no reason to stop an apply whose log nobody
reads any more: what is still written goes nowhere, and the exit code says what came of it.
"""

from __future__ import annotations

import io
import os
from typing import TextIO

from saesync.redaction import redacted


def write_line(stream: TextIO | None, text: str) -> None:
    """``text`` without this process's secrets, and a newline, at once. ``stream`` is None when it was closed before the program
    began.

    Raises:
        OSError: the line cannot be written for another reason than that nobody reads (a full disk).
    """
    if stream is None:
        return
    try:
        stream.write(f"{redacted(text)}\n")
        stream.flush()
    except BrokenPipeError:
        _to_nowhere(stream)


def _to_nowhere(stream: TextIO) -> None:
    """Point the stream's descriptor at the null device, so that what it still buffers can be flushed at exit."""
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
