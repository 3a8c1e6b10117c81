"""SAELens sources: every architecture, every generation of cfg.json, and each way in which SAELens is silently wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import HOOK, HOOK_OUT, METADATA, convert, edit_cfg, edit_tensors, refused, saelens, source_files
from safetensors.torch import load_file

from saesync import formats
from saesync.errors import Refused
from saesync.formats._saelens_cfg import parse_cfg

SAELENS = formats.get("saelens")
PLAIN = ("standard", "jumprelu", "gated", "topk", "abstopk")
BATCH = ("batchtopk", "matryoshka_batchtopk")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
SCALED = "expected_average_only_in"
VARIANTS: dict[str, dict[str, Any]] = (
    {name: {"architecture": name} for name in (*PLAIN, *BATCH)}
    | {name: {"architecture": name, "d_out": 9, "apply_b_dec_to_input": False} for name in TRANSCODERS}
    | {f"{name} without b_dec": {"architecture": name, "apply_b_dec_to_input": False} for name in (*PLAIN, *BATCH)}
    | {
        f"{name} {norm}": {"architecture": name, "normalize_activations": norm}
        for name in PLAIN
        for norm in ("layer_norm", "constant_norm_rescale", SCALED)
    }
    | {f"{name} scaled": {"architecture": name, "normalize_activations": SCALED} for name in BATCH}
    | {
        "hook_z": {"architecture": "standard", "reshape_activations": "hook_z"},
        "batchtopk without rescaling": {"rescale_acts_by_decoder_norm": False},
        "batchtopk scaled without rescaling": {"rescale_acts_by_decoder_norm": False, "normalize_activations": SCALED},
        "topk without rescaling": {"architecture": "topk", "rescale_acts_by_decoder_norm": False},
        "topk that binds nothing": {"architecture": "topk", "k": 40},
    }
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_architecture_is_proved(variant: str, dtype: str, tmp_path: Path) -> None:
    changes = VARIANTS[variant]
    options = {"norm_scaling_factor": 0.37} if changes.get("normalize_activations") == SCALED else {}
    hook = "blocks.0.attn.hook_z" if variant == "hook_z" else HOOK
    source = saelens(tmp_path / "source", 1, **changes)
    metadata = {"hook_name": hook} | ({"hook_name_out": HOOK_OUT} if "d_out" in changes else {})
    proof = convert("saelens", source, tmp_path / "out", dtype, options, metadata=metadata)
    assert proof["feature_scale"] == "raw"
    assert max(proof["max_feature_diff"], proof["max_reconstruction_diff"]) < 1e-13
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text(encoding="utf-8"))
    assert cfg["architecture"] == ("jumprelu" if changes.get("architecture", "batchtopk") in BATCH else changes["architecture"])
    assert cfg["metadata"]["sae_lens_version"] == "6.54.12"
    assert cfg["normalize_activations"] != SCALED


@pytest.mark.parametrize("architecture", BATCH)
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
def test_batchtopk_equals_sae_lens_own_export(architecture: str, rescale: bool, norm: str, tmp_path: Path) -> None:
    from sae_lens import SAE, TrainingSAE

    changes: dict[str, Any] = {"matryoshka_widths": [10, 40]} if architecture.startswith("matryoshka") else {}
    changes |= {"rescale_acts_by_decoder_norm": rescale, "normalize_activations": norm}
    source = saelens(tmp_path / "source", 5, architecture=architecture, **changes)
    convert("saelens", source, tmp_path / "ours", metadata={"hook_name": HOOK})
    TrainingSAE.load_from_disk(source).save_inference_model(tmp_path / "theirs")
    ours, theirs = (
        load_file(tmp_path / "ours" / "sae_weights.safetensors"),
        load_file(tmp_path / "theirs" / "sae_weights.safetensors"),
    )
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=1e-6, atol=1e-7), name
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    one, other = (SAE.load_from_disk(tmp_path / name) for name in ("ours", "theirs"))
    assert torch.allclose(one(x), other(x), atol=1e-5)


def test_a_declared_factor_folds_as_sae_lens_folds_it(tmp_path: Path) -> None:
    from sae_lens import SAE, TrainingSAE

    factor = 0.37
    source = saelens(tmp_path / "source", 5, normalize_activations=SCALED)
    convert("saelens", source, tmp_path / "ours", options={"norm_scaling_factor": factor}, metadata={"hook_name": HOOK})
    training = TrainingSAE.load_from_disk(source)
    training.fold_activation_norm_scaling_factor(factor)
    training.save_inference_model(tmp_path / "theirs")
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0)) * 3
    one, other = (SAE.load_from_disk(tmp_path / name) for name in ("ours", "theirs"))
    assert torch.allclose(one.encode(x), other.encode(x), atol=1e-5)
    assert torch.allclose(one(x), other(x), atol=1e-5)


def test_an_inference_file_keeps_its_bytes(tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", 3, architecture="jumprelu")
    proof = convert("saelens", source, tmp_path / "out")
    assert proof["exact_storage"] is True
    before, after = load_file(source / "sae_weights.safetensors"), load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before | after)


# ------------------------------------------------------------------------------------------------------ legacy

LEGACY = {
    "d_in": 12, "d_sae": 40, "dtype": "torch.float32", "device": "mps", "model_name": "gpt2-small",
    "hook_point": "blocks.3.hook_resid_pre", "hook_point_layer": 3, "prepend_bos": True, "context_size": 128,
}  # fmt: skip


def legacy(folder: Path, architecture: str = "standard", **fields: Any) -> Path:
    saelens(folder, 2, architecture=architecture)
    (folder / "cfg.json").write_text(json.dumps(LEGACY | fields), encoding="utf-8")
    return folder


def test_legacy_defaults(tmp_path: Path) -> None:
    from sae_lens import SAE

    source = legacy(tmp_path / "source", normalize_activations=None)
    convert("saelens", source, tmp_path / "out", metadata={"neuronpedia_id": "gpt2-small/3-x"})
    ours, theirs = SAE.load_from_disk(tmp_path / "out"), SAE.load_from_disk(source)
    assert ours.cfg.apply_b_dec_to_input is theirs.cfg.apply_b_dec_to_input is True
    assert ours.cfg.metadata.hook_name == theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_pre"
    assert ours.cfg.metadata.context_size == 128
    x = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x), theirs(x))


def test_legacy_topk_keeps_k(tmp_path: Path) -> None:
    source = legacy(tmp_path / "source", activation_fn_str="topk", activation_fn_kwargs={"k": 5})
    convert("saelens", source, tmp_path / "out", metadata={})
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text(encoding="utf-8"))
    assert (cfg["architecture"], cfg["k"], cfg["rescale_acts_by_decoder_norm"]) == ("topk", 5, False)


def test_legacy_topk_without_k_is_refused(tmp_path: Path) -> None:
    refused("saelens", legacy(tmp_path / "source", activation_fn_str="topk"), "Missing k", "ReLU")


def test_legacy_unknown_activation_is_refused(tmp_path: Path) -> None:
    refused("saelens", legacy(tmp_path / "source", activation_fn_str="tanh-relu"), "Cannot be expressed in SAELens", "tanh-relu")


def test_legacy_topk_with_relu_is_refused(tmp_path: Path) -> None:
    """SAELens 4 and 5 computed ReLU, 6 computes TopK."""
    source = legacy(tmp_path / "source", activation_fn_str="relu", activation_fn_kwargs={"k": 5})
    edit_cfg(source, architecture="topk")
    refused("saelens", source, "Cannot be expressed in SAELens", "architecture topk with activation relu")


def test_legacy_boolean_norm_needs_a_factor(tmp_path: Path) -> None:
    refused("saelens", legacy(tmp_path / "source", normalize_activations=True), "Needs a declared factor", "norm_scaling_factor")


def test_legacy_hook_z_is_reshaped(tmp_path: Path) -> None:
    source = legacy(tmp_path / "source", hook_point="blocks.3.attn.hook_z")
    convert("saelens", source, tmp_path / "out", metadata={})
    assert json.loads((tmp_path / "out" / "cfg.json").read_text(encoding="utf-8"))["reshape_activations"] == "hook_z"


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])  # before v3; v3 to v5
@pytest.mark.parametrize(("values", "flag", "fine"), [(1.0, False, True), (1.7, True, True), (1.7, False, False)])
def test_a_scaling_factor_is_dropped_folded_or_refused(values: float, flag: bool, fine: bool, name: str, tmp_path: Path) -> None:
    source = legacy(tmp_path / "source", finetuning_scaling_factor=flag)
    edit_tensors(source, **{name: torch.full((40,), values)})
    if not fine:
        refused("saelens", source, "Unexplained scaling factor", "finetuning_scaling_factor")
        return
    proof = convert("saelens", source, tmp_path / "out", metadata={})
    assert proof["max_reconstruction_diff"] < 1e-13
    written = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert name not in written
    assert torch.allclose(written["W_dec"], load_file(source / "sae_weights.safetensors")["W_dec"] * values)


def test_a_logarithmic_threshold_is_exponentiated(tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", 1, architecture="jumprelu")
    threshold = load_file(source / "sae_weights.safetensors")["threshold"]
    edit_tensors(source, ("threshold",), log_threshold=threshold.log())
    convert("saelens", source, tmp_path / "out")
    assert torch.allclose(load_file(tmp_path / "out" / "sae_weights.safetensors")["threshold"], threshold, rtol=1e-6)


# -------------------------------------------------------------------------------------- what SAELens does silently


def test_metadata_survives_a_source_without_version(tmp_path: Path) -> None:
    """SAELens itself loses hook and model of such a folder."""
    from sae_lens import SAE

    source = edit_cfg(saelens(tmp_path / "source", architecture="standard"), metadata={"hook_name": HOOK, "model_name": "gpt2"})
    assert SAE.load_from_disk(source).cfg.metadata.hook_name is None
    convert("saelens", source, tmp_path / "out", metadata={})
    assert SAE.load_from_disk(tmp_path / "out").cfg.metadata.hook_name == HOOK


def test_the_manifest_overrides_and_none_removes(tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", architecture="standard")
    convert("saelens", source, tmp_path / "out", metadata={"hook_name": "blocks.7.hook_resid_post", "model_name": None})
    metadata = json.loads((tmp_path / "out" / "cfg.json").read_text(encoding="utf-8"))["metadata"]
    assert metadata["hook_name"] == "blocks.7.hook_resid_post"
    assert "model_name" not in metadata


@pytest.mark.parametrize(
    ("drop", "changes", "summary", "word"),
    [
        ((), {"architecture": "temporal"}, "Cannot be proved", "temporal"),
        ((), {"architecture": "matching_pursuit"}, "Cannot be proved", "greedy"),
        ((), {"architecture": "crosscoder"}, "Cannot be expressed in SAELens", "crosscoder"),
        (("architecture",), {}, "Damaged config", "architecture"),
        ((), {"architecture": "topk", "k": None}, "Missing k", "100"),
        ((), {"architecture": "topk", "k": 41}, "Missing k", "41"),
        ((), {"architecture": "topk", "k": 5.5}, "Missing k", "5.5"),
        ((), {"normalize_activations": "covariance_whitening"}, "Needs folding", "covariance_whitening"),
        ((), {"normalize_activations": "batch_norm"}, "Cannot be expressed in SAELens", "batch_norm"),
        ((), {"normalize_activations": SCALED}, "Needs a declared factor", "norm_scaling_factor"),
        ((), {"reshape_activations": "hook_q"}, "Cannot be expressed in SAELens", "hook_q"),
        ((), {"apply_b_dec_to_input": "yes"}, "Damaged config", "apply_b_dec_to_input"),
        ((), {"d_in": "12"}, "Damaged config", "d_in"),
        ((), {"d_in": 13}, "Wrong shape", "W_dec"),
        ((), {"architecture": "standard"}, "Unknown tensor", "topk_threshold"),
        (("rescale_acts_by_decoder_norm",), {}, "Damaged config", "since 6.14"),
        (("rescale_acts_by_decoder_norm",), {"metadata": {"hook_name": HOOK}}, "Damaged config", "since 6.14"),
        ((), {"architecture": "transcoder", "d_out": 12}, "Cannot be expressed in SAELens", "b_dec"),
        (
            (),
            {"architecture": "transcoder", "d_out": 12, "apply_b_dec_to_input": False, "reshape_activations": "hook_z"},
            "Cannot be expressed in SAELens",
            "heads",
        ),
    ],
)
def test_configs_that_are_refused(
    drop: tuple[str, ...], changes: dict[str, Any], summary: str, word: str, tmp_path: Path
) -> None:
    refused("saelens", edit_cfg(saelens(tmp_path / "source"), drop, **changes), summary, word)


def test_a_batchtopk_checkpoint_from_before_rescaling_is_not_rescaled(tmp_path: Path) -> None:
    """SAELens 6.1 to 6.13 compared pre-activations with the threshold as they are, and had no field that says so."""
    from sae_lens import SAE

    source = saelens(tmp_path / "source")
    edit_cfg(source, ("rescale_acts_by_decoder_norm",), metadata={"hook_name": HOOK, "sae_lens_version": "6.13.1"})
    convert("saelens", source, tmp_path / "out", metadata={"hook_name": HOOK})
    t = {name: tensor.double() for name, tensor in load_file(source / "sae_weights.safetensors").items()}
    x = torch.randn((50, 12), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    expected = h.relu() * (h > t["topk_threshold"])
    assert torch.allclose(SAE.load_from_disk(tmp_path / "out", dtype="float64").encode(x), expected, atol=1e-6)


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), True, "0.3"])
def test_a_factor_that_is_no_scale_is_refused(factor: Any, tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", normalize_activations=SCALED)
    refused("saelens", source, "Factor is no scale", options={"norm_scaling_factor": factor})


def test_a_factor_nobody_needs_is_refused(tmp_path: Path) -> None:
    refused("saelens", saelens(tmp_path / "source"), "Factor is not needed", options={"norm_scaling_factor": 2.0})


def test_the_scaler_beside_it_is_named(tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", normalize_activations=SCALED)
    (source / "activation_scaler.json").write_text('{"scaling_factor": 0.125}', encoding="utf-8")
    refused("saelens", source, "Needs a declared factor", "0.125")
    refused("saelens", source, "Factor is another one", "says 0.125", options={"norm_scaling_factor": 8.0})  # its inverse, say
    convert("saelens", source, tmp_path / "out", options={"norm_scaling_factor": 0.12501})


@pytest.mark.parametrize("said", ["null", '"0.1"', f"{10**400}"])
def test_a_scaler_that_says_no_number_contradicts_nothing(said: str, tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", normalize_activations=SCALED)
    (source / "activation_scaler.json").write_text(f'{{"scaling_factor": {said}}}', encoding="utf-8")
    convert("saelens", source, tmp_path / "out", options={"norm_scaling_factor": 0.125})


@pytest.mark.parametrize(
    ("drop", "changes", "summary", "word"),
    [
        (("topk_threshold",), {}, "Missing tensor", "topk_threshold"),
        ((), {"topk_threshold": torch.tensor(0.0, dtype=torch.float64)}, "Untrained threshold", "calibrate"),
        ((), {"topk_threshold": torch.tensor(float("nan"), dtype=torch.float64)}, "Untrained threshold", "nan"),
        ((), {"mystery": torch.zeros(2)}, "Unknown tensor", "mystery"),
        (("b_dec",), {}, "Missing tensor", "b_dec"),
        ((), {"b_enc": torch.zeros(40, dtype=torch.int32)}, "Wrong dtype", "int32"),
        ((), {"W_enc": torch.zeros(40, 12)}, "Wrong shape", "transposed"),
        ((), {"b_dec": torch.full((12,), float("nan"))}, "Not finite", "b_dec[0]"),
        ((), {"W_dec": torch.zeros(40, 12).index_fill(0, torch.tensor([3]), float("inf"))}, "Not finite", "W_dec"),
    ],
)
def test_tensors_that_are_refused(
    drop: tuple[str, ...], changes: dict[str, Any], summary: str, word: str, tmp_path: Path
) -> None:
    refused("saelens", edit_tensors(saelens(tmp_path / "source"), drop, **changes), summary, word)


def test_the_place_of_a_nan_is_told(tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", architecture="standard")
    W_enc = load_file(source / "sae_weights.safetensors")["W_enc"]
    W_enc[7, 31] = float("-inf")
    refused("saelens", edit_tensors(source, W_enc=W_enc), "Not finite", "W_enc[7, 31] is -inf")


def test_values_a_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = edit_tensors(saelens(tmp_path / "source", architecture="standard"), b_enc=torch.full((40,), 1e5))
    refused("saelens", source, "Value out of range", "float16", dtype="float16")


def test_reference_is_in_float64_and_by_features(tmp_path: Path) -> None:
    """The reference must not depend on how features are cut into blocks."""
    from saesync.formats import _saelens_reference

    source = saelens(tmp_path / "source", 9)
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    files, options = source_files("saelens", source), SAELENS.Options()
    whole = SAELENS.reference(files, options, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_saelens_reference, "BLOCK_BYTES", 8 * 12 * 7)
        cut = SAELENS.reference(files, options, x)
    assert whole[0].dtype == whole[1].dtype == torch.float64
    assert all(torch.allclose(one, other, atol=1e-14) for one, other in zip(whole, cut, strict=True))


@pytest.mark.parametrize(
    "key", ["architecture", "d_in", "k", "normalize_activations", "activation_fn_kwargs", "apply_b_dec_to_input"]
)
@pytest.mark.parametrize("value", [[], "x", 1e300, {"a": 1}, -1])
@pytest.mark.parametrize("old", [True, False])
def test_a_config_value_of_the_wrong_kind_is_refused(key: str, value: Any, old: bool) -> None:
    raw = {"d_in": 4, "d_sae": 8, "architecture": "topk", "activation_fn_str": "topk", "apply_b_dec_to_input": True}
    raw |= {} if old else {"metadata": {}}
    with pytest.raises(Refused, match=r"cfg\.json"):
        parse_cfg(raw | {key: value})


def test_metadata_names_the_training_architecture(tmp_path: Path) -> None:
    convert("saelens", saelens(tmp_path / "source"), tmp_path / "out", metadata=METADATA)
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text(encoding="utf-8"))
    assert cfg["metadata"]["training_architecture"] == "batchtopk"
    assert {"topk_threshold_lr", "k"}.isdisjoint(cfg)
