"""Colors, or none (roles, not colors, stand in the renderers), and commands as a shell takes them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saesync.inert import plain

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


def command(*words: str) -> str:
    """A command to copy: every word is quoted where a shell needs it, and nothing foreign in it acts on the terminal."""
    return " ".join(shlex.quote(plain(word)) for word in words)


def show_command(address: str, asked: Mapping[str, Sequence[str]]) -> str:
    """``saesync show`` for an address, looking where ``asked`` (as in a plan file) looked."""
    flags = (("--manifests", asked.get("paths", ())), ("--root", asked.get("roots", ())))
    return command("saesync", "show", address, *(word for flag, values in flags for value in values for word in (flag, value)))
