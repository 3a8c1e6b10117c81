"""Unsafe pickles: refused by default, read as a structure where a manifest trusts them, and never run."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import HOOK, HOOK_OUT, METADATA, convert, refused, source_files
from safetensors.torch import load_file

from saesync import formats
from saesync.errors import Refused
from saesync.formats import _quarantine, _quarantine_child, _torchzip
from saesync.formats._bytes import LocalBytes
from saesync.formats._pickled_example import write
from saesync.formats.base import SourceFiles
from saesync.inspection import inspect_local

TRUST = {"trust": "pickle"}
NAME = "final_sparse_autoencoder_x"
CFG: dict[str, Any] = {"hook_point": "blocks.3.hook_resid_pre", "model_name": "gpt2-small", "d_in": 12}


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (12, 40), "b_enc": (40,), "W_dec": (40, 12), "b_dec": (12,)}
    return {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}


def saved(folder: Path, tensors: dict[str, torch.Tensor], cfg: dict[str, Any], variant: str = "zip") -> Path:
    write(folder, NAME, "sae_training.config", tensors, cfg, variant)
    return folder


class Touch:
    """Unpickled for real, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("variant", ["zip", "gzip"])
@pytest.mark.parametrize("name", ["saelens_pickle", "transcoder_circuits"])
def test_refused_unless_trusted(name: str, variant: str, tmp_path: Path) -> None:
    example: Any = formats.get(name).example
    example(tmp_path, 0, variant)
    words = ("LanguageModelSAERunnerConfig", "trust: pickle") if variant == "zip" else ("trust: pickle",)
    refused(name, tmp_path, "Unsafe pickle", *words)


def test_inspect_says_that_trust_is_needed(tmp_path: Path) -> None:
    saved(tmp_path, state(), CFG)
    best = inspect_local(tmp_path).saes[0].best
    assert best is not None
    assert (best.format, best.needs) == ("saelens_pickle", ("trust",))


@pytest.mark.parametrize("name", ["saelens_pickle", "transcoder_circuits"])
def test_a_compressed_pickle_is_listed_by_its_name(name: str, tmp_path: Path) -> None:
    example: Any = formats.get(name).example
    example(tmp_path, 0, "gzip")
    (found,) = inspect_local(tmp_path).saes
    assert {each.format: each.needs for each in found.candidates} == {
        "saelens_pickle": ("trust",),
        "transcoder_circuits": ("trust",),
    }
    assert found.best is not None
    assert found.best.format == name


@pytest.mark.parametrize("variant", ["zip", "gzip"])
def test_nothing_is_run(variant: str, tmp_path: Path) -> None:
    made, source = tmp_path / "made", tmp_path / "source"
    saved(source, state(), CFG | {"harmless": Touch(str(made))}, variant)
    convert("saelens_pickle", source, tmp_path / "out", options=TRUST)
    assert not made.exists()
    pickle.loads(pickle.dumps(Touch(str(made))))
    assert made.exists()  # read the usual way, it would have run


def test_a_reduce_at_the_top_is_no_checkpoint(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    (source / f"{NAME}.pkl.gz").write_bytes(gzip.compress(pickle.dumps(Touch(str(made)))))
    refused("saelens_pickle", source, "Damaged file", "no tensors", options=TRUST)
    assert not made.exists()


def test_what_is_published_names_both_files_by_hash(tmp_path: Path) -> None:
    saved(tmp_path / "source", state(), CFG)
    convert("saelens_pickle", tmp_path / "source", tmp_path / "out", options=TRUST)
    metadata = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    (path,) = (tmp_path / "source").iterdir()
    assert metadata["rewritten"]["pickle_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    rewritten = _quarantine.rewrite(path, path.name)
    assert metadata["rewritten"]["safetensors_sha256"] == hashlib.sha256(rewritten.tensors.read_bytes()).hexdigest()
    assert set(load_file(rewritten.tensors)) == {f"state_dict.{name}" for name in state()}
    assert rewritten.facts["cfg"] == CFG | {"dtype": "torch.float32", "device": ["cpu"]}


def test_both_layouts_hold_the_same_tensors(tmp_path: Path) -> None:
    digests = set()
    for variant in ("zip", "gzip"):
        saved(tmp_path / variant, state(), CFG, variant)
        (path,) = (tmp_path / variant).iterdir()
        digests.add(_quarantine.rewrite(path, path.name).tensors_sha256)
    assert len(digests) == 1


def test_one_rewritten_file_is_kept_at_a_time(tmp_path: Path) -> None:
    places = []
    for seed in range(3):
        saved(tmp_path / f"{seed}", state(seed), CFG)
        (path,) = (tmp_path / f"{seed}").iterdir()
        places.append(_quarantine.rewrite(path, path.name).tensors.parent)
    assert [place.exists() for place in places] == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_and_strided_tensors_keep_their_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: value.to(dtype) for name, value in state().items()}
    turned = tensors | {"W_enc": tensors["W_enc"].T.contiguous().T}
    for variant in ("zip", "gzip"):
        saved(tmp_path / variant, turned, CFG, variant)
        (path,) = (tmp_path / variant).iterdir()
        found = load_file(_quarantine.rewrite(path, path.name).tensors)
        assert all(torch.equal(found[f"state_dict.{name}"], value) for name, value in tensors.items())


@pytest.mark.parametrize(
    ("change", "summary", "words"),
    [
        ({"activation_fn": "tanh-relu"}, "Cannot be expressed in SAELens", "activation_fn"),
        ({"architecture": "gated"}, "Cannot be expressed in SAELens", "architecture"),
        ({"normalize_activations": True}, "Cannot be expressed in SAELens", "normalize_activations"),
        ({"apply_b_dec_to_input": False}, "Cannot be expressed in SAELens", "apply_b_dec_to_input"),
        ({"top_k": 5}, "Cannot be expressed in SAELens", "top_k"),
        ({"sae_type": "topk"}, "Cannot be expressed in SAELens", "sae_type"),
        ({"is_transcoder": True}, "Cannot be expressed in SAELens", "is_transcoder"),
        ({"d_in": 13}, "Config contradicts tensors", "d_in is 13"),
        ({"model_name": None}, "Config is another format's", "model_name"),
    ],
)
def test_a_config_of_another_function_is_refused(change: dict[str, Any], summary: str, words: str, tmp_path: Path) -> None:
    saved(tmp_path, state(), CFG | change)
    refused("saelens_pickle", tmp_path, summary, words, options=TRUST)


@pytest.mark.parametrize(
    ("beside", "summary", "word"),
    [
        ({}, "Config is missing", "no config (cfg)"),
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "Config is missing", "no config (cfg)"),
        ({"cfg": [3]}, "Config is missing", "no config (cfg)"),
        ({"cfg": {"seed": 5}}, "Config is another format's", "d_in and hook_point and model_name"),
        ({"cfg": {"top_k": 5, "sae_type": "topk"}}, "Cannot be expressed in SAELens", "top_k"),
    ],
)
@pytest.mark.parametrize("name", ["saelens_pickle", "transcoder_circuits"])
def test_without_the_authors_config_nothing_says_the_function(
    name: str, beside: dict[str, Any], summary: str, word: str, tmp_path: Path
) -> None:
    """A TopK SAE has the same tensors: read as a ReLU SAE it would be proved against the wrong function."""
    tensors = state() | ({"b_dec_out": torch.zeros(12)} if name == "transcoder_circuits" else {})
    torch.save({**beside, "state_dict": tensors}, tmp_path / f"{NAME}.pt")
    refused(name, tmp_path, summary, word, options=TRUST)
    best = inspect_local(tmp_path).saes[0].best
    assert best is not None
    assert best.score < 0.5
    assert "no config (cfg)" in (best.refusal or "")


def test_a_plain_config_with_the_authors_fields_is_read(tmp_path: Path) -> None:
    torch.save({"cfg": CFG, "state_dict": state()}, tmp_path / f"{NAME}.pt")
    best = inspect_local(tmp_path).saes[0].best
    assert best is not None
    assert (best.format, best.score, best.refusal) == ("saelens_pickle", 0.7, None)
    convert("saelens_pickle", tmp_path, tmp_path / "out", options=TRUST)


def test_a_scaling_factor_of_ones_does_nothing_and_another_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "ones", state() | {"scaling_factor": torch.ones(40)}, CFG)
    convert("saelens_pickle", tmp_path / "ones", tmp_path / "out", options=TRUST)
    assert set(load_file(tmp_path / "out" / "sae_weights.safetensors")) == set(state())
    saved(tmp_path / "twos", state() | {"scaling_factor": torch.full((40,), 2.0)}, CFG)
    refused("saelens_pickle", tmp_path / "twos", "Unexplained scaling factor", "not all ones", options=TRUST)


def test_a_tensor_outside_of_the_state_dict_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, state(), CFG | {})
    (path,) = tmp_path.iterdir()
    torch.save({"cfg": Touch("x"), "state_dict": state(), "mask": torch.ones(3)}, path)
    refused("saelens_pickle", tmp_path, "Unknown tensor", "mask", options=TRUST)


def test_the_bias_of_a_transcoders_input_is_folded(tmp_path: Path) -> None:
    """SAELens's transcoders cannot subtract b_dec, and what it does not know it would leave out."""
    source: Any = formats.get("transcoder_circuits")
    source.example(tmp_path / "source", 3, "zip")
    metadata = {**METADATA, "hook_name_out": HOOK_OUT}
    convert("transcoder_circuits", tmp_path / "source", tmp_path / "out", options=TRUST, metadata=metadata)
    (path,) = (tmp_path / "source").iterdir()
    t = {name.removeprefix("state_dict."): value for name, value in load_file(_quarantine.rewrite(path, "x").tensors).items()}
    written = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert torch.allclose(written["b_enc"].double(), t["b_enc"].double() - t["b_dec"].double() @ t["W_enc"].double(), atol=1e-6)
    assert torch.equal(written["b_dec"], t["b_dec_out"])


def test_hooks_come_from_the_config(tmp_path: Path) -> None:
    source = formats.get("transcoder_circuits")
    options = source.example(tmp_path, 0)
    weights = source.read(source_files("transcoder_circuits", tmp_path), options)
    assert weights.metadata["hook_name"] == "blocks.3.ln2.hook_normalized"
    assert weights.metadata["hook_name_out"] == "blocks.3.hook_mlp_out" != HOOK_OUT != HOOK


# --------------------------------------------------------------------------------------------------------- limits


def test_a_compressed_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_quarantine_child, "MAX_PLAIN", 1 << 20)
    path = tmp_path / f"{NAME}.pkl.gz"
    path.write_bytes(gzip.compress(bytes(4 << 20)))
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match="expands to more than"):
        _quarantine_child._rewrite(path, path.name, tmp_path)
    assert (tmp_path / "expanded").stat().st_size <= 1 << 20


def test_a_process_that_takes_too_much_is_ended_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gibibytes of zeros, a few kilobytes on disk: more than the child may expand, refused by the real child."""
    path = tmp_path / f"{NAME}.pkl.gz"
    with gzip.open(path, "wb", 1) as stream:
        for _ in range(1100):
            stream.write(bytes(1 << 20))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Refused, match="expands to more than 1 GiB"):
        _quarantine.rewrite(path, path.name)
    assert list(tmp_path.iterdir()) == [path]


def test_a_child_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, state(1), CFG)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(_quarantine, "TIMEOUT_S", 0.01)
    with pytest.raises(Refused, match="exceeds a limit"):
        _quarantine.rewrite(path, path.name)


def limits(before: str) -> list[list[int]]:
    """Of a child that starts after ``before``: address space, processor time and file size, soft and hard."""
    code = (
        f"import json, resource, sys; from saesync.formats import _quarantine_child as child; {before}; child._limit(1000); "
        "print(json.dumps([resource.getrlimit(kind) for kind in "
        "(resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[list[int]] = json.loads(done.stdout)
    return found


def test_limits_that_are_tighter_stay() -> None:
    """``ulimit`` of a shell or a batch system: raising them fails, and for root it would undo them."""
    tight = (
        "[resource.setrlimit(kind, (most, most)) for kind, most in ((resource.RLIMIT_AS, 3 << 30), (resource.RLIMIT_CPU, 99))]"
    )
    memory, seconds, size = limits(tight)
    assert (memory, seconds) == ([3 << 30] * 2, [99, 99])
    assert size == limits("pass")[2]


def test_macos_limits_no_address_space() -> None:
    """It refuses to: every process there has more of it."""
    memory, seconds, _ = limits("sys.platform = 'darwin'")
    assert memory[0] not in (_quarantine_child.MEMORY, _quarantine_child.MEMORY + 1000)
    assert seconds == [_quarantine_child.SECONDS] * 2


def test_the_child_has_no_network_no_token_and_limits(tmp_path: Path) -> None:
    code = (
        "import json, os, resource, socket, sys; from saesync.formats import _quarantine_child as child; "
        "child._limit(1000); from saesync.isolation import isolate; isolate(os.getppid()); "
        "found = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)]\n"
        "try:\n    socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError as e:\n    found.append(type(e).__name__)\n"
        "print(json.dumps(found))"
    )
    environment = {**os.environ, "HF_TOKEN": "hf_secret"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    memory, seconds, size, network = json.loads(done.stdout)
    assert memory == _quarantine_child.MEMORY + 1000
    assert seconds == _quarantine_child.SECONDS
    assert size < 2 << 30
    assert network != "ConnectionRefusedError"
    assert "HF_TOKEN" not in _quarantine._bare()


def test_a_view_that_repeats_its_numbers_is_refused(tmp_path: Path) -> None:
    """A file of a kilobyte may describe a tensor of terabytes, in any torch checkpoint."""
    path = tmp_path / "sae.pt"
    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)
    assert path.stat().st_size < 4000
    with pytest.raises(Refused, match="larger than the file"):
        _torchzip.parse(LocalBytes(path), path.name)
    embedded = tmp_path / f"{NAME}.pkl.gz"
    embedded.write_bytes(gzip.compress(pickle.dumps({"state_dict": {"a": torch.zeros(1).expand(1 << 20, 1 << 20)}})))
    chosen = formats.get("saelens_pickle")
    with pytest.raises(Refused, match="repeats its numbers"):
        chosen.read(SourceFiles({embedded.name: embedded}), formats.make_options(chosen, TRUST))
