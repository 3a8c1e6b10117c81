"""Writing other tools' layouts: the proof, what each cannot express, and the tools' own classes (or their shape) loading it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import HOOK_OUT, convert, edit_tensors, files_of, saelens
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from saesync import formats
from saesync.cli.convert import LAYOUTS
from saesync.convert.stock import Stock
from saesync.errors import ProofFailed, Refused
from saesync.executors.export import run
from saesync.formats import _lazy
from saesync.formats.base import Weights
from saesync.jobs import ExportJob
from saesync.writers import get, writers
from saesync.writers.base import Layout, Writer

X = torch.randn(200, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 3
NO_BIAS = {"apply_b_dec_to_input": False}
PER_TOKEN = {"normalize_activations": "constant_norm_rescale"}
WRITTEN = [
    ("dictionary_learning", "standard", {}),
    ("dictionary_learning", "standard", NO_BIAS),
    ("dictionary_learning", "gated", {}),
    ("dictionary_learning", "gated", NO_BIAS),
    ("dictionary_learning", "topk", {}),
    ("dictionary_learning", "topk", {"rescale_acts_by_decoder_norm": False}),
    ("dictionary_learning", "topk", NO_BIAS),
    ("dictionary_learning", "jumprelu", {}),
    ("dictionary_learning", "jumprelu", NO_BIAS),
    ("dictionary_learning", "batchtopk", {}),
    ("interpretability-workbench", "standard", {}),
    ("interpretability-workbench", "standard", NO_BIAS),
    ("mistudio", "standard", {}),
    ("mistudio", "standard", NO_BIAS | PER_TOKEN),
    ("mistudio", "topk", PER_TOKEN),
    ("mistudio", "topk", NO_BIAS),
    ("mistudio", "jumprelu", {}),
    ("mistudio", "jumprelu", PER_TOKEN),
    ("mistudio", "batchtopk", {}),
    ("mistudio", "transcoder", NO_BIAS | {"d_out": 9}),
    ("sparsify", "topk", {}),
    ("sparsify", "topk", NO_BIAS),
    ("sparsify", "topk", {"rescale_acts_by_decoder_norm": False}),
]
REFUSED = [
    ("dictionary_learning", "standard", PER_TOKEN, "constant_norm_rescale"),
    ("dictionary_learning", "abstopk", {}, "abstopk"),
    ("dictionary_learning", "skip_transcoder", NO_BIAS | {"d_out": 9}, "skip_transcoder"),
    ("interpretability-workbench", "topk", {}, "topk"),
    ("interpretability-workbench", "standard", {"normalize_activations": "layer_norm"}, "layer_norm"),
    ("mistudio", "gated", {}, "gated"),
    ("mistudio", "abstopk", {}, "negative"),
    ("mistudio", "skip_transcoder", NO_BIAS | {"d_out": 9}, "W_skip"),
    ("mistudio", "standard", {"normalize_activations": "layer_norm"}, "layer_norm"),
    ("sparsify", "standard", {}, "k = d_sae"),
    ("sparsify", "jumprelu", {}, "jumprelu"),
    ("sparsify", "abstopk", {}, "`signed` in its versions of 2024, which later ones ignore"),
    ("sparsify", "topk", PER_TOKEN, "constant_norm_rescale"),
]


def export(
    to: str, source: Path, out: Path, dtype: str = "float32", format_: str = "saelens", **metadata: Any
) -> Mapping[str, Any]:
    job = ExportJob(to, format_, {}, files_of(format_, source), dtype, metadata, str(out))
    return run(job).proof


def source_of(tmp_path: Path, architecture: str, changes: Mapping[str, Any], seed: int = 3) -> Path:
    return saelens(tmp_path / "source", seed, architecture=architecture, **changes)


def stock_of(source: Path, tmp_path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What stock SAELens computes on X, in float64."""
    out = {"hook_name_out": HOOK_OUT} if "d_out" in json.loads((source / "cfg.json").read_text(encoding="utf-8")) else {}
    convert("saelens", source, tmp_path / "stock", "float64", metadata=out)
    return Stock(tmp_path / "stock", "float64").forward(X)


def test_the_command_knows_every_writer() -> None:
    assert set(LAYOUTS) == {"saelens", *writers()}
    assert all(isinstance(writer, Writer) for writer in writers().values())
    with pytest.raises(Refused, match="Known: dictionary_learning"):
        get("nothing")


@pytest.mark.parametrize(("to", "architecture", "changes"), WRITTEN)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_proved(to: str, architecture: str, changes: Mapping[str, Any], dtype: str, tmp_path: Path) -> None:
    source = source_of(tmp_path, architecture, changes)
    proof = export(to, source, tmp_path / "out", dtype)
    assert max(proof["max_feature_diff"], proof["max_reconstruction_diff"]) < 1e-12
    assert proof["support_changes"] == 0
    assert proof["rows"] > 100
    assert proof["exact_storage"] or proof["cast_feature_excess"] < 1
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".") or ".tensors" in path.name]


@pytest.mark.parametrize(("to", "architecture", "changes"), WRITTEN)
def test_it_is_what_stock_sae_lens_computes(to: str, architecture: str, changes: Mapping[str, Any], tmp_path: Path) -> None:
    source = source_of(tmp_path, architecture, changes)
    export(to, source, tmp_path / "out", "float64")
    features, output = get(to).reference(tmp_path / "out", X)
    expected = stock_of(source, tmp_path)
    assert (features > 0).any()
    assert torch.allclose(features, expected[0], rtol=0, atol=1e-11)
    assert torch.allclose(output, expected[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize(("to", "architecture", "changes", "word"), REFUSED)
def test_what_a_tool_cannot_express_is_refused(
    to: str, architecture: str, changes: Mapping[str, Any], word: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=word) as caught:
        export(to, source_of(tmp_path, architecture, changes), tmp_path / "out")
    assert caught.value.diagnostics[0].summary.startswith("Cannot be expressed in")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("to", "architecture", "changes"), WRITTEN)
def test_bytes_are_reproducible_and_digests_are_the_files(
    to: str, architecture: str, changes: Mapping[str, Any], tmp_path: Path
) -> None:
    source = source_of(tmp_path, architecture, changes)
    job = ExportJob(to, "saelens", {}, files_of("saelens", source), "float32", {}, str(tmp_path / "one"))
    one, two = run(job).digests, run(replace(job, out=str(tmp_path / "two"))).digests
    assert one == two
    assert set(one) == {path.name for path in (tmp_path / "one").iterdir()}
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in one)


# ------------------------------------------------------------------------------------------------------ round trips


def declared(to: str, folder: Path) -> dict[str, Any]:
    """What the manifest of somebody who has the written files must say: miStudio's checkpoints leave out their settings."""
    if to != "mistudio":
        return {}
    found = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["hyperparameters"]
    share = found["top_k_sparsity"]
    k = 0 if share is None else max(1, int(share / 100 * found["latent_dim"]))
    options = {"k": k, "normalize_activations": found["normalize_activations"]}
    unsaid = {"jumprelu": "k", "transcoder": "normalize_activations"}.get(found["architecture_type"])
    return {name: value for name, value in options.items() if name != unsaid}


@pytest.mark.parametrize(("to", "architecture", "changes"), WRITTEN)
def test_a_round_trip_is_the_same_function(to: str, architecture: str, changes: Mapping[str, Any], tmp_path: Path) -> None:
    source = source_of(tmp_path, architecture, changes)
    export(to, source, tmp_path / "there", "float64", hook_name="blocks.3.hook_mlp_out", model_name="gpt2")
    options, out = declared(to, tmp_path / "there"), {"hook_name_out": HOOK_OUT} if "d_out" in changes else {}
    proof = convert(to.replace("-", "_"), tmp_path / "there", tmp_path / "back", "float64", options, metadata=out)
    assert proof["support_changes"] == 0
    features, output = Stock(tmp_path / "back", "float64").forward(X)
    expected = stock_of(source, tmp_path)
    assert torch.allclose(features, expected[0], rtol=0, atol=1e-11)
    assert torch.allclose(output, expected[1], rtol=0, atol=1e-11)
    if to == "dictionary_learning":  # its config has room for both
        metadata = json.loads((tmp_path / "back" / "cfg.json").read_text(encoding="utf-8"))["metadata"]
        assert (metadata["hook_name"], metadata["model_name"]) == ("blocks.3.hook_mlp_out", "gpt2")


@pytest.mark.parametrize("kind", ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "JumpReluAutoEncoder"])
def test_a_checkpoint_of_dictionary_learning_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    formats.get("dictionary_learning").example(tmp_path / "source", 5, kind)  # type: ignore[call-arg]  # it has variants
    convert("dictionary_learning", tmp_path / "source", tmp_path / "sae", metadata={})
    export("dictionary_learning", tmp_path / "sae", tmp_path / "back")
    before, after = (torch.load(tmp_path / name / "ae.pt", weights_only=True) for name in ("source", "back"))
    before["threshold"] = after["threshold"] if kind == "AutoEncoderTopK" else before.get("threshold")
    assert all(torch.equal(after[name], before[name]) for name in after)
    trainer = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))["trainer"]
    assert trainer["dict_class"] == kind


def test_goodfire_becomes_a_workbench_file(tmp_path: Path) -> None:
    """The workbench's own converter renames nothing and says the weights are tied."""
    formats.get("goodfire").example(tmp_path / "source", 1)
    export(
        "interpretability-workbench",
        tmp_path / "source",
        tmp_path / "out",
        "float32",
        "goodfire",
        hook_name="blocks.19.hook_resid_post",
    )
    about = json.loads((tmp_path / "out" / "sae_layer_19_metadata.json").read_text(encoding="utf-8"))
    assert (about["input_dim"], about["latent_dim"], about["tied_weights"], about["layer_idx"]) == (12, 40, False, 19)
    theirs = Workbench(about["input_dim"], about["latent_dim"], about["tied_weights"])
    theirs.load_state_dict(load_file(tmp_path / "out" / "sae_layer_19.safetensors"), strict=True)
    source = torch.load(tmp_path / "source" / "Tiny-SAE-l1.pth", weights_only=True)
    x = X.float()
    features = (x @ source["encoder_linear.weight"].T + source["encoder_linear.bias"]).relu()
    output, found = theirs(x)
    assert torch.allclose(found, features, atol=1e-5)
    assert torch.allclose(output, features @ source["decoder_linear.weight"].T + source["decoder_linear.bias"], atol=1e-5)


def test_the_workbench_needs_a_layer(tmp_path: Path) -> None:
    formats.get("goodfire").example(tmp_path / "source", 1)
    with pytest.raises(Refused, match="--hook"):
        export("interpretability-workbench", tmp_path / "source", tmp_path / "out", "float32", "goodfire")


# ---------------------------------------------------------------------------------- the shape of the tools' own classes


class Workbench(nn.Module):
    """As a module of the workbench is built: which parameters it has, and how it decodes."""

    def __init__(self, d_in: int, d_sae: int, tied: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(d_in, d_sae)
        self.decoder = None if tied else nn.Linear(d_sae, d_in)
        self.decoder_bias = nn.Parameter(torch.zeros(d_in))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.encoder(x).relu()
        assert self.decoder is not None
        return self.decoder(z) + self.decoder_bias, z


def test_mistudio_loads_strictly_and_both_biases_are_half(tmp_path: Path) -> None:
    source = source_of(tmp_path, "topk", NO_BIAS)
    export("mistudio", source, tmp_path / "out")
    path = tmp_path / "out" / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as stored:
        assert stored.metadata() == {"architecture": "SparseAutoencoder", "step": "0"}
    state = {name.removeprefix("model."): value for name, value in load_file(path).items() if name.startswith("model.")}
    Workbench(12, 40, tied=False).load_state_dict(state, strict=True)  # the same parameters as SparseAutoencoder's
    assert torch.equal(state["decoder.bias"], state["decoder_bias"])
    assert torch.equal(state["decoder.bias"] + state["decoder_bias"], load_file(source / "sae_weights.safetensors")["b_dec"])
    settings = json.loads((tmp_path / "out" / "metadata.json").read_text(encoding="utf-8"))["hyperparameters"]
    assert max(1, int(settings["top_k_sparsity"] / 100.0 * settings["latent_dim"])) == 6


@pytest.mark.parametrize(("k", "d_sae"), [(1, 40), (6, 40), (40, 40), (32, 65536), (64, 16384), (100, 49152), (999, 1000)])
def test_the_percentage_gives_k(k: int, d_sae: int) -> None:
    from saesync.writers.mistudio import _percentage

    assert max(1, int(_percentage(k, d_sae) / 100.0 * d_sae)) == k
    assert 0 < _percentage(k, d_sae) <= 100


def test_a_threshold_of_zero_is_relu_in_mistudio(tmp_path: Path) -> None:
    source = edit_tensors(source_of(tmp_path, "jumprelu", NO_BIAS), threshold=torch.tensor([0.0, -0.5, 0.2, 1e-30] * 10))
    proof = export("mistudio", source, tmp_path / "out")
    log = load_file(tmp_path / "out" / "checkpoint.safetensors")["model.activation.log_threshold"]
    assert torch.equal(log.exp()[:2], torch.zeros(2))  # in float32, in which miStudio computes
    assert torch.isfinite(log).all()
    assert proof["support_changes"] == 0


def test_sparsify_keeps_the_decoder_as_it_is_and_says_its_width(tmp_path: Path) -> None:
    source = source_of(tmp_path, "topk", {"rescale_acts_by_decoder_norm": False})
    proof = export("sparsify", source, tmp_path / "out")
    before, after = load_file(source / "sae_weights.safetensors"), load_file(tmp_path / "out" / "sae.safetensors")
    assert torch.equal(after["W_dec"], before["W_dec"])
    assert torch.equal(after["encoder.weight"], before["W_enc"].T)
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text(encoding="utf-8"))
    assert (cfg["num_latents"], cfg["k"], cfg["d_in"], cfg["transcode"]) == (40, 6, 12, False)
    assert proof["exact_storage"]


def test_ae_pt_loads_with_weights_only_and_holds_plain_tensors(tmp_path: Path) -> None:
    export("dictionary_learning", source_of(tmp_path, "topk", {}), tmp_path / "out")
    state = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "encoder.weight": (40, 12), "encoder.bias": (40,), "decoder.weight": (12, 40), "b_dec": (12,), "k": (), "threshold": (),
    }  # fmt: skip
    assert int(state["k"]) == 6
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in state.values())


# ------------------------------------------------------------------------------------------------------- the proof


def _zeros(tensor: Any) -> Any:
    return _lazy.Filled(0.0, tensor.shape)


def _changed(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    return lambda tensor: _lazy.Mapped(tensor, lambda block, *_: function(block))


WRONG = {
    "decoder bias written once": ("mistudio", "standard", "model.decoder_bias", _zeros),
    "encoder bias lost": ("sparsify", "topk", "encoder.bias", _zeros),
    "decoder rows rolled": ("sparsify", "topk", "W_dec", _changed(lambda block: block.roll(1, 0))),
    "threshold not a logarithm": ("mistudio", "jumprelu", "model.activation.log_threshold", _changed(torch.exp)),
    "encoder off by a thousandth": ("dictionary_learning", "standard", "encoder.weight", _changed(lambda block: block * 1.001)),
    "decoder bias doubled": ("interpretability-workbench", "standard", "decoder_bias", _changed(lambda block: block * 2)),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_mistake_of_a_writer_fails_the_proof(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to, architecture, name, spoil = WRONG[what]
    kind = type(get(to))
    honest = kind.layout

    def wrong(self: Any, weights: Weights) -> Layout:
        made: Layout = honest(self, weights)
        return replace(made, tensors={**made.tensors, name: spoil(made.tensors[name])})

    monkeypatch.setattr(kind, "layout", wrong)
    with pytest.raises(ProofFailed, match=to):
        export(to, source_of(tmp_path, architecture, {}), tmp_path / "out")


def test_bytes_on_disk_are_what_is_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is damaged between writing and proving is found out, also where storing rounds."""
    from saesync.executors import export as module

    honest = module.write_layout

    def damaging(layout: Layout, out: Path, *rest: Any) -> Any:
        digests = honest(layout, out, *rest)
        data = bytearray((out / layout.file).read_bytes())
        data[-200:-100] = data[-100:]
        (out / layout.file).write_bytes(bytes(data))
        return digests

    monkeypatch.setattr(module, "write_layout", damaging)
    for changes in ({"rescale_acts_by_decoder_norm": False}, {}):
        source = saelens(tmp_path / f"source{len(changes)}", 3, architecture="topk", **changes)
        with pytest.raises(ProofFailed):
            export("sparsify", source, tmp_path / f"out{len(changes)}")


def test_a_value_out_of_range_is_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path, "standard", {})
    edit_tensors(source, b_enc=torch.full((40,), 1e6))
    with pytest.raises(Refused, match="float16"):
        export("mistudio", source, tmp_path / "out", "float16")
