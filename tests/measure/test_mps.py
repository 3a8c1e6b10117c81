"""Measuring and diagnosing on Apple's GPU, pretended: what torch refuses there, or takes wrongly, is never asked of it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from measure_world import CONTEXT, LOADERS, SAES, THIRD_PARTY, job_for, make_sae, only
from pretend_device import pretend

from benchmarks import bench_device
from saesync import worker_main
from saesync.errors import Missing, Refused
from saesync.executors import diagnose, validate
from saesync.jobs import DiagnoseJob, MeasureJob, MeasureSae
from saesync.measure.devices import device_for, out_of_memory
from saesync.measure.products import LONGEST, right_products

MPS_NOTE = "ignore:MPS backend may produce silently incorrect results:UserWarning"  # TransformerLens, whatever the version
pytestmark = [pytest.mark.usefixtures("no_model_stays"), *(pytest.mark.filterwarnings(note) for note in (*THIRD_PARTY, MPS_NOTE))]
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def world(own_world: SimpleNamespace) -> SimpleNamespace:
    return own_world


def on_both(job: MeasureJob) -> tuple[Any, Any]:
    """The job's metrics on MPS, and on the CPU."""
    expected = validate.run(job)
    validate.forget()
    with pretend("mps"):
        found = validate.run(replace(job, device="mps"))
    assert not found.failures
    return found.metrics, expected.metrics


def diagnosis(world: SimpleNamespace, sae: MeasureSae) -> DiagnoseJob:
    shared = {field: getattr(world.job, field) for field in DiagnoseJob.__dataclass_fields__ if hasattr(world.job, field)}
    return DiagnoseJob(**shared, address=sae.address, folder=sae.folder, hook=sae.hook, hook_out=sae.hook_out)


# ------------------------------------------------------------------------------------------------- the pretended device


def test_it_refuses_what_mps_refuses() -> None:
    with pretend("mps"):
        x, index = torch.ones(4, device="mps"), torch.zeros(4, dtype=torch.int64, device="mps")
        whole = torch.ones(4, dtype=torch.int64, device="mps")
        with pytest.raises(RuntimeError, match=r"no kernel scatter_prod for torch\.int64"):
            whole.scatter_reduce(0, index, whole, "prod")
        assert whole.scatter_reduce(0, index, 3 * whole, "amax").tolist() == [3, 1, 1, 1]
        with pytest.raises(RuntimeError, match=r"index_reduce does not support torch\.int64"):
            whole.index_reduce(0, index, whole, "amax")
        with pytest.raises(RuntimeError, match="more than INT_MAX"):
            x[:1].expand(1 << 31).nonzero()
        with pytest.raises(RuntimeError, match="bincount takes seconds"):
            index.bincount()
        with pytest.raises(RuntimeError, match="attention with dropout"):
            torch.nn.functional.scaled_dot_product_attention(*[x.view(1, 1, 2, 2)] * 3, dropout_p=0.5)
        with pytest.raises(TypeError, match=r"convert torch\.float8_e5m2 to the MPS backend"):
            torch.empty(2, dtype=torch.float8_e5m2, device="mps")
        whole = torch.ones(1, 2, 4, dtype=torch.bfloat16, device="mps")
        with pytest.raises(RuntimeError, match="tokens see later ones"):
            torch.nn.functional.scaled_dot_product_attention(whole, whole, whole, is_causal=True)
        with pytest.raises(RuntimeError, match="an input of 3 dimensions and a bias"):
            torch.nn.Linear(4, 4, dtype=torch.bfloat16, device="mps")(whole)
        with pytest.raises(RuntimeError, match="a table of more than INT_MAX"):
            torch.nn.functional.embedding(index, x[:1].expand(1 << 29, 4))
        long = torch.ones(16, 32_767, device="mps")
        with pytest.raises(RuntimeError, match="wrong numbers for an inner dimension of 32767"):
            long @ long.T
        assert (long[:15] @ long.T).shape == (15, 16)
        assert (long[:, 1:] @ long[:, 1:].T).shape == (16, 16)


# ---------------------------------------------------------------------------------------------------- long products


def test_long_products_are_taken_in_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, bias = (torch.randn(size, generator=generator) for size in ((20, 2 * LONGEST + 7), (2 * LONGEST + 7, 30), (30,)))
    exact = a.double() @ b.double()

    def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
        return bool(((found.cpu().double() - expected).abs() < 1e-3).all())

    with pretend("mps"), right_products(torch.device("mps")):
        x, y, z = a.to("mps"), b.to("mps"), bias.to("mps")
        assert near(x @ y, exact)
        assert near(torch.stack([x, x]) @ torch.stack([y, y]), torch.stack([exact, exact]))
        assert near(torch.nn.functional.linear(x, y.T.contiguous(), z), exact + bias)
        assert near(torch.nn.functional.linear(x[None], y.T.contiguous(), bias=z), (exact + bias)[None])
        assert near(torch.addmm(z, x, y, beta=0.5, alpha=2), 0.5 * bias + 2 * exact)
        assert near(torch.addmm(z * torch.nan, x, y, beta=0), exact)
        assert near(torch.baddbmm(z, x[None], y[None]), (exact + bias)[None])
        half = x.to(torch.bfloat16) @ y.to(torch.bfloat16)
        assert half.dtype is torch.bfloat16
        assert float((half.cpu().float() - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_made_of_products(dtype: torch.dtype, causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 5, heads, 8, generator=generator).to(dtype).transpose(1, 2) for heads in (4, 2, 2))
    mask = None if causal else torch.rand(5, 5, generator=generator) > 0.3
    options = {"is_causal": causal, "scale": 0.4, "enable_gqa": True}
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(q.float(), k.float(), v.float(), mask, **options)
    with pretend("mps"), right_products(torch.device("mps")):
        there = [None if each is None else each.to("mps") for each in (q, k, v, mask)]
        found = attend(*there, **options)
        assert str(found.device) == "mps:0"
        assert found.dtype is dtype
        assert torch.allclose(found.cpu().float(), expected, atol=1e-6 if dtype is torch.float32 else 0.02)


@pytest.mark.parametrize("loader", LOADERS)
def test_models_in_16_bits(world: SimpleNamespace, loader: str) -> None:
    found, expected = on_both(replace(only(job_for(world, loader), "topk"), dtype="bfloat16"))
    for name in ("ce_loss_without_sae", "ce_loss_with_sae", "explained_variance"):
        assert found["rel/topk"][name]["value"] == pytest.approx(expected["rel/topk"][name]["value"], rel=0.01), name


@pytest.mark.parametrize("d_sae", [32_767, 40_000])
def test_a_wide_sae_is_measured(world: SimpleNamespace, d_sae: int) -> None:
    sae = MeasureSae("rel/wide", "w", str(make_sae(world.root / f"wide-{d_sae}", "standard", HOOK, 3, d_sae=d_sae)), HOOK)
    found, expected = on_both(replace(world.job, saes=(sae, *only(world.job, "topk").saes)))
    for address, metrics in expected.items():
        for name, entry in metrics.items():
            assert found[address][name] == pytest.approx(entry, rel=1e-5, abs=1e-8), (address, name)


@pytest.mark.parametrize("name", [*sorted(SAES), "wide"])
def test_diagnosing(world: SimpleNamespace, name: str) -> None:
    wide = MeasureSae("rel/wide", "wide", str(world.root / "wide"), HOOK)
    if name == wide.key:
        make_sae(world.root / "wide", "standard", HOOK, 3, d_sae=33_000)
    (sae,) = only(replace(world.job, saes=(*world.saes, wide)), name).saes
    job = replace(diagnosis(world, sae), tokens=4 * CONTEXT)
    expected = diagnose.run(job)
    validate.forget()
    with pretend("mps"):
        found = diagnose.run(replace(job, device="mps"))
    assert found.about["device"] == "mps"
    assert [each["kind"] for each in found.findings] == [each["kind"] for each in expected.findings]
    assert sorted(each["fvu"] for each in found.trials) == pytest.approx([each["fvu"] for each in expected.trials], rel=1e-5)


# ------------------------------------------------------------------------------------------- a device that is not usable


def test_a_gpu_that_holds_nothing_is_none() -> None:
    """As in some virtual machines: torch sees it, and can allocate nothing on it."""
    with pretend("mps", memory=0):
        assert torch.backends.mps.is_available()
        assert device_for("auto") == torch.device("cpu")
        with pytest.raises(Missing, match=r"no device 'mps' \(torch \S+ says: Invalid buffer size.*This machine has cpu; choose"):
            device_for("mps")
        said = worker_main.devices({})
        assert list(said["devices"]) == ["cpu"]
        assert "says: Invalid buffer size" in said["why_not_mps"]
        assert bench_device.devices() == ()
    with pretend("mps"):
        said = worker_main.devices({})
        assert list(said["devices"]) == ["mps", "cpu"]
        assert said["why_not_mps"] is None


def test_what_is_larger_than_a_buffer_is_a_lack_of_memory() -> None:
    with pretend("mps", memory=1000), pytest.raises(RuntimeError, match="Invalid buffer size") as caught:
        torch.zeros(300, device="mps")
    assert out_of_memory(caught.value)


def test_a_model_in_float64_is_refused_in_time(world: SimpleNamespace) -> None:
    with pretend("mps"), pytest.raises(Refused, match=r"mps has none\. Measure with --device cpu, or set `dtype: float32`"):
        validate.run(replace(world.job, device="mps", dtype="float64"))


@pytest.mark.filterwarnings("error:MPS backend:UserWarning")
@pytest.mark.parametrize("loader", LOADERS)
def test_measuring_on_the_cpu_beside_an_apple_gpu(world: SimpleNamespace, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put on it, and nobody warns of it."""
    monkeypatch.setattr("transformer_lens.utilities.devices._mps_warned", False)  # it warns once
    with pretend("mps") as made:
        found = validate.run(only(job_for(world, loader), "topk"))
    assert not found.failures
    assert not made.most


def test_the_benchmark_that_compares_devices() -> None:
    shape = bench_device.Shape(64, 256, vocab=200, compared=2, timed=16)
    with pretend("mps"):
        rows = bench_device.rows((shape,))
    assert [row.target for row in rows] == ["<= 1e-3", "", ">= 1"]
    assert rows[0].value < 1e-5
