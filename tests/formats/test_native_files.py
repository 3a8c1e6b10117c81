"""Which files may be published as they are, and what is said for machines of those that are."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convert_support import edit_cfg, files_of, saelens
from safetensors.torch import load_file, save_file

from saesync.convert.finite import require_finite_file
from saesync.errors import Inexpressible, Refused
from saesync.executors.convert import run
from saesync.executors.native import native_of
from saesync.formats._native import require_name, require_publishable
from saesync.formats._pickled_example import write
from saesync.jobs import ConvertJob
from saesync.record import Native

Write = Callable[[Path], None]


def saved(path: Path) -> None:
    torch.save({"W": torch.zeros(2, 3), "step": 4}, path)


def legacy(path: Path) -> None:
    torch.save({"W": torch.zeros(2, 3)}, path, _use_new_zipfile_serialization=False)


def with_entry(name: str) -> Write:
    def write(path: Path) -> None:
        saved(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"def forward(self): ...")

    return write


class _Call:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("gotcha",)


def calling(path: Path) -> None:
    torch.save({"W": torch.zeros(2, 3), "more": _Call()}, path)


def script(path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    torch.jit.save(torch.jit.script(Twice()), str(path))


def objects(path: Path) -> None:
    np.savez(path, a=np.array([{"x": 1}], dtype=object))


def after_pickle(path: Path) -> None:
    """A pickle with a checkpoint behind it: a zip to those who look at its end, a program to those who begin at its start."""
    inner = io.BytesIO()
    torch.save({"W": torch.zeros(2, 3)}, inner)
    path.write_bytes(pickle.dumps(_Call()) + inner.getvalue())


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("ae.pt", saved),
        ("a.npz", lambda path: np.savez(path, a=np.zeros(3))),
        ("b.npz", lambda path: np.savez_compressed(path, a=np.zeros(3))),
        ("w.safetensors", lambda path: save_file({"a": torch.zeros(3)}, path)),
    ],
)
def test_tensor_formats_may_go_along(name: str, write: Write, tmp_path: Path) -> None:
    write(tmp_path / name)
    (tmp_path / "config.yaml").write_text("k: 4\n")
    (tmp_path / "cfg.json").write_text("{}")
    require_publishable({each: tmp_path / each for each in (name, "config.yaml", "cfg.json")})


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("ae.pt", calling, "print"),
        ("ae.pt", legacy, "no zip of torch.save"),
        ("ae.pt", after_pickle, "no zip of torch.save"),
        ("ae.pt", with_entry("archive/code/model.py"), "which torch.save does not write"),
        ("ae.pt", with_entry("evil.pkl"), "which torch.save does not write"),
        pytest.param("ae.pt", script, "ae.pt", marks=pytest.mark.filterwarnings("ignore::DeprecationWarning")),
        ("a.npz", objects, "no plain numbers"),
        ("a.npz", lambda path: path.write_bytes(b"PK"), "not a readable .npz"),
        ("w.safetensors", lambda path: path.write_bytes(b"\0" * 40), "not a whole safetensors"),
        ("w.pkl", lambda path: path.write_bytes(pickle.dumps({})), "neither of a tensor format"),
        ("run.py", lambda path: path.write_text("print()"), "neither of a tensor format"),
        ("w.PT", saved, "neither of a tensor format"),
        ("cfg.json", lambda path: path.write_text("["), "not JSON"),
        ("cfg.json", lambda path: path.write_text("{}"), "None of cfg.json"),
        ("cfg.json", lambda path: path.write_text(json.dumps({"x": "y" * (5 << 20)})), "larger than"),
        ("config.yaml", lambda path: path.write_text("a: &x [1]\nb: *x\n"), "anchors"),
    ],
)
def test_nothing_else_may(name: str, write: Write, words: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(Refused) as caught:
        require_publishable({name: tmp_path / name})
    assert words in caught.value.diagnostics[0].detail


@pytest.mark.parametrize("name", ["../a.pt", "/a.pt", ".git/a.pt", "a\\b.pt", "a/../b.pt", "refusal.json", "Refusal.JSON", ""])
def test_names_that_could_leave_or_shadow_are_refused(name: str) -> None:
    with pytest.raises(Refused):
        require_name(name)


def job(folder: Path, out: Path, native: dict[str, Any] | None) -> ConvertJob:
    return ConvertJob("r/s", "circuit_tracer", {}, files_of("circuit_tracer", folder), "float32", {}, {}, str(out), None, native)


def topk(folder: Path) -> Path:
    folder.mkdir()
    shapes = {"W_enc": (40, 12), "b_enc": (40,), "W_dec": (40, 9), "b_dec": (9,), "k": ()}
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / "layer_3.safetensors")
    (folder / "config.yaml").write_text("model_kind: transcoder_set\n")
    return folder


def test_only_with_the_permission(tmp_path: Path) -> None:
    folder = topk(tmp_path / "source")
    with pytest.raises(Inexpressible) as caught:
        run(job(folder, tmp_path / "no", None))
    assert caught.value.said_by == "k"
    result = run(job(folder, tmp_path / "out", {"path": "x"}))
    assert result.native is not None
    assert result.native["said_by"] == "k"
    assert set(result.digests) == {"native/layer_3.safetensors", "native/config.yaml", "native/refusal.json"}
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_no_number_is_not_passed_on(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    """What SAELens cannot express is intact; this is damaged, and is refused as a conversion refuses it."""
    folder = topk(tmp_path / "source")
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "layer_3.safetensors").items()}
    tensors["W_dec"][3, 2] = value
    save_file(tensors, folder / "layer_3.safetensors")
    with pytest.raises(Refused) as caught:
        run(job(folder, tmp_path / "out", {"path": "x"}))
    assert not isinstance(caught.value, Inexpressible)
    first, second = caught.value.diagnostics
    assert (first.summary, second.summary) == ("Cannot be expressed in SAELens", "Not published as it is: Not finite")
    assert f"layer_3.safetensors: W_dec[3, 2] is {value}" in second.detail


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.npz", lambda path, x: np.savez(path, steps=np.arange(3), empty=np.zeros((2, 0)), x=x)),
        ("a.npz", lambda path, x: np.savez_compressed(path, x=x)),
        ("a.npz", lambda path, x: np.savez(path, x=np.asfortranarray(x))),
        ("a.pt", lambda path, x: torch.save({"x": torch.from_numpy(x), "n": torch.arange(3), "e": torch.zeros(2, 0)}, path)),
        ("a.pt", lambda path, x: torch.save({"x": torch.from_numpy(x).T.contiguous().T}, path)),
    ],
)
def test_every_tensor_format_is_looked_at(name: str, write: Callable[[Path, Any], None], tmp_path: Path) -> None:
    x = np.ones((4, 5), np.float32)
    write(tmp_path / name, x)
    require_finite_file(tmp_path / name, name)
    x[2, 1] = np.nan
    write(tmp_path / name, x)
    with pytest.raises(Refused, match=f"{name}: x.* is nan"):
        require_finite_file(tmp_path / name, name)


def test_what_may_not_be_published_says_both(tmp_path: Path) -> None:
    """The older layout of torch.save is read, and not passed on."""
    shapes = {"encoder.weight": (40, 12), "decoder.weight": (12, 40), "latent_bias": (40,), "pre_bias": (12,)}
    state: dict[str, Any] = {name: torch.ones(shape) for name, shape in shapes.items()}
    path = tmp_path / "3.pt"
    torch.save({**state, "stats_last_nonzero": torch.zeros(40), "activation": "GELU"}, path, _use_new_zipfile_serialization=False)
    asked = ConvertJob("r/s", "openai", {}, {path.name: str(path)}, "float32", {}, {}, str(tmp_path / "out"), None, {})
    with pytest.raises(Refused) as caught:
        run(asked)
    assert [each.summary for each in caught.value.diagnostics] == [
        "Cannot be expressed in SAELens",
        "Not published as it is: Unknown kind of file",
    ]
    assert not isinstance(caught.value, Inexpressible)


def test_a_refusal_can_be_recorded_whatever_it_quotes() -> None:
    native = native_of(Inexpressible("t", "x\ud800" + "y" * 5000, said_by="\udfff" * 300))
    assert Native.from_json(json.loads(json.dumps(native.to_json(), ensure_ascii=False).encode())) == native


def test_a_trusted_pickle_is_never_passed_on(tmp_path: Path) -> None:
    state = {"W_enc": torch.ones(12, 40), "b_enc": torch.ones(40), "W_dec": torch.ones(40, 12), "b_dec": torch.ones(12)}
    cfg = {"hook_point": "blocks.3.hook_resid_pre", "model_name": "gpt2-small", "d_in": 12, "activation_fn": "tanh-relu"}
    write(tmp_path, "final_sparse_autoencoder_x", "sae_training.config", state, cfg, "zip")
    files = files_of("saelens_pickle", tmp_path)
    asked = ConvertJob("r/s", "saelens_pickle", {"trust": "pickle"}, files, "float32", {}, {}, str(tmp_path / "out"), None, {})
    with pytest.raises(Refused) as caught:
        run(asked)
    assert [each.summary for each in caught.value.diagnostics] == [
        "Cannot be expressed in SAELens",
        "Not published as it is: Unsafe pickle",
    ]
    assert "sae_training.config" in caught.value.diagnostics[1].detail


def test_what_saelens_would_load_wrongly_is_never_passed_on(tmp_path: Path) -> None:
    folder = saelens(tmp_path / "source", activation_fn_str="tanh-relu")
    edit_cfg(folder, architecture="crosscoder")
    files = files_of("saelens", folder)
    asked = ConvertJob("r/s", "saelens", {}, files, "float32", {}, {}, str(tmp_path / "out"), None, {})
    with pytest.raises(Refused, match="crosscoder") as caught:
        run(asked)
    assert caught.value.diagnostics[1].summary == "Not published as it is: Would be loaded as something else"
