"""Colors, or none. Roles, not colors, stand in the renderers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_CODES: Mapping[str, str] = {
    "add": "32",
    "change": "33",
    "move": "36",
    "delete": "31",
    "fail": "31",
    "held": "35",
    "bold": "1",
    "dim": "2",
    "good": "32",
}
_BY_SYMBOL = {"+": "add", "~": "change", ">": "move", "-": "delete", "x": "fail", "!": "held", "?": "held", "·": "dim"}


@dataclass(frozen=True, slots=True)
class Style:
    """``color`` False gives plain text."""

    color: bool = False

    def paint(self, text: str, role: str) -> str:
        """``text`` in the color of a role."""
        return f"\x1b[{_CODES[role]}m{text}\x1b[0m" if self.color and text else text

    def symbol(self, symbol: str) -> str:
        """A line's sign in its color."""
        return self.paint(symbol, _BY_SYMBOL.get(symbol, "dim"))
