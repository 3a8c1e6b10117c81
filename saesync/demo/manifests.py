"""The demo's manifests, written to be read by somebody who sees the first manifest of their life."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saesync.demo.recipe import Dictionary, Recipe

LOCAL = {"local": "../published"}


def write_manifests(folder: Path, recipe: Recipe, publish: Mapping[str, str]) -> dict[str, Any]:
    """Write ``good.yaml`` (every gate holds) and ``failing.yaml`` (one does not) into ``folder``.

    ``publish`` is the target and its location, ``{"local": "../published"}`` or ``{"huggingface": "name/repo"}``.
    """
    (folder / "good.yaml").write_text(good(recipe, publish), encoding="utf-8")
    (folder / "failing.yaml").write_text(failing(recipe, publish), encoding="utf-8")
    return {}


def good(recipe: Recipe, publish: Mapping[str, str]) -> str:
    """The manifest whose gates hold: SAEs of every layout, listed as rows."""
    rows = "\n".join(_row(entry) for entry in recipe.of("good"))
    return f"""\
# A manifest says what should be published. saesync finds out what is missing and does only that:
#
#   saesync plan  manifests/good.yaml     what would be done, and why; changes nothing
#   saesync apply manifests/good.yaml     does it; run it twice, and the second time there is nothing to do
#
# One manifest is one release: what users pass to SAELens as SAE.from_pretrained(release, id).
apiVersion: saesync/v1
release: {recipe.name}-res

model:
  path: ../model                        # paths start at this file; on the Hub: `name:` and `revision:`

saes:
  for_each:                             # one SAE per row; {{words in braces}} below are filled in from it
{rows}
  id: "{{id}}"                            # its folder in the published repository
  hook: blocks.{{layer}}.hook_resid_post  # where in the model it reads
  source:
    path: ../sources/{{path}}
    format: "{{format}}"                  # `saesync inspect PATH` tells which; foreign weights are converted and proved

validate:                               # every SAE is measured on text that neither model nor SAE has seen
  dataset:
    path: ../data/held_out.jsonl
  tokens: {recipe.validate_tokens}
  context: {recipe.context}
  require:                              # the gates: an SAE that misses one is not published
{_gates(recipe.gates)}

publish:
{_publish(publish)}
"""


def failing(recipe: Recipe, publish: Mapping[str, str]) -> str:
    """The manifest with a gate that fails: a sweep over layers in which one training run was far too short."""
    entries = recipe.of("failing")
    layers = sorted(entry.layer for entry in entries)
    shape = entries[0].path.replace(str(entries[0].layer), "{layer}")
    return f"""\
# A sweep over layers in which the training of the last layer stopped after a few steps. The gate notices:
#
#   saesync apply manifests/failing.yaml
#
# publishes the layer that is good, names the one that is not (file, line, number, bound) and exits with 1.
apiVersion: saesync/v1
release: {recipe.name}-sweep

model:
  path: ../model

saes:
  for_each:
    layer: {{first: {layers[0]}, last: {layers[-1]}}}          # both ends included; several axes are multiplied
  id: {entries[0].id.replace(str(entries[0].layer), "{layer}")}
  hook: blocks.{{layer}}.hook_resid_post
  source:
    path: ../sources/{shape}
    format: saelens

validate:
  dataset:
    path: ../data/held_out.jsonl
  tokens: {recipe.validate_tokens}
  context: {recipe.context}
  require:
{_gates(recipe.failing_gates)}

publish:
{_publish(publish)}
"""


def _row(entry: Dictionary) -> str:
    return f"    - {{id: {entry.id}, layer: {entry.layer}, format: {entry.format}, path: {entry.path}}}"


def _gates(gates: Mapping[str, Mapping[str, float]]) -> str:
    def bounds(kinds: Mapping[str, float]) -> str:
        return ", ".join(f"{kind}: {bound}" for kind, bound in kinds.items())

    return "\n".join(f"    {metric}: {{{bounds(kinds)}}}" for metric, kinds in gates.items())


def _publish(publish: Mapping[str, str]) -> str:
    target = "\n".join(f"  {name}: {location}" for name, location in publish.items())
    return f"{target}\n  license: mit"
