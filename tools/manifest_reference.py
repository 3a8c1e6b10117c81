"""The reference of manifests, docs/manifest.md, made of the JSON Schema's own descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from saesync import schema
from saesync.manifest.expand import MAX_TEXT
from saesync.manifest.yaml12 import MAX_ALIASED, MAX_BYTES, MAX_DEPTH
from saesync.record import MAX_SAES

Schema = Mapping[str, Any]

DATASET = "#/$defs/dataset"

EXAMPLE = """\
# yaml-language-server: $schema=../saesync/schema/manifest.json
apiVersion: saesync/v1
release: gemma-2-2b-res-acme            # what users pass to SAE.from_pretrained

model:
  name: google/gemma-2-2b
  revision: c5ebcd40d208330abc697524c919956e692655cf

saes:
  for_each:
    layer: {first: 0, last: 25}         # both ends included: 26 SAEs
  id: layer_{layer}/width_16k
  hook: blocks.{layer}.hook_resid_post
  source:
    repo: acme/gemma-2-2b-dictionaries
    revision: 0b8f6d1c2e3a4f5061728394a5b6c7d8e9f00112
    path: resid_post_layer_{layer:02d}/sae.pth
    format: goodfire

validate:
  dataset:
    repo: monology/pile-uncopyrighted
    revision: 3be90335b66f24456a5d6659d9c8d208c0357119
  tokens: 204800
  context: 1024
  require:
    explained_variance: {min: 0.70}
    ce_loss_score: {min: 0.95}
    l0: {max: 150}

publish:
  huggingface: acme/gemma-2-2b-res-saes
  license: mit
"""

LANGUAGE = f"""\
## The language

**YAML 1.2.** `1e-4` is a number, `no` is a text, `010` is ten. A key that stands twice is refused, both places named.
Aliases may copy at most {MAX_ALIASED:,} values, values nest at most {MAX_DEPTH} deep, a file has at most {
    MAX_BYTES >> 20
} MiB. Tags and merge keys (`<<`) are not used.

**One template, many SAEs.** `for_each` gives placeholders their values, in one of two forms:

```yaml
for_each:                               # axes multiply: 3 x 2 SAEs, less one
  layer: [6, 12, 18]                    # a list, or
  seed: {{first: 0, last: 1}}             # consecutive numbers, both ends included
  except: [{{layer: 6, seed: 1}}]
```

```yaml
for_each:                               # rows: one SAE each
  - {{layer: 0, l0: 105}}
  - {{layer: 1, l0: 102}}
```

Texts under `saes`, and `neuronpedia.set`, may hold `{{layer}}` or, with a Python format, `{{layer:02d}}`. A value
that is only `"{{seed}}"` keeps the number's type; quote it, because a value that begins with a brace is a mapping in
YAML. A brace itself is written twice. A value may be `null`: in `hook_out`, `cfg`, `entry` and the
options of a source's format, the key whose whole value its placeholder is, is then left out. So SAEs of different
formats fit into one template. There are no conditions, no arithmetic, no includes and no environment
variables. One run handles at most {MAX_SAES:,} SAEs, counted before they are made; a text expands to at most
{MAX_TEXT:,} characters.

**Pinned.** Sources, models and datasets on the Hub stand at a full commit hash. Write a branch, a tag or nothing, and
`saesync pin FILE` fills the hashes in without touching anything else. Only a release that does nothing but `register`
may leave its source and its model unpinned; the plan says so, and `saesync pin --all FILE` pins them all the same.

**Somebody else's weights.** Without `publish` nothing of ours stands beside the weights. A release that does nothing but
`register` needs no hook, no pinned source and, with `register.conversion_func`, no format: its weights are never read.

```yaml
apiVersion: saesync/v1
release: gemma-2-2b-res-somebody
model:
  name: gemma-2-2b                      # the registry's word for it
saes:
  for_each:
    - {{layer: 0, l0: 105}}
    - {{layer: 1, l0: null}}              # not known: this entry has no l0
  id: layer_{{layer}}/width_16k
  source:
    repo: somebody/dictionaries
    path: layer_{{layer}}/params.npz
  entry:                                # what the registry's entry says beyond id and path
    l0: "{{l0}}"
register:
  saelens: decoderesearch/SAELens
  conversion_func: gemma_2
```

With `validate` and `records` such SAEs are fetched, converted, proved and measured like our own, and the evidence alone is
published: to the place that `records` names. Then hook, format and pinned commits are needed, as everywhere.

**Local paths** start at the manifest's folder and stay inside the project, symlinks resolved: the nearest folder
above the manifest that holds `.git`, else its own folder (or the folder above one named `manifests`), and the working
directory if the manifest is inside it. `--root DIR` allows one more.

**Secrets** never stand in a manifest. A key such as `dsn_from` names an environment variable, and none of the Hub's,
of GitHub's, of clouds or of CI.

**Refused across manifests**, both places named: equal release names; two SAEs in one folder of one target, after case
folding and Unicode normalisation; a folder inside another SAE's; equal Neuronpedia ids. Ids of a release without
`publish` are nobody's folders: they only have to differ from each other.
"""


def manifest_reference() -> str:
    """The whole page."""
    whole = schema.expanded(schema.build())
    parts = ["# Manifests", "", "Generated from the schema by `make docs`.", "", whole["description"], *_INTRODUCTION, ""]
    parts += ["```yaml", EXAMPLE.rstrip(), "```", "", LANGUAGE, "## Keys", ""]
    parts += _table(whole, whole, "")
    for name, part in whole["properties"].items():
        parts += _section(part, whole, name)
    dataset = whole["$defs"]["dataset"]
    parts += ["### A dataset", "", _sentence(dataset), "", *_table(dataset, whole, "dataset")]
    return "\n".join(parts).rstrip() + "\n"


_INTRODUCTION = (
    "One YAML file each, directly in `manifests/`. `saesync check` reads them offline; an editor that understands the first line",
    "of the example completes keys and shows their meaning.",
)


def _section(part: Schema, whole: Schema, path: str) -> Iterator[str]:
    """A heading and a table for every mapping below ``path``."""
    part = _resolved(part, whole)
    if "properties" not in part:
        return
    yield from (f"### `{path}`", "", _sentence(part), "")
    yield from _table(part, whole, path)
    for name, below in part["properties"].items():
        if below is not True and below.get("$ref") != DATASET and path != "validate.require":
            yield from _section(below, whole, f"{path}.{name}")
    yield from _options(part, path)


def _table(part: Schema, whole: Schema, path: str) -> Iterator[str]:
    required = set(part.get("required", ())) | {f"one:{branch['required'][0]}" for branch in part.get("oneOf", ())}
    if not part["properties"]:
        return
    yield from ("| key | value | needed | meaning |", "|---|---|---|---|")
    for name, below in part["properties"].items():
        if below is True:
            continue
        value = _resolved(below, whole)
        needed = "yes" if name in required else "one of" if f"one:{name}" in required else ""
        yield f"| `{name}` | {_cell(_value(value))} | {needed} | {_cell(_sentence(value))} |"
    yield ""


def _options(part: Schema, path: str) -> Iterator[str]:
    """What stands beside ``format:``, per format."""
    for rule in part.get("allOf", ()):
        chosen = rule.get("if", {}).get("properties", {}).get("format", {}).get("const")
        if chosen is None:
            continue
        yield from (f"#### `{path}` with `format: {chosen}`", "", f"{rule['then']['description'].rstrip('.')}.", "")
        own = {name: below for name, below in rule["then"]["properties"].items() if below is not True}
        if own:
            yield from _table({"properties": own, "required": rule["then"].get("required", [])}, {"$defs": {}}, path)
        else:
            yield from ("It has no options.", "")


def _resolved(part: Schema, whole: Schema) -> Schema:
    if "$ref" not in part:
        return part
    return {**whole["$defs"][part["$ref"].removeprefix("#/$defs/")], **part}


def _sentence(part: Schema) -> str:
    default = part.get("default")
    shown = {True: "true", False: "false"}.get(default, default) if isinstance(default, bool) else default
    return f"{part.get('description', '')}{'' if default is None else f' Default: `{shown}`.'}".strip()


def _value(part: Schema) -> str:
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if set(part.get("properties", ())) == {"min", "max"}:
        return "`{min: …, max: …}`"
    if part.get("$ref") in _NAMED:
        return _NAMED[part["$ref"]]
    if "anyOf" in part:
        return " or ".join(_value(branch) if "enum" in branch else _KINDS[branch["type"]] for branch in part["anyOf"])
    return _KINDS.get(part.get("type", ""), "")


_NAMED = {
    DATASET: "[dataset](#a-dataset)",
    "#/$defs/commit": "40-digit commit hash",
    "#/$defs/hubId": "Hub id, `owner/name`",
    "#/$defs/localPath": "path",
    "#/$defs/variable": "variable's name",
}
_KINDS = {
    "object": "mapping",
    "array": "list",
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "null": "`null`",
}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
