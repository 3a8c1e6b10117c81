"""Which hook and which flags make sense of an SAE: the declared reading against the engine, and what is wrong, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from measure_world import CONTEXT, D_MODEL, SAES, THIRD_PARTY, make_sae
from safetensors.torch import load_file, save_file
from tiny import TinyWorld

from saesync.errors import Refused
from saesync.executors.convert import run as convert
from saesync.executors.diagnose import run
from saesync.executors.validate import capture
from saesync.executors.validate import run as validate
from saesync.formats._saelens_reference import write_example
from saesync.inspection import inspect_local
from saesync.inspection.choosing import choose
from saesync.jobs import CaptureJob, ConvertJob, DiagnoseJob, DiagnoseResult, MeasureSae
from saesync.measure.findings import Trial, findings, meant, tolerated
from saesync.measure.semantics import neighbours

pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY]
Tensors = dict[str, torch.Tensor]
HOOK = "blocks.0.hook_resid_post"


def kinds(result: DiagnoseResult) -> list[str]:
    return [finding["kind"] for finding in result.findings]


# --------------------------------------------------------------------------------- the forward pass, against the engine


@pytest.mark.parametrize("name", sorted(SAES))
def test_the_declared_reading_is_what_validate_measures(world: SimpleNamespace, name: str) -> None:
    (sae,) = (each for each in world.saes if each.key == name)
    measured = validate(replace(world.job, saes=(sae,))).metrics[sae.address]
    shared = {field: getattr(world.job, field) for field in DiagnoseJob.__dataclass_fields__ if hasattr(world.job, field)}
    result = run(DiagnoseJob(**shared, address=sae.address, folder=sae.folder, hook=sae.hook))
    (declared,) = (trial for trial in result.trials if trial["declared"])
    assert 1 - declared["fvu"] == pytest.approx(measured["explained_variance"]["value"], abs=1e-4)
    assert declared["l0"] == pytest.approx(measured["l0"]["value"], abs=1e-3)
    assert (declared["hook"], declared["bos"]) == (sae.hook, True)
    assert [trial["fvu"] for trial in result.trials] == sorted(trial["fvu"] for trial in result.trials)


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder"])
def test_a_transcoder_is_compared_with_its_target(world: SimpleNamespace, architecture: str, tmp_path: Path) -> None:
    hook, out = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
    fields = {"d_out": D_MODEL, "apply_b_dec_to_input": False}
    folder = make_sae(tmp_path / "sae", architecture, hook, 3, **fields)
    sae = MeasureSae("rel/t", "t", str(folder), hook, out)
    measured = validate(replace(world.job, saes=(sae,))).metrics["rel/t"]
    shared = {field: getattr(world.job, field) for field in DiagnoseJob.__dataclass_fields__ if hasattr(world.job, field)}
    result = run(DiagnoseJob(**shared, address="rel/t", folder=str(folder), hook=hook, hook_out=out))
    (declared,) = (trial for trial in result.trials if trial["declared"])
    assert 1 - declared["fvu"] == pytest.approx(measured["explained_variance"]["value"], abs=1e-3)
    assert {trial["norm"] for trial in result.trials} == {"none"}


def test_a_hook_that_does_not_exist_or_fit_is_refused(world: SimpleNamespace) -> None:
    sae = world.saes[0]
    shared = {field: getattr(world.job, field) for field in DiagnoseJob.__dataclass_fields__ if hasattr(world.job, field)}
    job = DiagnoseJob(**shared, address=sae.address, folder=sae.folder, hook="blocks.9.hook_resid_post")
    with pytest.raises(Refused, match="layers 0 to 2"):
        run(job)
    with pytest.raises(Refused, match="d_in 32"):
        run(replace(job, hook="blocks.1.mlp.hook_post"))
    assert job.context == CONTEXT


# ------------------------------------------------------------------------------------- really trained SAEs, misdeclared


@pytest.fixture
def sae(tiny_world: TinyWorld, tmp_path: Path) -> Callable[..., Path]:
    """A trained SAE of the tiny world in SAELens layout, its tensors changed if asked."""

    def made(source: str, change: Callable[[Tensors], Tensors] | None = None) -> Path:
        chosen = choose(inspect_local(tiny_world.sources / source))
        job = ConvertJob("a/b", chosen.format, chosen.options, chosen.files, "float32", {}, {}, str(tmp_path / "sae"))
        convert(job)
        weights = tmp_path / "sae" / "sae_weights.safetensors"
        if change is not None:
            save_file({name: tensor.contiguous() for name, tensor in change(load_file(weights)).items()}, weights)
        return tmp_path / "sae"

    return made


def text_job(world: TinyWorld, bos: bool) -> dict[str, Any]:
    """The tiny world's model on its held-out text."""
    where = {"model": str(world.model), "dataset": str(world.held_out), "dataset_files": (), "column": "text", "split": "train"}
    return {
        **where,
        "loader": "TransformerBridge",
        "dtype": "float32",
        "kwargs": {},
        "context": 32,
        "prepend_bos": bos,
        "device": "cpu",
    }


@pytest.fixture
def diagnosed(tiny_world: TinyWorld, tmp_path: Path) -> Callable[..., DiagnoseResult]:
    def asked(folder: Path, hook: str = HOOK, bos: bool = True) -> DiagnoseResult:
        job = DiagnoseJob(
            **text_job(tiny_world, bos), tokens=2048, address="a/b", folder=str(folder), hook=hook, cache=str(tmp_path / "cache")
        )
        return run(job)

    return asked


STANDARD = "goodfire/layer_0.pth"


@pytest.mark.parametrize("source", [STANDARD, "legacy"])
def test_what_is_right_is_said_to_be(sae: Any, diagnosed: Any, source: str) -> None:
    result = diagnosed(sae(source))
    assert kinds(result) == []
    assert result.trials[0]["declared"]


def test_a_layer_off_by_one(sae: Any, diagnosed: Any) -> None:
    result = diagnosed(sae(STANDARD), "blocks.1.hook_resid_post")
    assert kinds(result) == ["Wrong hook"]
    assert HOOK in result.findings[0]["detail"]


@pytest.mark.parametrize(
    ("hook", "k", "expected"),
    [
        (HOOK, 8, []),
        (HOOK, 1, ["Wrong k"]),
        (HOOK, 5, ["Wrong k"]),
        (HOOK, 16, ["Wrong k"]),
        (HOOK, 64, ["Wrong k"]),
        ("blocks.1.hook_resid_post", 8, ["Wrong hook"]),
        ("blocks.1.hook_resid_post", 2, ["Wrong hook", "Wrong k"]),
    ],
)
def test_a_wrong_k_is_no_wrong_hook(sae: Any, diagnosed: Any, hook: str, k: int, expected: list[str]) -> None:
    """With too small or too large a k some other hook, norm or BOS always explains more."""
    folder = sae("sweep/layer_0")
    cfg = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    assert cfg["k"] == 8
    (folder / "cfg.json").write_text(json.dumps({**cfg, "k": k}), encoding="utf-8")
    assert kinds(diagnosed(folder, hook)) == expected


def test_another_site_of_the_same_layer(sae: Any, diagnosed: Any) -> None:
    result = diagnosed(sae(STANDARD), "blocks.0.hook_mlp_out")
    assert kinds(result) == ["Wrong hook"]
    assert HOOK in result.findings[0]["detail"]


def test_a_missing_bos(sae: Any, diagnosed: Any) -> None:
    assert kinds(diagnosed(sae(STANDARD), bos=False)) == ["Missing BOS"]


def written(folder: Path, tensors: Tensors) -> Path:
    """An SAE that is made, not trained. It subtracts nothing and scales nothing, it says."""
    write_example(folder, 0, architecture="standard", d_in=32, d_sae=len(tensors["b_enc"]), apply_b_dec_to_input=False)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def test_a_missing_scale(diagnosed: Any, tiny_world: TinyWorld, tmp_path: Path) -> None:
    """Principal directions of the hook, with an offset that on inputs of mean norm sqrt(d_in) keeps every feature above zero; on
    larger inputs many are cut off."""
    job = CaptureJob(**text_job(tiny_world, True), rows=1000, out={HOOK: str(tmp_path / "x")}, cache=str(tmp_path / "cache"))
    assert not capture(job).failures
    x = load_file(tmp_path / "x")["x"]
    scale = 32**0.5 / x.norm(dim=1).mean()
    mean = x.mean(0) * scale
    q = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:20].T.contiguous()
    offset = 1.2 * ((x * scale - mean) @ q).abs().amax(0)
    tensors = {"W_enc": q, "b_enc": offset - mean @ q, "W_dec": q.T, "b_dec": mean - offset @ q.T}
    result = diagnosed(written(tmp_path / "sae", tensors))
    assert kinds(result) == ["Missing scale"], result.trials[:5]
    assert "norm_scaling_factor" in result.findings[0]["detail"]


def test_a_wrong_input_bias(diagnosed: Any, tmp_path: Path) -> None:
    """With b_dec subtracted it gives back all it reads; as declared, b_dec too much."""

    q = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q
    both, bias = torch.cat([q.T, -q.T]), torch.full((32,), 4.0)
    result = diagnosed(written(tmp_path / "sae", {"W_enc": both.T, "b_enc": torch.zeros(64), "W_dec": both, "b_dec": bias}))
    assert kinds(result) == ["Wrong input bias"], result.trials[:5]
    assert "apply_b_dec_to_input: true" in result.findings[0]["detail"]


def test_weights_of_nothing(sae: Any, diagnosed: Any) -> None:
    """As with a wrong base model: no hook and no flag helps."""
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    assert kinds(diagnosed(sae(STANDARD, lambda t: t | {"W_dec": -t["W_dec"][:, order]}))) == ["Nothing fits"]


# ------------------------------------------------------------------------------------------------- pure: what is said


DECLARED = Trial("blocks.3.hook_resid_post", True, "none", True, "jumprelu", 0.30, 0.01, 50.0, declared=True)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"fvu": 0.29}, []),
        ({"hook": "blocks.2.hook_resid_post", "fvu": 0.26}, []),  # within three standard errors
        ({"hook": "blocks.2.hook_resid_post", "fvu": 0.26, "difference_stderr": 0.01}, ["Wrong hook"]),
        ({"hook": "blocks.2.hook_resid_post", "fvu": 0.20, "difference_stderr": 0.05}, []),
        ({"hook": "blocks.2.hook_resid_post", "fvu": 0.20}, ["Wrong hook"]),
        ({"bos": False, "fvu": 0.20}, ["BOS is not wanted"]),
        ({"norm": "layer_norm", "fvu": 0.20}, ["Wrong normalisation"]),
        ({"norm": "mean_norm_scale", "fvu": 0.20, "scale": 2.0}, ["Missing scale"]),
        ({"subtract": False, "fvu": 0.20}, ["Wrong input bias"]),
        ({"activation": "relu", "fvu": 0.20, "l0": 500.0}, []),  # more features explain more, and that is all it shows
        ({"activation": "relu", "fvu": 0.10, "l0": 500.0}, ["Wrong activation"]),
        ({"hook": "blocks.2.hook_resid_post", "subtract": False, "fvu": 0.1}, ["Wrong hook", "Wrong input bias"]),
        ({"hook": "blocks.2.hook_resid_post", "fvu": float("nan")}, []),
    ],
)
def test_what_counts_as_evidence(other: dict[str, Any], expected: list[str]) -> None:
    trials = [DECLARED, replace(DECLARED, declared=False, **other)]
    assert [finding.kind for finding in findings(trials)] == expected


def test_what_no_reading_makes_sense_of_has_no_other_finding() -> None:
    """The least bad of senseless readings is no evidence."""
    bad = replace(DECLARED, fvu=1.5)
    trials = [bad, replace(bad, declared=False, hook="blocks.2.hook_resid_post", fvu=0.95)]
    assert [finding.kind for finding in findings(trials)] == ["Nothing fits"]
    assert meant(trials) is None


def test_a_hook_that_helps_only_together_with_something_else_is_not_named_alone() -> None:
    both = replace(DECLARED, declared=False, hook="blocks.2.hook_resid_post", activation="relu", fvu=0.1)
    alone = replace(DECLARED, declared=False, hook="blocks.2.hook_resid_post", fvu=0.31)
    (said,) = findings([DECLARED, both, alone])
    assert said.kind == "Not as declared"
    assert all(word in said.detail for word in ("blocks.2.hook_resid_post", "relu", "0.1000", "0.3000"))
    found = [finding.kind for finding in findings([DECLARED, both, replace(alone, fvu=0.2)])]
    assert found == ["Wrong hook", "Wrong activation"]


def test_of_several_k_that_explain_as_much_the_smallest_is_named() -> None:
    declared = replace(DECLARED, activation="topk", k=8, l0=8.0)
    ks = [replace(declared, declared=False, k=k, l0=float(k), fvu=fvu) for k, fvu in ((4, 0.4), (32, 0.1), (64, 0.098))]
    relu = replace(declared, declared=False, activation="relu", k=None, l0=500.0, fvu=0.097)
    (said,) = findings([declared, *ks, relu])
    assert (said.kind, "k = 32" in said.detail, "k = 8" in said.detail) == ("Wrong k", True, True)


def test_readings_that_let_more_features_fire_are_no_rivals() -> None:
    more = replace(DECLARED, declared=False, activation="relu", fvu=0.25, l0=500.0)
    assert tolerated([more, DECLARED]) == "What is declared is the best of those that let no more features fire."
    assert tolerated([DECLARED, replace(more, fvu=0.4)]) == "What is declared is the best of them."


def test_the_simplest_of_equally_good_readings_is_named() -> None:
    moved = replace(DECLARED, declared=False, hook="blocks.2.hook_resid_post", fvu=0.101)
    also = replace(moved, subtract=False, fvu=0.100)
    assert [finding.kind for finding in findings([DECLARED, also, moved])] == ["Wrong hook"]


def test_a_tolerated_declaration_is_not_called_the_best() -> None:
    better = replace(DECLARED, declared=False, norm="layer_norm", fvu=0.29)
    assert "is the best" in tolerated([DECLARED, replace(better, fvu=0.31)])
    assert "is the best" in tolerated([replace(better, fvu=0.29999), DECLARED])  # the table shows the same number
    said = tolerated([DECLARED, better, replace(better, subtract=False, fvu=0.28), replace(better, fvu=float("nan"))])
    assert "the best of them" in said
    assert "is the best" not in said
    assert all(
        word in said for word in ("2 other readings", "0.2800", "0.3000", "layer_norm", "apply_b_dec_to_input: false", "tenth")
    )


def test_a_number_of_several_changes_is_said_to_be_theirs() -> None:
    both = replace(DECLARED, declared=False, hook="blocks.2.hook_resid_post", activation="relu", fvu=0.1, l0=500.0)
    trials = [both, DECLARED]
    assert meant(trials) == both
    assert all("0.1000" in each.detail and "all that is found here" in each.detail for each in findings(trials))
    assert "500 features fire, as declared 50" in findings(trials)[1].detail
    alone = replace(both, activation="jumprelu", l0=50.0)
    assert "all that is found here" not in findings([alone, DECLARED])[0].detail


def test_neighbours_are_the_same_site_and_the_same_layer() -> None:
    points = {f"blocks.{layer}.{site}": None for layer in range(3) for site in ("hook_resid_post", "hook_mlp_out", "attn.hook_q")}
    assert neighbours(points, "blocks.1.hook_resid_post", 1) == [
        "blocks.0.hook_resid_post", "blocks.2.hook_resid_post", "blocks.1.hook_mlp_out",
    ]  # fmt: skip
    modules = {f"model.layers.{layer}{rest}": None for layer in range(12) for rest in ("", ".mlp", ".self_attn")}
    assert neighbours(modules, "model.layers.1", 1) == [
        "model.layers.0", "model.layers.2", "model.layers.1.mlp", "model.layers.1.self_attn",
    ]  # fmt: skip
    assert neighbours(points, "hook_embed", None) == []
