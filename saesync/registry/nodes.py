"""Walking the nodes of a registry file: repeated keys, and one release's SAEs with their places."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

STR = "tag:yaml.org,2002:str"
INT = "tag:yaml.org,2002:int"
NULL = "tag:yaml.org,2002:null"


def repeated_keys(root: yaml.Node | None) -> Iterator[tuple[yaml.ScalarNode, yaml.ScalarNode]]:
    """Every key that stands in its mapping for a second time, with the first one, in the file's order.

    PyYAML lets the last one win without a word.
    """
    waiting = [] if root is None else [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(reversed(node.value))
        elif isinstance(node, yaml.MappingNode):
            first: dict[tuple[str, str], yaml.ScalarNode] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and first.setdefault((key.tag, key.value), key) is not key:
                    yield key, first[key.tag, key.value]
            waiting.extend(value for _, value in reversed(node.value))


def pairs(node: yaml.Node | None) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Key and value nodes of a mapping by the key's text, the last of several; nothing for other nodes."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}


def value_of(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """The value node under a key of a mapping."""
    found = pairs(node).get(key)
    return None if found is None else found[1]


def items(node: yaml.Node | None) -> list[yaml.Node]:
    """The nodes of a list; nothing for other nodes."""
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def text_of(node: yaml.Node | None) -> str | None:
    """A scalar's text if it is a text, else None."""
    return node.value if isinstance(node, yaml.ScalarNode) and node.tag == STR else None
