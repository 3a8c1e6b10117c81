"""Manifests of somebody else's weights: what a release that only registers may leave open, and what its entries say."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifest_support import COMMIT, GOOD, OTHER, changed, complaints, release, said, write

from saesync import planfile, render
from saesync.cache import Cache
from saesync.manifest import load
from saesync.model import Choices, Plan, Release
from saesync.observe import observe
from saesync.observe_registries import observe_registries
from saesync.pin import pin
from saesync.planner import plan
from saesync.registry.entry import entry_of
from saesync.resolve import Resolver
from saesync.schema.sections import LOADERS_OF_SAELENS

THEIRS = """\
apiVersion: saesync/v1
release: gemma-res-somebody

model:
  name: gemma-2-2b

saes:
  for_each:
    - {layer: 0, l0: 105, ev: 0.75, np: gemma-2-2b/0-res-x}
    - {layer: 1, l0: 71.5, ev: null, np: null}
  id: layer_{layer}/width_16k/average_l0_{layer}
  source:
    repo: somebody/dictionaries
    path: layer_{layer}/params.npz
  entry:
    l0: "{l0}"
    variance_explained: "{ev}"
    neuronpedia: "{np}"
    norm_scaling_factor: 2

register:
  saelens: decoderesearch/SAELens
  conversion_func: gemma_2
"""


def planned(tmp_path: Path, *releases: Release) -> Plan:
    """A plan as the command line makes it; HF_ENDPOINT leads nowhere, so that a look at the Hub would show."""
    cache = Cache(tmp_path / "cache")
    observed, registries = observe(releases, cache), observe_registries(releases, cache)
    wanted = Resolver(cache).resolve(releases, observed)
    assert wanted == {}
    return plan(releases, wanted, observed, Choices(), registries=registries)


def registered(folder: Path, *releases: Release) -> None:
    """A registry file in which they stand."""
    entries = {release.name: entry_of(release, None).to_yaml() for release in releases}
    (folder / "registry.yaml").write_text(yaml.safe_dump(entries))


def in_file(text: str) -> str:
    return changed(("decoderesearch/SAELens", "./registry.yaml"), base=text)


# ------------------------------------------------------------------------------------------------- what is read


def test_what_the_entries_say_keeps_its_type_and_null_leaves_a_key_out(here: Path) -> None:
    first, second = release(here, THEIRS).saes
    assert dict(first.entry) == {
        "l0": 105,
        "variance_explained": 0.75,
        "neuronpedia": "gemma-2-2b/0-res-x",
        "norm_scaling_factor": 2,
    }
    assert dict(second.entry) == {"l0": 71.5, "norm_scaling_factor": 2}
    assert [type(sae.entry["l0"]) for sae in (first, second)] == [int, float]


def test_null_leaves_options_and_hook_out_out_but_never_says_which_source(here: Path) -> None:
    rows = "for_each:\n    - {layer: 0, f: 0.5, n: none, out: x}\n    - {layer: 1, f: null, n: null, out: null}\n"
    more = 'format: saelens\n    norm_scaling_factor: "{f}"\n  cfg: {normalize_activations: "{n}"}\n  hook_out: "{out}"\n'
    text = changed(("for_each:\n    layer: {first: 0, last: 25}\n", rows), ("format: goodfire\n", more))
    first, second = release(here, text).saes
    assert [dict(sae.source.options) for sae in (first, second) if sae.source] == [{"norm_scaling_factor": 0.5}, {}]
    assert [dict(sae.cfg) for sae in (first, second)] == [{"normalize_activations": "none"}, {}]
    assert [sae.hook_out for sae in (first, second)] == ["x", None]
    for old in ("repo: acme/dictionaries", f"revision: {OTHER}", "path: resid_post_layer_{layer:02d}/ae.pt"):
        key = old.partition(":")[0]
        found = complaints(here, changed((old, f'{key}: "{{out}}"'), base=text))
        assert any("takes a text, not nothing" in each.detail for each in found), (key, said(found))


def test_what_is_left_open(here: Path) -> None:
    found = release(here, THEIRS)
    sae = found.saes[0]
    assert sae.source is not None
    assert (sae.hook, sae.source.format, sae.source.revision, sae.model.revision) == ("", "", None, None)
    assert (found.publish, found.home, found.evidence_only, found.later) == (None, None, False, ())


def test_the_register_section(here: Path) -> None:
    text = changed(
        (
            "  conversion_func: gemma_2\n",
            "  conversion_func: llama_scope\n  model: gemma-2-2b-it\n  links: {model: 'https://x.y/z', any name: w}\n"
            "  config_overrides: {dataset_path: a/b, deep: {center: true, n: [1, 2.5]}}\n",
        ),
        base=THEIRS,
    )
    spec = release(here, text).register
    assert spec is not None
    assert (spec.registry, spec.conversion_func, spec.model) == ("decoderesearch/SAELens", "llama_scope", "gemma-2-2b-it")
    assert dict(spec.links) == {"model": "https://x.y/z", "any name": "w"}
    assert spec.config_overrides == {"dataset_path": "a/b", "deep": {"center": True, "n": [1, 2.5]}}


def test_a_native_release_names_its_format_and_no_loader(here: Path) -> None:
    text = changed(("  conversion_func: gemma_2\n", "  conversion_func: null\n"), base=THEIRS)
    assert said(complaints(here, text)) == ["Missing key @ a.yaml:12:3"]
    text = changed(("    path: layer_{layer}/params.npz\n", "    path: layer_{layer}\n    format: saelens\n"), base=text)
    found = release(here, text)
    assert found.register is not None
    assert found.register.conversion_func is None


def test_a_registry_file_stays_inside_the_project(here: Path) -> None:
    inside = release(here, changed(("decoderesearch/SAELens", "./pretrained_saes.yaml"), base=THEIRS))
    assert inside.register is not None
    assert inside.register.registry == str(here / "pretrained_saes.yaml")
    outside = changed(("decoderesearch/SAELens", "../pretrained_saes.yaml"), base=THEIRS)
    assert said(complaints(here, outside)) == ["Path leads outside the project @ a.yaml:22:12"]
    assert load(write(here, m=outside), roots=[here.parent])


def test_the_loaders_are_those_of_the_installed_sae_lens() -> None:
    spec = importlib.util.find_spec("sae_lens")
    assert spec is not None
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0], "loading", "pretrained_sae_loaders.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    (named,) = [node.value for node in assigned if node.target.id == "NAMED_PRETRAINED_SAE_LOADERS"]  # type: ignore[union-attr]
    assert isinstance(named, ast.Dict)
    names = {key.value for key in named.keys if isinstance(key, ast.Constant)}
    assert sorted(names - {"sae_lens"}) == LOADERS_OF_SAELENS


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "place", "part"),
    [
        (("conversion_func: gemma_2", "conversion_func: gemma_4"), "Unknown value @ a.yaml:23:20", 'Did you mean "gemma_'),
        (
            ("conversion_func: gemma_2", "conversion_func: sae_lens"),
            "Unknown value @ a.yaml:23:20",
            "not a known conversion_func",
        ),
        (("conversion_func: gemma_2", "conversion_func: [gemma_2]"), "Unknown value @ a.yaml:23:20", "a list is not a known"),
        (("conversion_func: gemma_2", "conversion_func: {a: b}"), "Unknown value @ a.yaml:23:20", "a mapping is not a known"),
        (("norm_scaling_factor: 2", "norm_scaling_factor: 0"), "Value is out of range @ a.yaml:19:26", "more than 0"),
        (("norm_scaling_factor: 2", "norm_scaling_factor:"), "Wrong type @ a.yaml:19:25", "not nothing"),
        (("norm_scaling_factor: 2", "norm_scaling_factor: null"), "Wrong type @ a.yaml:19:26", "not nothing"),
        (("norm_scaling_factor: 2", "scale: 2"), "Unknown key @ a.yaml:19:5", "not a key of saes.entry"),
        (("ev: 0.75", "ev: 1.2"), "Value is out of range @ a.yaml:17:25", "at most 1"),
        (("l0: 105", "l0: many"), "Wrong type @ a.yaml:16:9", 'not the text "many"'),
        (("np: gemma-2-2b/0-res-x", "np: res-x"), "Invalid value @ a.yaml:18:18", "one slash"),
        (
            ("    path: layer", "    norm_scaling_factor: 2\n    path: layer"),
            "Unknown key @ a.yaml:14:5",
            "Known: repo, revision",
        ),
        (("  conversion_func: gemma_2", "  partial: false"), "Missing key @ a.yaml:12:3", '"format" is missing'),
        (("id: layer_{layer}/", 'id: "{ev}"\n  dtype: layer_{layer}/'), "Wrong type @ a.yaml:11:7", "saes.id takes a text"),
        (("average_l0_{layer}", "{ev}_{layer}"), "Placeholder has no value @ a.yaml:11:7", "ev is null here"),
        (("average_l0_{layer}", "x_{np:>9}_{layer}"), "Placeholder has no value @ a.yaml:11:7", "np is null here"),
        (("repo: somebody/dictionaries", 'repo: "{np}"'), "Wrong type @ a.yaml:13:11", "takes a text"),
    ],
)
def test_messages(here: Path, change: tuple[str, str], place: str, part: str) -> None:
    found = complaints(here, changed(change, base=THEIRS))
    assert place in said(found)
    assert part in " ".join(each.detail for each in found)


@pytest.mark.parametrize("section", ["validate", "publish", "neuronpedia", "dashboards"])
def test_whatever_reads_weights_needs_hook_format_and_commits(here: Path, section: str) -> None:
    dataset = f"{{repo: a/b, revision: {COMMIT}}}"
    more = {
        "validate": f"validate: {{dataset: {dataset}, tokens: 10, context: 8}}\nrecords: {{local: ./records}}\n",
        "publish": "publish: {huggingface: a/b}\n",
        "neuronpedia": "neuronpedia: {model: m, set: s}\n",
        "dashboards": f"dashboards: {{dataset: {dataset}}}\n",
    }[section]
    details = [each.detail for each in complaints(here, THEIRS + more)]
    for part in ('"hook" is missing', '"format" is missing', "model.name needs a 40-digit", "saes.source.repo needs a 40-digit"):
        assert any(part in detail for detail in details), (part, details)


def test_numbers_need_a_place(here: Path) -> None:
    start, end = GOOD.index("publish:"), len(GOOD)
    text = GOOD[:start] + "register: {saelens: decoderesearch/SAELens}\n" + GOOD[end:]
    (found,) = complaints(here, text)
    assert (found.summary, found.detail) == (
        "Missing key",
        "the manifest needs at least one of publish, records, for what `validate` finds.",
    )
    measured = release(here, GOOD[:start] + "records: {local: ./records}\n")
    assert measured.evidence_only
    assert measured.home == measured.records
    ours = release(here, GOOD + "records: {local: ./records}\n")
    assert not ours.evidence_only
    assert ours.home == ours.publish


def test_what_we_publish_needs_no_loader(here: Path) -> None:
    (found,) = complaints(here, GOOD + "register: {saelens: a/b, conversion_func: gemma_2}\n")
    assert (found.summary, str(found.origin)) == ("Loader does not fit", "a.yaml:32:43")
    assert release(here, GOOD + "register: {saelens: a/b, conversion_func: null}\n").register is not None


# ------------------------------------------------------------------------------------------------- many manifests


def named(name: str, *ids: str, more: str = "") -> str:
    rows = "".join(f"    - {{id: {sae_id}}}\n" for sae_id in ids)
    start, end = THEIRS.index("    - {layer: 0"), THEIRS.index("  source:")
    text = f"{THEIRS[:start]}{rows}  id: '{{id}}'\n{THEIRS[end:]}"
    text = text[: text.index("  entry:")] + more + text[text.index("\nregister:") :]
    return text.replace("gemma-res-somebody", name).replace("layer_{layer}/params.npz", "x/{id}.npz")


def test_ids_are_nobodys_folders(here: Path) -> None:
    files = write(here, a=named("one", "l0", "L0", "l0/deeper"), b=named("two", "l0", "l0/deeper/still"))
    assert [len(found.saes) for found in load(files)] == [3, 2]


def test_ids_differ_inside_a_release(here: Path) -> None:
    (found,) = complaints(here, named("one", "l0", "l1").replace("id: '{id}'", "id: same"))
    assert (found.summary, str(found.origin)) == ("Id is taken", "a.yaml:11:7")


def test_neuronpedia_ids_are_unique_whoever_says_them(here: Path) -> None:
    entry = "  entry: {neuronpedia: m/0-s}\n"
    (found,) = complaints(here, named("one", "l0", more=entry), named("two", "l0", more=entry))
    assert (found.summary, str(found.origin)) == ("Neuronpedia id is taken", "b.yaml:14:24")
    ours = changed(("layer: {first: 0, last: 25}", "layer: [0]")) + "neuronpedia: {model: m, set: s}\n"
    (found,) = complaints(here, named("one", "l0", more=entry), ours)
    assert found.summary == "Neuronpedia id is taken"
    assert "a.yaml:14:24" in found.detail
    both = changed(("  source:\n", "  entry: {neuronpedia: m/9-t}\n  source:\n"), base=ours)
    (found,) = complaints(here, both)
    assert (found.summary, str(found.origin)) == ("Two Neuronpedia ids", "a.yaml:13:24")


# ------------------------------------------------------------------------------------------------------ the plan


def test_nothing_is_looked_at_and_nothing_is_held(here: Path, tmp_path: Path) -> None:
    found = release(here, in_file(THEIRS))
    registered(here, found)
    made = planned(tmp_path, found)
    assert not any(item.held or item.steps for item in made.items)
    data: dict[str, Any] = json.loads(json.dumps(planfile.plan_json(made)))
    assert (data["releases"][0]["pinned"], data["totals"]["saes"]) == (False, 2)
    text = render.plan_text(data)
    assert "Source not pinned to a commit: gemma-res-somebody." in text
    assert "no SAE is asked for" not in text
    assert "Source not pinned to a commit: `gemma-res-somebody`." in render.markdown(data)


def test_the_plan_names_the_first_of_many(here: Path, tmp_path: Path) -> None:
    releases = load(write(here, **{f"r{number}": in_file(named(f"rel-{number}", "l0")) for number in range(14)}))
    registered(here, *releases)
    data = planfile.plan_json(planned(tmp_path, *releases))
    assert "rel-0" in render.plan_text(data)
    for said_in in (render.plan_text(data), render.markdown(data)):
        assert "and 4 more." in said_in


# ------------------------------------------------------------------------------------------------------ the loader


@pytest.mark.parametrize(
    ("format_", "loader"), [("saelens", None), ("gemma_scope", "gemma_2"), ("dictionary_learning", "dictionary_learning_1")]
)
def test_the_format_says_which_loader_of_saelens_reads_it(here: Path, format_: str, loader: str | None) -> None:
    options = {"gemma_scope": "\n    kind: sae"}.get(format_, "")
    path = "    path: layer_{layer}/params.npz\n"
    text = changed(("  conversion_func: gemma_2\n", ""), (path, f"{path}    format: {format_}{options}\n"), base=THEIRS)
    spec = release(here, text).register
    assert spec is not None
    assert spec.conversion_func == loader


def test_a_format_that_no_loader_reads_has_to_be_published_or_named(here: Path) -> None:
    path = "    path: layer_{layer}/params.npz\n"
    text = changed(("  conversion_func: gemma_2\n", ""), (path, f"{path}    format: openai\n"), base=THEIRS)
    (found,) = complaints(here, text)
    assert found.summary == "Loader is not known"
    assert "openai" in found.detail
    assert found.origin is not None


# ------------------------------------------------------------------------------------------------------- pinning


def pinned(folder: Path, text: str, everything: bool = False) -> tuple[list[str], str]:
    (path,) = write(folder, m=text)
    changes = pin(path, lambda *asked: COMMIT, everything)
    return [change.key for change in changes], path.read_text(encoding="utf-8")


def test_pin_leaves_open_what_may_be(here: Path) -> None:
    assert pinned(here, THEIRS) == ([], THEIRS)
    keys, text = pinned(here, THEIRS, everything=True)
    assert keys == ["model.revision", "saes.source.revision"]
    assert text.count(COMMIT) == 2
    assert release(here, text).saes[0].model.revision == COMMIT


def test_pin_replaces_branches_and_what_other_sections_need(here: Path) -> None:
    branch = changed(("    repo: somebody/dictionaries\n", "    repo: somebody/dictionaries\n    revision: main\n"), base=THEIRS)
    assert pinned(here, branch)[0] == ["saes.source.revision"]
    assert pinned(here, THEIRS + "publish: {huggingface: a/b}\n")[0] == ["model.revision", "saes.source.revision"]
    bare = changed(("model:\n  name: gemma-2-2b\n", "model: gemma-2-2b\n"), base=THEIRS)
    assert pinned(here, bare)[0] == ["model.revision"]
