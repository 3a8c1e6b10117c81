"""The JSON Schema of ``saesync-policy.yaml``: what manifests may ask for. ``policy.json`` is ``build()``, committed."""

from __future__ import annotations

from saesync.schema.parts import Schema, definitions, rule, section
from saesync.targets import targets

REGISTRY = "saelens"
POLICY_VERSION = "saesync/v1"
_LONGEST = 1000
_GLOBS = "`*` stands for anything but `/`, `**` for anything."


def build() -> Schema:
    """The schema of a policy."""
    shared = definitions()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "saesync policy",
        "description": "What manifests may ask for. Always read from the default branch, never from a pull request.",
        "type": "object",
        "properties": {
            "apiVersion": {"description": "The version of this policy's language.", "const": POLICY_VERSION},
            "targets": _targets(),
            "secrets": {
                "description": "Environment variables that manifests may name, each with the hosts that may learn its value.",
                "type": "object",
                "propertyNames": shared["variable"],
                "additionalProperties": _list("Hosts, `name` or `name:port`.", _host()),
            },
            "roots": _list("Folders that local paths may lead to, from this file on.", {"$ref": "#/$defs/localPath"}),
            "trust": _list(
                "sha256 of files that manifests may ask to be read with `trust: pickle`.",
                {"type": "string", **rule("^[0-9a-f]{64}$", "is the sha256 of a file: 64 digits 0-9a-f")},
            ),
            "publishers": _list(
                "Accounts whose records count as evidence for registering; only the token's own when this is left out.",
                {"type": "string", "maxLength": 100, **rule(r"^[A-Za-z0-9][A-Za-z0-9_.\[\]-]*$", "an account name")},
            ),
        },
        "required": ["apiVersion", "targets"],
        "additionalProperties": False,
        "$defs": {name: shared[name] for name in ("commit", "localPath")},
    }


def _host() -> Schema:
    return {
        "type": "string",
        "maxLength": 300,
        **rule(
            r"^(\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9.-]*[a-z0-9])?)(:[0-9]{1,5})?$",
            "a host is a name or an address in lower case, with `:port` where it is not the usual one; no `*`, no path",
        ),
    }


def _list(description: str, items: Schema) -> Schema:
    return {"description": description, "type": "array", "items": items, "uniqueItems": True, "maxItems": _LONGEST}


def _targets() -> Schema:
    """Globs per key of ``publish``, ``records`` and ``register``."""
    glob = {
        "type": "string",
        "maxLength": 500,
        **rule(r"^[^\s\u0000-\u001f\u007f]+$", "a glob has no spaces and no control characters"),
    }
    named = {name: _list(f"Allowed under `{name}:`: {target.summary}. {_GLOBS}", glob) for name, target in targets().items()}
    named[REGISTRY] = _list(f"Registries allowed under `register.{REGISTRY}`, as they are written there. {_GLOBS}", glob)
    return section("Where manifests may publish, keep records and register.", named)
