"""Entries: their YAML form, when two say the same, and what a manifest and its evidence make of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import evidence_of, files_of, inputs_of, release

from saesync.digest import digest_bytes
from saesync.errors import Refused
from saesync.model import WEIGHTS_FILE, PublishSpec, RegisterSpec, Release, SourceSpec
from saesync.record import Metric, Record, SaeRecord
from saesync.registry.document import Document
from saesync.registry.entry import Entry, SaeEntry, digest_of, entry_of, from_yaml, rounded, rounded_l0, same_meaning

ENTRY = Entry(
    "my-res",
    "acme/saes",
    "gemma-2-2b",
    None,
    (SaeEntry("a", "layer_0/a", 71, 0.812, "gemma-2-2b/0-res-acme"), SaeEntry("b", "layer_0/b", 9.4, None, None, 1.5)),
    {"model": "https://huggingface.co/google/gemma-2-2b"},
    {"dataset_path": "acme/text"},
)


def test_keys_stand_in_the_order_of_the_newest_entries() -> None:
    top = ENTRY.to_yaml()
    assert list(top) == ["conversion_func", "links", "model", "repo_id", "config_overrides", "saes"]
    assert top["conversion_func"] is None
    assert [list(sae) for sae in top["saes"]] == [
        ["id", "path", "l0", "neuronpedia", "variance_explained"],
        ["id", "path", "l0", "norm_scaling_factor"],
    ]
    bare = replace(ENTRY, links={}, config_overrides={}).to_yaml()
    assert list(bare) == ["conversion_func", "model", "repo_id", "saes"]


def test_every_real_entry_reads_and_says_the_same_written_anew(real: Document) -> None:
    for name, value in real.releases.items():
        entry = from_yaml(name, value)
        assert len(entry.saes) == len(value["saes"])
        assert same_meaning(entry, from_yaml(name, entry.to_yaml()))
    digests = {digest_of(from_yaml(name, value)) for name, value in real.releases.items()}
    assert len(digests) == len(real.releases)
    ints = from_yaml("x", real.releases["mntss-gemma-2-2b-2.5m-clt-as-per-layer"])
    assert ints.saes[3].path == "3"


def test_order_and_kind_of_number_do_not_count() -> None:
    turned = replace(ENTRY, saes=(ENTRY.saes[1], replace(ENTRY.saes[0], l0=71.0)))
    assert same_meaning(ENTRY, turned)
    assert digest_of(ENTRY) == digest_of(turned)


@pytest.mark.parametrize(
    "changes",
    [
        {"repo_id": "acme/other"},
        {"model": "other"},
        {"conversion_func": "gemma_2"},
        {"links": {}},
        {"config_overrides": {"dataset_path": True}},
        {"saes": ENTRY.saes[:1]},
        {"saes": (replace(ENTRY.saes[0], l0=72), ENTRY.saes[1])},
        {"saes": (replace(ENTRY.saes[0], neuronpedia=None), ENTRY.saes[1])},
        {"saes": (replace(ENTRY.saes[0], path="layer_0/c"), ENTRY.saes[1])},
    ],
)
def test_everything_else_counts(changes: dict[str, Any]) -> None:
    other = replace(ENTRY, **changes)
    assert not same_meaning(ENTRY, other)
    assert digest_of(ENTRY) != digest_of(other)


def test_true_is_not_one() -> None:
    one, true = (replace(ENTRY, config_overrides={"fold_ln": value}) for value in (1, True))
    assert not same_meaning(one, true)
    assert digest_of(one) != digest_of(true)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=4,
)
KEYS = st.sampled_from(["conversion_func", "links", "model", "repo_id", "config_overrides", "saes", "x"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, JSON | st.lists(st.dictionaries(st.sampled_from(["id", "path", "l0", "neuronpedia"]), JSON))))
def test_anything_is_an_entry_or_refused(value: Any) -> None:
    try:
        entry = from_yaml("r", value)
    except Refused:
        return
    assert same_meaning(entry, from_yaml("r", entry.to_yaml()))
    assert len(digest_of(entry)) == 64


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "the entry is not a mapping"),
        ({"repo_id": "a/b", "model": "m"}, "it has no list `saes`"),
        ({"repo_id": "a/b", "saes": []}, "model is missing"),
        ({"repo_id": 3, "model": "m", "saes": []}, "repo_id is not a text"),
        ({"repo_id": "a/b", "model": "m", "saes": [{"id": "x"}]}, "the path of x is missing"),
        ({"repo_id": "a/b", "model": "m", "saes": [{"id": "x", "path": True}]}, "the path of x is not a text"),
        ({"repo_id": "a/b", "model": "m", "saes": [{"id": "x", "path": "p", "l0": float("nan")}]}, "l0 of x is not a number"),
        ({"repo_id": "a/b", "model": "m", "saes": [3]}, "SAE 1 is not a mapping"),
    ],
)
def test_what_is_no_entry_is_named(value: Any, said: str) -> None:
    with pytest.raises(Refused) as caught:
        from_yaml("my-res", value)
    assert f"my-res: {said}" in caught.value.diagnostics[0].detail


# ------------------------------------------------------------------------------------- from manifest and evidence


def recorded(asked: Release, ev: float = 0.81234, **metrics: float) -> Record:
    found = {}
    for sae in asked.saes:
        inputs = inputs_of(sae)
        files = files_of(inputs)
        evidence = evidence_of(inputs, files, ev, **metrics)
        found[sae.id] = SaeRecord(inputs.weights_key, inputs.build_key, files, evidence=(evidence,))
    return Record(asked.name, found)


def test_a_published_release_is_entered_with_what_was_measured() -> None:
    asked = release(ids=("layer_0", "layer_1"))
    saes = tuple(replace(sae, neuronpedia_id=f"gemma-2-2b/{n}-res", entry={"l0": 5}) for n, sae in enumerate(asked.saes))
    asked = replace(asked, saes=saes, register=RegisterSpec("a/b", model="gemma-2-2b", links={"x": "https://y"}))
    entry = entry_of(asked, recorded(asked, l0=61.4))
    assert entry == Entry(
        "res", "acme/saes", "gemma-2-2b", None,
        (
            SaeEntry("layer_0", "layer_0", 61, 0.812, "gemma-2-2b/0-res"),
            SaeEntry("layer_1", "layer_1", 61, 0.812, "gemma-2-2b/1-res"),
        ),
        {"x": "https://y"},
    )  # fmt: skip
    assert [sae.id for sae in entry_of(asked, recorded(asked), only={"layer_1"}).saes] == ["layer_1"]


def test_without_a_word_the_model_is_the_manifests() -> None:
    assert entry_of(release(), None).model == "google/gemma-2-2b"
    assert entry_of(release(), None, conversion_func="gemma_2").conversion_func is None, "what we publish is SAELens's own"


@pytest.mark.parametrize(("l0", "said"), [(61.5, 62), (10.0, 10), (9.96, 10), (9.44, 9.4), (3.0, 3.0), (0.02, 0.02), (0.0, 0.0)])
def test_l0_is_rounded_as_people_do(l0: float, said: float) -> None:
    assert rounded_l0(l0) == said
    assert isinstance(rounded_l0(l0), int) is (said >= 10)


@pytest.mark.parametrize(("variance", "said"), [(0.81234, 0.812), (0.9996, 0.9996), (1.0, 1.0), (-0.0001, 0.0)])
def test_nearly_all_variance_is_not_what_stands_for_unknown(variance: float, said: float) -> None:
    assert rounded(variance, 3, unknown=1.0) == said


def test_numbers_of_other_bytes_do_not_count() -> None:
    asked = release()
    asked = replace(asked, saes=(replace(asked.saes[0], entry={"l0": 5, "variance_explained": 0.5}),))
    record = recorded(asked)
    known = record.saes["layer_0"]
    other = replace(known, files={**known.files, WEIGHTS_FILE: digest_bytes(b"other")})
    assert entry_of(asked, Record("res", {"layer_0": other})).saes[0].l0 == 5
    assert entry_of(asked, record).saes[0].l0 == 61
    assert entry_of(asked, None).saes[0].variance_explained == 0.5


def test_a_metric_that_was_not_measured_is_the_declared_one() -> None:
    asked = release()
    asked = replace(asked, saes=(replace(asked.saes[0], entry={"l0": 5}),))
    record = recorded(asked)
    known = record.saes["layer_0"]
    only_ev = replace(known.evidence[0], metrics={"explained_variance": Metric(0.7)})
    sae = entry_of(asked, Record("res", {"layer_0": replace(known, evidence=(only_ev,))})).saes[0]
    assert (sae.l0, sae.variance_explained) == (5, 0.7)


def test_a_scale_that_is_not_folded_needs_its_factor() -> None:
    asked = release()
    scaled = replace(asked.saes[0], cfg={"normalize_activations": "expected_average_only_in"})
    with pytest.raises(Refused, match="Needs a declared factor"):
        entry_of(replace(asked, saes=(scaled,)), None)
    told = replace(scaled, entry={"norm_scaling_factor": 0.3})
    assert entry_of(replace(asked, saes=(told,)), None).saes[0].norm_scaling_factor == 0.3
    folded = replace(asked.saes[0], entry={"norm_scaling_factor": 0.3})
    assert entry_of(replace(asked, saes=(folded,)), None).saes[0].norm_scaling_factor is None


def foreign(*sources: tuple[str | None, str], **options: Any) -> Release:
    ids = tuple(f"layer_{n}" for n in range(len(sources)))
    asked = replace(release(ids=ids), publish=None)
    pairs = zip(asked.saes, sources, strict=True)
    return replace(asked, saes=tuple(replace(s, source=SourceSpec(r, None, p, "goodfire", options)) for s, (r, p) in pairs))


def test_somebody_elses_weights_stand_where_they_are() -> None:
    asked = foreign(("org/raw", "sae/ae.pt"), ("org/raw", ""), norm_scaling_factor=2.0)
    asked = replace(asked, saes=tuple(replace(sae, entry={"l0": 7.5, "neuronpedia": "m/1-x"}) for sae in asked.saes))
    entry = entry_of(asked, None, conversion_func="goodfire")
    assert (entry.repo_id, entry.conversion_func) == ("org/raw", "goodfire")
    assert entry.saes[0] == SaeEntry("layer_0", "sae/ae.pt", 7.5, None, "m/1-x", 2.0)
    assert entry.saes[1].path == ".", "SAELens takes . for the root of a repo, and nothing else"
    said = replace(asked, register=RegisterSpec("a/b", conversion_func="deepseek_r1"))
    assert entry_of(said, None, conversion_func="goodfire").conversion_func == "deepseek_r1"


def test_measured_numbers_go_before_declared_ones_there_too() -> None:
    asked = foreign(("org/raw", "sae/ae.pt"))
    asked = replace(asked, saes=(replace(asked.saes[0], entry={"l0": 7.5}),))
    assert entry_of(asked, recorded(asked, l0=33.3)).saes[0].l0 == 33
    known = recorded(asked, l0=33.3).saes["layer_0"]
    assert entry_of(asked, Record("res", {"layer_0": replace(known, files={})})).saes[0].l0 == 33


@pytest.mark.parametrize(
    ("asked", "summary", "said"),
    [
        (foreign(("org/a", "x"), ("org/b", "x")), "Several repositories", "org/a, org/b"),
        (foreign(*((f"org/{n}", "x") for n in range(5))), "Several repositories", "org/0, org/1, org/2 and 2 more"),
        (foreign((None, "/tmp/x")), "Not on the Hub", "res/layer_0 has no source on the Hub"),
        (replace(release(), publish=PublishSpec("local", "/srv/saes")), "Not on the Hub", "published to a folder"),
        (replace(release(), saes=()), "Nothing to register", "no SAE"),
    ],
)
def test_what_cannot_be_entered_is_said(asked: Release, summary: str, said: str) -> None:
    with pytest.raises(Refused) as caught:
        entry_of(asked, None)
    assert caught.value.diagnostics[0].summary == summary
    assert said in caught.value.diagnostics[0].detail
