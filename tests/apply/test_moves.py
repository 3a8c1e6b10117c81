"""A rename and the deletion of the old name in one plan: the copy is always there before its source goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from apply_world import Run
from hub_world import TARGET, HubWorld
from tiny import TinyWorld

from saesync.apply import Outcome
from saesync.model import Choices, Release, Requirement
from saesync.record import parse_record

Look = Callable[..., Run]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def renamed(release: Release) -> Release:
    return replace(release, saes=(replace(release.saes[0], id="layer_0/renamed"), *release.saes[1:]))


def renamed_and_measured_anew(release: Release) -> Release:
    """Under another number of tokens and a bound that no SAE meets."""
    release = renamed(release)
    first = release.saes[0]
    assert first.validate is not None
    strict = replace(first.validate, tokens=512, require=(Requirement("explained_variance", "min", 0.9999),))
    return replace(release, saes=(replace(first, validate=strict), *release.saes[1:]))


def test_on_the_hub_the_copy_is_committed_first(hub_world: HubWorld, look: Look) -> None:
    server, manifest = hub_world.server, hub_world.manifest()
    look(manifest).apply()
    before = server.tree_of(TARGET)
    server.restart_counters()
    result = look(manifest, edit=renamed, choices=Choices(prune=("tiny-hub",))).apply()
    assert result.outcomes == {"tiny-hub/layer_0/renamed": Outcome.PUBLISHED, "tiny-hub/layer_0/topk": Outcome.DELETED}
    after = server.tree_of(TARGET)
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert after[f"layer_0/renamed/{name}"] == before[f"layer_0/topk/{name}"]
        assert f"layer_0/topk/{name}" not in after
    assert server.uploaded_bytes() == 0, "copied where it is"
    record = parse_record(server.file(TARGET, "saesync/tiny-hub.json"), "tiny-hub")
    assert set(record.saes) == {"layer_0/renamed", "layer_0/standard", "layer_1/batchtopk"}
    assert look(manifest, edit=renamed).plan().pending == ()


def test_a_copy_that_misses_its_gate_keeps_its_source(world: TinyWorld, look: Look) -> None:
    look(world.good).apply()
    weights = world.published / "layer_0" / "topk" / "sae_weights.safetensors"
    held = weights.read_bytes()
    run = look(world.good, edit=renamed_and_measured_anew, choices=Choices(prune=("tiny-res",)))
    result = run.apply()
    assert result.exit_code == 1
    assert result.outcomes == {"tiny-res/layer_0/renamed": Outcome.FAILED, "tiny-res/layer_0/topk": Outcome.SKIPPED}
    assert not (world.published / "layer_0" / "renamed").exists()
    assert weights.read_bytes() == held
    record = parse_record((world.published / "saesync" / "tiny-res.json").read_bytes(), "tiny-res")
    assert "layer_0/topk" in record.saes
