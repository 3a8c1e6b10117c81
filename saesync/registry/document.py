"""The registry file as text with places: reading it whole, and changing one release in it.

An edit replaces lines of one release by what PyYAML's dumper writes for them (the shipped file is that dumper's output, byte for
byte) and keeps every other byte. What comes out is read again before it is returned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from saesync.errors import Conflict, Origin, Refused
from saesync.garbage import no_garbage_collection
from saesync.inert import plain
from saesync.registry import splice
from saesync.registry.entry import Entry, from_yaml, same_meaning

PATH = "sae_lens/pretrained_saes.yaml"
"""Where the file stands in SAELens's repository."""

MAX_BYTES = 64 << 20
MAX_DEPTH = 64

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times as fast; PyYAML can be built without it
_SUSPICIOUS = re.compile(rf"[*&!\[{{]|^[ \t?:-]{{{MAX_DEPTH // 2}}}", re.MULTILINE)
_BOM = b"\xef\xbb\xbf"
# Constructors of YAML 1.1 types fail in many ways: `!!int ""`, `!!timestamp x`, the date 2001-99-99.
_UNREADABLE = (yaml.YAMLError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, eq=False)
class Document:
    """A registry file. ``text`` is without a byte order mark; ``root`` has the place of every node, ``value`` is what SAELens
    would read."""

    name: str
    data: bytes
    text: str
    root: yaml.MappingNode | None
    value: Mapping[Any, Any]

    @cached_property
    def releases(self) -> Mapping[str, Mapping[str, Any]]:
        """Releases by name, in the file's order; what is no mapping under a name is left out."""
        return {name: value for name, value in self.value.items() if isinstance(name, str) and isinstance(value, dict)}

    def origin(self, node: yaml.Node) -> Origin:
        """Where a node is."""
        start, end = node.start_mark, node.end_mark
        width = end.column - start.column if end.line == start.line else 1
        return Origin(self.name, start.line + 1, start.column + 1, max(1, width))


def parse(data: bytes, name: str) -> Document:
    """Read a registry file; ``name`` is what messages call it.

    Raises:
        Refused: it is not a YAML mapping in UTF-8, is nested absurdly, or uses aliases (which the registry never does).
    """
    if len(data) > MAX_BYTES:
        raise Refused("Registry cannot be read", f"{name} has {len(data):,} bytes; at most {MAX_BYTES:,} are read.")
    try:
        text = data.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Refused("Registry cannot be read", "The file is not UTF-8 from here on.", Origin(name, line, 1)) from error
    with no_garbage_collection():
        try:
            _guard(text, name)
            loader = _LOADER(text)
            root = loader.get_single_node()
            value = None if root is None else loader.construct_document(root)
        except _UNREADABLE as error:
            raise _not_yaml(error, name) from error
    if value is None:
        root, value = None, {}
    if not isinstance(value, dict) or not isinstance(root, yaml.MappingNode | None):
        raise Refused("Registry cannot be read", "The file is not a mapping of release names.", Origin(name, 1, 1))
    return Document(name, data, text, root, value)


def written(entries: Iterable[Entry]) -> bytes:
    """A registry of these entries alone."""
    return splice.dumped({entry.release: entry.to_yaml() for entry in entries}).encode()


def edited(document: Document, release: str, entry: Entry | None) -> bytes:
    """The file with ``entry`` as the entry of ``release``, or without one (None).

    A new release is added at the end. Of one that is there, only the lines of what differs change: SAEs keep their order and
    new ones come last. A release that already means the same is left as it is, and ``document.data`` is returned.

    Raises:
        Refused: the file is laid out in a way that cannot be edited without touching other lines.
        Conflict: the edited text would not read as intended.
    """
    if entry is not None and entry.release != release:
        raise ValueError(f"the entry is of {entry.release}, not {release}")
    if _already(document, release, entry):
        return document.data
    old, bom = document.value.get(release), _BOM if document.data.startswith(_BOM) else b""
    for anew in (False, True):
        text = splice.edited(document.text, document.root, release, old, entry, anew=anew)
        data = bom + text.encode()
        if _as_asked(document, data, release, entry):
            return data
    detail = (
        f"{document.name}: the edited file would not read as intended, so nothing was changed. Edit {plain(release)} by hand, "
        "and please report this."
    )
    raise Conflict("Registry cannot be edited", detail)


def _already(document: Document, release: str, entry: Entry | None) -> bool:
    if release not in document.value or entry is None:
        return release not in document.value and entry is None
    try:
        return same_meaning(from_yaml(release, document.value[release]), entry)
    except Refused:
        return False


def _as_asked(before: Document, data: bytes, release: str, entry: Entry | None) -> bool:
    """Whether in ``data`` every other release reads as before, in the same order, and ours as asked."""
    try:
        after = parse(data, before.name)
    except Refused:
        return False
    others = [[(name, value) for name, value in each.value.items() if name != release] for each in (before, after)]
    # By their spelling: 1, 1.0 and True are equal for Python, and NaN is not equal to itself.
    return _already(after, release, entry) and repr(others[0]) == repr(others[1])


def _guard(text: str, name: str) -> None:
    """Bound the depth before nodes are made (the C parser recurses), and refuse aliases, which could copy without end.

    A file as the registry is (no flow collection, alias or tag, no line that opens many blocks) needs no look at its events.
    """
    if not _SUSPICIOUS.search(text):
        return
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise Refused("Registry cannot be read", f"Nested more than {MAX_DEPTH} deep.", _at(event.start_mark, name))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            said = "An alias is used here, which SAELens's registry never does. Write the value out."
            raise Refused("Registry cannot be read", said, _at(event.start_mark, name))


def _at(mark: Any, name: str) -> Origin:
    return Origin(name, mark.line + 1, mark.column + 1)


def _not_yaml(error: Exception, name: str) -> Refused:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        where = None if mark is None else _at(mark, name)
        return Refused("Registry is not YAML", f"{plain(said)}.", where)
    return Refused("Registry is not YAML", f"{name}: {plain(error)}.")
