"""A manifest to change line by line, and how to read what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from saesync.errors import Diagnostic, ManifestError
from saesync.manifest import load
from saesync.model import Release

COMMIT = "c5ebcd40d208330abc697524c919956e692655cf"
OTHER = "0b8f6d1c2e3a4f5061728394a5b6c7d8e9f00112"

GOOD = f"""\
apiVersion: saesync/v1
release: gemma-res-acme

model:
  name: google/gemma-2-2b
  revision: {COMMIT}

saes:
  for_each:
    layer: {{first: 0, last: 25}}
  id: layer_{{layer}}/width_16k
  hook: blocks.{{layer}}.hook_resid_post
  source:
    repo: acme/dictionaries
    revision: {OTHER}
    path: resid_post_layer_{{layer:02d}}/ae.pt
    format: goodfire

validate:
  dataset:
    repo: monology/pile
    revision: {COMMIT}
  tokens: 204800
  context: 1024
  require:
    explained_variance: {{min: 0.70}}
    l0: {{max: 150}}

publish:
  huggingface: acme/gemma-saes
  license: mit
"""


def changed(*changes: tuple[str, str], base: str = GOOD) -> str:
    """``base`` with some texts replaced; each must occur exactly once."""
    for old, new in changes:
        assert base.count(old) == 1, f"{old!r} occurs {base.count(old)} times"
        base = base.replace(old, new)
    return base


def write(folder: Path, **files: str) -> list[Path]:
    """Write manifests ``name.yaml``; returns their paths, relative to the working directory."""
    paths = []
    for name, text in files.items():
        path = Path(f"{name}.yaml")
        (folder / path).write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def release(folder: Path, text: str) -> Release:
    """The one release of a manifest that is fine."""
    (found,) = load(write(folder, m=text))
    return found


def complaints(folder: Path, *texts: str) -> list[Diagnostic]:
    """What is said about manifests a.yaml, b.yaml ..."""
    files = {chr(ord("a") + index): text for index, text in enumerate(texts)}
    with pytest.raises(ManifestError) as caught:
        load(write(folder, **files))
    return list(caught.value.diagnostics)


def said(diagnostics: list[Diagnostic]) -> list[str]:
    """``summary @ file:line:col`` of each."""
    return [f"{each.summary} @ {each.origin}" for each in diagnostics]
