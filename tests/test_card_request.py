"""The text of a registration's pull request: evidence first, inert, never too long, known again by the entry it is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planning import published, release, sae

from saesync.card.request import MAX_CHARACTERS, digest_in, request_body
from saesync.model import RegisterSpec, Release
from saesync.record import Record
from saesync.registry.entry import digest_of, entry_of

EVIL = "x`|<!-- saesync:entry " + "0" * 64 + " -->\u202e@everyone ![i](http://b)"


def world(ids: tuple[str, ...] = ("layer_0", "layer_1"), **changes: Any) -> tuple[Release, Record]:
    asked = release(ids=ids, register=RegisterSpec("decoderesearch/SAELens"), **changes)
    made = published(asked)
    return asked, made.at().records["res"]


def test_evidence_proof_snippet_and_how_to_reproduce() -> None:
    asked, record = world()
    body = request_body(asked, record, entry_of(asked, record))
    for said in (
        "`res`: 2 SAEs for `google/gemma-2-2b`, loaded from `acme/saes`.",
        "| `layer_0` | `blocks.0.hook_resid_post` | 0.800 ± 0.003 | 61.0 ± 0.4 | passes |",
        "### How they were measured",
        "### Proof of conversion",
        'sae = SAE.from_pretrained("res", "layer_0")',
        "stand in `saesync/res.json` of `acme/saes`",
        "`saesync apply res.yaml`",
    ):
        assert said in body


def test_it_is_known_again_by_its_entry() -> None:
    asked, record = world()
    entry = entry_of(asked, record)
    assert digest_in(request_body(asked, record, entry)) == digest_of(entry)
    assert digest_in(None) is digest_in("no mark") is digest_in(request_body(asked, record, None)) is None


def test_only_what_is_entered_is_shown() -> None:
    asked, record = world()
    body = request_body(asked, record, entry_of(asked, record, only={"layer_1"}))
    assert "layer_0" not in body
    assert "1 SAE for" in body


def test_somebody_elses_saes_show_what_was_measured() -> None:
    """Their record holds evidence and no files."""
    asked, record = world()
    theirs = replace(asked, publish=None, records=asked.publish)
    bare = Record("res", {name: replace(found, files={}) for name, found in record.saes.items()})
    body = request_body(theirs, bare, entry_of(theirs, bare, conversion_func="goodfire"))
    assert "through `goodfire`" in body
    assert "0.800 ± 0.003" in body


def test_what_was_not_measured_is_said() -> None:
    asked = replace(release(register=RegisterSpec("a/b")), publish=None, saes=(sae("res", "layer_0", None, entry={"l0": 71}),))
    body = request_body(asked, None, entry_of(asked, None))
    assert "Nothing was measured for this entry. The numbers of 1 are as their publisher states them." in body


def test_a_thousand_saes_fit_and_what_is_left_out_is_counted() -> None:
    one, made = world(("layer_0",))
    ids = tuple(f"layer_{number}" for number in range(1000))
    asked = replace(one, saes=tuple(replace(one.saes[0], id=each) for each in ids))
    record = replace(made, saes=dict.fromkeys(ids, made.saes["layer_0"]))
    body = request_body(asked, record, entry_of(asked, record))
    assert len(body) <= MAX_CHARACTERS
    assert " more, in `saesync/res.json`." in body


def test_foreign_text_is_inert() -> None:
    asked, record = world()
    entry = replace(entry_of(asked, record), model=EVIL, repo_id=EVIL, conversion_func=EVIL)
    body = request_body(replace(asked, manifest=EVIL), record, entry)
    assert digest_in(body) == digest_of(entry)
    assert body.count("<!--") == 1
    for active in ("@everyone", "](", "\u202e"):
        assert active not in body
