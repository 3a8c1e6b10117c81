"""circuit-tracer's cross-layer transcoders: one layer's features, and what its decoder is made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from convert_support import HOOK_OUT, METADATA, convert, files_of, refused
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.errors import Refused
from saesync.executors.export import run as export
from saesync.inspection import inspect_local
from saesync.inspection.sets import incomplete_sets
from saesync.jobs import ExportJob

CODER = {**METADATA, "hook_name_out": HOOK_OUT}


def made(folder: Path, layer: int = 2, layers: int = 3, config: str | None = None, **changes: torch.Tensor | None) -> Path:
    """One layer's two files; ``changes`` replace tensors of either by name, None takes one out."""
    generator = torch.Generator().manual_seed(layer)
    shapes = {"W_enc": (40, 12), "b_enc": (40,), "b_dec": (12,), "W_dec": (40, layers, 12)}
    state = {f"{name}_{layer}": torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
    kept = {name: value for name, value in (state | changes).items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value for name, value in kept.items() if "W_dec" not in name}, folder / f"W_enc_{layer}.safetensors")
    save_file({name: value for name, value in kept.items() if "W_dec" in name}, folder / f"W_dec_{layer}.safetensors")
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return folder


def test_the_decoder_is_the_sum_of_what_features_write(tmp_path: Path) -> None:
    made(tmp_path / "source")
    proof = convert("clt", tmp_path / "source", tmp_path / "out", metadata=CODER)
    stored = load_file(tmp_path / "source" / "W_dec_2.safetensors")["W_dec_2"]
    written = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert torch.equal(written["W_dec"], stored.double().sum(dim=1).float())
    assert torch.equal(written["W_enc"], load_file(tmp_path / "source" / "W_enc_2.safetensors")["W_enc_2"].T)
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]["reconstruction"] == "invalid"
    assert proof["max_feature_diff"] <= 1e-12


def test_it_is_what_saelens_makes_of_the_same_files(tmp_path: Path) -> None:
    """SAELens's own loader of these repositories, on one that lies where the Hub's client would have put it."""
    from unittest.mock import patch

    from sae_lens.loading import pretrained_sae_loaders as theirs

    made(tmp_path / "source", config="model_name: gpt2\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n")
    convert("clt", tmp_path / "source", tmp_path / "out", metadata=CODER)
    shapes = {name: tuple(value.shape) for name, value in load_file(tmp_path / "source" / "W_enc_2.safetensors").items()}
    with (
        patch.object(theirs, "hf_hub_download", lambda repo, name, **_: str(tmp_path / "source" / name)),
        patch.object(theirs, "get_safetensors_tensor_shapes", lambda *_: shapes),
        pytest.warns(UserWarning, match="summing all decoders"),
    ):
        cfg, state, _ = theirs.mntss_clt_layer_huggingface_loader("acme/clt", "2", "cpu")
    ours = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert {name: ours[name] for name in ("architecture", "d_in", "d_sae", "d_out")} == {
        name: cfg[name] for name in ("architecture", "d_in", "d_sae", "d_out")
    }
    written = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.allclose(written[name], state[name], rtol=0, atol=1e-6) for name in written)


def test_every_layer_of_a_set_is_found_once(tmp_path: Path) -> None:
    for layer in range(3):
        made(tmp_path, layer, 3 - layer, "model_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\n")
    found = inspect_local(tmp_path).saes
    assert [sae.path for sae in found] == [f"W_enc_{layer}.safetensors" for layer in range(3)]
    best = [sae.best for sae in found]
    assert [(each.format, each.facts["hook"]) for each in best if each] == [
        ("clt", f"blocks.{layer}.hook_resid_mid") for layer in range(3)
    ]


def test_the_decoder_must_be_there(tmp_path: Path) -> None:
    (made(tmp_path) / "W_dec_2.safetensors").unlink()
    with pytest.raises(Refused, match="W_dec_2"):
        files_of("clt", tmp_path)


@pytest.mark.parametrize(
    ("changes", "summary", "word"),
    [
        ({"W_dec_2": torch.zeros(40, 12)}, "Wrong shape", "W_dec_2"),
        ({"W_dec_2": torch.zeros(40, 3, 11)}, "Wrong shape", "W_dec_2"),
        ({"W_dec_2": torch.zeros(40, 0, 12)}, "Wrong shape", "length 0"),
        ({"W_dec_2": None, "W_dec_1": torch.zeros(40, 3, 12)}, "Missing tensor", "W_dec_2"),
        ({"W_skip_2": torch.zeros(12, 12)}, "Unknown tensor", "W_skip_2"),
        ({"threshold_2": torch.full((40,), -0.5)}, "Cannot be expressed in SAELens", "threshold_2 is negative"),
        ({"b_enc_2": None}, "Missing tensor", "b_enc_2"),
    ],
)
def test_what_is_refused(changes: dict[str, torch.Tensor | None], summary: str, word: str, tmp_path: Path) -> None:
    refused("clt", made(tmp_path, **changes), summary, word, metadata=CODER)


def test_a_set_of_per_layer_transcoders_is_something_else(tmp_path: Path) -> None:
    refused("clt", made(tmp_path, config="model_kind: transcoder_set\n"), "Not a cross-layer transcoder", "transcoder_set")
    (found,) = inspect_local(tmp_path).saes
    assert found.best is not None
    assert "transcoder_set" in str(found.best.refusal)


def test_no_other_layout_can_say_that_the_reconstruction_means_nothing(tmp_path: Path) -> None:
    made(tmp_path / "source")
    job = ExportJob("mistudio", "clt", {}, files_of("clt", tmp_path / "source"), "float32", {}, str(tmp_path / "out"))
    with pytest.raises(Refused, match="cannot say that"):
        export(job)


@pytest.mark.parametrize(
    ("slices", "says"),
    [
        ({0: 3, 1: 2, 2: 1}, ""),
        ({0: 3, 1: 2}, "layer 2 is not there"),  # the decoders say that there is one more
        ({1: 3, 3: 1}, "layers 0, 2 of 0 to 3 are not there"),
        ({0: 2, 1: 2}, "its files are of sets of 2, 3 layers"),
    ],
)
def test_what_a_set_lacks_is_said(slices: dict[int, int], says: str, tmp_path: Path) -> None:
    for layer, count in slices.items():
        encoder = {f"W_enc_{layer}": torch.zeros(40, 12), f"b_enc_{layer}": torch.zeros(40), f"b_dec_{layer}": torch.zeros(12)}
        save_file(encoder, tmp_path / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": torch.zeros(40, count, 12)}, tmp_path / f"W_dec_{layer}.safetensors")
    found = inspect_local(tmp_path)
    assert len(found.convertible) == len(slices)
    lines = incomplete_sets(found)
    assert bool(lines) == bool(says)
    assert says in "".join(lines)


def test_a_set_of_gemma_scope_2_says_how_many_layers_it_has(tmp_path: Path) -> None:
    """Its decoders have a slice for each of four layers; two are there."""
    formats.get("gemma_scope_2_clt").example(tmp_path, 0)
    (one,) = tmp_path.glob("params_layer_*.safetensors")
    one.rename(tmp_path / "params_layer_0.safetensors")
    (tmp_path / "params_layer_2.safetensors").write_bytes((tmp_path / "params_layer_0.safetensors").read_bytes())
    assert "layers 1, 3 of 0 to 3 are not there" in incomplete_sets(inspect_local(tmp_path))[0]
