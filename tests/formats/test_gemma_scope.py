"""Gemma Scope: .npz files that are mapped, what only the repo's name says, and the factor of embedding SAEs."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convert_support import HOOK_OUT, METADATA, convert, refused, source_files
from safetensors.torch import load_file

from saesync import formats
from saesync.errors import Refused
from saesync.formats._bytes import LocalBytes
from saesync.formats._jumprelu import random_parameters
from saesync.formats._lazy import Stored, map_file, whole
from saesync.formats._npz import locate
from saesync.formats.gemma_scope import _place
from saesync.inspection import inspect_local
from saesync.inspection.text import manifest, stanza

CHOSEN = formats.get("gemma_scope")


def parameters(seed: int = 0, d_out: int = 12) -> dict[str, Any]:
    return {name: value.numpy() for name, value in random_parameters(seed, d_out).items()}


def saved(folder: Path, compressed: bool = False, **arrays: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(folder / "params.npz", **arrays)
    return folder


def written(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "sae_weights.safetensors")


@pytest.mark.parametrize(
    ("place", "facts", "options"),
    [
        (
            "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
            {"model": "google/gemma-2-2b", "hook": "blocks.20.hook_resid_post"},
            {"kind": "sae"},
        ),
        (
            "google/gemma-scope-9b-it-res/layer_9/width_131k/average_l0_121",
            {"model": "google/gemma-2-9b-it", "hook": "blocks.9.hook_resid_post"},
            {"kind": "sae"},
        ),
        (
            "google/gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_1",
            {"model": "google/gemma-2-2b", "hook": "blocks.3.hook_mlp_out"},
            {"kind": "sae"},
        ),
        (
            "google/gemma-scope-27b-pt-att/layer_0/width_16k/average_l0_1",
            {"model": "google/gemma-2-27b", "hook": "blocks.0.attn.hook_z"},
            {"kind": "attention"},
        ),
        (
            "google/gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_7",
            {"model": "google/gemma-2-2b", "hook": "blocks.5.ln2.hook_normalized", "hook_out": "blocks.5.hook_mlp_out"},
            {"kind": "transcoder"},
        ),
        (
            "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6",
            {"model": "google/gemma-2-2b", "hook": "hook_embed"},
            {"kind": "embedding"},
        ),
        ("google/gemma-scope-2b-pt-res", {"model": "google/gemma-2-2b"}, {}),
        ("somebody/my-gemma-saes/layer_20/width_16k", {}, {}),
        ("", {}, {}),
    ],
)
def test_the_authors_names_are_understood(place: str, facts: dict[str, str], options: dict[str, str]) -> None:
    assert _place(place) == (facts, options)


def test_inspect_proposes_what_the_repos_name_says(tmp_path: Path) -> None:
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_5" / "width_16k" / "average_l0_7"
    saved(folder, **parameters(d_out=9))
    inspection = inspect_local(folder)
    assert "  kind: transcoder" in stanza(inspection)
    text = manifest(inspection)
    assert "hook_out: blocks.5.hook_mlp_out" in text
    assert "name: google/gemma-2-2b" in text


def test_without_such_a_name_the_kind_must_be_declared(tmp_path: Path) -> None:
    saved(tmp_path, **parameters())
    (found,) = inspect_local(tmp_path).saes
    assert found.best is not None
    assert (found.best.format, found.best.score, found.best.needs) == ("gemma_scope", 1.0, ("kind",))
    refused("gemma_scope", tmp_path, "Missing option", "kind")
    refused("gemma_scope", tmp_path, "Unknown kind", "clt", options={"kind": "clt"})


def test_a_transcoder_needs_its_hook_and_may_have_another_width(tmp_path: Path) -> None:
    saved(tmp_path / "source", **parameters(d_out=9))
    refused("gemma_scope", tmp_path / "source", "Needs hook_out", "hook_out", options={"kind": "transcoder"})
    refused("gemma_scope", tmp_path / "source", "Wrong shape", "W_enc", options={"kind": "sae"})
    metadata = METADATA | {"hook_name_out": HOOK_OUT}
    convert("gemma_scope", tmp_path / "source", tmp_path / "out", options={"kind": "transcoder"}, metadata=metadata)
    saved(tmp_path / "sae", **parameters())
    refused("gemma_scope", tmp_path / "sae", "Hook does not fit", "no transcoder", options={"kind": "sae"}, metadata=metadata)


def test_an_embedding_sae_reads_scaled_embeddings(tmp_path: Path) -> None:
    """What the authors' SAE computes from a row of the embedding matrix, ours computes from that row times sqrt(d_in)."""
    from sae_lens import SAE

    saved(tmp_path / "source", **parameters(4))
    convert(
        "gemma_scope", tmp_path / "source", tmp_path / "out", options={"kind": "embedding"}, metadata={"hook_name": "hook_embed"}
    )
    t, factor = random_parameters(4, 12), math.sqrt(12)
    rows = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    pre = rows @ t["W_enc"] + t["b_enc"]
    features = pre.relu() * (pre > t["threshold"])
    sae = SAE.load_from_disk(tmp_path / "out")
    assert torch.allclose(sae.encode(rows * factor), features, atol=1e-6)
    assert torch.allclose(sae(rows * factor), (features @ t["W_dec"] + t["b_dec"]) * factor, atol=1e-5)


@pytest.mark.parametrize("spelling", ["capital", "small", "by columns", "float16", "float64"])
def test_layouts(spelling: str, tmp_path: Path) -> None:
    arrays = parameters(2)
    if spelling == "small":
        arrays = {name.lower(): value for name, value in arrays.items()}
    if spelling == "by columns":
        arrays = {name: np.asfortranarray(value) for name, value in arrays.items()}
    if spelling.startswith("float"):
        arrays = {name: value.astype(spelling) for name, value in arrays.items()}
    saved(tmp_path / "source", **arrays)
    proof = convert("gemma_scope", tmp_path / "source", tmp_path / "out", options={"kind": "sae"})
    assert proof["max_feature_diff"] < 1e-14
    assert torch.allclose(written(tmp_path / "out")["W_enc"], random_parameters(2, 12)["W_enc"], atol=1e-3)


def test_arrays_are_found_where_they_lie(tmp_path: Path) -> None:
    """Any offset, order and dtype numpy writes."""
    arrays: dict[str, Any] = {
        "a": np.arange(35, dtype=np.float32).reshape(5, 7),
        "b": np.asfortranarray(np.arange(35, dtype=np.float64).reshape(7, 5)),
        "c": np.array(3.5, dtype=np.float16),
        "d": np.arange(24).reshape(2, 3, 4),
    }
    np.savez(tmp_path / "x.npz", **arrays)
    buffer = map_file(tmp_path / "x.npz")
    extents = locate(LocalBytes(tmp_path / "x.npz"), "x.npz")
    assert set(extents) == set(arrays)
    for name, extent in extents.items():
        assert np.array_equal(whole(Stored(buffer, extent)).numpy().reshape(arrays[name].shape), arrays[name]), name
    assert Stored(buffer, extents["b"]).rows(2, 4).tolist() == arrays["b"][2:4].tolist()


class Payload:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


def test_a_pickled_array_is_refused_and_not_run(tmp_path: Path) -> None:
    saved(tmp_path / "source", **parameters() | {"extra": np.array([Payload(tmp_path / "harm")], dtype=object)})
    refused("gemma_scope", tmp_path / "source", "Damaged file", "plain numbers", options={"kind": "sae"})
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("change", "summary", "word"),
    [
        (lambda t: t | {"other": np.zeros(2, np.float32)}, "Unknown tensor", "other"),
        (lambda t: {k: v for k, v in t.items() if k != "threshold"}, "Missing tensor", "threshold"),
        (lambda t: t | {"w_enc": t["W_enc"]}, "Unknown tensor", "twice"),
        (lambda t: t | {"W_dec": np.ascontiguousarray(t["W_dec"].T)}, "Wrong shape", "transposed"),
        (lambda t: t | {"b_enc": t["b_enc"].astype(np.int32)}, "Wrong dtype", "int32"),
        (lambda t: t | {"threshold": np.full(40, np.nan, np.float32)}, "Not finite", "threshold"),
        (lambda t: t | {"b_enc": np.zeros((40, 1), np.float32)}, "Wrong shape", "has shape"),
    ],
)
def test_files_that_are_refused(change: Any, summary: str, word: str, tmp_path: Path) -> None:
    saved(tmp_path, **change(parameters()))
    refused("gemma_scope", tmp_path, summary, word, options={"kind": "sae"})


def test_a_compressed_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    saved(tmp_path, compressed=True, **parameters())
    refused("gemma_scope", tmp_path, "File is compressed", "numpy.savez", options={"kind": "sae"})


def test_a_length_that_contradicts_its_header_is_refused(tmp_path: Path) -> None:
    """A header that claims more than the entry holds must not become a read beyond it."""
    saved(tmp_path, **parameters())
    path = tmp_path / "params.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(b"'shape': (40, 12), }", b"'shape': (99, 12), }"))
    refused("gemma_scope", tmp_path, "Damaged file", "as long as its header", options={"kind": "sae"})


def test_reference_does_not_depend_on_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saesync.formats import _lazy

    options = CHOSEN.example(tmp_path, 1)
    files, x = source_files("gemma_scope", tmp_path), torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    one = CHOSEN.reference(files, options, x)
    monkeypatch.setattr(_lazy, "BLOCK_BYTES", 200)
    other = CHOSEN.reference(files, options, x)
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(one, other, strict=True))
    assert one[0].dtype == torch.float64


def test_options_cross_a_pipe() -> None:
    for kind in ("sae", "attention", "embedding", "transcoder"):
        options = formats.make_options(CHOSEN, {"kind": kind})
        assert dataclasses.asdict(options) == {"kind": kind}
    with pytest.raises(Refused, match="kind"):
        formats.make_options(CHOSEN, {})
