"""What every format must do, found by discovery: a new format is tested by being there."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_support import METADATA, adopt_job, convert, files_of, source_files
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.digest import digest_file
from saesync.errors import ProofFailed, Refused, SaesyncError
from saesync.executors.convert import adopt
from saesync.formats.base import Format

NAMES = sorted(formats.formats())


@pytest.fixture(params=NAMES)
def chosen(request: pytest.FixtureRequest) -> Format:
    return formats.get(request.param)


def test_the_built_in_formats_are_found() -> None:
    assert {"saelens", "goodfire"} <= set(NAMES)


def test_discovery_imports_nothing_heavy() -> None:
    code = (
        "import sys; from saesync.formats import formats; [f.summary for f in formats().values()]; "
        "print([m for m in ('torch', 'numpy', 'safetensors', 'sae_lens') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_document_themselves(chosen: Format) -> None:
    for option in dataclasses.fields(chosen.Options):
        assert option.metadata["help"].endswith(".")
    assert dataclasses.fields(chosen.Options) == () or chosen.Options.__dataclass_params__.frozen


def test_an_unknown_option_is_refused(chosen: Format) -> None:
    with pytest.raises(Refused, match="no_such_option"):
        formats.make_options(chosen, {"no_such_option": 1})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_example_converts_proves_and_loads(chosen: Format, dtype: str, tmp_path: Path) -> None:
    from sae_lens import SAE

    options = chosen.example(tmp_path / "source", 1)
    out = tmp_path / "out"
    proof = convert(chosen.name, tmp_path / "source", out, dtype, dataclasses.asdict(options))
    assert proof["max_feature_diff"] <= 1e-12
    assert proof["max_reconstruction_diff"] <= 1e-12
    assert proof["support_changes"] == 0
    assert proof["rows"] > 100
    assert json.loads(json.dumps(proof)) == proof
    with pytest.warns(UserWarning, match="model_from_pretrained_kwargs"):
        sae = SAE.load_from_disk(out)
    assert sae.cfg.dtype == dtype
    for name, value in METADATA.items():
        assert sae.cfg.metadata[name] == value
    x = torch.randn(32, sae.cfg.d_in, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    features, output = chosen.reference(source_files(chosen.name, tmp_path / "source"), options, x)
    step = 4 * torch.finfo(getattr(torch, dtype)).eps * sae.cfg.d_in
    with torch.no_grad():
        assert torch.allclose(sae(x.to(sae.dtype)).double(), output, atol=step * float(output.abs().max()) + 1e-12, rtol=0)
    assert bool((features > 0).any())


def test_the_same_source_gives_the_same_bytes(chosen: Format, tmp_path: Path) -> None:
    options = dataclasses.asdict(chosen.example(tmp_path / "source", 2))
    for out in ("one", "two"):
        convert(chosen.name, tmp_path / "source", tmp_path / out, options=options)
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert digest_file(tmp_path / "one" / name) == digest_file(tmp_path / "two" / name)
        assert (tmp_path / "one" / name).stat().st_mode & 0o777 == 0o644


def test_files_are_chosen_at_the_root_in_a_folder_and_by_name(chosen: Format, tmp_path: Path) -> None:
    chosen.example(tmp_path, 0)
    names = sorted(found.name for found in tmp_path.iterdir())
    at_root = chosen.files([*names, "README.md", ".gitattributes"], "")
    assert set(at_root.values()) <= set(names)
    nested = chosen.files([f"a/b/{name}" for name in names] + ["a/b/c/other.txt", "top.json"], "a/b")
    assert dict(nested) == {name: f"a/b/{listed}" for name, listed in at_root.items()}
    weights = next(listed for listed in nested.values() if not listed.endswith(".json"))
    assert dict(chosen.files(sorted(nested.values()), weights)) == dict(nested)
    with pytest.raises(Refused):
        chosen.files(["README.md"], "")
    with pytest.raises(Refused):
        chosen.files([f"a/b/{name}" for name in names], "a")


def _published(chosen: Format, tmp_path: Path) -> Path:
    options = dataclasses.asdict(chosen.example(tmp_path / "source", 4))
    out = tmp_path / "published"
    convert(chosen.name, tmp_path / "source", out, options=options)
    return out


def test_adopting_our_own_folder_holds(chosen: Format, tmp_path: Path) -> None:
    published = _published(chosen, tmp_path)
    proof = adopt(adopt_job(chosen.name, tmp_path / "source", published)).proof
    assert proof["max_feature_diff"] < 1e-6
    assert proof["support_changes"] == 0


SPOILT = {
    "decoder negated": lambda t: t | {"W_dec": -t["W_dec"]},
    "encoder scaled by 1.001": lambda t: t | {"W_enc": t["W_enc"] * 1.001},
    "decoder bias lost": lambda t: t | {"b_dec": torch.zeros_like(t["b_dec"])},
    "encoder bias lost": lambda t: t | {"b_enc": torch.zeros_like(t["b_enc"])},
    "two features swapped in the decoder": lambda t: t | {"W_dec": t["W_dec"][[1, 0, *range(2, len(t["W_dec"]))]]},
    "a NaN in the decoder": lambda t: t | {"W_dec": t["W_dec"].index_fill(0, torch.tensor([0]), float("nan"))},
    "decoder transposed": lambda t: t | {"W_dec": t["W_dec"].T.contiguous()},
    "a tensor missing": lambda t: {name: value for name, value in t.items() if name != "b_enc"},
    "a tensor too many": lambda t: t | {"extra": torch.zeros(3)},
    "decoder norms folded": lambda t: (
        t
        | {
            "W_enc": t["W_enc"] * t["W_dec"].norm(dim=1) * 2,
            "b_enc": t["b_enc"] * t["W_dec"].norm(dim=1) * 2,
            "W_dec": t["W_dec"] / t["W_dec"].norm(dim=1, keepdim=True) / 2,
        }
    ),
}


@pytest.mark.parametrize("what", sorted(SPOILT))
def test_spoilt_weights_fail_the_proof(chosen: Format, what: str, tmp_path: Path) -> None:
    published = _published(chosen, tmp_path)
    weights = published / "sae_weights.safetensors"
    save_file(SPOILT[what](load_file(weights)), weights)
    with pytest.raises(SaesyncError) as caught:
        adopt(adopt_job(chosen.name, tmp_path / "source", published))
    assert isinstance(caught.value, ProofFailed | Refused)


@pytest.mark.parametrize("field", ["apply_b_dec_to_input", "normalize_activations"])
def test_a_wrong_cfg_field_fails_the_proof(chosen: Format, field: str, tmp_path: Path) -> None:
    published = _published(chosen, tmp_path)
    cfg = json.loads((published / "cfg.json").read_text(encoding="utf-8"))
    wrong = not cfg[field] if isinstance(cfg[field], bool) else "layer_norm"
    (published / "cfg.json").write_text(json.dumps(cfg | {field: wrong}), encoding="utf-8")
    with pytest.raises(ProofFailed) as caught:
        adopt(adopt_job(chosen.name, tmp_path / "source", published))
    assert caught.value.diagnostics[0].summary == "Not the same function"
    with pytest.raises(ProofFailed):
        convert(chosen.name, tmp_path / "source", tmp_path / "again", cfg={field: wrong})


def test_a_truncated_file_is_refused(chosen: Format, tmp_path: Path) -> None:
    options = dataclasses.asdict(chosen.example(tmp_path / "source", 0))
    for path in files_of(chosen.name, tmp_path / "source").values():
        whole = Path(path).read_bytes()
        for length in (0, 7, len(whole) // 2, len(whole) - 1):
            Path(path).write_bytes(whole[:length])
            with pytest.raises(Refused):
                convert(chosen.name, tmp_path / "source", tmp_path / "out", options=options)
        Path(path).write_bytes(whole)


def test_a_third_party_format_is_found_and_cannot_replace_ours(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "class Theirs:\n    name = 'theirs'\n    summary = 'by somebody else'\n\n"
        "class Fake:\n    name = 'goodfire'\n    summary = 'not ours'\n\nFORMAT, FAKE = Theirs(), Fake()\n",
        encoding="utf-8",
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[saesync.formats]\ntheirs = theirs:FORMAT\nfake = theirs:FAKE\n", encoding="utf-8")
    code = "from saesync.formats import formats; f = formats(); print(f['theirs'].summary, '|', f['goodfire'].summary[:8])"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "by somebody else | Goodfire"
