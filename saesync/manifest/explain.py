"""Why a document does not fit the schema: jsonschema's errors as diagnostics at the exact node, in a user's words.

jsonschema is imported here only, and only once something is wrong: valid manifests are checked by ``schema.fast``.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from saesync.errors import Diagnostic, Origin
from saesync.manifest.yaml12 import Node
from saesync.redaction import masked
from saesync.schema import PLACEHOLDER

Path = tuple[str | int, ...]
Sameness = tuple[str, Origin | None, str]

_SHOWN = 80
_MISSING = "Missing key"
_KINDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}


def explain(document: Any, root: Node, file: str, schema: Mapping[str, Any]) -> tuple[dict[Sameness, Diagnostic], set[Path]]:
    """Everything that is wrong with ``document``, which has the shape of ``root`` (expanded or not), unsorted; and the paths of
    the values that do not fit.

    What two errors have in common that are one is a kind, a place, and the rule or the missing key.
    """
    from jsonschema import Draft202012Validator

    explainer = _Explainer(root, file, schema)
    for error in Draft202012Validator(schema).iter_errors(document):
        explainer.translate(error)
    return explainer.finish(), explainer.unfit


@dataclass
class _Explainer:
    """Collects diagnostics; what a misspelt key explains is not reported a second time as missing."""

    root: Node
    file: str
    schema: Mapping[str, Any]
    found: dict[Sameness, Diagnostic] = field(default_factory=dict)
    missing: list[tuple[Path, tuple[str, ...], Diagnostic]] = field(default_factory=list)
    meant: set[tuple[Path, str]] = field(default_factory=set)
    unfit: set[Path] = field(default_factory=set)

    def finish(self) -> dict[Sameness, Diagnostic]:
        """All diagnostics, each place, kind and rule once."""
        fewest = {path: len(names) for path, names, _ in sorted(self.missing, key=lambda each: -len(each[1])) if len(names) > 1}
        for path, names, diagnostic in self.missing:
            # Of several choices that a section lacks, what fits the narrowest fits the others.
            wider = len(names) > fewest.get(path, len(names))
            if not wider and not any((path, name) in self.meant for name in names):
                self._add(diagnostic, diagnostic.detail)
        return self.found

    def translate(self, error: Any) -> None:
        """One error of jsonschema, with those that explain it."""
        path: Path = tuple(error.absolute_path)
        if _is_bare_placeholder(self.root.get(*path)):
            self._say("Quote the placeholder", path, self._quote(path))
        elif error.validator in ("anyOf", "oneOf"):
            self._choice(error, path)
        elif error.validator in _TRANSLATIONS:
            _TRANSLATIONS[error.validator](self, error, path)
        else:
            self._say("Invalid value", path, f"{_name(path)}: {error.message}.")

    def _choice(self, error: Any, path: Path) -> None:
        """``anyOf`` and ``oneOf``: of keys, of a value or a placeholder, or of values told apart by their type."""
        branches = error.validator_value
        if all(set(branch) == {"required"} for branch in branches):
            self._exclusive(error, path, [" with ".join(branch["required"]) for branch in branches])
            return
        chosen = 0 if branches[-1] == PLACEHOLDER else _branch_of_type(branches, error.instance)
        if chosen is None:
            wanted = " or ".join(_KINDS[branch["type"]] for branch in branches)
            said = f"{_name(path)} takes {wanted}, not {_described(error.instance)}. {error.schema.get('description', '')}"
            self._say("Wrong type", path, said.rstrip())
            return
        for cause in error.context:
            if cause.schema_path[0] == chosen:
                self.translate(cause)

    def _exclusive(self, error: Any, path: Path, names: list[str]) -> None:
        if not isinstance(error.instance, dict):
            return  # its type is wrong, which is said by itself
        found = [name for name in names if name in error.instance]
        if len(found) > 1:
            origin = self._key_origin(path, found[1])
            detail = f"{_name(path)} takes only one of {_listed(names)}; found {' and '.join(found)}. Remove one."
            self._add(Diagnostic("Keys exclude each other", detail, origin))
        else:
            count, why = "one" if error.validator == "oneOf" else "at least one", error.schema.get("$comment")
            detail = f"{_name(path)} needs {count} of {_listed(names)}{f', {why}' if why else ''}."
            self.missing.append((path, tuple(names), Diagnostic(_MISSING, detail, self._origin(path))))

    def _unknown_key(self, error: Any, path: Path) -> None:
        known = list(error.schema.get("properties", {}))
        patterns = error.schema.get("patternProperties")
        matching = [name for name in error.instance if patterns is None or not _fits_any(name, patterns)]
        for name in (name for name in matching if name not in known):
            self.unfit.add((*path, name))
            self._add(Diagnostic("Unknown key", self._about_key(name, known, path, bool(patterns)), self._key_origin(path, name)))

    def _about_key(self, name: str, known: list[str], path: Path, placeholders: bool) -> str:
        said = f'"{_cut(name)}" is not a key of {_name(path)}.'
        if placeholders:
            return f'"{_cut(name)}" cannot be a placeholder: these have letters, digits and `_` only, and at most 32 of them.'
        if f"{name}_from" in known:
            self.meant.add((path, f"{name}_from"))
            return f"{said} Secrets never stand in a manifest: `{name}_from` names the environment variable that holds this one."
        homes = _homes(name, self.schema)
        if homes and path not in homes:  # a format's option is a key of its section, but not beside every format
            self.meant.update((home, name) for home in homes)
            less = "; indent it less" * (() in homes)
            return f"{said} It is a key of {' and of '.join(_name(home) for home in homes)}{less}."
        if near := close(name, known):
            self.meant.add((path, near))
            return f'{said} Did you mean "{near}"?'
        return f"{said} Known: {_listed(known)}." if known else f"{said} Remove it."

    def _required(self, error: Any, path: Path) -> None:
        for name in error.validator_value:
            if name not in error.instance:
                own = error.schema.get("properties", {}).get(name)
                told = _description(self.schema, (*path, name)) or (isinstance(own, dict) and own.get("description", "")) or ""
                detail = f'"{name}" is missing from {_name(path)}. {told}'.rstrip()
                self.missing.append((path, (name,), Diagnostic(_MISSING, detail, self._origin(path))))

    def _dependent(self, error: Any, path: Path) -> None:
        for name, needed in error.validator_value.items():
            for other in needed:
                if name not in error.instance or other in error.instance:
                    continue
                if other == "revision":
                    detail = f"{_name((*path, name))} needs a 40-digit commit hash beside it, as `revision`; {self._pin()}."
                    diagnostic = Diagnostic("Not pinned", detail, self._origin((*path, name)))
                else:
                    detail = f'"{name}" stands only beside "{other}", which is missing from {_name(path)}.'
                    diagnostic = Diagnostic(_MISSING, detail, self._key_origin(path, name))
                self.missing.append((path, (other,), diagnostic))

    def _enum(self, error: Any, path: Path) -> None:
        known, value = error.validator_value, error.instance
        said = f"{_value(value)} is not a known {path[-1]}."
        near = close(value, known) if isinstance(value, str) else None
        meant = f' Did you mean "{near}"?' if near else ""
        self._say("Unknown value", path, f"{said}{meant} Known: {', '.join(known)}.")

    def _const(self, error: Any, path: Path) -> None:
        detail = f"{_name(path)} is {_value(error.instance)}; this saesync reads {error.validator_value}."
        self._say("Unknown value", path, detail)

    def _type(self, error: Any, path: Path) -> None:
        kinds = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        value, pin = error.instance, error.schema.get("x-pin")
        if pin is not None and isinstance(value, str):
            if value.startswith((".", "/")):
                detail = f"{_name(path)} is local: write it as `path: {_cut(value)}` below `{path[-1]}:`."
                self._say("Wrong type", path, detail)
            else:
                self._say("Not pinned", path, f"{_value(value)} needs a 40-digit commit hash; {self._pin()}.")
            return
        advice = ""
        if kinds == ["string"] and isinstance(value, int | float | bool):
            advice = " Put it in quotes."
        elif kinds == ["boolean"] and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
            advice = " YAML 1.2 writes them only so."
        elif value is None:
            advice = " Give it a value, or remove the key."
        elif error.schema.get("properties", {}).keys() == {"min", "max"}:
            bound = value if type(value) in (int, float) else "NUMBER"
            advice = f" Write `{{min: {bound}}}` or `{{max: {bound}}}`."
        elif kinds in (["integer"], ["number"]) and isinstance(value, str) and re.fullmatch("[-+]?[0-9.]+", value):
            advice = " Remove the quotes."
        wanted = " or ".join(_KINDS[kind] for kind in kinds if kind != "integer" or "number" not in kinds)
        self._say("Wrong type", path, f"{_name(path)} takes {wanted}, not {_described(value)}.{advice}")

    def _pattern(self, error: Any, path: Path) -> None:
        rule = error.schema.get("patternErrorMessage", "it has another form")
        if error.schema is self.schema["$defs"]["commit"]:
            if re.fullmatch("[0-9a-fA-F]{40}", error.instance):
                self._say("Not pinned", path, f"{_name(path)} has capital letters; write the commit hash in lower case.")
                return
            self._say("Not pinned", path, f"{_name(path)} {rule}, not {_value(error.instance)}; {self._pin()}.")
            return
        placeholder = "{" in error.instance and path[0] not in ("saes", "neuronpedia")
        advice = " Placeholders stand only under saes, and in neuronpedia.set." if placeholder else ""
        value = "What stands there" if str(path[-1]).endswith("_from") else _value(error.instance)  # it may be the secret itself
        self._say("Invalid value", path, f"{value} does not do for {_name(path)}: {rule}.{advice}", rule)

    def _bound(self, error: Any, path: Path) -> None:
        relation = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "more than"}[error.validator]
        detail = f"{_name(path)} is {error.instance}; it must be {relation} {error.validator_value:,}."
        self._say("Value is out of range", path, detail)

    def _size(self, error: Any, path: Path) -> None:
        if error.validator.startswith("min"):
            detail = f"{_name(path)} is empty. Give it a value, or remove the key."
        elif error.validator == "uniqueItems":
            for first, second in _twice(error.instance):
                here, value = (*path, second), _described(error.instance[second])
                detail = f"{_name(here)} is {value}, which stands already at {self._origin((*path, first))}. Remove one of them."
                self._say("Value is out of range", here, detail)
            return
        else:
            detail = f"{_name(path)} is too long: at most {error.validator_value:,} fit."
        self._say("Value is out of range", path, detail)

    def _quote(self, path: Path) -> str:
        node = self.root.get(*path)
        name = next(iter(node.value)) if node is not None else ""
        return f'A value that begins with a brace is a mapping in YAML. To use the placeholder, quote it: `"{{{name}}}"`.'

    def _pin(self) -> str:
        return f"`saesync pin {shlex.quote(self.file)}` fills it in"

    def _origin(self, path: Path) -> Origin:
        return self.root.place(path).origin(self.file)

    def _key_origin(self, path: Path, name: str) -> Origin:
        node = self.root.get(*path)
        key = node.keys.get(name) if node is not None else None
        return self._origin(path) if key is None else key.origin(self.file)

    def _say(self, summary: str, path: Path, detail: str, rule: str = "") -> None:
        self.unfit.add(path)
        self._add(Diagnostic(summary, detail, self._origin(path)), rule)

    def _add(self, diagnostic: Diagnostic, rule: str = "") -> None:
        if diagnostic.origin is not None:
            self.found.setdefault((diagnostic.summary, diagnostic.origin, rule), diagnostic)


_TRANSLATIONS: Mapping[str, Callable[[_Explainer, Any, Path], None]] = {
    "additionalProperties": _Explainer._unknown_key,
    "required": _Explainer._required,
    "dependentRequired": _Explainer._dependent,
    "enum": _Explainer._enum,
    "const": _Explainer._const,
    "type": _Explainer._type,
    "pattern": _Explainer._pattern,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum"), _Explainer._bound),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "uniqueItems"), _Explainer._size
    ),
}


def _is_bare_placeholder(node: Node | None) -> bool:
    """Whether a node is what YAML makes of an unquoted ``{layer}``: a flow mapping of one key without a value."""
    if node is None or not node.flow or not isinstance(node.value, dict) or len(node.value) != 1:
        return False
    below = next(iter(node.value.values()))
    return below.value is None and below.start == below.end


def _branch_of_type(branches: list[Any], value: Any) -> int | None:
    kind = "object" if isinstance(value, dict) else "array" if isinstance(value, list) else None
    kinds = [branch.get("type") for branch in branches]
    return next((kinds.index(each) for each in (kind, None) if each in kinds), None)


def _fits_any(name: str, patterns: Mapping[str, Any]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def close(name: str, known: list[str]) -> str | None:
    """The name among ``known`` that a misspelt one means, if any."""
    found = difflib.get_close_matches(name[:_SHOWN].lower(), known, 1, 0.7)
    return found[0] if found else None


def _homes(name: str, schema: Mapping[str, Any]) -> list[Path]:
    """The sections that have this key."""
    if name in schema["properties"]:
        return [()]
    found: list[Path] = []
    for section, part in schema["properties"].items():
        if name in part.get("properties", {}):
            found.append((section,))
        found += [(section, inner) for inner, below in part.get("properties", {}).items() if name in below.get("properties", {})]
    return found


def _description(schema: Mapping[str, Any], path: Path) -> str:
    part: Any = schema
    for name in path:
        part = part.get("properties", {}).get(name) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and "$ref" in part and "description" not in part:
            part = schema["$defs"][part["$ref"].removeprefix("#/$defs/")]
    return str(part.get("description", "")) if isinstance(part, Mapping) else ""


def _name(path: Path) -> str:
    """``("saes", "for_each", 3, "layer")`` as ``saes.for_each[3].layer``."""
    if not path:
        return "the manifest"
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _twice(values: list[Any]) -> list[tuple[int, int]]:
    """Where the values of a list stand first that stand there again, and where again."""
    scalars: dict[Any, int] = {}

    def first(index: int, value: Any) -> int:
        return values.index(value) if isinstance(value, dict | list) else scalars.setdefault(value, index)

    return [(where, index) for index, value in enumerate(values) if (where := first(index, value)) < index]


def _cut(text: str) -> str:
    text = masked(text).replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _value(value: Any) -> str:
    return f'"{_cut(value)}"' if isinstance(value, str) else _described(value)


def _described(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f'the text "{_cut(value)}"'
    return "a list" if isinstance(value, list) else "a mapping"


def _listed(names: list[str]) -> str:
    return ", ".join(names)
