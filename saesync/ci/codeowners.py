"""CODEOWNERS: who must review a path. The last line that matches decides, and one without owners takes them away."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

PLACES = (".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS")
"""Where GitHub looks for the file: the first one counts."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line: which paths, and who owns them."""

    pattern: re.Pattern[str]
    owners: tuple[str, ...]


def parse(text: str) -> tuple[Rule, ...]:
    """The rules of a file, in its order."""
    rules = []
    for line in text.splitlines():
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if words:
            rules.append(Rule(_pattern(words[0]), tuple(words[1:])))
    return tuple(rules)


def unowned(rules: Iterable[Rule], paths: Iterable[str]) -> list[str]:
    """Those of ``paths`` that nobody owns."""
    ordered = list(rules)[::-1]
    return [path for path in paths if not next((rule.owners for rule in ordered if rule.pattern.fullmatch(path)), ())]


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern as gitignore has them, without negation and ranges.

    A name also stands for all that is below it, unless it ends in ``*`` after a slash: ``docs/*`` is what is in ``docs`` itself.
    """
    anchored = "/" in text.rstrip("/")
    body, below = text.strip("/"), text.endswith("/")
    parts = []
    for piece in re.findall(r"/\*\*/|\*\*/|/\*\*|\*|\?|[^*?/]+|/", body):
        parts.append(_PIECES.get(piece, re.escape(piece)))
    start = "" if anchored or text.startswith("/") else "(?:.*/)?"
    end = "/.*" if below else "" if anchored and body.endswith("*") else "(?:/.*)?"
    return re.compile(start + "".join(parts) + end)


_PIECES = {"/**/": "/(?:.*/)?", "**/": "(?:.*/)?", "/**": "/.*", "*": "[^/]*", "?": "[^/]", "/": "/"}
