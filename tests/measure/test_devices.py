"""Measuring on GPUs, on a machine without one: every tensor is where it must be, and the numbers are the CPU's numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from measure_world import CONTEXT, D_MODEL, LOADERS, THIRD_PARTY, capture_job, job_for, make_sae, only
from pretend_device import GIB, Machine, pretend
from safetensors.torch import load_file

from benchmarks import bench_device
from saesync.errors import Missing, Refused
from saesync.executors import validate
from saesync.jobs import MeasureJob, MeasureResult, MeasureSae
from saesync.measure import engine
from saesync.measure.devices import device_for, limits_for, out_of_memory
from saesync.measure.engine import Engine
from saesync.measure.metrics import METRICS
from saesync.measure.models import load_model

MPS_NOTE = "ignore:MPS backend may produce silently incorrect results:UserWarning"  # TransformerLens, whatever the version
pytestmark = [pytest.mark.usefixtures("no_model_stays"), *(pytest.mark.filterwarnings(note) for note in (*THIRD_PARTY, MPS_NOTE))]
KINDS = ("cuda", "mps")
DEVICES = ("cuda:1", "mps")  # the second GPU, so that nothing is right by being on the first


@pytest.fixture(scope="module")
def world(own_world: SimpleNamespace) -> SimpleNamespace:
    return own_world


def machine(device: str, **more: Any) -> Any:
    return pretend(device.partition(":")[0], count=2 if device.startswith("cuda") else 1, **more)


def near(found: MeasureResult, expected: MeasureResult, rel: float) -> None:
    assert not found.failures
    assert found.metrics.keys() == expected.metrics.keys()
    for address, metrics in expected.metrics.items():
        assert set(metrics) == set(METRICS)
        for name, entry in metrics.items():
            assert found.metrics[address][name] == pytest.approx(entry, rel=rel, abs=rel * 1e-3), (address, name)


def some(result: MeasureResult, job: MeasureJob) -> dict[str, Any]:
    """The metrics of a job's SAEs alone."""
    return {sae.address: result.metrics[sae.address] for sae in job.saes}


@pytest.fixture(scope="module")
def on_cpu(world: SimpleNamespace) -> Callable[[str], MeasureResult]:
    known: dict[str, MeasureResult] = {}

    def measured(loader: str) -> MeasureResult:
        if loader not in known:
            known[loader] = validate.run(job_for(world, loader))
        return known[loader]

    return measured


# -------------------------------------------------------------------------------------------------- the pretended device


@pytest.mark.parametrize("kind", KINDS)
def test_a_pretended_device_is_as_strict_as_a_real_one(kind: str) -> None:
    with pretend(kind) as made:
        x = torch.ones(2, 3, device=kind)
        assert str(x.device) == f"{kind}:0"
        with pytest.raises(RuntimeError, match="at least two devices"):
            x + torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="at least two devices"):
            torch.nn.Linear(3, 4)(x)
        with pytest.raises(RuntimeError, match="at least two devices"):
            torch.cat([x, torch.ones(2, 3)])
        with pytest.raises(RuntimeError, match="at least two devices"):
            x.matmul(torch.tensor(2.0).expand(3, 1))
        with pytest.raises(TypeError, match="to numpy"):
            x.numpy()
        with pytest.raises(RuntimeError, match="invalid device"):
            torch.ones(1, device=f"{kind}:4")
        assert (x * torch.tensor(2.0)).sum().item() == 12
        assert x[torch.tensor([0])].device == x.device
        assert torch.nn.Linear(3, 4).to(kind)(x).device == x.device
        row = x[0]
        row.zero_()
        assert x.tolist() == [[0, 0, 0], [1, 1, 1]]
        assert made.waits["_local_scalar_dense"] == 1
        assert made.copies["cpu", kind] > 0
    with pytest.raises(RuntimeError, match="after its machine is gone"):
        x + 1


def test_what_only_one_kind_can_do() -> None:
    with pretend("mps"):
        x = torch.ones(3, 3, device="mps")
        with pytest.raises(TypeError, match="doesn't support float64"):
            x.double()
        with pytest.raises(TypeError, match="doesn't support float64"):
            x.sum(dtype=torch.float64)
        with pytest.raises(TypeError, match="doesn't support float64"):
            torch.zeros(2, dtype=torch.float64, device="mps")
        with pytest.raises(NotImplementedError, match="linalg_eig' is not currently implemented for the MPS"):
            torch.linalg.eig(x)
        with pytest.raises(AssertionError, match="not compiled with CUDA"):
            x.to("cuda")
    with pretend("cuda", count=2) as made:
        x = torch.ones(3, 3, device="cuda:1")
        assert torch.linalg.eig(x.double()).eigenvalues.device == x.device
        with pytest.raises(RuntimeError, match="at least two devices"):
            x + torch.ones(3, 3, device="cuda")
        torch.cuda.set_device(1)
        assert (x + torch.ones(3, 3, device="cuda")).device == x.device
        assert made.used[x.device] == 9 * 4


def test_a_full_device_says_so_and_forgets_what_nobody_holds() -> None:
    for kind, error in (("cuda", torch.OutOfMemoryError), ("mps", RuntimeError)):
        with pretend(kind, memory=1000) as made:
            x = torch.zeros(200, device=kind)
            with pytest.raises(error, match="out of memory") as caught:
                torch.zeros(100, device=kind)
            assert out_of_memory(caught.value)
            assert made.refused == 1
            del x
            assert torch.zeros(100, device=kind).shape == (100,)
    assert not out_of_memory(RuntimeError("size mismatch"))
    assert out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    )


# ------------------------------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loader", LOADERS)
def test_the_numbers_are_those_of_the_cpu(world: SimpleNamespace, on_cpu: Any, loader: str, device: str) -> None:
    """Loading, all metrics of all SAEs, standard errors: on CUDA to the last bit, on MPS but for sums over one token."""
    expected = on_cpu(loader)
    validate.forget()
    with machine(device) as made:
        found = validate.run(replace(job_for(world, loader), device=device))
        assert set(made.used) == {torch.device(device if ":" in device else f"{device}:0")}
    if device == "mps":
        near(found, expected, rel=2e-6)
        assert {about["device"] for about in found.about.values()} == {"mps"}
    else:
        assert found.metrics == expected.metrics
        assert {about["device"] for about in found.about.values()} == {f"Pretended GPU {device[-1]}"}
    assert found.weights_sha256 == expected.weights_sha256


@pytest.mark.parametrize(
    ("device", "changes"),
    [("cuda:1", {"dtype": "bfloat16"}), ("mps", {"kwargs": {"fold_ln": True, "center_writing_weights": True}})],
    ids=["bfloat16", "processed"],
)
def test_other_dtypes_and_processed_weights(world: SimpleNamespace, device: str, changes: dict[str, Any]) -> None:
    job = replace(only(world.job, "topk", "standard-z"), **changes)
    expected = validate.run(job)
    with machine(device):
        near(validate.run(replace(job, device=device)), expected, rel=2e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_a_transcoder_reads_one_hook_and_predicts_another(world: SimpleNamespace, device: str) -> None:
    fields = {"d_out": D_MODEL, "apply_b_dec_to_input": False}
    folder = make_sae(world.root / "gpu-coder", "jumprelu_skip_transcoder", "blocks.1.ln2.hook_normalized", 3, **fields)
    sae = MeasureSae("rel/coder", "c", str(folder), "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    job = replace(world.job, saes=(sae, *only(world.job, "topk").saes))
    expected = validate.run(job)
    with machine(device):
        near(validate.run(replace(job, device=device)), expected, rel=2e-6)


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_small_blocks_and_batches(world: SimpleNamespace, on_cpu: Any, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches, and SAEs one at a time in blocks of few rows."""
    job = only(world.job, "topk", "standard-z")
    expected = replace(on_cpu("TransformerBridge"), metrics=some(on_cpu("TransformerBridge"), job))
    small = replace(limits_for(torch.device("cpu")), resident=1, dense=20 * 96, tokens=7 * CONTEXT)
    monkeypatch.setattr(engine, "limits_for", lambda device: small)
    with machine(device):
        near(validate.run(replace(job, device=device)), expected, rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_what_cannot_be_measured_is_named_there_too(world: SimpleNamespace, device: str) -> None:
    wrong = replace(only(world.job, "topk").saes[0], address="rel/width", hook="blocks.1.mlp.hook_post")
    with machine(device):
        found = validate.run(replace(only(world.job, "topk"), saes=(wrong, *only(world.job, "topk").saes), device=device))
    assert found.failures["rel/width"][0]["summary"] == "Width does not fit the hook"
    assert set(found.metrics) == {"rel/topk"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loader", ["TransformerBridge", "AutoModelForCausalLM"])
def test_captured_activations_are_those_of_the_cpu(world: SimpleNamespace, tmp_path: Path, loader: str, device: str) -> None:
    hook = "blocks.1.hook_resid_post" if loader == "TransformerBridge" else "transformer.h.1"
    job = capture_job(world, loader, {hook: str(tmp_path / "cpu")})
    validate.capture(job)
    with machine(device):
        assert not validate.capture(replace(job, device=device, out={hook: str(tmp_path / "gpu")})).failures
    found, expected = load_file(tmp_path / "gpu")["x"], load_file(tmp_path / "cpu")["x"]
    assert found.shape == (50, D_MODEL)
    if device == "mps":  # where attention is made of products, which round otherwise
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, expected)


# --------------------------------------------------------------------------------------------------- waiting and memory


def counted(world: SimpleNamespace, sequences: int, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """What one SAE costs on so many batches of one sequence each."""
    with machine("cuda:0") as made:
        small = replace(limits_for(torch.device("cuda:0")), tokens=CONTEXT)
        monkeypatch.setattr(engine, "limits_for", lambda device: small)
        job = replace(only(world.job, "topk"), loader="HookedTransformer", model_name="gpt2")  # which itself never waits
        validate.run(replace(job, device="cuda:0", tokens=sequences * CONTEXT))
    return made


def test_the_host_rarely_waits_for_the_device(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per batch: what of the clean pass, of the site and of the SAE is summed, each brought over once; and which features fired
    where. Nothing per token or per feature."""
    few, many = counted(world, 2, monkeypatch), counted(world, 6, monkeypatch)
    assert (sum(many.waits.values()) - sum(few.waits.values())) / 4 == 3
    assert (many.copies["cuda", "cpu"] - few.copies["cuda", "cpu"]) / 4 == 6
    assert (many.copies["cpu", "cuda"] - few.copies["cpu", "cuda"]) / 4 <= 5  # tokens and mask, of both passes over the rows


@pytest.mark.parametrize("device", ["cuda:0"])
def test_where_memory_runs_out_batches_get_smaller(world: SimpleNamespace, on_cpu: Any, device: str) -> None:
    where = torch.device(device if ":" in device else f"{device}:0")
    job = replace(only(world.job, "topk", "standard-last"), device=device)
    expected = replace(on_cpu("TransformerBridge"), metrics=some(on_cpu("TransformerBridge"), job))
    validate.forget()
    with machine(device) as ample:
        validate.run(job)
        model = sum(value.nbytes for value in load_file(world.model / "model.safetensors").values())
    validate.forget()
    assert ample.most[where] > 3 * model
    with machine(device, memory=int(0.6 * ample.most[where])) as tight:
        found = validate.run(job)
        assert 0 < tight.refused < 4
        assert tight.most[where] <= tight.memory
    near(found, expected, rel=1e-5)


@pytest.mark.parametrize("device", ["mps"])
def test_too_little_memory_is_said(world: SimpleNamespace, tmp_path: Path, device: str) -> None:
    job, hook = replace(only(world.job, "topk"), device=device), "blocks.1.hook_resid_post"
    with machine(device) as ample:
        model = load_model(world.model, "TransformerBridge", "float32", {}, torch.device(device))
        loaded = sum(ample.used.values())
        del model
    with machine(device, memory=loaded + 3000):
        with pytest.raises(Missing, match=r"does not fit on .*, not even 1 sequences of 16 tokens at a time"):
            validate.run(job)
        with pytest.raises(Missing, match=r"not even 1 sequences"):
            validate.capture(replace(capture_job(world, "TransformerBridge", {hook: str(tmp_path / "x")}), device=device))
        assert not (tmp_path / "x").exists()
    validate.forget()
    with machine(device, memory=loaded // 2), pytest.raises(Missing, match=r"The model in .* does not fit on .* in float32"):
        validate.run(job)


def test_batches_are_made_for_the_memory_of_the_gpu() -> None:
    """By its size alone: what is free at the moment changes how many SAEs are held, never a batch."""
    device = torch.device("cuda", 0)
    logits = {}
    for size in (6, 8, 12, 16, 24, 40, 48, 80, 141):
        with pretend("cuda", memory=int(size * 0.985 * GIB)) as made:
            empty = limits_for(device)
            made.used[device] += GIB  # somebody's model
            full = limits_for(device)
            assert replace(empty, resident=0) == replace(full, resident=0)
            assert full.resident <= empty.resident
            assert 2 * empty.logits + 20 * empty.dense + empty.resident < size * GIB
            logits[size] = empty.logits / GIB
    assert logits == {6: 0.5, 8: 0.5, 12: 1, 16: 1, 24: 2, 40: 4, 48: 4, 80: 8, 141: 8}


def test_an_error_that_is_no_lack_of_memory_is_not_hidden(world: SimpleNamespace) -> None:
    rows = torch.zeros(2, CONTEXT, dtype=torch.int32).numpy()
    with pytest.raises(RuntimeError, match="something else"):
        Engine(world.loaded, rows, ()).fitting(lambda: (_ for _ in ()).throw(RuntimeError("something else")))


# -------------------------------------------------------------------------------------------- settings, and the benchmark


def test_no_tensor_float_32(world: SimpleNamespace) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
        validate.run(only(world.job, "topk"))
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend("cuda", count=2) as made:
        assert device_for("auto") == device_for("cuda") == torch.device("cuda:0")
        assert device_for("cuda:1") == torch.device("cuda:1")
        assert made.current == 1, 'what only says "cuda" means the device of this worker'
        with pytest.raises(Missing, match=r"no device 'cuda:3'. This machine has cpu, cuda, cuda:0, cuda:1; choose one"):
            device_for("cuda:3")
    with pretend("mps"):
        assert device_for("auto") == torch.device("mps")
        monkeypatch.setattr(torch, "__version__", "2.14.0.dev20260901")
        assert device_for("mps") == torch.device("mps")
        monkeypatch.setattr(torch, "__version__", "2.12.1+cpu")
        with pytest.raises(Refused, match=r"2\.12\.1\+cpu gives wrong numbers on mps\. Install 2\.13 or newer"):
            device_for("mps")


def test_the_benchmark_that_compares_devices() -> None:
    """As it would run beside two GPUs; and without one it says so instead of passing."""
    shape = bench_device.Shape(64, 256, vocab=200, compared=2, timed=16)
    if not bench_device.devices():
        (nothing,) = bench_device.rows((shape,))
        assert (nothing.value, nothing.target) == (0, "")
        assert "nothing to compare" in nothing.against
    with pretend("cuda", count=2):
        rows = bench_device.rows((shape,))
    assert [row.target for row in rows] == ["<= 1e-3", "", ">= 1"] * 2
    assert [row.value for row in rows[::3]] == [0, 0]
    assert all(row.value > 0 for row in (*rows[1::3], *rows[2::3]))
    assert "Pretended GPU 1 (cuda:1), d_in 64, d_sae 256" in rows[3].what
