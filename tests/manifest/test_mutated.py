"""Whole manifests with any of their values and keys replaced: whatever stands where, nothing but diagnostics may come."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from manifest_support import GOOD, OTHER

from saesync.errors import Diagnostic, ManifestError
from saesync.manifest import load

WHOLE = f"""{GOOD}
records: {{local: ./records}}
register: {{saelens: acme/registry, partial: true, conversion_func: null, links: {{model: x}}, config_overrides: {{a: 1}}}}
dashboards: {{dataset: {{path: a.txt}}, prompts: 3}}
neuronpedia: {{model: m, set: "s-{{layer}}", postgres: {{dsn_from: DSN}}, export: ./out, inference: true}}
retire: true
"""
THEIRS = f"""
apiVersion: saesync/v1
release: theirs
model: {{name: gpt2}}
saes:
  for_each: [{{layer: 0, l0: 5, f: goodfire}}, {{layer: 1, l0: null, f: goodfire}}]
  id: layer_{{layer}}
  source: {{repo: acme/x, revision: {OTHER}, path: "{{layer}}.pt", format: "{{f}}"}}
  entry: {{l0: "{{l0}}", neuronpedia: "m/{{layer}}-x"}}
  cfg: {{apply_b_dec_to_input: true}}
register: {{saelens: acme/registry, conversion_func: gemma_2}}
"""
DOCUMENTS = [yaml.safe_load(text) for text in (WHOLE, THEIRS)]
KEYS = [
    "x",
    "layer",
    "id",
    "repo",
    "format",
    "hook",
    "path",
    "model",
    "require",
    "for_each",
    "except",
    "first",
    "conversion_func",
]
VALUES = st.sampled_from(
    [None, True, 0, -1, 1.5, 2**63 - 1, "", "x", "{layer}", "{l0}", "{{", "}", "{layer:02d}", "a" * 300, "../x", "/etc", "x\ny",
     "con", [], {}, [[]], [1, 1], [{}], [{"layer": 1}], {"a": 1}, {"first": 2, "last": 1}, {"min": 2, "max": 1}, {"layer": None}]
)  # fmt: skip


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in below:
        yield (*path, key)
        yield from _paths(each, (*path, key))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    document = copy.deepcopy(draw(st.sampled_from(DOCUMENTS)))
    for _ in range(draw(st.integers(1, 4))):
        *above, key = draw(st.sampled_from(list(_paths(document)) or [("x",)]))
        holder = document
        for part in above:
            holder = holder[part]
        action = draw(st.sampled_from(["value", "value", "delete", "key"]))
        if action == "value":
            holder[key] = copy.deepcopy(draw(VALUES))
        elif action == "delete" and key in (holder if isinstance(holder, dict) else range(len(holder))):
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(VALUES))
    return document


def _with(document: Any, value: Any, *path: str) -> Any:
    found = holder = copy.deepcopy(document)
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return found


@settings(max_examples=200, deadline=None)
@given(mutated())
@example(_with(DOCUMENTS[1], {"min": 2}, "register", "conversion_func"))
@example(_with(DOCUMENTS[1], "{nowhere}", "saes", "source", "format"))
def test_mutated_manifests_only_ever_give_diagnostics(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    path: Path = tmp_path_factory.mktemp("mutated") / "m.yaml"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines()
    found: tuple[Diagnostic, ...] = ()
    try:
        load([path])
    except ManifestError as error:
        found = error.diagnostics
    assert len(found) == len({(each.summary, each.detail, each.origin) for each in found}), "said once"
    for each in found:
        assert each.detail.endswith((".", "?"))
        assert each.origin is None or 1 <= each.origin.column <= len(lines[each.origin.line - 1]) + 1
