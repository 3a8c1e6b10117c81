"""Writing to somebody who may have stopped reading, or reads another alphabet.

In ``saesync plan | head`` the reader goes away early. That is no error, and no reason to stop an apply whose log nobody
reads any more: what is still written goes nowhere, and the exit code says what came of it. Where a locale's encoding lacks a
character, it is spelt with those that there are.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
from collections.abc import Callable
from typing import Any, TextIO

from saesync.redaction import redacted

_SPELT = "saesync.spelt"
_SIGNS = {
    "✓": "+", "✗": "x", "▸": ">", "…": "...", "±": "+-", "→": "->", "×": "x", "–": "-", "·": "-", "Δ": "diff", "━": "-", "╸": "-",
}  # fmt: skip
_HIGHEST = 0xFFFF  # of what four digits can spell
_STANDARD = (0, 1, 2)


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
        to_nowhere(stream)


def write_message(stream: TextIO | None, text: str) -> None:
    """As ``write_line``, of what tells how it goes: a full disk under a log is no reason to stop the work it tells of."""
    with contextlib.suppress(OSError):
        write_line(stream, text)


def json_text(value: Any, stream: TextIO | None, indent: int | None = None) -> str:
    """``value`` as JSON for ``stream``: in ASCII where its encoding does not have every character."""
    return json.dumps(value, indent=indent, ensure_ascii=stream is not None and not _is_unicode(stream))


def to_nowhere(stream: TextIO) -> None:
    """Point the stream's descriptor at the null device, so that what it still buffers can be flushed at exit."""
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def spell_what_is_missing(*streams: TextIO | None) -> None:
    """From now on, a character that the stream's encoding lacks is spelt, instead of being an error."""
    codecs.register_error(_SPELT, _spelt)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELT)


def spelling(stream: TextIO | None) -> Callable[[str], str]:
    """What a text becomes when it is written there: what is put under it has to know how wide that is."""
    encoding = (stream.encoding if stream is not None else None) or "utf-8"
    codecs.register_error(_SPELT, _spelt)
    return lambda text: text.encode(encoding, _SPELT).decode(encoding)


def occupy_standard_descriptors() -> None:
    """Open the null device in place of descriptors that were closed before the program began: else a file or a connection takes
    their number, and what a library or a child process writes "to stderr" ends up in it."""
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this one
            os.set_inheritable(null, True)


def flush_or_forget(*streams: TextIO | None) -> None:
    """What cannot be written at the end is not tried again by the interpreter, which would change the exit code."""
    for stream in streams:
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError:
            to_nowhere(stream)
            with contextlib.suppress(OSError):
                stream.flush()


def _is_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "utf-8").lower().replace("_", "-").startswith("utf-")


def _spelt(error: UnicodeError) -> tuple[str, int]:
    """An error handler of ``codecs``: signs of ours in ASCII, all others as JSON escapes them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SIGNS.get(sign) or _escape(ord(sign)) for sign in error.object[error.start : error.end]), error.end


def _escape(code: int) -> str:
    if code <= _HIGHEST:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
