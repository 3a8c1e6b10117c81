"""A format's ``Options`` dataclass as JSON Schema: its fields are the manifest keys that stand beside ``format:``."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

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
