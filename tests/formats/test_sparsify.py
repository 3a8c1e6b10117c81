"""sparsify: what SAELens's own loader reads wrongly, and what SAELens cannot express."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import HOOK, convert, edit_cfg, refused, source_files
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.errors import Refused
from saesync.formats.base import Candidate
from saesync.formats.sparsify import _place
from saesync.inspection import inspect_local

CHOSEN = formats.get("sparsify")


def source(folder: Path, variant: str = "topk", drop: tuple[str, ...] = (), **config: Any) -> Path:
    """An example whose cfg.json says ``config`` beside or instead, without ``drop``."""
    CHOSEN.example(folder, 3, variant)
    return edit_cfg(folder, drop, **config)


def edited(folder: Path, drop: tuple[str, ...] = (), **tensors: torch.Tensor) -> Path:
    path = folder / "sae.safetensors"
    state = load_file(path) | tensors
    save_file({name: value.contiguous() for name, value in state.items() if name not in drop}, path)
    return folder


def cfg_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "cfg.json").read_text())
    return found


def sniffed(folder: Path) -> Candidate:
    (found,) = inspect_local(folder).saes
    return next(candidate for candidate in found.candidates if candidate.format == "sparsify")


def test_the_decoder_is_kept_as_stored_and_the_encoder_transposed(tmp_path: Path) -> None:
    """SAELens's loader transposes both, which fails, or is wrong without a word where the matrix is square."""
    convert("sparsify", source(tmp_path / "source"), tmp_path / "out")
    stored, written = load_file(tmp_path / "source" / "sae.safetensors"), load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert torch.equal(written["W_dec"], stored["W_dec"])
    assert torch.equal(written["W_enc"], stored["encoder.weight"].T)


def test_a_square_one_is_not_turned(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", expansion_factor=1, k=4)
    generator = torch.Generator().manual_seed(1)
    square = {name: torch.randn(12, 12, generator=generator) for name in ("encoder.weight", "W_dec")}
    edited(folder, **square, **{"encoder.bias": torch.randn(12, generator=generator)})
    convert("sparsify", folder, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "sae_weights.safetensors")["W_dec"], square["W_dec"])


@pytest.mark.parametrize("normalize", [True, False])
def test_b_dec_is_subtracted_whatever_normalize_decoder_says(normalize: bool, tmp_path: Path) -> None:
    """SAELens's loader derives one from the other."""
    proof = convert("sparsify", source(tmp_path / "source", normalize_decoder=normalize), tmp_path / "out")
    assert cfg_of(tmp_path / "out")["apply_b_dec_to_input"] is True
    assert proof["max_reconstruction_diff"] < 1e-13


@pytest.mark.parametrize(
    ("drop", "config"),
    [((), {"num_latents": 48}), (("num_latents",), {}), ((), {"num_latents": 0}), ((), {"expansion_factor": 4.0})],
)
def test_the_width(drop: tuple[str, ...], config: dict[str, Any], tmp_path: Path) -> None:
    """``num_latents: 0`` is not a width of 0, as SAELens's loader has it."""
    convert("sparsify", source(tmp_path / "source", drop=drop, **config), tmp_path / "out")
    assert cfg_of(tmp_path / "out")["d_sae"] == 48


def test_an_old_config_without_todays_settings(tmp_path: Path) -> None:
    drop = ("activation", "skip_connection", "transcode", "multi_topk")
    convert("sparsify", source(tmp_path / "source", drop=drop), tmp_path / "out")
    assert cfg_of(tmp_path / "out")["architecture"] == "topk"


def test_signed_latents_keep_their_sign(tmp_path: Path) -> None:
    """SAELens's loader drops the setting, and with it every negative latent."""
    from sae_lens import SAE

    convert("sparsify", source(tmp_path / "source", "signed"), tmp_path / "out", metadata={"hook_name": HOOK})
    assert cfg_of(tmp_path / "out")["architecture"] == "abstopk"
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    features = SAE.load_from_disk(tmp_path / "out").encode(x)
    assert bool((features < 0).any())
    assert ((features != 0).sum(dim=1) == 6).all()


@pytest.mark.parametrize(
    ("variant", "architecture"),
    [("transcoder", "transcoder"), ("skip transcoder", "skip_transcoder"), ("skip", "skip_transcoder")],
)
def test_where_k_chooses_nothing_transcoders_can_be_expressed(variant: str, architecture: str, tmp_path: Path) -> None:
    source(tmp_path / "source", variant)
    metadata = {"hook_name": "blocks.0.mlp.hook_in", "hook_name_out": "blocks.0.hook_mlp_out"}
    proof = convert("sparsify", tmp_path / "source", tmp_path / "out", metadata=metadata)
    assert cfg_of(tmp_path / "out")["architecture"] == architecture
    assert proof["max_reconstruction_diff"] < 1e-13


@pytest.mark.parametrize(
    ("variant", "config", "summary", "word"),
    [
        ("transcoder", {"k": 47}, "Cannot be expressed in SAELens", "transcode is true and k is 47"),
        ("skip transcoder", {"k": 6}, "Cannot be expressed in SAELens", "transcode is true"),
        ("skip", {"k": 6}, "Cannot be expressed in SAELens", "skip_connection is true"),
        ("skip", {"signed": True}, "Cannot be expressed in SAELens", "signed"),
        ("topk", {"activation": "groupmax"}, "Cannot be expressed in SAELens", "groupmax"),
        ("topk", {"signed": "yes"}, "Damaged config", "signed"),
        ("topk", {"d_in": 13}, "Config contradicts tensors", "d_in is 13"),
        ("topk", {"num_latents": 47}, "Config contradicts tensors", "num_latents 47"),
        ("topk", {"expansion_factor": 5}, "Config contradicts tensors", "expansion_factor 5"),
        ("topk", {"k": 0}, "Missing k", "from 1 to 48"),
        ("topk", {"k": None}, "Missing k", "None"),
        ("topk", {"skip_connection": True}, "Missing tensor", "W_skip"),
        ("skip", {"skip_connection": False}, "Unknown tensor", "W_skip"),
    ],
)
def test_configs_that_are_refused(variant: str, config: dict[str, Any], summary: str, word: str, tmp_path: Path) -> None:
    folder = source(tmp_path / "source", variant, **config)
    refused("sparsify", folder, summary, word)
    assert word in str(sniffed(folder).refusal)


@pytest.mark.parametrize("bias", ["encoder.bias", "b_dec"])
def test_a_missing_bias_is_not_taken_as_zero_unless_declared(bias: str, tmp_path: Path) -> None:
    """SAELens's loader does so silently."""
    folder = edited(source(tmp_path / "source"), (bias,))
    refused("sparsify", folder, "Missing tensor", bias)
    assert sniffed(folder).needs == ("zero_biases",)
    convert("sparsify", folder, tmp_path / "out", options={"zero_biases": True})
    written = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert not written["b_enc" if bias == "encoder.bias" else "b_dec"].any()


@pytest.mark.parametrize(
    ("drop", "tensors", "summary", "word"),
    [
        (("W_dec",), {}, "Missing tensor", "W_dec"),
        ((), {"W_dec": torch.zeros(12, 48)}, "Wrong shape", "transposed"),
        ((), {"encoder.weight": torch.zeros(12, 48)}, "Wrong shape", "transposed"),
        ((), {"other": torch.zeros(2)}, "Unknown tensor", "other"),
        ((), {"b_dec": torch.zeros(12, dtype=torch.int32)}, "Wrong dtype", "int32"),
        ((), {"b_dec": torch.full((12,), float("nan"))}, "Not finite", "b_dec[0]"),
    ],
)
def test_files_that_are_refused(
    drop: tuple[str, ...], tensors: dict[str, torch.Tensor], summary: str, word: str, tmp_path: Path
) -> None:
    refused("sparsify", edited(source(tmp_path), drop, **tensors), summary, word)


def test_bfloat16_checkpoints_are_read(tmp_path: Path) -> None:
    """Their own loader once failed on these (sparsify#115)."""
    folder = source(tmp_path / "source")
    edited(folder, **{name: value.bfloat16() for name, value in load_file(folder / "sae.safetensors").items()})
    proof = convert("sparsify", folder, tmp_path / "out", "bfloat16")
    assert proof["exact_storage"] is True


@pytest.mark.parametrize(
    ("place", "transcode", "facts"),
    [
        ("EleutherAI/sae-llama-3-8b-32x/layers.12", False, {"hook": "blocks.12.hook_resid_post"}),
        ("EleutherAI/sae-smollm/layers.12.mlp", False, {"hook": "blocks.12.hook_mlp_out"}),
        ("runs/gpt2/h.3.attn", False, {"hook": "blocks.3.hook_attn_out"}),
        ("runs/x/gpt_neox.layers.4.attention", False, {"hook": "blocks.4.hook_attn_out"}),
        ("runs/x/layer_7", False, {"hook": "blocks.7.hook_resid_post"}),
        ("runs/x/embed_tokens", False, {"hook": "hook_embed"}),
        ("runs/x/layers.12.mlp", True, {"hook": "blocks.12.mlp.hook_in", "hook_out": "blocks.12.hook_mlp_out"}),
        ("runs/x/layers.12", True, {}),
        ("runs/x/layers.12.mlp.down_proj", False, {}),
        ("runs/players.12", False, {}),
        ("", False, {}),
    ],
)
def test_hookpoints(place: str, transcode: bool, facts: dict[str, str]) -> None:
    """SAELens's loader calls ``layers.12.mlp`` the residual stream."""
    assert _place(place, transcode) == facts


def test_inspect_proposes_the_hook_of_the_folder(tmp_path: Path) -> None:
    source(tmp_path / "layers.5.mlp")
    assert sniffed(tmp_path / "layers.5.mlp").facts["hook"] == "blocks.5.hook_mlp_out"


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    (source(tmp_path) / "cfg.json").unlink()
    with pytest.raises(Refused, match=r"cfg\.json beside it"):
        source_files("sparsify", tmp_path)
