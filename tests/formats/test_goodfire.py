"""Goodfire checkpoints: layouts of torch.save, transposition, and pickles that want more than tensors."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import convert, refused, source_files
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.formats._lazy import whole

GOODFIRE = formats.get("goodfire")


def state(d_in: int = 12, d_sae: int = 40, seed: int = 0) -> OrderedDict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"encoder_linear.weight": (d_sae, d_in), "encoder_linear.bias": (d_sae,), "decoder_linear.weight": (d_in, d_sae),
              "decoder_linear.bias": (d_in,)}  # fmt: skip
    return OrderedDict((name, torch.randn(shape, generator=generator) / 4) for name, shape in shapes.items())


def saved(folder: Path, value: Any, name: str = "sae.pth", **how: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(value, folder / name, **how)
    return folder


def written(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "sae_weights.safetensors")


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors", "bfloat16", "parameters", "views"])
def test_layouts(layout: str, tmp_path: Path) -> None:
    tensors: dict[str, Any] = dict(state())
    if layout == "bfloat16":
        tensors = {name: value.bfloat16() for name, value in tensors.items()}
    if layout == "parameters":
        tensors = {name: torch.nn.Parameter(value) for name, value in tensors.items()}
    if layout == "views":  # matrices stored the other way round, as strided views into one storage
        base = torch.cat([tensors["encoder_linear.weight"].T.reshape(-1), tensors["decoder_linear.weight"].T.reshape(-1)])
        tensors["encoder_linear.weight"] = base[:480].view(12, 40).T
        tensors["decoder_linear.weight"] = base[480:].view(40, 12).T
    if layout == "safetensors":
        (tmp_path / "source").mkdir()
        save_file(tensors, tmp_path / "source" / "sae.safetensors")
    else:
        saved(tmp_path / "source", OrderedDict(tensors), _use_new_zipfile_serialization=layout != "legacy")
    proof = convert("goodfire", tmp_path / "source", tmp_path / "out")
    assert proof["max_feature_diff"] < 1e-15, "in float64; in which order it is summed up depends on the processor"
    assert proof["exact_storage"] is True
    out = written(tmp_path / "out")
    assert torch.equal(out["W_enc"], tensors["encoder_linear.weight"].float().T)
    assert torch.equal(out["W_dec"], tensors["decoder_linear.weight"].float().T)


def test_goodfire_subtracts_no_bias(tmp_path: Path) -> None:
    saved(tmp_path / "source", state())
    convert("goodfire", tmp_path / "source", tmp_path / "out", metadata={})
    from sae_lens import SAE

    sae = SAE.load_from_disk(tmp_path / "out")
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    t = state()
    expected = (x @ t["encoder_linear.weight"].T + t["encoder_linear.bias"]).relu()
    assert torch.allclose(sae.encode(x), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(300, 700), (129, 128), (1, 5), (5, 1)])
def test_transposing_by_tiles_is_transposing(shape: tuple[int, int], tmp_path: Path) -> None:
    d_in, d_sae = shape
    saved(tmp_path, state(d_in, d_sae))
    weights = GOODFIRE.read(source_files("goodfire", tmp_path), GOODFIRE.Options())
    assert torch.equal(whole(weights.tensors["W_enc"]), state(d_in, d_sae)["encoder_linear.weight"].T)
    part = weights.tensors["W_dec"].rows(d_sae // 3, d_sae // 2 + 1)
    assert torch.equal(part, state(d_in, d_sae)["decoder_linear.weight"].T[d_sae // 3 : d_sae // 2 + 1])


def test_a_square_source_turned_round_is_another_function(tmp_path: Path) -> None:
    """Shapes cannot tell; the biases and the published folder can."""
    from convert_support import adopt_job

    from saesync.errors import ProofFailed
    from saesync.executors.convert import adopt

    saved(tmp_path / "source", state(16, 16))
    convert("goodfire", tmp_path / "source", tmp_path / "out")
    weights = tmp_path / "out" / "sae_weights.safetensors"
    save_file({name: value.t().contiguous() for name, value in written(tmp_path / "out").items()}, weights)
    with pytest.raises(ProofFailed, match="not the source's function"):
        adopt(adopt_job("goodfire", tmp_path / "source", tmp_path / "out"))


class Payload:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_by_name(zipped: bool, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    saved(tmp_path / "source", {**state(), "extra": Payload(harm)}, _use_new_zipfile_serialization=zipped)
    refused("goodfire", tmp_path / "source", "Unsafe pickle", "__builtin__.exec")
    assert not harm.exists()


def test_a_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path, {**state(), "model": torch.nn.Linear(2, 2)})
    refused("goodfire", tmp_path, "Unsafe pickle", "torch.nn.modules.linear.Linear")


@pytest.mark.parametrize(
    ("change", "summary", "word"),
    [
        (lambda t: t | {"step": 3}, "Unknown entry", "step"),
        (lambda t: t | {"other": torch.zeros(1)}, "Unknown tensor", "other"),
        (lambda t: {k: v for k, v in t.items() if k != "decoder_linear.bias"}, "Missing tensor", "decoder_linear.bias"),
        (lambda t: t | {"encoder_linear.weight": t["encoder_linear.weight"].T.contiguous()}, "Wrong shape", "transposed"),
        (lambda t: t | {"encoder_linear.bias": torch.zeros(3)}, "Wrong shape", "_linear.weight has shape"),
        (lambda t: t | {"decoder_linear.bias": torch.full((12,), float("nan"))}, "Not finite", "b_dec"),
        (lambda t: t | {"encoder_linear.weight": t["encoder_linear.weight"].long()}, "Wrong dtype", "int64"),
        (lambda t: list(t.values()), "Unknown entry", "the whole file"),
    ],
)
def test_checkpoints_that_are_refused(change: Any, summary: str, word: str, tmp_path: Path) -> None:
    saved(tmp_path, change(dict(state())))
    refused("goodfire", tmp_path, summary, word)
