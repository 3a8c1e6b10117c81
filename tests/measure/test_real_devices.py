"""On every GPU of this machine, through the workers that users get: cut off from the network, with no new privileges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from measure_world import LOADERS, THIRD_PARTY, capture_job, job_for
from safetensors.torch import load_file

from benchmarks.bench_device import devices, difference
from saesync.executors import validate
from saesync.measure.devices import device_for, device_label
from saesync.workers import Worker, spawn

FOUND = devices()
pytestmark = [
    pytest.mark.skipif(not FOUND, reason="this machine has no GPU"),
    *(pytest.mark.filterwarnings(note) for note in THIRD_PARTY),
]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    started = Worker(tmp_path_factory.mktemp("home"), spawn)
    yield started
    started.close()


@pytest.mark.parametrize("device", FOUND)
@pytest.mark.parametrize("loader", LOADERS)
def test_the_numbers_are_the_cpus(world: SimpleNamespace, worker: Worker, loader: str, device: str) -> None:
    job = job_for(world, loader)
    expected = validate.run(job)
    validate.forget()
    found = worker.run("measure", replace(job, device=device))
    assert not found["failures"]
    assert found["weights_sha256"] == expected.weights_sha256
    assert {about["device"] for about in found["about"].values()} == {device_label(device_for(device))}
    for address in expected.metrics:
        assert difference(found["metrics"], expected.metrics, address)[0] < 1e-3, address


@pytest.mark.parametrize("device", FOUND)
def test_captured_activations_are_the_cpus(world: SimpleNamespace, worker: Worker, tmp_path: Path, device: str) -> None:
    hook = "blocks.1.hook_resid_post"
    asked = capture_job(world, "TransformerBridge", {hook: str(tmp_path / "cpu")})
    validate.capture(asked)
    assert not worker.run("capture", replace(asked, device=device, out={hook: str(tmp_path / "gpu")}))["failures"]
    found, expected = load_file(tmp_path / "gpu")["x"], load_file(tmp_path / "cpu")["x"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
