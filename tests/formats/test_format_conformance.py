"""What every format must do, found by discovery: a new format is tested by being there."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_support import Case, adopt_job, cases, convert, files_of, metadata_of, source_files
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.digest import digest_file
from saesync.errors import ProofFailed, Refused, SaesyncError
from saesync.executors.convert import adopt
from saesync.formats.base import CFG, FEATURE_SCALES, SEQUENTIAL
from saesync.inspection import WEIGHT_SUFFIXES, inspect_local
from saesync.jobs import AdoptJob

NAMES = sorted(formats.formats())


@pytest.fixture(params=cases(), ids=lambda case: f"{case.name} {case.variant}".strip())
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def test_the_built_in_formats_are_found() -> None:
    assert {"saelens", "goodfire"} <= set(NAMES)


def test_discovery_imports_nothing_heavy() -> None:
    code = (
        "import sys; from saesync.formats import formats; [f.summary for f in formats().values()]; "
        "print([m for m in ('torch', 'numpy', 'safetensors', 'sae_lens') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_document_themselves(case: Case) -> None:
    for option in dataclasses.fields(case.format.Options):
        assert option.metadata["help"].endswith(".")
    assert dataclasses.fields(case.format.Options) == () or case.format.Options.__dataclass_params__.frozen


def test_an_unknown_option_is_refused(case: Case) -> None:
    with pytest.raises(Refused, match="no_such_option"):
        formats.make_options(case.format, {"no_such_option": 1})


def test_the_fields_that_others_look_up_are_there(case: Case, tmp_path: Path) -> None:
    options = case.example(tmp_path, 1)
    assert set(CFG) <= set(case.format.read(source_files(case.name, tmp_path), options).cfg)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_example_converts_proves_and_loads(case: Case, dtype: str, tmp_path: Path) -> None:
    from sae_lens import SAE

    options = case.example(tmp_path / "source", 1)
    out = tmp_path / "out"
    metadata = metadata_of(case.name, tmp_path / "source", dataclasses.asdict(options))
    proof = convert(case.name, tmp_path / "source", out, dtype, dataclasses.asdict(options), metadata=metadata)
    assert proof["max_feature_diff"] <= 1e-12
    assert proof["max_reconstruction_diff"] <= 1e-12
    assert proof["support_changes"] == 0
    assert proof["rows"] > 100
    assert json.loads(json.dumps(proof)) == proof
    with pytest.warns(UserWarning, match="model_from_pretrained_kwargs"):
        sae = SAE.load_from_disk(out)
    assert sae.cfg.dtype == dtype
    assert proof["feature_scale"] in FEATURE_SCALES
    for name, value in metadata.items():
        assert sae.cfg.metadata[name] == value
    x = torch.randn(32, sae.cfg.d_in, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    features, output = case.format.reference(source_files(case.name, tmp_path / "source"), options, x)
    step = 4 * torch.finfo(getattr(torch, dtype)).eps * sae.cfg.d_in
    shaped = x[:, None] if sae.cfg.reshape_activations == "hook_z" else x  # one head as wide as d_in
    if sae.cfg.architecture() in SEQUENTIAL:
        shaped = x[None]
    with torch.no_grad():
        # Where rounding switches a feature at its threshold, the output jumps; the proof has judged these rows.
        same = ((sae.encode(shaped.to(sae.dtype)).reshape(features.shape) != 0) == (features != 0)).all(dim=1)
        assert same.double().mean() >= 0.5
        assert torch.allclose(
            sae(shaped.to(sae.dtype)).double().reshape(output.shape)[same],
            output[same],
            atol=step * float(output.abs().max()) + 1e-12,
            rtol=0,
        )
    assert bool((features > 0).any())


def test_the_same_source_gives_the_same_bytes(case: Case, tmp_path: Path) -> None:
    options = dataclasses.asdict(case.example(tmp_path / "source", 2))
    metadata = metadata_of(case.name, tmp_path / "source", options)
    for out in ("one", "two"):
        convert(case.name, tmp_path / "source", tmp_path / out, options=options, metadata=metadata)
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert digest_file(tmp_path / "one" / name) == digest_file(tmp_path / "two" / name)
        assert (tmp_path / "one" / name).stat().st_mode & 0o777 == 0o644


def test_what_inspection_proposes_is_read_whatever_files_are_called(case: Case, tmp_path: Path) -> None:
    """One weights file at a time has another name: the path that is proposed must still be one that its format accepts."""
    case.example(tmp_path / "made", 0)
    weights = [path for path in sorted((tmp_path / "made").rglob("*")) if path.name.endswith(WEIGHT_SUFFIXES)]
    for number, path in enumerate(weights):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "made", root / "renamed")
        moved = root / "renamed" / path.relative_to(tmp_path / "made")
        suffix = next(one for one in WEIGHT_SUFFIXES if path.name.endswith(one))
        moved.rename(moved.with_name(f"other{suffix}"))
        names = sorted(found.relative_to(root).as_posix() for found in root.rglob("*") if found.is_file())
        for found in inspect_local(root).convertible:
            assert found.best is not None
            assert formats.get(found.best.format).files(names, found.path)


def test_files_are_chosen_at_the_root_in_a_folder_and_by_name(case: Case, tmp_path: Path) -> None:
    case.example(tmp_path, 0)
    names = sorted(found.relative_to(tmp_path).as_posix() for found in tmp_path.rglob("*") if found.is_file())
    at_root = case.format.files([*names, "README.md", ".gitattributes"], "")
    assert set(at_root.values()) <= set(names)
    nested = case.format.files([f"a/b/{name}" for name in names] + ["a/b/c/other.txt", "top.json"], "a/b")
    assert dict(nested) == {name: f"a/b/{listed}" for name, listed in at_root.items()}
    weights = next(listed for listed in nested.values() if listed.endswith(WEIGHT_SUFFIXES))
    assert dict(case.format.files(sorted(nested.values()), weights)) == dict(nested)
    with pytest.raises(Refused):
        case.format.files(["README.md"], "")
    with pytest.raises(Refused):
        case.format.files([f"a/b/{name}" for name in names], "a")


def test_inspect_asks_for_what_is_needed_and_no_more(case: Case, tmp_path: Path) -> None:
    """Headers alone name the format (or it is one of several), and with what they say must be declared it can be read."""
    declared = dataclasses.asdict(case.example(tmp_path, 5))
    (found,) = inspect_local(tmp_path).saes
    assert found.best is not None
    candidate = next(each for each in found.candidates if each.format == case.name)
    assert candidate.refusal is None
    if found.best.format != case.name:
        assert found.best.score < 1, "another format is never certain"
    options = {**candidate.options, **{name: declared[name] for name in candidate.needs if name in declared}}
    read = case.format.read(source_files(case.name, tmp_path), formats.make_options(case.format, options))
    meant = case.format.read(source_files(case.name, tmp_path), formats.make_options(case.format, declared))
    assert read.cfg == meant.cfg
    assert read.feature_scale == meant.feature_scale
    for name in ("d_in", "d_sae"):
        assert candidate.facts.get(name, read.cfg[name]) == read.cfg[name]


def _published(case: Case, tmp_path: Path) -> tuple[Path, AdoptJob]:
    options = dataclasses.asdict(case.example(tmp_path / "source", 4))
    out = tmp_path / "published"
    convert(case.name, tmp_path / "source", out, options=options, metadata=metadata_of(case.name, tmp_path / "source", options))
    return out, adopt_job(case.name, tmp_path / "source", out, options)


def test_adopting_our_own_folder_holds(case: Case, tmp_path: Path) -> None:
    _, job = _published(case, tmp_path)
    proof = adopt(job).proof
    assert proof["max_feature_diff"] < 1e-6
    assert proof["support_changes"] == 0


def _bias(t: dict[str, torch.Tensor]) -> str:
    return next(name for name in ("b_enc", "b_mag", "b_dec") if name in t)


SPOILT = {
    "decoder negated": lambda t: t | {"W_dec": -t["W_dec"]},
    "encoder scaled by 1.001": lambda t: t | {"W_enc": t["W_enc"] * 1.001},
    "decoder bias changed": lambda t: t | {"b_dec": t["b_dec"] + 0.25},
    "encoder bias changed": lambda t: t | {_bias(t): t[_bias(t)] + 0.25},
    "two features swapped in the decoder": lambda t: t | {"W_dec": t["W_dec"][[1, 0, *range(2, len(t["W_dec"]))]]},
    "a NaN in the decoder": lambda t: t | {"W_dec": t["W_dec"].index_fill(0, torch.tensor([0]), float("nan"))},
    "decoder transposed": lambda t: t | {"W_dec": t["W_dec"].T.contiguous()},
    "skip connection lost": lambda t: t | {"W_skip": torch.zeros_like(t["W_skip"])},
    "a tensor missing": lambda t: {name: value for name, value in t.items() if name != _bias(t)},
    "a tensor too many": lambda t: t | {"extra": torch.zeros(3)},
    "decoder norms folded": lambda t: (
        t
        | {
            "W_enc": t["W_enc"] * t["W_dec"].norm(dim=1) * 2,
            _bias(t): t[_bias(t)] * t["W_dec"].norm(dim=1) * 2,
            "W_dec": t["W_dec"] / t["W_dec"].norm(dim=1, keepdim=True) / 2,
        }
    ),
}


@pytest.mark.parametrize("what", sorted(SPOILT))
def test_spoilt_weights_fail_the_proof(case: Case, what: str, tmp_path: Path) -> None:
    published, job = _published(case, tmp_path)
    weights = published / "sae_weights.safetensors"
    tensors = load_file(weights)
    if what == "skip connection lost" and "W_skip" not in tensors:
        pytest.skip("it has none")
    cfg = json.loads((published / "cfg.json").read_text())
    if what == "decoder norms folded" and cfg.get("rescale_acts_by_decoder_norm"):
        pytest.skip("its features are in units of the decoder's norms, so this changes nothing")
    if what in ("encoder scaled by 1.001", "decoder norms folded") and cfg.get("tied_weights"):
        pytest.skip("its encoder is its decoder")
    if what == "decoder norms folded" and cfg["architecture"] in SEQUENTIAL:
        pytest.skip("what attention predicts has its scale, too")
    save_file(SPOILT[what](tensors), weights)
    with pytest.raises(SaesyncError) as caught:
        adopt(job)
    assert isinstance(caught.value, ProofFailed | Refused)


@pytest.mark.parametrize("field", ["apply_b_dec_to_input", "normalize_activations"])
def test_a_wrong_cfg_field_fails_the_proof(case: Case, field: str, tmp_path: Path) -> None:
    published, job = _published(case, tmp_path)
    cfg = json.loads((published / "cfg.json").read_text(encoding="utf-8"))
    wrong = not cfg[field] if isinstance(cfg[field], bool) else "none" if cfg[field] == "layer_norm" else "layer_norm"
    (published / "cfg.json").write_text(json.dumps(cfg | {field: wrong}), encoding="utf-8")
    with pytest.raises(ProofFailed) as caught:
        adopt(job)
    refuses = "d_out" in cfg and field == "apply_b_dec_to_input"  # SAELens itself, in its constructor
    assert caught.value.diagnostics[0].summary == ("SAELens cannot load it" if refuses else "Not the same function")
    metadata = metadata_of(case.name, tmp_path / "source", job.options)
    with pytest.raises(ProofFailed):
        convert(case.name, tmp_path / "source", tmp_path / "again", options=job.options, cfg={field: wrong}, metadata=metadata)


def test_a_truncated_file_is_refused(case: Case, tmp_path: Path) -> None:
    options = dataclasses.asdict(case.example(tmp_path / "source", 0))
    paths = files_of(case.name, tmp_path / "source").values()
    for path in (path for path in paths if not path.endswith(".yaml")):  # a part of a YAML file is YAML, too
        whole = Path(path).read_bytes()
        for length in (0, 7, len(whole) // 2, len(whole) - 1):
            Path(path).write_bytes(whole[:length])
            with pytest.raises(Refused):
                convert(case.name, tmp_path / "source", tmp_path / "out", options=options, metadata={})
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
