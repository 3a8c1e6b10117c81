"""A very small real world for tests: the demo's own code with a smaller recipe, made once per change of that code, then copied.

The model has two layers of width 32 and has seen a few pages of Python; the SAEs are really trained, for seconds. Layouts,
folders and manifests are those of the demo.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import saesync.demo
from saesync.cache import Cache
from saesync.demo import build
from saesync.demo.manifests import write_manifests
from saesync.demo.recipe import Dictionary, Layout, Recipe
from saesync.digest import key_of

TINY = Recipe(
    train_bytes=200_000,
    held_out_bytes=40_000,
    vocab=384,
    layers=2,
    d_model=32,
    heads=2,
    context=32,
    model_steps=400,
    model_batch=16,
    model_lr=1e-2,
    margin=0.1,
    dictionary_batch=256,
    dictionary_lr=4e-3,
    dictionaries=(
        Dictionary("layer_0/topk", "good", 0, "topk", 64, 8, 60, Layout.LEGACY, "legacy"),
        Dictionary("layer_0/standard", "good", 0, "standard", 64, 1.0, 60, Layout.GOODFIRE, "goodfire/layer_0.pth"),
        Dictionary("layer_1/batchtopk", "good", 1, "batchtopk", 64, 8, 60, Layout.CHECKPOINT, "training_checkpoint"),
        Dictionary("sweep/layer_0", "failing", 0, "topk", 64, 8, 60, Layout.SAELENS, "sweep/layer_0"),
        Dictionary("sweep/layer_1", "failing", 1, "topk", 64, 8, 1, Layout.SAELENS, "sweep/layer_1"),
    ),
    validate_tokens=1024,
    gates={"explained_variance": {"min": 0.3}, "l0": {"max": 40}},
    failing_gates={"explained_variance": {"min": 0.3}},
    name="tiny",
)


@dataclass(frozen=True)
class TinyWorld:
    """Where things are. ``good`` passes all gates, ``failing`` publishes one SAE and refuses one."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def held_out(self) -> Path:
        return self.folder / "data" / "held_out.jsonl"

    @property
    def sources(self) -> Path:
        return self.folder / "sources"

    @property
    def published(self) -> Path:
        return self.folder / "published"

    @property
    def good(self) -> Path:
        return self.folder / "manifests" / "good.yaml"

    @property
    def failing(self) -> Path:
        return self.folder / "manifests" / "failing.yaml"

    def publish_to(self, target: Mapping[str, str]) -> None:
        """Write both manifests anew, for another target: ``{"huggingface": "acme/tiny", "private": "true"}``. Own copies only."""
        write_manifests(self.folder / "manifests", TINY, target)

    def copy(self, folder: Path) -> TinyWorld:
        """An independent copy in a folder that does not exist yet."""
        shutil.copytree(self.folder, folder)
        return TinyWorld(folder)


def make(folder: Path, cache: Path) -> TinyWorld:
    """A fresh world in ``folder``, which must not exist. The first call trains it (seconds) and keeps a copy in ``cache``."""
    entries = Cache(cache)
    key = key_of([TINY.to_json(), list(sys.version_info[:2]), _code()])
    if not entries.has("world", key):
        with entries.making("world", key) as place:
            build(place, lambda *_: None, TINY)
    return TinyWorld(entries.path("world", key)).copy(folder)


def _code() -> str:
    """Digest of the demo's code: a world made by other code is not used."""
    digest = hashlib.sha256()
    for path in sorted(Path(saesync.demo.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
