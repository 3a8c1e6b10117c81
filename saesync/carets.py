"""Diagnostics as people read them: what is wrong, the line it stands in with carets under it, and what to do.

Everything shown may come from somebody else's file, so control, invisible and bidirectional characters are spelled out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from saesync.errors import Diagnostic, Origin
from saesync.redaction import masked

MAX_SOURCE = 8 << 20  # bytes of a file that are read to show a line
WINDOW = 120  # columns of a long line that are shown
TAB = "    "

_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # what YAML counts as line breaks, so that numbers agree
_RED, _BLUE, _BOLD, _PLAIN = "\x1b[1;31m", "\x1b[1;34m", "\x1b[1m", "\x1b[0m"
_CUT = "…"


def show(diagnostics: Iterable[Diagnostic], *, color: bool, kind: str = "error", spelt: Callable[[str], str] = str) -> str:
    """All diagnostics, a blank line between them, no newline at the end. ``color`` adds ANSI colours; ``kind`` is the word each
    begins with; ``spelt`` says what characters become that the reader's alphabet lacks."""
    lines_of: dict[str, list[str]] = {}
    return "\n\n".join(_Painter(color, kind, spelt).block(each, lines_of) for each in diagnostics)


class _Painter:
    """Draws one diagnostic, with or without colour."""

    def __init__(self, color: bool, kind: str, spelt: Callable[[str], str]) -> None:
        self.color, self.kind, self.spelt = color, kind, spelt

    def paint(self, code: str, text: str) -> str:
        return f"{code}{text}{_PLAIN}" if self.color and text else text

    def block(self, diagnostic: Diagnostic, lines_of: dict[str, list[str]]) -> str:
        head = f"{self.paint(_RED, self.kind)}{self.paint(_BOLD, ': ' + escaped(diagnostic.summary))}"
        where = diagnostic.origin
        detail = [escaped(line) for line in diagnostic.detail.splitlines()]
        if where is None:
            return "\n".join([head, *(f"  {line}" for line in detail)])
        gutter = " " * len(str(where.line))
        bar = self.paint(_BLUE, "|")
        out = [head, f"{gutter}{self.paint(_BLUE, '-->')} {escaped(str(where))}"]
        source = _line(where, lines_of)
        if source is not None:
            text, carets = _excerpt(source, where, self.spelt)
            number = self.paint(_BLUE, str(where.line))
            out += [f"{gutter} {bar}", f"{number} {bar} {text}".rstrip(), f"{gutter} {bar} {self.paint(_RED, carets)}"]
        out += [f"{gutter} {self.paint(_BLUE, '=' if not index else ' ')} {line}" for index, line in enumerate(detail)]
        return "\n".join(out)


def escaped(text: str) -> str:
    """``text`` with everything that is not printable spelled out (``\\x1b``, ``\\u202e``)."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    if char == "\t":
        return TAB
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def _columns(text: str) -> int:
    """Terminal columns of printable text: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _line(where: Origin, lines_of: dict[str, list[str]]) -> str | None:
    """The source line, or None when the file is not there (any more) or has no such line."""
    if where.file not in lines_of:
        try:
            with Path(where.file).open("rb") as stream:
                data = stream.read(MAX_SOURCE)
        except (OSError, ValueError):
            data = b""
        lines_of[where.file] = _BREAK.split(data.decode("utf-8", "replace").removeprefix("\ufeff"))
    lines = lines_of[where.file]
    return masked(lines[where.line - 1]) if 0 < where.line <= len(lines) and lines != [""] else None


def _excerpt(source: str, where: Origin, spelt: Callable[[str], str]) -> tuple[str, str]:
    """The part of a line that is shown, and spaces and carets to put under it."""
    start = min(max(where.column - 1, 0), len(source))
    stop = min(start + max(where.width, 1), max(len(source), start + 1), start + WINDOW)
    first = 0
    if len(source) > WINDOW:
        first = max(0, min(start - WINDOW // 3, len(source) - WINDOW))
    last = min(len(source), first + WINDOW)
    before = spelt((_CUT if first else "") + escaped(source[first:start]))
    marked = spelt(escaped(source[start : min(stop, last)]))
    after = escaped(source[min(stop, last) : last]) + (_CUT if last < len(source) else "")
    return before + marked + after, " " * _columns(before) + "^" * max(1, _columns(marked))
