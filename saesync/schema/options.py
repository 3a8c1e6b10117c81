"""A format's ``Options`` dataclass as JSON Schema: its fields are the manifest keys that stand beside ``format:``, and the
``--option`` of commands, which are checked by the same schema.

A field's ``metadata["only_for"]``, as ``("activation", ("topk",))``, says that it is needed for these values of another one only.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from saesync.errors import Refused
from saesync.schema.fast import compile_schema

_PLAIN: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string", "minLength": 1, "maxLength": 1000},
}


def options_schema(options: type[Any]) -> dict[str, Any]:
    """``{"properties": ..., "required": [...]}`` of a frozen dataclass; ``metadata["help"]`` gives the descriptions.

    Raises:
        TypeError: a field's type has no form in a manifest, or a field has no help.
    """
    hints = typing.get_type_hints(options)
    properties: dict[str, Any] = {}
    required = []
    for field in dataclasses.fields(options):
        if not field.metadata.get("help"):
            raise TypeError(f"{options.__qualname__}.{field.name} has no metadata['help']")
        entry = {"description": field.metadata["help"], **_type_schema(hints[field.name])}
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        elif field.default not in (dataclasses.MISSING, None):
            entry["default"] = field.default
        properties[field.name] = entry
    return {"properties": properties, "required": required}


def check_options(options: type[Any], values: Mapping[str, Any]) -> None:
    """Values somebody typed, by the schema of manifests. Names that are no option of the format are left to others.

    Raises:
        Refused: one is not of its option's kind.
    """
    for name, entry in options_schema(options)["properties"].items():
        if name in values and not compile_schema(entry)(values[name]):
            value = values[name]
            said = value if isinstance(value, str) else json.dumps(value)
            raise Refused("Option does not fit", f"Option {name} is {said[:100]}; it must be {in_words(entry)}.")


def unsaid(options: type[Any], needs: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Which options must still be said: those that the files leave open, and those without which there is no reading them."""
    names = dict.fromkeys((*needs, *options_schema(options)["required"]))
    other = {field.name: field.metadata.get("only_for") for field in dataclasses.fields(options)}

    def asked(name: str) -> bool:
        decides, wanted = other.get(name) or (name, ())
        return values.get(decides) is None or values[decides] in wanted

    return [name for name in names if name not in values and asked(name)]


def say_them(options: type[Any], names: Sequence[str]) -> str:
    """What to type for these options, and what they may be."""
    entries = options_schema(options)["properties"]
    conditions = {field.name: field.metadata.get("only_for") for field in dataclasses.fields(options)}
    words, notes = [], []
    for name in names:
        choices, condition = entries[name].get("enum", []), conditions[name]
        words.append(f"--option {name}={choices[0] if len(choices) == 1 else 'VALUE'}")
        when = f", needed only where {condition[0]} is {_either(condition[1])}" if condition and condition[0] in names else ""
        if len(choices) != 1:
            notes.append(f" {name} is {in_words(entries[name])}{when}.")
    return f"{' '.join(words)}.{''.join(notes)}"


def in_words(entry: Mapping[str, Any]) -> str:
    """What a value of this schema is, for people at a command line."""
    if "enum" in entry:
        return _either(entry["enum"])
    if entry["type"] == "array":
        return f"a list such as [..., ...], of which each is {in_words(entry['items'])}"
    words = {"boolean": "true or false, in lower case", "integer": "a whole number", "number": "a number"}
    return words.get(entry["type"], "text (in double quotes where it looks like a number)")


def _either(choices: Sequence[str]) -> str:
    return " or ".join((", ".join(choices[:-1]), choices[-1])) if len(choices) > 1 else choices[0]


def _type_schema(hint: Any) -> dict[str, Any]:
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union) and type(None) in arguments and len(arguments) == 2:
        return _type_schema(next(argument for argument in arguments if argument is not type(None)))
    if origin is typing.Literal and all(isinstance(argument, str) for argument in arguments):
        return {"enum": list(arguments)}
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": _type_schema(arguments[0]), "maxItems": 1000}
    raise TypeError(f"a manifest has no form for {hint}")
