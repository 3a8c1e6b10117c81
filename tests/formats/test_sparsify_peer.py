"""EleutherAI's own package, kept apart, against ours: SAEs saved by its classes, and what these compute.

It is taken from the package index; where that cannot be reached, the test says so and is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from convert_support import HOOK, HOOK_OUT, convert, refused, source_files
from peer_packages import peer_packages, run_peer

from saesync import formats

pytestmark = pytest.mark.slow

PACKAGES = ("eai-sparsify==1.3.3", "simple-parsing", "docstring-parser", "natsort", "einops")
# The package's __init__ imports its trainer and with it half a training stack; the classes need only their own modules.
PROGRAM = """
import importlib.util, sys, types
from pathlib import Path
found = importlib.util.find_spec("sparsify")
package = types.ModuleType("sparsify")
package.__path__ = list(found.submodule_search_locations)
sys.modules["sparsify"] = package
import torch
from sparsify.config import SparseCoderConfig
from sparsify.sparse_coder import SparseCoder
torch.cuda.is_bf16_supported = lambda *args: False

out = Path(sys.argv[1])
generator = torch.Generator().manual_seed(1)
x = torch.randn(200, 24, generator=generator, dtype=torch.float64) * 2
torch.save(x, out / "x.pt")
configs = {
    "expansion": SparseCoderConfig(k=7, expansion_factor=4),
    "latents": SparseCoderConfig(k=7, num_latents=50, normalize_decoder=False, multi_topk=True),
    "transcoder": SparseCoderConfig(k=96, expansion_factor=4, transcode=True),
    "skip transcoder": SparseCoderConfig(k=96, expansion_factor=4, transcode=True, skip_connection=True),
    "skip": SparseCoderConfig(k=96, expansion_factor=4, skip_connection=True),
    "topk transcoder": SparseCoderConfig(k=7, expansion_factor=4, transcode=True),
    "groupmax": SparseCoderConfig(k=8, expansion_factor=4, activation="groupmax"),
}
for name, config in configs.items():
    sae = SparseCoder(24, config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    sae.save_to_disk(out / name / "layers.3.mlp")
    double = sae.double()
    with torch.no_grad():
        found = double.encode(x)
        features = torch.zeros(len(x), double.num_latents, dtype=torch.float64).scatter_(1, found.top_indices, found.top_acts)
        # With multi_topk, forward returns the reconstruction of its second loss, from 4 k latents.
        output = double.decode(found.top_acts, found.top_indices) if config.multi_topk else double(x).sae_out
        torch.save({"features": features, "output": output}, out / name / "theirs.pt")
"""
KINDS = ("expansion", "latents", "transcoder", "skip transcoder", "skip")


@pytest.fixture(scope="module")
def theirs(kept: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("theirs")
    run_peer(peer_packages(kept, "sparsify-1.3.3", *PACKAGES), PROGRAM, out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_authors_own_class_computes_the_same(theirs: Path, kind: str, tmp_path: Path) -> None:
    from sae_lens import SAE

    folder = theirs / kind / "layers.3.mlp"
    x, expected = torch.load(theirs / "x.pt", weights_only=True), torch.load(theirs / kind / "theirs.pt", weights_only=True)
    assert (expected["features"] > 0).any()
    chosen = formats.get("sparsify")
    features, output = chosen.reference(source_files("sparsify", folder), chosen.Options(), x)
    assert torch.allclose(features, expected["features"], rtol=0, atol=1e-11)
    assert torch.allclose(output, expected["output"], rtol=0, atol=1e-11)
    metadata = {"hook_name": HOOK} | ({"hook_name_out": HOOK_OUT} if "transcoder" in kind or kind == "skip" else {})
    convert("sparsify", folder, tmp_path / "out", metadata=metadata)
    sae = SAE.load_from_disk(tmp_path / "out", dtype="float64")
    with torch.no_grad():
        assert torch.allclose(sae.encode(x), expected["features"], rtol=0, atol=1e-6)  # a folded bias is stored in float32
        assert torch.allclose(sae(x), expected["output"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "word"), [("topk transcoder", "transcode"), ("groupmax", "groupmax")])
def test_what_saelens_cannot_express_is_refused(theirs: Path, kind: str, word: str, tmp_path: Path) -> None:
    refused("sparsify", theirs / kind / "layers.3.mlp", "Cannot be expressed in SAELens", word)
