"""YAML as manifests are written in: one document, YAML 1.2 core scalars, every node with its place, hard limits.

PyYAML's C parser gives events with marks; nodes are built here rather than by PyYAML because its constructors read
YAML 1.1 (``1e-4`` a string, ``010`` eight, ``no`` false) and let a second equal key win. Any bytes end in a node or a
``ManifestError``; depth, number of nodes, bytes and what aliases may copy are bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from saesync.errors import Diagnostic, ManifestError, Origin

MAX_BYTES = 4 << 20
MAX_DEPTH = 32
MAX_NODES = 400_000
MAX_ALIASED = 10_000
MAX_TEXT = 10_000
MAX_WRONG = 10_000
MAX_SHOWN = 100

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{30,}|AKIA[0-9A-Z]{16})\b")
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_ANCHOR = re.compile(r"[&][^\s,\[\]{}]+[ \t]*")
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None} | {
    spelling: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for spelling in (word, word.capitalize(), word.upper())
}
_MAX_INT = 2**63 - 1

Scalar = str | int | float | bool | None


class Unresolved(ValueError):
    """A plain scalar that is a number of YAML, but none that a manifest can hold."""


def resolve(text: str) -> Scalar:
    """The value of a plain scalar under the core schema of YAML 1.2 (section 10.3.2 of the specification).

    Raises:
        Unresolved: a number that is not finite or does not fit in 64 bits.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if _INT.fullmatch(text):
        if len(text) > 20 or abs(number := int(text)) > _MAX_INT:
            raise Unresolved
        return number
    if _BASED.fullmatch(text):
        if len(text) > 24 or (based := int(text[2:], 8 if text[1] == "o" else 16)) > _MAX_INT:
            raise Unresolved
        return based
    if _FLOAT.fullmatch(text):
        if not math.isfinite(real := float(text)):
            raise Unresolved
        return real
    if _NOT_FINITE.fullmatch(text):
        raise Unresolved
    return text


@dataclass(slots=True, eq=False)
class Node:
    """One YAML node. ``value`` is a scalar, a list of nodes, or a dict of nodes (whose key nodes stand in ``keys``).

    ``line`` and ``column`` count from 1; ``start`` and ``end`` are indices into the text without its byte order mark.
    ``size`` counts the node and all below it, shared ones as often as they are used.
    """

    value: Any
    line: int
    column: int
    width: int
    start: int
    end: int
    plain: bool = False
    flow: bool = False
    size: int = 1
    keys: dict[str, Node] = field(default_factory=dict)

    def origin(self, file: str) -> Origin:
        """The node's place."""
        return Origin(file, self.line, self.column, self.width)

    @property
    def block(self) -> bool:
        """Whether this is a mapping or list written over lines, which begins where its first entry does."""
        return isinstance(self.value, dict | list) and not self.flow

    def get(self, *path: str | int) -> Node | None:
        """The node below at ``path``, or None where the path leaves the tree."""
        node: Node | None = self
        for part in path:
            if node is None:
                return None
            if isinstance(node.value, dict):
                node = node.value.get(part)
            elif isinstance(node.value, list) and isinstance(part, int) and 0 <= part < len(node.value):
                node = node.value[part]
            else:
                return None
        return node

    def place(self, path: tuple[str | int, ...]) -> Node:
        """The node that best shows ``path``: its own, the key of a block collection, or the nearest above that exists."""
        shown, node = self, self
        for part in path:
            below = node.get(part)
            if below is None:
                break
            shown = node.keys[part] if isinstance(part, str) and below.block else below
            node = below
        return shown

    def plain_value(self) -> Any:
        """The tree as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain_value() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain_value() for node in self.value]
        return self.value


def decode(data: bytes, file: str) -> tuple[str, str]:
    """The byte order mark (or "") and the text of a manifest.

    Raises:
        ManifestError: too long, not UTF-8, with characters that YAML does not allow, or with an access token.
    """
    if len(data) > MAX_BYTES:
        raise ManifestError("Manifest is too large", f"{file} is longer than {MAX_BYTES >> 20} MiB, the most that is read.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        raise ManifestError("Not UTF-8", "Manifests are UTF-8 text; save the file as such.", _origin(before, file)) from error
    mark, text = (text[:1], text[1:]) if text.startswith("\ufeff") else ("", text)
    if found := _UNPRINTABLE.search(text):
        detail = (
            f"The character U+{ord(found[0]):04X} is not allowed in YAML; remove it, or write it as an escape in double quotes."
        )
        raise ManifestError("Character is not allowed", detail, _origin(text[: found.start()], file))
    if found := _TOKEN.search(text):
        # Without an origin, so that the line is not shown.
        where = _origin(text[: found.start()], file)
        detail = (
            f"At {where} stands what looks like a token of the Hub, GitHub or AWS. Remove it, and revoke it if it was shared."
        )
        raise ManifestError("Secret in a manifest", detail)
    return mark, text


def parse(text: str, file: str) -> Node:
    """The one document of ``text`` (as ``decode`` gives it) as a tree.

    Raises:
        ManifestError: anything that is not one YAML document within the limits, at its place.
    """
    root, wrong = read(text, file)
    if wrong:
        raise ManifestError.of(wrong[:MAX_SHOWN])
    return root


def read(text: str, file: str) -> tuple[Node, list[Diagnostic]]:
    """As ``parse``; what is wrong with single values and keys is told beside the tree, in which the rest can still be checked.

    Raises:
        ManifestError: there is no tree.
    """
    reader = _Reader(text, file)
    try:
        return reader.document(), reader.wrong
    except yaml.MarkedYAMLError as error:
        found = _syntax_error(error, text, file)
    except yaml.YAMLError:
        found = ManifestError("Not YAML", f"{file} cannot be read as YAML.")
    except ManifestError as error:
        found = error
    raise ManifestError.of([*reader.wrong, *found.diagnostics])


class _Reader:
    """Builds nodes from the parser's events."""

    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file
        self.events: Iterator[Any] = yaml.parse(text, Loader=yaml.CSafeLoader)
        self.anchors: dict[str, Node] = {}
        self.wrong: list[Diagnostic] = []
        self.nodes = 0
        self.aliased = 0

    def document(self) -> Node:
        """The document's root; there must be exactly one."""
        next(self.events)
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            raise ManifestError("Manifest is empty", f"{self.file} holds nothing.", Origin(self.file, 1, 1))
        root = self.node(next(self.events), 1)
        next(self.events)
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self.error("More than one document", "A file holds one release; give each its own file.", event)
        return root

    def node(self, event: Any, depth: int) -> Node:
        """The node that begins with ``event``."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.error("Manifest is too large", f"More than {MAX_NODES:,} values in one file.", event)
        if depth > MAX_DEPTH:
            raise self.error("Nested too deeply", f"Values may stand at most {MAX_DEPTH} levels deep.", event)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event)
        if event.tag is not None:
            self.note("Tags are not used", "Remove the tag (`!…`); quote a value to make it a text.", event)
        node = self.empty(event)
        if isinstance(event, yaml.ScalarEvent):
            self.scalar(node, event)
        elif isinstance(event, yaml.MappingStartEvent):
            self.mapping(node, depth)
        else:
            self.sequence(node, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def empty(self, event: Any) -> Node:
        """A node with its place, still without a value. What underlines it ends with its first line."""
        start, end = event.start_mark, event.end_mark
        skip = 0
        if getattr(event, "anchor", None) is not None and (found := _ANCHOR.match(self.text, start.index)):
            skip = len(found[0]) if found.end() <= end.index else 0
        width = end.column - start.column - skip if end.line == start.line else 1
        return Node(None, start.line + 1, start.column + skip + 1, max(1, width), start.index + skip, end.index)

    def scalar(self, node: Node, event: Any) -> None:
        """Fill in a scalar."""
        node.plain = event.implicit[0]
        node.value = self.bounded(event)
        if node.plain:
            try:
                node.value = resolve(node.value)
            except Unresolved:
                detail = "Numbers are finite and fit in 64 bits. If this is a text, such as a commit hash, put it in quotes."
                self.note("Number is out of range", detail, node)

    def bounded(self, event: Any) -> str:
        """No value or key of a manifest is long; what reads them later may then take its time."""
        if len(event.value) > MAX_TEXT:
            raise self.error("Text is too long", f"Texts in a manifest have at most {MAX_TEXT:,} characters.", event)
        return str(event.value)

    def mapping(self, node: Node, depth: int) -> None:
        """Fill in a mapping. Keys are texts as written; an equal second key is refused."""
        node.value, node.flow = {}, self.text[node.start : node.start + 1] == "{"
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.key(event, depth + 1)
            text = key.value
            merges = text == "<<" and event.implicit[0]  # YAML 1.1's, which would be taken for an unknown key
            if merges:
                self.note("Merge keys are not used", "YAML 1.2 has no `<<`. Write the keys out, or use `for_each`.", key)
            elif text in node.keys:
                first = node.keys[text].origin(self.file)
                self.note("Duplicate key", f'"{text}" stands here and at {first}. Remove one of them.', key)
            below = self.node(next(self.events), depth + 1)
            node.size += 1 + below.size
            if not merges and text not in node.keys:
                node.keys[text], node.value[text] = key, below
        self.close(node, event)

    def key(self, event: Any, depth: int) -> Node:
        """A key's node: a scalar that is not resolved, so that ``no:`` and ``1:`` are keys as written."""
        if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
            raise self.error("Key is not a text", "Keys are plain words.", event)
        self.nodes += 1
        key = self.empty(event)
        key.value = self.bounded(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = key
        return key

    def sequence(self, node: Node, depth: int) -> None:
        """Fill in a list."""
        node.value, node.flow = [], self.text[node.start : node.start + 1] == "["
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            below = self.node(event, depth + 1)
            node.value.append(below)
            node.size += below.size
        self.close(node, event)

    def close(self, node: Node, event: Any) -> None:
        """Note where a flow collection ends; one that stands on a single line is underlined whole."""
        if node.flow:
            node.end = event.end_mark.index
            if event.end_mark.line + 1 == node.line:
                node.width = node.end - node.start

    def alias(self, event: Any) -> Node:
        """The node an alias stands for, which must be whole by now; what aliases copy in all is bounded."""
        node = self.anchors.get(event.anchor)
        if node is None:
            raise self.error("Unknown alias", f"No anchor `&{event.anchor}` is complete before this place.", event)
        self.aliased += node.size
        if self.aliased > MAX_ALIASED:
            raise self.error("Aliases copy too much", f"Aliases may stand for at most {MAX_ALIASED:,} values in one file.", event)
        return node

    def note(self, summary: str, detail: str, at: Any) -> None:
        """Something is wrong at a node or an event, after which the rest can still be read."""
        if len(self.wrong) == MAX_WRONG:
            raise self.error(summary, detail, at)
        self.wrong += self.error(summary, detail, at).diagnostics

    def error(self, summary: str, detail: str, at: Any) -> ManifestError:
        """An error at a node or an event."""
        where = at if isinstance(at, Node) else self.empty(at)
        return ManifestError(summary, detail, where.origin(self.file))


def _origin(before: str, file: str) -> Origin:
    """The place right after ``before``."""
    lines = _BREAK.split(before)
    return Origin(file, len(lines), len(lines[-1]) + 1)


def _syntax_error(error: yaml.MarkedYAMLError, text: str, file: str) -> ManifestError:
    """The parser's complaint in words a writer of manifests can use."""
    mark = error.problem_mark or error.context_mark
    opened = error.context_mark
    if opened is not None and _left_open(error, text):
        detail = "What begins here is never closed: a quote or a bracket is missing at its end."
        return ManifestError("Not YAML", detail, Origin(file, opened.line + 1, opened.column + 1))
    line = "" if mark is None else ([*_BREAK.split(text), ""])[mark.line]
    where = None if mark is None else Origin(file, mark.line + 1, mark.column + 1)
    if line.lstrip(" ").startswith("\t"):
        detail = "Indent with spaces; YAML does not allow tabs there."
    elif re.search(r"[:\-,{\[]\s+\{\w+(:[^}]*)?\}\S", line):
        detail = "A value that begins with `{` is a mapping in YAML. To use a placeholder, put the whole value in quotes."
    elif "simple key" in str(error.context):
        detail = "No `: ` follows this key. Write `key: value`, with a space after the colon."
        where = None if opened is None else Origin(file, opened.line + 1, opened.column + 1)
    elif "mapping values are not allowed" in str(error.problem):
        detail = "There is a second `: ` in this value, or the line is indented too far. Quote the value, or fix the indentation."
    elif "cannot start any token" in str(error.problem):
        detail = "A value cannot begin with this character. Put the value in quotes."
    else:
        context = f" {error.context}" if error.context else ""
        detail = f"The parser says: {error.problem}{context}. Check quotes, brackets and indentation here and just above."
    return ManifestError("Not YAML", detail, where)


def _left_open(error: yaml.MarkedYAMLError, text: str) -> bool:
    """Whether a quote or a bracket is what is missing: nothing follows it, or a line that is indented no further."""
    mark, opened = error.problem_mark, error.context_mark
    if mark is None or opened is None or ("quoted scalar" not in str(error.context) and "flow" not in str(error.context)):
        return False
    lines = [*_BREAK.split(text), ""]
    before, here = lines[opened.line], lines[mark.line]
    indented = len(here) - len(here.lstrip(" ")) > len(before) - len(before.lstrip(" "))
    return opened.line < mark.line and (not indented or not text[mark.index :].strip())
