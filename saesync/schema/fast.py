"""JSON Schema compiled to closures that only say yes or no.

Checking 14,000 expanded SAEs one by one with jsonschema takes many seconds; with these closures it takes a fraction of
one. They read the same schema and know the keywords it uses, nothing else; where they say no, jsonschema says why. Tests
compare the two on random documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sized
from typing import Any

Check = Callable[[Any], bool]
Schema = Mapping[str, Any]

ANNOTATIONS = frozenset({"$schema", "$defs", "$comment", "title", "description", "default", "patternErrorMessage", "x-pin"})


def compile_schema(schema: Schema) -> Check:
    """A function that says whether a document fits ``schema``.

    Raises:
        ValueError: the schema uses a keyword that is not known here.
    """
    return _Compiler(schema.get("$defs", {})).check(schema)


class _Compiler:
    """Compiles schemas that share ``$defs``."""

    def __init__(self, definitions: Schema) -> None:
        self.definitions = definitions
        self.compiled: dict[str, Check] = {}

    def check(self, schema: Any) -> Check:
        """The conjunction of a schema's keywords."""
        if schema is True:
            return _yes
        checks = []
        for keyword, value in schema.items():
            if keyword in _SIMPLE:
                checks.append(_SIMPLE[keyword](value))
            elif keyword in self.nested:
                checks.append(self.nested[keyword](self, value))
            elif keyword not in ANNOTATIONS and keyword not in _BESIDE:
                raise ValueError(f"keyword {keyword!r} is not compiled")
        if any(keyword in schema for keyword in _MEMBERS):
            checks.append(self.members(schema))
        if "if" in schema:
            checks.append(self.condition(schema))
        return _all(checks)

    def ref(self, target: str) -> Check:
        """``$ref`` into ``$defs``; each is compiled once."""
        name = target.removeprefix("#/$defs/")
        if name not in self.compiled:
            self.compiled[name] = self.check(self.definitions[name])
        return self.compiled[name]

    def members(self, schema: Schema) -> Check:
        """``properties``, ``patternProperties`` and ``additionalProperties: false`` together."""
        known = {name: _once(self.check(part), part) for name, part in schema.get("properties", {}).items()}
        patterns = [(re.compile(p), self.check(part)) for p, part in schema.get("patternProperties", {}).items()]
        open_ = schema.get("additionalProperties", True)
        if not isinstance(open_, bool):
            raise ValueError("additionalProperties is compiled only as true or false")

        def check(value: Any) -> bool:
            if not isinstance(value, dict):
                return True
            for name, member in value.items():
                check = known.get(name)
                found = check is not None
                if check is not None and not check(member):
                    return False
                for pattern, check in patterns:
                    if pattern.search(name):
                        found = True
                        if not check(member):
                            return False
                if not found and not open_:
                    return False
            return True

        return check

    def condition(self, schema: Schema) -> Check:
        """``if``, ``then`` and ``else``."""
        test, then, otherwise = (self.check(schema.get(name, True)) for name in ("if", "then", "else"))
        return lambda value: then(value) if test(value) else otherwise(value)

    def any_of(self, schemas: list[Schema]) -> Check:
        """At least one of them."""
        checks = [self.check(schema) for schema in schemas]
        return lambda value: any(check(value) for check in checks)

    def one_of(self, schemas: list[Schema]) -> Check:
        """Exactly one of them."""
        checks = [self.check(schema) for schema in schemas]
        return lambda value: sum(check(value) for check in checks) == 1

    def all_of(self, schemas: list[Schema]) -> Check:
        """Every one of them. Those that begin with "if ``key`` is this word" are looked up by the word: one per format."""
        chosen: dict[str, dict[str, list[Check]]] = {}
        others: list[Check] = []
        for schema in schemas:
            found = _chosen_by(schema)
            if found is None:
                others.append(self.check(schema))
            else:
                key, word = found
                chosen.setdefault(key, {}).setdefault(word, []).append(self.check(schema["then"]))
        tables = [_choice(key, {word: _all(checks) for word, checks in table.items()}) for key, table in chosen.items()]
        return _all([*others, *tables])

    def items(self, schema: Schema) -> Check:
        """Every element of a list."""
        check = self.check(schema)
        return lambda value: not isinstance(value, list) or all(map(check, value))

    nested: Mapping[str, Callable[[_Compiler, Any], Check]] = {
        "$ref": ref,
        "anyOf": any_of,
        "oneOf": one_of,
        "allOf": all_of,
        "items": items,
    }


_MEMBERS = ("properties", "patternProperties", "additionalProperties")
_BESIDE = frozenset({*_MEMBERS, "if", "then", "else"})


def _yes(_: Any) -> bool:
    return True


def _once(check: Check, schema: Any) -> Check:
    """The same for a mapping, but the very one that fitted last is not looked through again: most of what a manifest says of its
    SAEs is one mapping for all. Nobody changes a document that was checked."""
    if not isinstance(schema, dict) or not ("$ref" in schema or schema.get("type") == "object"):
        return check
    fitted: Any = None

    def remembering(value: Any) -> bool:
        nonlocal fitted
        if value is fitted and value is not None:
            return True
        fits = check(value)
        if fits and isinstance(value, dict):
            fitted = value
        return fits

    return remembering


def _chosen_by(schema: Schema) -> tuple[str, str] | None:
    """Key and word of ``{"if": {"properties": {key: {"const": word}}, "required": [key]}, "then": ...}``; else None."""
    test = schema.get("if", {})
    if set(schema) != {"if", "then"} or set(test) != {"properties", "required"} or len(test["properties"]) != 1:
        return None
    ((key, part),) = test["properties"].items()
    if test["required"] != [key] or set(part) != {"const"} or not isinstance(part["const"], str):
        return None
    return key, part["const"]


def _choice(key: str, table: Mapping[str, Check]) -> Check:
    def check(value: Any) -> bool:
        if not isinstance(value, dict):  # of which such a test is true, as all that speaks of members is
            return all(then(value) for then in table.values())
        word = value.get(key)
        then = table.get(word) if isinstance(word, str) else None
        return then is None or then(value)

    return check


def _all(checks: list[Check]) -> Check:
    """The conjunction. Written out for the short ones, which are nearly all: a generator would take most of the time."""
    checks = [check for check in checks if check is not _yes]
    if not checks:
        return _yes
    if len(checks) == 1:
        return checks[0]
    if len(checks) == 2:
        first, second = checks
        return lambda value: first(value) and second(value)

    def check(value: Any) -> bool:
        for each in checks:  # noqa: SIM110 (all() with a generator takes twice as long)
            if not each(value):
                return False
        return True

    return check


_NUMBERS = (int, float)  # made once: a union would be made at every call


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


_TYPES: Mapping[str, Check] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
}


def _type(names: str | list[str]) -> Check:
    if isinstance(names, str):
        return _TYPES[names]
    checks = [_TYPES[name] for name in names]
    return lambda value: any(check(value) for check in checks)


def _pattern(pattern: str) -> Check:
    search = re.compile(pattern).search
    return lambda value: not isinstance(value, str) or search(value) is not None


def _enum(values: list[str]) -> Check:
    if not all(isinstance(value, str) for value in values):
        raise ValueError("enum is compiled only for texts")
    known = frozenset(values)
    return lambda value: isinstance(value, str) and value in known


def _required(names: list[str]) -> Check:
    if len(names) == 1:
        (name,) = names
        return lambda value: not isinstance(value, dict) or name in value
    return lambda value: not isinstance(value, dict) or all(name in value for name in names)


def _dependent(rules: Mapping[str, list[str]]) -> Check:
    checks = {name: _required(needed) for name, needed in rules.items()}
    return lambda value: not isinstance(value, dict) or all(name not in value or check(value) for name, check in checks.items())


def _unique(wanted: bool) -> Check:
    if not wanted:
        raise ValueError("uniqueItems is compiled only as true")

    def check(value: Any) -> bool:
        if not isinstance(value, list):
            return True
        # 1 and 1.0 are equal, 1 and true are not. Elements that are no scalars fail the schema beside this keyword.
        keys = {(isinstance(each, bool), each if isinstance(each, int | float | str | None) else repr(each)) for each in value}
        return len(keys) == len(value)

    return check


def _shortest(kind: type[Sized]) -> Callable[[Any], Check]:
    """A keyword that says how long a text, a list or a mapping is at least."""
    return lambda bound: lambda value: not isinstance(value, kind) or len(value) >= bound


def _longest(kind: type[Sized]) -> Callable[[Any], Check]:
    """A keyword that says how long a text, a list or a mapping is at most."""
    return lambda bound: lambda value: not isinstance(value, kind) or len(value) <= bound


_SIMPLE: Mapping[str, Callable[[Any], Check]] = {
    "type": _type,
    "pattern": _pattern,
    "enum": _enum,
    "const": lambda value: _enum([value]),
    "required": _required,
    "dependentRequired": _dependent,
    "uniqueItems": _unique,
    "minimum": lambda bound: lambda value: not _is_number(value) or value >= bound,
    "maximum": lambda bound: lambda value: not _is_number(value) or value <= bound,
    "exclusiveMinimum": lambda bound: lambda value: not _is_number(value) or value > bound,
    "minLength": _shortest(str),
    "maxLength": _longest(str),
    "minItems": _shortest(list),
    "maxItems": _longest(list),
    "minProperties": _shortest(dict),
    "maxProperties": _longest(dict),
}
