"""The JSON Schema of manifests (draft 2020-12), built from the registries of formats, targets and metrics.

The schema is the validation: ``saesync.manifest`` knows keys and values only from here, editors read the same file, and
the reference in the docs is made of its descriptions. ``manifest.json`` beside this module is ``build()``, committed.

Keywords of our own, which validators ignore: ``patternErrorMessage`` (editors show it) says in words what a pattern asks
for, and ``x-pin`` names the key of a repo whose commit hash `saesync pin` fills in. A ``$comment`` beside a choice of keys says
what they are needed for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesync.formats import formats
from saesync.measure.metrics import METRICS
from saesync.schema import parts, sections
from saesync.schema.options import options_schema
from saesync.schema.saes import saes
from saesync.targets import targets

Schema = dict[str, Any]

API_VERSION = "saesync/v1"
PLACEHOLDER: Schema = {"$ref": "#/$defs/placeholder"}


def build() -> Schema:
    """The schema of a manifest as it is written, before expansion: under ``saes`` a text with a placeholder fits anywhere."""
    places = {name: (target.summary, name == "huggingface") for name, target in sorted(targets().items())}
    options = {name: (format_.summary, options_schema(format_.Options)) for name, format_ in sorted(formats().items())}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "saesync manifest",
        "description": "One release of sparse autoencoders: where they come from, how they are measured, where they go.",
        "type": "object",
        "properties": {
            "apiVersion": {"description": "The version of this manifest's language.", "const": API_VERSION},
            "release": sections.release(),
            "model": sections.model(),
            "saes": saes(options),
            "validate": sections.validate(METRICS),
            "publish": sections.publish(places),
            "register": sections.register(),
            "records": sections.records(places),
            "dashboards": sections.dashboards(),
            "neuronpedia": sections.neuronpedia(),
            "retire": sections.retire(),
        },
        "required": ["apiVersion", "release", "model", "saes"],
        "anyOf": [{"required": names} for names in sections.PURPOSES],
        "additionalProperties": False,
        "allOf": sections.whole_manifest(),
        "$defs": parts.definitions(),
    }


def expanded(schema: Any) -> Any:
    """The schema of a manifest after expansion of one SAE: the same without leave to hold placeholders."""
    if isinstance(schema, list):
        return [expanded(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    choices = schema.get("anyOf")
    if isinstance(choices, list) and len(choices) == 2 and choices[1] == PLACEHOLDER:
        rest = {name: part for name, part in schema.items() if name != "anyOf"}
        return {**expanded(choices[0]), **rest}
    return {name: expanded(part) for name, part in schema.items()}
