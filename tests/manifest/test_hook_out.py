"""``hook_out``: a transcoder's second hook, from the manifest to metadata and keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from manifest_support import changed, complaints, release

from saesync.model import Sae
from saesync.resolve import metadata_for

HOOK = "  hook: blocks.{layer}.hook_resid_post\n"
BOTH = "  hook: blocks.{layer}.ln2.hook_normalized\n  hook_out: blocks.{layer}.hook_mlp_out\n"


def asked(folder: Path) -> Sae:
    return release(folder, changed((HOOK, BOTH))).saes[7]


def test_it_is_filled_and_keeps_its_place(here: Path) -> None:
    sae = asked(here)
    assert (sae.hook, sae.hook_out) == ("blocks.7.ln2.hook_normalized", "blocks.7.hook_mlp_out")
    assert sae.origins["hook_out"].line == sae.origins["hook"].line + 1
    assert not sae.entry


def test_it_becomes_metadata(here: Path) -> None:
    said = metadata_for(asked(here), "gpt2")
    assert said["hook_name_out"] == "blocks.7.hook_mlp_out"
    assert said["hf_hook_name_out"] == "transformer.h.7.mlp"
    assert "hf_hook_name" not in said  # no module gives the value inside the norm
    plain = metadata_for(replace(asked(here), hook_out=None), "gpt2")
    assert not {"hook_name_out", "hf_hook_name_out"} & set(plain)


def test_no_module_of_the_hugging_face_model_gives_what_centred_weights_write(here: Path) -> None:
    sae = asked(here)
    centred = replace(sae, hook="blocks.7.hook_resid_pre", model=replace(sae.model, kwargs={"center_writing_weights": True}))
    said = metadata_for(centred, "gpt2")
    assert (said["hf_hook_name"], said["hf_hook_name_out"]) == (None, None)  # removes what was published before
    folded = replace(centred, model=replace(sae.model, kwargs={"center_writing_weights": False, "fold_ln": True}))
    assert metadata_for(folded, "gpt2")["hf_hook_name"] == "transformer.h.6"


@pytest.mark.parametrize("wrong", ["'blocks 0'", "7", "''"])
def test_it_must_be_a_hooks_name(here: Path, wrong: str) -> None:
    (found, *_) = complaints(here, changed((HOOK, HOOK + f"  hook_out: {wrong}\n")))
    assert found.origin is not None
    assert found.origin.line == 13
