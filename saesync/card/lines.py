"""One key of a README's front matter given another value, with what a person wrote beside it: comments, quotes, style. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

Value = str | list[str]


def rewritten(lines: Sequence[str], name: str, value: Value) -> list[str]:
    """The lines of the key ``name`` with ``value``, edited where that reads as asked, else written anew.

    A list with nothing in it goes.
    """
    if not value:
        return []
    found = _node(lines)
    edited = None if found is None else _edited(list(lines), found, value)
    chosen = edited if edited is not None and _says(edited, value) else written(name, value)
    return [line if ending(line) else f"{line}{ending(lines[0])}" for line in chosen]


def written(name: str, value: Value) -> list[str]:
    """One key as YAML; a list with nothing in it is none, a list of one stays a list (the Hub takes both)."""
    if not value:
        return []
    text: str = yaml.safe_dump({name: value}, allow_unicode=True, default_flow_style=False, width=10_000)
    return text.rstrip("\n").split("\n")


def said(node: yaml.Node) -> Value | None:
    """A value that is text or a list of texts (empty where nothing is said); None of any other."""
    if isinstance(node, yaml.ScalarNode):
        return [] if node.tag == "tag:yaml.org,2002:null" else str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(entry, yaml.ScalarNode) for entry in node.value):
        return [str(entry.value) for entry in node.value]
    return None


def _node(lines: Sequence[str]) -> yaml.Node | None:
    """The value of lines that are one key; None where they cannot be read by themselves (an alias, say)."""
    try:
        root = yaml.compose("\n".join(lines), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    return root.value[0][1] if isinstance(root, yaml.MappingNode) and len(root.value) == 1 else None


def _says(lines: Sequence[str], value: Value) -> bool:
    node = _node(lines)
    return node is not None and said(node) == value


def _edited(lines: list[str], node: yaml.Node, value: Value) -> list[str] | None:
    """Lines with only what differs changed; None for a value with an anchor, which other keys may refer to."""
    if "\n".join(lines)[node.start_mark.index : node.start_mark.index + 1] == "&":
        return None
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return _block(lines, node, value)
    start, stop = node.start_mark.index, node.end_mark.index
    text = "\n".join(lines)
    if isinstance(value, str):
        new = _dumped(value) if start < stop else f" {_dumped(value)}"
    elif isinstance(node, yaml.SequenceNode):
        new = _flow(text, node, value)
    elif start == stop:  # a key without a value
        return _behind(lines, 0, "", value)
    else:  # one text that stands for a list of it
        held = [text[start:stop]] if node.value in value else []
        new = _bracketed([*held, *map(_dumped, _new(value, [node]))])
    return (text[:start] + new + text[stop:]).split("\n")


def _block(lines: list[str], node: yaml.SequenceNode, value: Value) -> list[str]:
    """Entries on lines of their own: those that are not wanted go with their lines, new ones stand behind the last."""
    spans = [(entry, range(entry.start_mark.line, entry.end_mark.line + 1)) for entry in node.value]
    first, last = lines[spans[0][1][0]], spans[-1][1][-1]
    wanted = [] if isinstance(value, str) else value
    gone = {line for entry, span in spans if entry.value not in wanted for line in span}
    if isinstance(value, str):
        key, colon, rest = lines[0].partition(":")
        lines[0] = f"{key}{colon} {_dumped(value)}{rest}"
    indent = first[: len(first) - len(first.lstrip())]
    grown = _behind(lines, last, indent, _new(wanted, node.value))
    return [line for at, line in enumerate(grown) if at not in gone]


def _behind(lines: list[str], at: int, indent: str, values: Sequence[str]) -> list[str]:
    """Entries of a list on lines of their own, behind a line and ended as it is."""
    return [*lines[: at + 1], *(f"{indent}- {_dumped(value)}{ending(lines[at])}" for value in values), *lines[at + 1 :]]


def ending(line: str) -> str:
    """What stands before the line break of text with a Windows editor's line ends."""
    return "\r" if line.endswith("\r") else ""


def _flow(text: str, node: yaml.SequenceNode, value: Sequence[str]) -> str:
    """A list in brackets. Where entries go, the others stand on one line."""
    added = list(map(_dumped, _new(value, node.value)))
    kept = [entry for entry in node.value if entry.value in value]
    if not kept or len(kept) < len(node.value):
        return _bracketed([*(text[entry.start_mark.index : entry.end_mark.index] for entry in kept), *added])
    end = kept[-1].end_mark.index
    return text[node.start_mark.index : end] + "".join(f", {each}" for each in added) + text[end : node.end_mark.index]


def _new(value: Sequence[str], held: Sequence[yaml.Node]) -> list[str]:
    known = {entry.value for entry in held}
    return [each for each in value if each not in known]


def _bracketed(entries: Sequence[str]) -> str:
    return f"[{', '.join(entries)}]"


def _dumped(value: str) -> str:
    """A text as YAML that fits into any place on one line."""
    text: str = yaml.safe_dump([value], allow_unicode=True, default_flow_style=True, width=1 << 20)
    return text.strip()[1:-1]
