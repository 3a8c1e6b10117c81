"""Showing text that somebody else wrote: records, READMEs, manifests of pull requests. Nothing in it may act.

``plain`` is for terminals and files, ``code`` for Markdown (GitHub and the Hub), ``number`` for measured values.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

SHOWN = 200
"""Longest piece of foreign text that is shown, in characters."""

_SPAN = re.compile(r"[A-Za-z0-9 ._:/@=+,()\-*#'\"{}\[\]!?%^~;…→×–±]+")
_PLACES, _SMALL = 6, 1e-4  # decimal places that are shown, and what would keep too few digits in them
_WORD = re.compile(r"[A-Za-z0-9 ]")


def plain(value: Any, limit: int = SHOWN) -> str:
    """``value`` as one line of printable characters: control, bidi and invisible ones are spelled out, long text is cut.

    Terminal escapes, right-to-left overrides and newlines become ``\\x1b``, ``\\u202e``, ``\\n``.
    """
    text = value if isinstance(value, str) else str(value)
    if len(text) > limit:
        text = text[:limit] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def code(value: Any, limit: int = SHOWN) -> str:
    """``value`` as an inline code element that also stays whole inside a table cell.

    Mentions, links, HTML and Markdown are not processed inside one. Text that could end a code span or a cell, or begin a
    formula, is written as ``<code>`` with every unusual character as a numeric reference.
    """
    text = plain(value, limit)
    if _SPAN.fullmatch(text) and text.strip():
        return f"`{text}`"
    return f"<code>{''.join(c if _WORD.fullmatch(c) else f'&#{ord(c)};' for c in text)}</code>"


def number(value: float) -> str:
    """Three significant digits, thousands grouped: ``0.812``, ``61.3``, ``16,384``."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def exact(value: float) -> str:
    """A number that somebody wrote, as they wrote it (to 15 digits), thousands grouped: ``0.9995``, ``16,384``."""
    return f"{value:,.15g}" if 1e-4 <= abs(value) < 1e15 else f"{value:.15g}"


def measured(value: float, stderr: float | None) -> str:
    """A value with its standard error, both to the error's first digit, but at most six places: ``0.812 ± 0.003``.

    What six places would show as nothing is written with an exponent: ``3.21e-07 ± 2e-09``.
    """
    if stderr is None or not math.isfinite(value) or not math.isfinite(stderr):
        return number(value) if stderr is None else f"{number(value)} ± {number(stderr)}"
    if stderr == 0:
        return f"{number(value)} ± 0"
    if 0 < abs(value) < _SMALL:
        return f"{value:.3g} ± {stderr:.1g}"
    places = min(_PLACES, max(0, -math.floor(math.log10(stderr))))
    error = f"{stderr:,.{places}f}"
    return f"{value:,.{places}f} ± {error if float(error.replace(',', '')) else f'{stderr:.0e}'}"


def apart(value: float, bound: float) -> tuple[str, str]:
    """A value with as few digits as still show on which side of the bound it is, and the bound: ``("0.6998", "0.7")``."""
    for digits in range(max(3, len(f"{abs(value):.0f}")), 18):
        near = float(f"{value:.{digits}g}")
        if value == bound or (near < bound, near > bound) == (value < bound, value > bound):
            shown = exact(near), exact(bound)
            return shown if shown[0] != shown[1] or value == bound else (repr(near), repr(bound))
    return repr(value), repr(bound)


def width(text: str) -> int:
    """Columns a terminal uses for ``text``: two for wide East Asian characters, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pad(text: str, columns: int) -> str:
    """``text`` filled with spaces up to ``columns`` as displayed."""
    return text + " " * max(0, columns - width(text))
