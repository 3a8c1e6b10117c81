"""Whatever is wrong in a manifest is said in one round: no mistake hides another one, in its file or in others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_support import COMMIT, OTHER, complaints, said, write

from saesync.manifest import load

# Local paths, bounds, names: all that is looked at besides the schema has its place in here.
FINE = """\
apiVersion: saesync/v1
release: tiny-res

model:
  path: ./lm
  loader: TransformerBridge

saes:
  for_each:
    layer: [0, 1]
    width: ["16k", "32k"]
  id: layer_{layer}/{width}
  hook: blocks.{layer}.hook_resid_post
  source:
    path: ./saes/{layer}_{width}.pth
    format: goodfire
  entry:
    l0: 12.5

validate:
  dataset:
    path: ./text.jsonl
  tokens: 4096
  context: 128
  require:
    explained_variance: {min: 0.5}
    l0: {max: 150}

publish:
  local: ./published
  license: mit

register:
  saelens: ./registry.yaml

records:
  local: ./records

neuronpedia:
  model: tiny
  set: res-{width}
"""
NEIGHBOUR = f"""\
apiVersion: saesync/v1
release: other-res
model: {{name: acme/lm, revision: {COMMIT}}}
saes:
  id: layer_7/64k
  hook: blocks.7.hook_resid_post
  source: {{repo: acme/dictionaries, revision: {OTHER}, path: ae.pt, format: goodfire}}
publish: {{local: ./published, license: mit}}
"""
# One mistake each, on a line of its own so that any of them go together.
MISTAKES = (
    ("release: tiny-res", "release: tiny/res"),
    ("release: tiny-res", "release: other-res"),
    ("  path: ./lm", "  path: ../../lm"),
    ("  path: ./lm", "  path: 7"),
    ("  loader: TransformerBridge", "  loader: HookedTransformer"),
    ("  loader: TransformerBridge", "  loader: Transformer"),
    ("    layer: [0, 1]", "    layer: [0, 7]\n    except: [{layer: 9}]"),
    ("    layer: [0, 1]", "    layer: {first: 3, last: 1}"),
    ("    layer: [0, 1]", "    layer: [0, 1]\n    seed: [0, 1]"),
    ("  id: layer_{layer}/{width}", "  id: layer_{layer}/{wdth}"),
    ("  id: layer_{layer}/{width}", "  id: layer_7/64k"),
    ("  id: layer_{layer}/{width}", "  id: layer_{layer}/../{width}"),
    ("  hook: blocks.{layer}.hook_resid_post", "  hook: layer.{layer}.hook_resid_post"),
    ("  hook: blocks.{layer}.hook_resid_post", "  hoook: blocks.{layer}.hook_resid_post"),
    ("    path: ./saes/{layer}_{width}.pth", "    path: ~/saes/{layer}_{width}.pth"),
    ("    path: ./saes/{layer}_{width}.pth", "    path: ./saes/{layer}_{width:02d}.pth"),
    ("    format: goodfire", "    format: goodfyre"),
    ("    format: goodfire", "    format: goodfire\n    kk: 3"),
    ("    l0: 12.5", "    neuronpedia: tiny/0-res"),
    ("    l0: 12.5", "    l0: -1"),
    ("    path: ./text.jsonl", "    path: /etc/passwd"),
    ("  tokens: 4096", "  tokens: none"),
    ("  context: 128", "  contxt: 128"),
    ("    explained_variance: {min: 0.5}", "    explained_variance: {min: 0.5, max: 0.1}"),
    ("    l0: {max: 150}", "    l1: {max: 150}"),
    ("  local: ./published", "  local: /srv/published"),
    ("  local: ./published", "  locl: ./published"),
    ("  license: mit", "  license: MIT"),
    ("  license: mit", "  license: apache-2.0"),
    ("  license: mit", "  license: mit\n  pull_request: true"),
    ("  license: mit", "  license: mit\n  private: yes"),
    ("  saelens: ./registry.yaml", "  saelens: ./registry.yaml\n  conversion_func: goodfire"),
    ("  saelens: ./registry.yaml", "  saelens: ../../registry.yaml"),
    ("  local: ./records", "  local: ../../records"),
    ("  local: ./records", "  local: ./published"),
    ("  model: tiny\n", "  model: tiny/2\n"),
    ("  set: res-{width}", "  set: res"),
    ("  set: res-{width}", "  set: res-{width!r}"),
)
# What a mistake says of two places together is not known where the other place is wrong as well, or the manifest's SAEs are not.
_TOGETHER = frozenset(
    {"Folder is taken", "Id is taken", "Repository has two licenses", "Repository is published to in two ways",
     "Records are among published SAEs", "Neuronpedia id is taken", "Release name is taken", "Hook has no layer",
     "Two Neuronpedia ids", "Placeholder is never used", "Missing key", "Target has no pull requests"}
)  # fmt: skip


def _with(*mistakes: int) -> str:
    text = FINE
    for old, new in (MISTAKES[number] for number in mistakes):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def _said(here: Path, text: str) -> set[tuple[str, str]]:
    """Summary and the line's own text: the line numbers move with what stands above."""
    lines = text.splitlines()
    found = complaints(here, text, NEIGHBOUR)
    return {
        (each.summary, lines[each.origin.line - 1] if each.origin.file == "a.yaml" else each.origin.file)
        for each in found
        if each.origin is not None
    }


def test_it_is_fine_as_it_stands(here: Path) -> None:
    assert len(load(write(here, a=FINE, b=NEIGHBOUR))) == 2


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_each_mistake_is_said(here: Path, number: int) -> None:
    """And where it is a mistake of one line alone, once."""
    found = said(complaints(here, _with(number), NEIGHBOUR))
    assert found
    assert len(found) == len(set(found))


def test_one_of_every_kind(here: Path) -> None:
    """Schema, placeholders, paths, bounds and what two manifests claim, each in another section of one manifest."""
    chosen = [number for number, (_, new) in enumerate(MISTAKES) if new in _EVERY_KIND]
    assert len(chosen) == len(_EVERY_KIND)
    assert said(complaints(here, _with(*chosen), NEIGHBOUR)) == [
        "Path leads outside the project @ a.yaml:5:9",
        "Loader does not fit @ a.yaml:6:11",
        "Unknown placeholder @ a.yaml:12:7",
        "Path is refused @ a.yaml:15:11",
        "Unknown value @ a.yaml:16:13",
        "Path leads outside the project @ a.yaml:22:11",
        "Unknown key @ a.yaml:24:3",
        "Bounds exclude each other @ a.yaml:26:41",
        "Path leads outside the project @ a.yaml:30:10",
        "Invalid value @ a.yaml:31:12",
        "Path leads outside the project @ a.yaml:37:10",
        "Release name is taken @ b.yaml:2:10",
    ]


_EVERY_KIND = (
    "release: other-res", "  path: ../../lm", "  loader: HookedTransformer", "  id: layer_{layer}/{wdth}",
    "    path: ~/saes/{layer}_{width}.pth", "    format: goodfyre", "    path: /etc/passwd", "  contxt: 128",
    "    explained_variance: {min: 0.5, max: 0.1}", "  local: /srv/published", "  license: MIT", "  local: ../../records",
)  # fmt: skip


_found_alone: dict[int, set[tuple[str, str]]] = {}


def _alone(here: Path, number: int) -> set[tuple[str, str]]:
    if number not in _found_alone:
        _found_alone[number] = _said(here, _with(number))
    return _found_alone[number]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from(range(len(MISTAKES))), min_size=2, max_size=8))
def test_no_mistake_hides_another(here: Path, numbers: set[int]) -> None:
    """What one mistake alone is told about itself it is told among others, too; and they make up no further mistake."""
    by_line = {MISTAKES[number][0]: number for number in sorted(numbers)}
    chosen = list(by_line.values())
    together = {each for each in _said(here, _with(*chosen)) if each[0] not in _TOGETHER}
    alone = {each for number in chosen for each in _alone(here, number) if each[0] not in _TOGETHER}
    assert alone == together, alone ^ together


def test_rows_that_are_not_known_hide_only_what_they_become(here: Path) -> None:
    others = ("  path: ../../lm", "  id: layer_{layer}/{wdth}", "    format: goodfyre", "    path: /etc/passwd")
    chosen = [number for number, (_, new) in enumerate(MISTAKES) if new in others]
    text = _with(*chosen).replace("    layer: [0, 1]", "    layer: {first: 3, lst: 1}")
    assert said(complaints(here, text, NEIGHBOUR)) == [
        "Path leads outside the project @ a.yaml:5:9",
        "Unknown key @ a.yaml:10:23",
        "Unknown placeholder @ a.yaml:12:7",
        "Unknown value @ a.yaml:16:13",
        "Path leads outside the project @ a.yaml:22:11",
    ]


@pytest.mark.parametrize(
    ("axis", "wrong"),
    [
        ("{first: 3, lst: 1}", ["Unknown key @ a.yaml:10:23"]),
        ("[[0], 1]", ["Wrong type @ a.yaml:10:13"]),
    ],
)
def test_an_axis_that_cannot_be_read_hides_only_what_it_becomes(here: Path, axis: str, wrong: list[str]) -> None:
    text = FINE.replace("layer: [0, 1]", f"layer: {axis}").replace('"32k"', '"32:k"').replace("context: 128", "contxt: 128")
    assert said(complaints(here, text, NEIGHBOUR)) == [*wrong, "Unknown key @ a.yaml:24:3", "Invalid value @ a.yaml:41:8"]


ROWS = ("{layer", "    layer:", "res-{width}", "layer_7/64k")  # what they are or how many, or what two of them have in common


ROWS = """\
  for_each:
    - {layer: 0, width: 16k, f: goodfyre}
    - {layer: 1, width: "32k", f: [goodfire]}
    - {layer: 2, width: "16k:", f: goodfire}
"""


def test_a_row_that_cannot_be_read_hides_no_other(here: Path) -> None:
    axes = FINE[FINE.index("  for_each:") : FINE.index("  id:")]
    text = FINE.replace(axes, ROWS).replace("format: goodfire", 'format: "{f}"').replace("context: 128", "contxt: 128")
    assert said(complaints(here, text, NEIGHBOUR)) == [
        "Wrong type @ a.yaml:11:35",
        "Invalid value @ a.yaml:13:7",
        "Unknown value @ a.yaml:17:13",
        "Unknown key @ a.yaml:25:3",
        "Invalid value @ a.yaml:42:8",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("  context: 128", "  contxt: 128"), "Folder is taken @ b.yaml:5:7"),
        (("  license: mit", "  license: MIT"), "Release name is taken @ b.yaml:2:10"),
        (("    format: goodfire", "    format: goodfyre"), "Folder is taken @ b.yaml:5:7"),
    ],
)
def test_what_two_manifests_claim_is_said_though_one_does_not_fit(here: Path, change: tuple[str, str], expected: str) -> None:
    text = FINE.replace("release: tiny-res", "release: other-res").replace("[0, 1]", "[7]").replace('"32k"', '"64k"')
    found = said(complaints(here, text.replace(*change), NEIGHBOUR))
    assert expected in found
    assert len(found) > 1
