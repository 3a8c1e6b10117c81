"""The model card: front matter, blocks, and text that must stay harmless."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import BOUND, HUB, SPEC, entry_of, golden, inputs_of, release, sae

from saesync.card import blocks, card_digest, frontmatter, make_card
from saesync.card.lines import rewritten
from saesync.model import ModelSpec, PublishSpec, Release, Requirement
from saesync.record import Metric, Record

SCORE = Requirement("ce_loss_score", "min", 0.95)


def record_of(one: Release, ev: float = 0.8) -> Record:
    return Record(one.name, {which.id: entry_of(inputs_of(which), ev) for which in one.saes})


def card_of(one: Release, existing: str | None = None) -> str:
    return make_card(one, record_of(one), existing)[0]


# --------------------------------------------------------------------------------------------------- a whole card


def test_a_whole_card() -> None:
    one = release(ids=["layer_0", "layer_1"])
    strict = replace(sae(sae_id="layer_1"), validate=replace(SPEC, require=(replace(BOUND, bound=0.9),)))
    golden("card.md", card_of(replace(one, saes=(one.saes[0], strict))))


def test_the_hub_client_reads_the_front_matter() -> None:
    data = ModelCard(card_of(release())).data
    assert (data.library_name, data.license) == ("saelens", "mit")
    assert data.base_model == ["google/gemma-2-2b"]
    assert data.datasets == ["monology/pile-uncopyrighted"]
    assert {"sparse-autoencoder", "saelens"} <= set(data.tags or ())


def test_local_names_are_not_given_to_the_hub() -> None:
    one = release(saes=(sae(model=ModelSpec(None, "/home/me/model", None)),))
    assert "base_model" not in card_of(one).split("---")[1]


def test_the_snippet_is_python_that_loads_it() -> None:
    for target, call in (
        ("huggingface", 'SAE.from_pretrained("acme/saes", "layer_0")'),
        ("local", 'SAE.load_from_disk("layer_0")'),
    ):
        text = card_of(release(publish=PublishSpec(target, "acme/saes")))
        snippet = text.split("```python\n")[1].split("```")[0]
        assert call in snippet
        compile(snippet, "card", "exec")


@pytest.mark.parametrize("sae_id", ["layer_0", 'a"b/[x]*', "it's {here}"])
def test_the_pinned_snippet_fetches_the_tag_and_that_sae_alone(sae_id: str) -> None:
    one = release(ids=["layer_0"])
    record = Record("res", {sae_id: entry_of(inputs_of(one.saes[0])), "z": entry_of(inputs_of(one.saes[0]))})
    text = make_card(one, record, None, "saesync-res-4be14be1")[0]
    assert "```python" in make_card(one, record, None)[0]
    assert "snapshot_download" not in make_card(one, record, None)[0]
    plain, pinned = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    assert "from_pretrained" in plain
    asked: dict[str, object] = {}

    class Loader:
        @staticmethod
        def load_from_disk(path: str) -> None:
            asked["path"] = path

    def snapshot_download(repo: str, **more: str) -> str:
        asked.update(more, repo=repo)
        return "/tmp/snapshot"

    lines = [line for line in pinned.splitlines() if not line.startswith("from ")]
    exec(compile("\n".join(lines), "card", "exec"), {"SAE": Loader, "snapshot_download": snapshot_download})
    pattern = asked.pop("allow_patterns")
    assert asked == {"repo": HUB, "revision": "saesync-res-4be14be1", "path": f"/tmp/snapshot/{sae_id}"}
    names = [f"{sae_id}/cfg.json", "z/cfg.json", "README.md"]
    assert list(filter_repo_objects(names, allow_patterns=str(pattern))) == names[:1]


def test_the_digest_knows_the_tag() -> None:
    one, record = release(), record_of(release())
    digests = {card_digest(one, record), card_digest(one, record, "saesync-res-1"), card_digest(one, record, "saesync-res-2")}
    assert len(digests) == 3
    assert make_card(one, record, None, "saesync-res-1")[1] == card_digest(one, record, "saesync-res-1")


def test_nothing_measured_is_said() -> None:
    one = release(saes=(sae(validate=None),))
    text = card_of(one)
    assert "Nothing was measured" in text
    assert "not measured" in text


def test_a_score_that_says_nothing_is_called_so() -> None:
    one = release("res", ids=["a"])
    one = replace(one, saes=tuple(replace(each, validate=replace(SPEC, require=(SCORE,))) for each in one.saes))
    record = record_of(one)
    losses = {"ce_loss_without_sae": 5.0, "ce_loss_with_ablation": 4.9, "ce_loss_score": 11.0}
    (entry,) = record.saes.values()
    evidence = replace(entry.evidence[0], metrics={name: Metric(value) for name, value in losses.items()})
    record = replace(record, saes={"a": replace(entry, evidence=(evidence,))})
    said = make_card(one, record, None)[0]
    assert "| 11 | fails: ce_loss_score says nothing where the loss is no worse with the hook set to zero |" in said


def test_a_transcoder_names_both_hooks() -> None:
    one, other = (release(saes=(sae(hook_out=hook),)) for hook in (None, "blocks.0.hook_mlp_out"))
    assert "`blocks.0.hook_resid_post` to `blocks.0.hook_mlp_out`" in card_of(other)
    assert card_digest(one, record_of(one)) != card_digest(other, record_of(other))


def test_digest_follows_what_the_card_says_and_nothing_else() -> None:
    one = release()
    record = record_of(one)
    entry = record.saes["layer_0"]
    before = card_digest(one, record)
    assert make_card(one, record, "# by hand")[1] == before
    assert card_digest(one, replace(record, card="0" * 64)) == before
    assert card_digest(one, record.merged({"layer_0": replace(entry, run={"seconds": 7})})) == before
    assert card_digest(replace(one, publish=PublishSpec("huggingface", "acme/saes", "other")), record) != before
    assert card_digest(one, record_of(one, ev=0.81)) != before
    assert card_digest(replace(one, saes=(sae(validate=replace(SPEC, require=())),)), record) != before
    assert card_digest(one, record.merged({"layer_0": replace(entry, proof={"max_difference": 1.0})})) != before


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (
            ["layer_0"],
            "1 of 1 sparse autoencoder was compared with",
        ),
        (["layer_0", "layer_1"], "2 of 2 sparse autoencoders were compared with"),
    ],
)
def test_one_is_not_many(ids: list[str], says: str) -> None:
    one = release(ids=ids)
    record = record_of(one)
    taken = replace(record, saes={name: replace(entry, adopted=True) for name, entry in record.saes.items()})
    text = make_card(one, taken, None)[0]
    kept = "1 keeps the bytes it was found with" if len(ids) == 1 else "2 keep the bytes they were found with"
    assert says in text
    assert kept in text


# ------------------------------------------------------------------------------------------------------- the blocks


def test_written_again_it_is_the_same() -> None:
    one = release()
    text = card_of(one)
    assert card_of(one, text) == text


def test_hand_written_text_is_kept_byte_for_byte() -> None:
    before, after = "# My SAEs\r\n\r\nTrained with love.  \r\n\r\n", "\r\n\n<!-- a comment -->\n<b>more</b>\n\n\n"
    first = card_of(release(), before)
    assert first.endswith(f"---\n{before}\n{blocks.begin('res')}" + first.split(blocks.begin("res"))[1])
    changed = make_card(release(), record_of(release(), ev=0.9), first + after)[0]
    assert before in changed
    assert changed.endswith(blocks.end("res") + "\n" + after)
    assert "0.9" in changed


def test_releases_share_a_readme() -> None:
    one, two = release("res"), release("mlp", ["layer_1"])
    text = card_of(two, card_of(one))
    assert card_of(one, text) == text
    assert card_of(two, text) == text
    assert text.index(blocks.begin("res")) < text.index(blocks.end("res")) < text.index(blocks.begin("mlp"))
    other = release("mlp", saes=(replace(two.saes[0], model=ModelSpec("openai-community/gpt2", None, "e" * 40)),))
    both = yaml.safe_load(card_of(other, card_of(one)).split("---")[1])
    assert both["base_model"] == ["google/gemma-2-2b", "openai-community/gpt2"]


def test_a_retired_release_leaves_what_others_wrote() -> None:
    one, two = release("res"), release("mlp", ["layer_1"])
    text = card_of(two, card_of(one, "# hello\n"))
    left = make_card(two, Record("mlp"), text)[0]
    assert blocks.begin("mlp") not in left
    assert left.rstrip() == card_of(one, "# hello\n").rstrip()
    bare = make_card(one, Record("res"), left)[0]
    assert bare.rstrip().endswith("# hello")
    assert "base_model" not in bare


@pytest.mark.parametrize(
    "body",
    [
        "<!-- saesync:begin res -->\nmine\n",
        "mine\n<!-- saesync:end res -->\n",
        "<!-- saesync:end res -->\nmine\n<!-- saesync:begin res -->\n",
        "<!-- saesync:begin res -->\na\n<!-- saesync:begin res -->\nmine\n<!-- saesync:end res -->\n",
        "<!-- saesync:begin res -->\na\n<!-- saesync:begin mlp -->\nmine\n<!-- saesync:end res -->\n<!-- saesync:end mlp -->\n",
    ],
)
def test_damaged_markers_lose_no_text_and_heal(body: str) -> None:
    text = card_of(release(), body)
    assert "mine" in text
    assert text.count(blocks.begin("res")) == text.count(blocks.end("res")) == 1
    assert card_of(release(), text) == text


# ---------------------------------------------------------------------------------------------------- front matter


def test_front_matter_written_by_hand_is_kept() -> None:
    front = "# by hand\nlanguage: en   # really\ntags:\n- mine\nlicense: apache-2.0\n# last\nmodel-index:\n- name: x\n"
    text = card_of(release(), f"---\n{front}---\nbody\n")
    lines = text.split("\n")
    assert lines[1:3] == ["# by hand", "language: en   # really"]
    assert "# last" in lines
    data = yaml.safe_load(text.split("---")[1])
    assert data["tags"] == ["mine", "sparse-autoencoder", "saelens", "saesync"]
    assert data["license"] == "mit"  # the manifest asks for it
    assert data["model-index"] == [{"name": "x"}]
    quiet = card_of(release(publish=PublishSpec("huggingface", "acme/saes")), f"---\n{front}---\nbody\n")
    assert yaml.safe_load(quiet.split("---")[1])["license"] == "apache-2.0"


_COMMENTED = """\
license: apache-2.0   # agreed with legal
library_name: "transformers" # the model beside it
tags: [ "mine",   'my own' ]  # for the search
datasets:
  # what it was trained on
  - "mine/data"   # ours
pipeline_tag: feature-extraction
"""


def test_only_the_value_that_the_manifest_says_is_changed_in_a_line() -> None:
    text = card_of(release(), f"---\n{_COMMENTED}---\nbody\n")
    lines = text.split("---\n")[1].splitlines()
    assert lines == [
        "license: mit   # agreed with legal",
        'library_name: "transformers" # the model beside it',
        "tags: [ \"mine\",   'my own', sparse-autoencoder, saelens, saesync ]  # for the search",
        "datasets:",
        "  # what it was trained on",
        '  - "mine/data"   # ours',
        "  - monology/pile-uncopyrighted",
        "pipeline_tag: feature-extraction",
        "base_model:",
        "- google/gemma-2-2b",
    ]
    silent = release(publish=PublishSpec("huggingface", "acme/saes"))
    assert "license: apache-2.0   # agreed with legal\n" in card_of(silent, f"---\n{_COMMENTED}---\nbody\n")


@pytest.mark.parametrize(
    "front", [_COMMENTED, "license: apache-2.0\n", "tags:\n- mine\nlicense: |\n  other\n", "# nothing yet\n"]
)
def test_a_readme_of_a_windows_editor_is_edited_as_any_other(front: str) -> None:
    by_hand = f"---\n{front}---\nbody\n"
    text = card_of(release(), by_hand.replace("\n", "\r\n"))
    head = text[: text.index("body")]
    assert head.count("\n") == head.count("\r\n") > 5
    assert head.replace("\r\n", "\n") == card_of(release(), by_hand).partition("body")[0]
    assert card_of(release(), text) == text
    data = yaml.safe_load(head.split("---")[1])
    assert (data["license"], data["base_model"]) == ("mit", ["google/gemma-2-2b"])
    silent = release(publish=PublishSpec("huggingface", "acme/saes"))
    gone = make_card(silent, Record("res"), text)[0]
    assert gone[: gone.index("body")].count("\n") == gone[: gone.index("body")].count("\r\n")


def test_a_license_that_the_manifest_no_longer_says_goes_and_one_written_by_hand_stays() -> None:
    silent = release(publish=PublishSpec("huggingface", "acme/saes"))
    assert "license" not in card_of(silent, card_of(silent, card_of(release()))).split("---")[1]
    by_hand = "---\nlicense: mit   # agreed with legal\n---\nbody\n"
    assert "license: mit   # agreed with legal\n" in card_of(silent, card_of(release(), card_of(release(), by_hand)))
    edited = card_of(release()).replace("license: mit", "license: apache-2.0")
    assert "license: apache-2.0\n" in card_of(silent, edited)
    other = release("other", ids=["x"])  # asks for the same license in the same README
    both = card_of(other, card_of(release()))
    assert "license: mit\n" in card_of(silent, both)
    gone = card_of(replace(other, publish=silent.publish), card_of(silent, both))
    assert "license" not in gone.split("---")[1]


def test_what_a_release_put_in_goes_again_and_what_stood_beside_it_stays() -> None:
    bare = release(saes=(sae(validate=None),))
    text = card_of(bare, card_of(release(), f"---\n{_COMMENTED}---\nbody\n"))
    assert '  # what it was trained on\n  - "mine/data"   # ours\npipeline_tag' in text
    gone = make_card(bare, Record("res"), text)[0].split("---\n")[1]
    assert gone == _COMMENTED.replace("apache-2.0", "mit").replace("""[ "mine",   'my own' ]""", """["mine", 'my own']""")


@pytest.mark.parametrize(
    ("front", "value", "edited"),
    [
        ("tags:  # none yet", ["a"], "tags:  # none yet\n- a"),
        ("tags: ~  # none yet", ["a"], "tags: [a]  # none yet"),
        ("tags: mine  # one", ["mine", "a"], "tags: [mine, a]  # one"),
        ("tags: a, b  # one", ["a, b", "c"], "tags:\n- a, b\n- c"),
        ("tags: []  # none yet", ["a"], "tags: [a]  # none yet"),
        ("tags: [a, # first\n  b]  # all", ["a", "b", "c"], "tags: [a, # first\n  b, c]  # all"),
        ("tags:\n- a # one\n# two\n- b", ["b", "c"], "tags:\n# two\n- b\n- c"),
        ("tags:\r\n- a # one\r", ["a", "c"], "tags:\r\n- a # one\r\n- c\r"),
        ("tags:\n- 1 # a number", ["1", "c"], "tags:\n- 1 # a number\n- c"),
        ("tags: [1, b]  # numbers", ["1", "b", "yes"], "tags: [1, b, 'yes']  # numbers"),
        ("license:  # which?", "mit", "license: mit  # which?"),
        ("license: [a, b]  # which?", "mit", "license: mit  # which?"),
        ("license: # which?\n- a # one\n# two\n- b", "mit", "license: mit # which?\n# two"),
        ("license: |\n  other\n", "mit", "license: mit"),
        ("license: 'a\n  b'  # odd\r", "mit", "license: mit  # odd\r"),
    ],
)
def test_a_key_is_edited_where_it_stands(front: str, value: str | list[str], edited: str) -> None:
    name = front.partition(":")[0]
    assert "\n".join(rewritten(front.split("\n"), name, value)).rstrip("\n") == edited


def test_what_a_release_does_not_use_any_more_leaves_the_front_matter() -> None:
    text = card_of(release(), "---\nbase_model: mine/model\n---\n")
    other = release(saes=(sae(model=ModelSpec("openai-community/gpt2", None, "e" * 40)),))
    data = yaml.safe_load(card_of(other, text).split("---")[1])
    assert data["base_model"] == ["mine/model", "openai-community/gpt2"]


@pytest.mark.parametrize(
    "front",
    [
        "tags: [a",
        "{tags: [a]}",
        "- a list",
        "tags: [a]\ntags: [b]",
        "tags: {a: b}",
        "license: [a, {b: c}]",
        "tags: &t [a]\nother: *t",
        "a: 1\r b: 2",
        "a: 1\u2028b: 2\nlicense: other",
        "a: " + "[" * 5000,
    ],
)
def test_front_matter_that_cannot_be_edited_is_left_alone(front: str) -> None:
    text = card_of(release(), f"---\n{front}\n---\nbody\n")
    assert text.startswith(f"---\n{front}\n---\nbody\n")
    assert blocks.begin("res") in text


def test_a_line_of_dashes_is_no_front_matter() -> None:
    text = card_of(release(), "hello\n\n---\n\nworld\n")
    assert "hello\n\n---\n\nworld\n" in text
    assert text.startswith("---\nlibrary_name: saelens\n")


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab-:\n[]{}#&*!| '\"\t\r\u2028<>"), max_size=60), st.text(max_size=20))
def test_no_readme_loses_text_or_stops_us(front: str, body: str) -> None:
    one = release()
    text = card_of(one, f"---\n{front}\n---\n{body}")
    assert body in text
    assert card_of(one, text) == text


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["tags", "license", "language", "x"]), st.text(max_size=8) | st.lists(st.text(max_size=5)))
)
def test_edited_front_matter_holds_what_stood_there(data: dict[str, object]) -> None:
    front = yaml.safe_dump(data, allow_unicode=True).rstrip("\n") if data else ""
    merged = frontmatter.merge(front, {"library_name": "saelens"}, {"tags": ["saelens"]}, {})
    if merged is None:
        return
    found = yaml.safe_load(merged)
    assert found["library_name"] == "saelens"
    assert "saelens" in found["tags"]
    assert {name: found[name] for name in data if name != "tags"} == {
        name: value for name, value in data.items() if name != "tags"
    }


# --------------------------------------------------------------------------------------------------------- inertness


def test_records_cannot_write_into_the_card() -> None:
    one = release()
    record = record_of(one)
    evil = "x|y`z\n<!-- saesync:end res --><img src=x>\u202e@everyone [a](http://b)"
    entry = record.saes["layer_0"]
    evidence = replace(entry.evidence[0], inputs={evil: evil, "hook": evil}, about={evil: evil})
    dirty = replace(entry, proof={f"max {evil}": 1.0}, evidence=(evidence,))
    text = make_card(replace(one, saes=()), record.merged({"layer_0": dirty}), None)[0]
    body = text.split(blocks.begin("res"))[1]
    assert body.count(blocks.end("res")) == 1
    assert "<img" not in text
    assert "\u202e" not in text
    assert "@everyone" not in text
    assert "](http" not in text
    row = next(line for line in text.split("\n") if line.startswith("| `layer_0`"))
    assert row.count("|") == text.split("\n")[text.split("\n").index(row) - 1].count("|")


def test_names_that_could_end_a_comment() -> None:
    name = "x --> <script>"
    body = blocks.put("hello\n", name, "block")
    assert "<script>" not in body
    assert blocks.find(body, name) is not None
    assert blocks.put(body, name, None).strip() == "hello"


def test_how_something_was_measured_is_a_sentence() -> None:
    from saesync.card.how import how_measured

    inputs = {
        "validate.dataset.repo": "monology/pile-uncopyrighted",
        "validate.dataset.revision": "3be90335b66f24456a5d6659d9c8d208c0357119",
        "validate.context": 1024,
        "validate.prepend_bos": True,
        "model.digest": "94e94a786aa715563f993ec730882e4963bddd69b4b61b55351eaf113b827f68",
        "model.loader": "TransformerBridge",
        "model.dtype": "float32",
    }
    about = {"tokens": 204800, "sequences": 200, "device": "cuda:0", "torch": "2.13.0+cpu", "sae_lens": "6.54.12"}
    assert how_measured(inputs, about, None) == (
        "204,800 tokens of `monology/pile-uncopyrighted` at `3be90335` (200 sequences of 1,024, BOS first); model content "
        "`94e94a78` through TransformerBridge in float32, on cuda:0; torch 2.13.0+cpu, sae_lens 6.54.12."
    )


def test_how_something_was_measured_cannot_act() -> None:
    from saesync.card.how import how_measured

    bad = "x | <b> --> `@everyone`"
    text = how_measured({"validate.dataset.repo": bad, "model.loader": bad}, {"device": bad, "torch": bad}, None)
    assert not any(mark in text for mark in ("<b>", "-->", "| ", "@everyone`"))


def test_large_front_matter_takes_little_time() -> None:
    front = "\n".join(f"k{number}: 1" for number in range(20_000))
    began = time.process_time()
    text = card_of(release(), f"---\n{front}\n---\nhello\n")
    assert time.process_time() - began < 8
    assert front in text


def test_a_folder_may_be_moved_without_its_card_being_stale() -> None:
    here = replace(release(), publish=PublishSpec("local", "/here", "mit"))
    there = replace(here, publish=PublishSpec("local", "/there", "mit"))
    assert card_digest(here, Record("res")) == card_digest(there, Record("res"))
    hub, other = (replace(here, publish=PublishSpec("huggingface", name, "mit")) for name in ("acme/a", "acme/b"))
    assert card_digest(hub, Record("res")) != card_digest(other, Record("res"))
