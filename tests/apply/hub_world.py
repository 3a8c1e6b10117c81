"""The tiny world with everything on a loopback Hub: model, dataset, sources and the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from servers.loopback import HubServer
from tiny import TinyWorld

MODEL, DATA, SOURCES, TARGET = "alice/tiny-model", "alice/tiny-text", "alice/tiny-dictionaries", "alice/tiny-saes"

MANIFEST = """
apiVersion: saesync/v1
release: tiny-hub
model:
  name: {model}
  revision: {model_sha}
saes:
  for_each:
    - {{id: layer_0/topk, layer: 0, format: saelens, path: legacy}}
    - {{id: layer_0/standard, layer: 0, format: goodfire, path: goodfire/layer_0.pth}}
    - {{id: layer_1/batchtopk, layer: 1, format: saelens, path: training_checkpoint}}
  id: "{{id}}"
  hook: blocks.{{layer}}.hook_resid_post
  source:
    repo: {sources}
    revision: {sources_sha}
    path: "{{path}}"
    format: "{{format}}"
validate:
  dataset:
    repo: {data}
    revision: {data_sha}
  tokens: 1024
  context: 32
  require:
    explained_variance: {{min: 0.3}}
    l0: {{max: 40}}
publish:
  huggingface: {target}
  license: mit
  private: {private}
{more}"""


@dataclass(frozen=True)
class HubWorld:
    """Where things are on the Hub, and a folder for the manifest."""

    server: HubServer
    folder: Path
    model_sha: str
    data_sha: str
    sources_sha: str

    def manifest(self, target: str = TARGET, private: bool = False, **other: str) -> Path:
        """The manifest, written anew."""
        values = {"model": MODEL, "data": DATA, "sources": SOURCES, "target": target, "private": str(private).lower(), "more": ""}
        shas = {"model_sha": self.model_sha, "data_sha": self.data_sha, "sources_sha": self.sources_sha}
        path = self.folder / "manifests" / "hub.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MANIFEST.format(**{**values, **shas, **other}))
        return path


def put_on_hub(server: HubServer, world: TinyWorld) -> HubWorld:
    """Push the world's files; weights go through the object store."""
    model = _push(server, MODEL, world.model, "model")
    sources = _push(server, SOURCES, world.sources, "model")
    data = _push(server, DATA, world.folder / "data", "dataset")
    return HubWorld(server, world.folder, model, data, sources)


def _push(server: HubServer, repo: str, folder: Path, kind: str) -> str:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    large = tuple(name for name in files if name.endswith((".safetensors", ".pth")))
    server.create_repo(repo, kind=kind)
    return server.push(repo, files, kind=kind, lfs=large)
