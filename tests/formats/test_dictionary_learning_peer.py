"""The authors' own package, kept apart, against ours: trained objects saved as its training loop saves them.

It is taken from the package index; where that cannot be reached, the test says so and is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from convert_support import HOOK, convert, files_of, saelens, source_files
from peer_packages import peer_packages, run_peer

from saesync import formats
from saesync.convert.stock import Stock
from saesync.executors.export import run as export
from saesync.jobs import ExportJob

pytestmark = pytest.mark.slow

VERSION = "0.1.0"
# The package imports nnsight for its activation buffers alone; its classes and trainers need only torch and einops.
PROGRAM = """
import json, sys, types
from pathlib import Path
sys.modules["nnsight"] = types.ModuleType("nnsight")
sys.modules["nnsight"].LanguageModel = object
import torch
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer

common = dict(steps=100_000, activation_dim=24, dict_size=80, layer=2, lm_name="EleutherAI/pythia-70m-deduped", device="cpu",
              submodule_name="mlp_out_layer_2", seed=0)
trainers = {
    "AutoEncoder": StandardTrainer(**common),
    "AprilUpdate": StandardTrainerAprilUpdate(**common),
    "AutoEncoderNew": StandardTrainerAprilUpdate(**common, dict_class=AutoEncoderNew),
    "GatedAutoEncoder": GatedSAETrainer(**common),
    "AutoEncoderTopK": TopKTrainer(**common, k=7),
    "BatchTopKSAE": BatchTopKTrainer(**common, k=7),
    "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKTrainer(**common, k=7, group_fractions=[0.25, 0.75]),
    "JumpReluAutoEncoder": JumpReluTrainer(**common),
}
out = Path(sys.argv[1])
generator = torch.Generator().manual_seed(1)
x = torch.randn(200, 24, generator=generator, dtype=torch.float64) * 3
torch.save(x, out / "x.pt")
for name, trainer in trainers.items():
    ae = trainer.ae
    with torch.no_grad():
        for parameter in ae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    if isinstance(getattr(ae, "threshold", None), torch.nn.Parameter):
        ae.threshold.data.abs_()
    elif hasattr(ae, "threshold"):
        ae.threshold.fill_(0.2)
    with torch.no_grad():
        ae.scale_biases(2.5) if hasattr(ae, "scale_biases") else None
    folder = out / name
    folder.mkdir()
    config = dict(trainer.config) | {"norm_factor": 2.5}
    (folder / "config.json").write_text(json.dumps({"trainer": config, "buffer": {"ctx_len": 128}}))
    torch.save({key: value.cpu() for key, value in ae.state_dict().items()}, folder / "ae.pt")
    with torch.no_grad():
        double = ae.double()
        features = double.encode(x)
        torch.save({"features": features, "output": double.decode(features)}, folder / "theirs.pt")
"""
KINDS = (
    "AutoEncoder", "AprilUpdate", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder",
)  # fmt: skip


@pytest.fixture(scope="module")
def packages(kept: Callable[[str], Path]) -> Path:
    return peer_packages(kept, f"dictionary-learning-{VERSION}", f"dictionary-learning=={VERSION}")


@pytest.fixture(scope="module")
def theirs(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("theirs")
    run_peer(packages, PROGRAM, out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_authors_own_classes_compute_the_same(theirs: Path, kind: str, tmp_path: Path) -> None:
    from sae_lens import SAE

    folder = theirs / kind
    x, expected = torch.load(theirs / "x.pt", weights_only=True), torch.load(folder / "theirs.pt", weights_only=True)
    (folder / "theirs.pt").rename(tmp_path / "theirs.pt")  # not a part of the source
    assert (expected["features"] > 0).any()
    chosen = formats.get("dictionary_learning")
    features, output = chosen.reference(source_files("dictionary_learning", folder), chosen.Options(), x)
    assert torch.allclose(features, expected["features"], rtol=0, atol=1e-11)
    assert torch.allclose(output, expected["output"], rtol=0, atol=1e-11)
    convert("dictionary_learning", folder, tmp_path / "out", metadata={"hook_name": HOOK})
    sae = SAE.load_from_disk(tmp_path / "out", dtype="float64")
    with torch.no_grad():
        assert torch.allclose(sae.encode(x), expected["features"], rtol=0, atol=1e-11)
        assert torch.allclose(sae(x), expected["output"], rtol=0, atol=1e-11)
    weights = chosen.read(source_files("dictionary_learning", folder), chosen.Options())
    assert weights.metadata["hook_name"] == "blocks.2.hook_mlp_out"


LOADER = """
import json, sys, types
from pathlib import Path
sys.modules["nnsight"] = types.ModuleType("nnsight")
sys.modules["nnsight"].LanguageModel = object
import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.top_k import AutoEncoderTopK

classes = {c.__name__: c for c in (AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder, AutoEncoderTopK)}
for folder in sys.argv[2:]:
    trainer = json.loads((Path(folder) / "config.json").read_text())["trainer"]
    state = torch.load(Path(folder) / "ae.pt", weights_only=True)
    extra = (trainer["k"],) if "k" in trainer else ()
    ae = classes[trainer["dict_class"]](trainer["activation_dim"], trainer["dict_size"], *extra)
    double = ae.double()
    double.load_state_dict(state, strict=True)
    with torch.no_grad():
        features = double.encode(torch.load(sys.argv[1], weights_only=True))
        torch.save({"features": features, "output": double.decode(features)}, Path(folder) / "theirs.pt")
"""
WRITTEN = (
    ("standard", {}), ("standard", {"apply_b_dec_to_input": False}), ("gated", {}), ("topk", {}), ("jumprelu", {}),
)  # fmt: skip


def test_the_authors_own_classes_load_what_is_written(packages: Path, tmp_path: Path) -> None:
    """Strictly, and computing what stock SAELens computes from the same SAE."""
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    torch.save(x, tmp_path / "x.pt")
    folders = []
    for index, (architecture, changes) in enumerate(WRITTEN):
        source, out = saelens(tmp_path / f"source{index}", index, architecture=architecture, **changes), tmp_path / f"out{index}"
        export(ExportJob("dictionary_learning", "saelens", {}, files_of("saelens", source), "float64", {}, str(out)))
        convert("saelens", source, tmp_path / f"stock{index}", "float64", metadata={})
        folders.append(str(out))
    run_peer(packages, LOADER, tmp_path / "x.pt", *folders)
    for index, folder in enumerate(folders):
        theirs = torch.load(Path(folder) / "theirs.pt", weights_only=True)
        features, output = Stock(tmp_path / f"stock{index}", "float64").forward(x)
        assert (features > 0).any()
        assert torch.allclose(features, theirs["features"], rtol=0, atol=1e-11)
        assert torch.allclose(output, theirs["output"], rtol=0, atol=1e-11)
