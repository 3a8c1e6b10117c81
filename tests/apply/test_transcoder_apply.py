"""A transcoder from its authors' file to the published folder: proved on real activations, measured where it predicts."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from apply_world import Run
from safetensors.torch import save_file
from tiny import TinyWorld

from saesync.apply import Outcome
from saesync.model import Status
from saesync.record import parse_record

Look = Callable[..., Run]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
MANIFEST = """\
apiVersion: saesync/v1
release: tiny-coder
model: {path: ../model}
saes:
  id: layer_1
  hook: blocks.1.ln2.hook_normalized
  hook_out: blocks.1.hook_mlp_out
  source: {path: ../sources/coder, format: gemma_scope_2, kind: transcoder}
validate:
  dataset: {path: ../data/held_out.jsonl}
  tokens: 512
  context: 32
publish: {local: ../coders}
"""


def test_a_transcoder_is_published_with_both_hooks(world: TinyWorld, look: Look) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w_enc": (32, 64), "w_dec": (64, 32), "b_enc": (64,), "b_dec": (32,), "threshold": (64,)}
    shapes["affine_skip_connection"] = (32, 32)
    tensors = {name: torch.randn(shape, generator=generator).abs() / 8 for name, shape in shapes.items()}
    (world.sources / "coder").mkdir()
    save_file(tensors, world.sources / "coder" / "params.safetensors")
    manifest = world.folder / "manifests" / "coder.yaml"
    manifest.write_text(MANIFEST)
    assert look(manifest).apply().outcomes == {"tiny-coder/layer_1": Outcome.PUBLISHED}

    published = world.folder / "coders"
    metadata = json.loads((published / "layer_1" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.ln2.hook_normalized"
    assert metadata["hook_name_out"] == "blocks.1.hook_mlp_out"
    entry = parse_record((published / "saesync" / "tiny-coder.json").read_bytes(), "tiny-coder").saes["layer_1"]
    assert entry.proof["real_rows"] > 0
    assert entry.proof["feature_scale"] == "raw"
    assert entry.evidence[0].inputs["hook_out"] == "blocks.1.hook_mlp_out"
    assert {"explained_variance", "ce_loss_score", "l0"} <= set(entry.evidence[0].metrics)
    assert "`blocks.1.ln2.hook_normalized` to `blocks.1.hook_mlp_out`" in (published / "README.md").read_text()
    assert {item.status for item in look(manifest).plan().items} == {Status.CURRENT}


def test_a_transcoder_without_its_hook_is_refused_by_name(world: TinyWorld, look: Look) -> None:
    shapes = {"w_enc": (32, 64), "w_dec": (64, 32), "b_enc": (64,), "b_dec": (32,), "threshold": (64,)}
    (world.sources / "coder").mkdir()
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, world.sources / "coder" / "params.safetensors")
    manifest = world.folder / "manifests" / "coder.yaml"
    manifest.write_text(MANIFEST.replace("  hook_out: blocks.1.hook_mlp_out\n", ""))
    (failure,) = look(manifest).apply().failures
    (diagnostic,) = failure.diagnostics
    assert diagnostic.summary == "Needs hook_out"
    assert diagnostic.origin is not None
    assert not (world.folder / "coders" / "layer_1").exists()
