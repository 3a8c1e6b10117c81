"""The writer's bytes, and what a proof notices."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from convert_support import HOOK, METADATA, adopt_job, convert, edit_cfg, edit_tensors, files_of, saelens
from sae_lens import StandardSAE
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from saesync.convert import writer
from saesync.convert.proof import Source, prove
from saesync.convert.said import settled
from saesync.convert.writer import is_exact, rewrite_cfg, write_sae
from saesync.digest import FileDigest, digest_file
from saesync.errors import Missing, ProofFailed, Refused, SaesyncError
from saesync.executors.convert import adopt, run
from saesync.formats import _lazy, get
from saesync.formats.base import Format, SourceFiles, Weights
from saesync.jobs import ConvertJob


def weights_of(folder: Path) -> Weights:
    chosen = get("saelens")
    return chosen.read(SourceFiles({name: Path(path) for name, path in files_of("saelens", folder).items()}), chosen.Options())


# ------------------------------------------------------------------------------------------------------ the writer


@pytest.mark.parametrize("block", [1, 1000, 1 << 20])
def test_bytes_do_not_depend_on_how_rows_are_cut(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of(saelens(tmp_path / "source", architecture="jumprelu"))
    whole = write_sae(weights, tmp_path / "whole", "bfloat16", {}, METADATA)
    monkeypatch.setattr(_lazy, "BLOCK_BYTES", block)
    assert write_sae(weights, tmp_path / "cut", "bfloat16", {}, METADATA) == whole


def test_digests_taken_while_writing_are_the_files(tmp_path: Path) -> None:
    digests = write_sae(weights_of(saelens(tmp_path / "source")), tmp_path / "out", "float32", {}, METADATA)
    assert digests == {name: digest_file(tmp_path / "out" / name) for name in ("cfg.json", "sae_weights.safetensors")}


def test_the_file_holds_no_metadata_and_is_aligned(tmp_path: Path) -> None:
    write_sae(weights_of(saelens(tmp_path / "source", architecture="jumprelu")), tmp_path / "out", "bfloat16", {}, METADATA)
    path = tmp_path / "out" / "sae_weights.safetensors"
    with safe_open(path, framework="pt") as stored:
        assert stored.metadata() is None
        assert {name: stored.get_slice(name).get_dtype() for name in stored.keys()} == {  # noqa: SIM118  not a dict
            "W_enc": "BF16", "W_dec": "BF16", "b_enc": "BF16", "b_dec": "BF16", "threshold": "F32",
        }  # fmt: skip
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert all(entry["data_offsets"][0] % (4 if entry["dtype"] == "F32" else 2) == 0 for entry in header.values())


def test_cfg_json_is_sorted_and_ends_in_a_newline(tmp_path: Path) -> None:
    write_sae(weights_of(saelens(tmp_path / "source")), tmp_path / "out", "float32", {}, METADATA)
    text = (tmp_path / "out" / "cfg.json").read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_progress_ends_at_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lazy, "BLOCK_BYTES", 500)
    told: list[tuple[int, int]] = []
    write_sae(weights_of(saelens(tmp_path / "source")), tmp_path / "out", "float32", {}, {}, lambda *at: told.append(at))
    size = (tmp_path / "out" / "sae_weights.safetensors").stat().st_size
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) > 5


@pytest.mark.parametrize(("dtype", "exact"), [("float64", True), ("float32", True), ("float16", False), ("bfloat16", False)])
def test_exactness_is_known(dtype: str, exact: bool, tmp_path: Path) -> None:
    assert is_exact(weights_of(saelens(tmp_path / "source", architecture="topk")), dtype) is exact


def test_folded_weights_are_never_exact_below_float64(tmp_path: Path) -> None:
    weights = weights_of(saelens(tmp_path / "source"))
    assert not is_exact(weights, "float32")
    assert is_exact(weights, "float64")


@pytest.mark.parametrize("dtype", ["int8", "float8", ""])
def test_an_unknown_dtype_is_refused(dtype: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="dtype must be one of"):
        write_sae(weights_of(saelens(tmp_path / "source")), tmp_path / "out", dtype, {}, {})


@pytest.mark.parametrize("field", ["d_in", "architecture", "k", "no_such_field"])
def test_a_manifest_may_not_set_every_field(field: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=field):
        write_sae(weights_of(saelens(tmp_path / "source")), tmp_path / "out", "float32", {field: 1}, {})


def test_a_hook_sae_lens_would_refuse_is_refused_first(tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", architecture="standard", reshape_activations="hook_z")
    with pytest.raises(Refused, match="hook_z"):
        convert("saelens", source, tmp_path / "out")


def test_relabelling_gives_the_bytes_of_a_fresh_conversion(tmp_path: Path) -> None:
    weights = weights_of(saelens(tmp_path / "source"))
    write_sae(weights, tmp_path / "before", "float32", {}, METADATA)
    after = {**METADATA, "hook_name": "blocks.1.hook_resid_post", "neuronpedia_id": None}
    write_sae(weights, tmp_path / "after", "float32", {}, after)
    text = rewrite_cfg((tmp_path / "before" / "cfg.json").read_bytes(), {}, after)
    assert text == (tmp_path / "after" / "cfg.json").read_bytes()


@pytest.mark.parametrize("text", [b"", b"[]", b'{"metadata": 3}', b'{"architecture": "topk"}', b"\xff"])
def test_relabelling_something_else_is_refused(text: bytes) -> None:
    with pytest.raises(Refused, match=r"cfg\.json"):
        rewrite_cfg(text, {}, {})


# ------------------------------------------------------------------------------------------------------- the proof


def job(folder: Path, out: Path, **changes: Any) -> ConvertJob:
    plain = ConvertJob("release/sae", "saelens", {}, files_of("saelens", folder), "float32", {}, {"hook_name": HOOK}, str(out))
    return replace(plain, **changes)


def test_the_result_tells_digests_and_versions(tmp_path: Path) -> None:
    result = run(job(saelens(tmp_path / "source"), tmp_path / "out"))
    for name, value in result.digests.items():
        assert FileDigest(**value) == digest_file(tmp_path / "out" / name)
    assert result.proof["feature_scale"] == "raw"
    assert result.proof["sae_lens"] == "6.54.12" or result.proof["sae_lens"] > "6.54"
    assert result.proof["torch"] == torch.__version__
    assert all(isinstance(value, str | int | float | bool) for value in result.proof.values())


def test_progress_of_a_job_reaches_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    run(job(saelens(tmp_path / "source"), tmp_path / "out"), lambda *at: told.append(at))
    done = [at for at, _ in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]


def test_a_proof_is_repeatable(tmp_path: Path) -> None:
    source = saelens(tmp_path / "source")
    assert run(job(source, tmp_path / "one")) == run(job(source, tmp_path / "two"))


def test_real_activations_are_used(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.randn(70, 12) * 5 + 2}, path)
    proof = run(job(saelens(tmp_path / "source"), tmp_path / "out", activations=str(path))).proof
    assert proof["real_rows"] == 70
    assert proof["rows"] > 200


def test_activations_of_another_width_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(4, 13)}, path)
    with pytest.raises(Refused, match="13 wide, the SAE reads 12"):
        run(job(saelens(tmp_path / "source"), tmp_path / "out", activations=str(path)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    made = job(saelens(tmp_path / "source"), tmp_path / "out")
    (tmp_path / "source" / "cfg.json").unlink()
    with pytest.raises(Missing, match=r"cfg\.json"):
        run(made)


@pytest.mark.parametrize(
    "mistake", ["encoder transposed when square", "decoder off by one row", "threshold lost", "norms not folded"]
)
def test_a_mistake_of_ours_fails_the_proof(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is made wrong, the reference stays right."""
    chosen = get("saelens")
    changes = {"d_in": 16, "d_sae": 16} if "square" in mistake else {}
    source = saelens(tmp_path / "source", **changes)
    right = weights_of(source)

    def wrong(files: SourceFiles, options: Any) -> Weights:
        tensors = dict(right.tensors)
        if "square" in mistake:
            tensors["W_enc"] = _lazy.Transposed(tensors["W_enc"])
        elif "rows" in mistake:
            tensors["W_dec"] = _lazy.Mapped(tensors["W_dec"], lambda block, *_: block.roll(1, 0))
        elif "threshold" in mistake:
            tensors["threshold"] = _lazy.Filled(0.0, (40,))
        else:
            tensors["W_dec"] = _lazy.Mapped(tensors["W_dec"], lambda block, *_: block * 1.0001)
        return replace(right, tensors=tensors)

    monkeypatch.setattr(type(chosen), "read", lambda self, files, options: wrong(files, options))
    with pytest.raises(ProofFailed, match="is not the authors' function"):
        run(job(source, tmp_path / "out"))


def test_a_feature_that_switches_fails_the_proof_also_where_it_decodes_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs are the same then, and features differ only by firing or not."""
    source = saelens(tmp_path / "source", architecture="jumprelu")
    t = load_file(source / "sae_weights.safetensors")
    t["W_dec"][::2] = 0
    edit_tensors(source, **t)
    right, lower = weights_of(source), t["threshold"].clone()
    lower[::2] *= 0.5
    tensors = {**right.tensors, "threshold": _lazy.Mapped(right.tensors["threshold"], lambda *_: lower)}
    run(job(source, tmp_path / "right"))
    monkeypatch.setattr(type(get("saelens")), "read", lambda *_: replace(right, tensors=tensors))
    with pytest.raises(ProofFailed, match=r"[1-9]\d* features switch in"):
        run(job(source, tmp_path / "out"))


def test_authors_who_keep_negative_features_fail_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The k largest are positive in nearly all rows: only one in which fewer are shows that SAELens keeps no others."""
    source = saelens(tmp_path / "source", 1, architecture="topk", k=13, rescale_acts_by_decoder_norm=False)
    t = {name: tensor.double() for name, tensor in load_file(source / "sae_weights.safetensors").items()}
    config = json.loads((source / "cfg.json").read_text())

    def reference(_self: Any, _files: SourceFiles, _options: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = (x - t["b_dec"] if config["apply_b_dec_to_input"] else x) @ t["W_enc"] + t["b_enc"]
        kept = h.topk(config["k"])
        f = torch.zeros_like(h).scatter(1, kept.indices, kept.values if keeps_negative else kept.values.relu())
        return f, f @ t["W_dec"] + t["b_dec"]

    monkeypatch.setattr(type(get("saelens")), "reference", reference)
    keeps_negative = False
    run(job(source, tmp_path / "positive"))
    keeps_negative = True
    with pytest.raises(ProofFailed, match="is not the authors' function"):
        run(job(source, tmp_path / "out"))


def test_features_that_depend_on_the_rows_beside_them_fail_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As BatchTopK does while training: a SAELens that did so would agree with its reference, batch by batch."""
    source = saelens(tmp_path / "source", architecture="standard")
    decoder = load_file(source / "sae_weights.safetensors")
    honest, authors = StandardSAE.encode, type(get("saelens")).reference

    def chosen_by_the_batch(f: torch.Tensor) -> torch.Tensor:
        return f * (f > f.mean(dim=0))

    def reference(self: Any, files: SourceFiles, options: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        f = chosen_by_the_batch(authors(self, files, options, x)[0])
        return f, f @ decoder["W_dec"].double() + decoder["b_dec"].double()

    monkeypatch.setattr(StandardSAE, "encode", lambda self, x: chosen_by_the_batch(honest(self, x)))
    monkeypatch.setattr(type(get("saelens")), "reference", reference)
    with pytest.raises(ProofFailed) as caught:
        run(job(source, tmp_path / "out"))
    assert caught.value.diagnostics[0].summary == "Depends on its batch"


def test_bytes_on_disk_are_what_is_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that stores something else than it was given is found out."""
    honest = writer._blocks
    monkeypatch.setattr(writer, "_blocks", lambda name, *rest: (block * 1.001 for block in honest(name, *rest)))
    for architecture in ("standard", "batchtopk"):  # stored exactly, and rounded
        source = saelens(tmp_path / architecture, architecture=architecture)
        with pytest.raises(ProofFailed):
            run(job(source, tmp_path / f"{architecture}-out"))


def test_metadata_that_sae_lens_loses_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CFG_LAYOUT", "5.0.0")  # SAELens then reads cfg.json as legacy
    with pytest.raises(ProofFailed, match="hook_name"):
        run(job(saelens(tmp_path / "source", architecture="standard"), tmp_path / "out"))


def test_a_cast_that_costs_too_much_fails(tmp_path: Path) -> None:
    """Decoder rows that nearly cancel survive in float32 and not in bfloat16."""
    source = saelens(tmp_path / "source", architecture="standard")
    t = load_file(source / "sae_weights.safetensors")
    t["W_enc"][:, 1::2] = t["W_enc"][:, ::2]
    t["b_enc"][1::2] = t["b_enc"][::2]
    t["W_dec"] *= 60
    t["W_dec"][1::2] = -t["W_dec"][::2] + 0.03 * torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    edit_tensors(source, **t)
    run(job(source, tmp_path / "wide"))
    with pytest.raises(ProofFailed) as caught:
        run(job(source, tmp_path / "narrow", dtype="bfloat16"))
    assert caught.value.diagnostics[0].summary == "Cast loses too much"
    assert "bfloat16" in caught.value.diagnostics[0].detail


def test_a_feature_that_float32_switches_costs_no_proof(tmp_path: Path) -> None:
    """A threshold that a row's pre-activation misses by less than float32 can tell: on real rows of wide SAEs that happens."""
    source = saelens(tmp_path / "source", architecture="jumprelu")
    t = load_file(source / "sae_weights.safetensors")
    x = torch.randn((64, 12), generator=torch.Generator().manual_seed(2))
    exact = (x.double() - t["b_dec"]) @ t["W_enc"].double() + t["b_enc"]
    seen = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    near = seen.float()
    row, feature = (((exact > near) != (seen > near)) & (near > 0.5)).nonzero()[0].tolist()
    t["threshold"][feature] = near[row, feature]
    edit_tensors(source, **t)
    save_file({"x": x}, tmp_path / "x.safetensors")
    proof = run(job(source, tmp_path / "out", activations=str(tmp_path / "x.safetensors"))).proof
    assert proof["cast_support_changes"] >= 1
    assert proof["cast_fvu"] > 1e-9 > proof["cast_untied_fvu"]


def test_a_cast_is_judged_on_rows_whose_features_fire(tmp_path: Path) -> None:
    """Random rows reach thresholds, however far these are above the biases."""
    source = saelens(tmp_path / "source", architecture="jumprelu")
    edit_tensors(source, threshold=torch.full((40,), 30.0))
    proof = run(job(source, tmp_path / "out", dtype="bfloat16")).proof
    assert 1e-4 < proof["cast_max_feature_diff"] < 1e-2
    assert proof["cast_fvu"] > 1e-8


def test_adopting_accepts_a_narrower_copy_and_refuses_another_sae(tmp_path: Path) -> None:
    source = saelens(tmp_path / "source")
    convert("saelens", source, tmp_path / "narrow", "bfloat16", metadata={})
    proof = adopt(adopt_job("saelens", source, tmp_path / "narrow")).proof
    assert proof["dtype"] == "bfloat16"
    convert("saelens", saelens(tmp_path / "other", seed=1), tmp_path / "other-out", metadata={})
    with pytest.raises(ProofFailed):
        adopt(adopt_job("saelens", source, tmp_path / "other-out"))
    convert("saelens", saelens(tmp_path / "wider", d_sae=41), tmp_path / "wider-out", metadata={})
    with pytest.raises(ProofFailed):
        adopt(adopt_job("saelens", source, tmp_path / "wider-out"))


@pytest.mark.parametrize("what", ["decoder rows permuted", "thresholds lower", "smaller biases"])
def test_adopting_refuses_what_is_further_away_than_a_copy(what: str, tmp_path: Path) -> None:
    """All of these are within what rounding could do to some input, and within the variance that it may cost."""
    source = saelens(tmp_path / "source", architecture="jumprelu", d_in=256, d_sae=1024)
    t = load_file(source / "sae_weights.safetensors")
    edit_tensors(source, threshold=t["threshold"].abs() + 1)
    convert("saelens", source, tmp_path / "narrow", "bfloat16", metadata={})
    assert adopt(adopt_job("saelens", source, tmp_path / "narrow")).proof["dtype"] == "bfloat16"
    t = load_file(tmp_path / "narrow" / "sae_weights.safetensors")
    order = torch.cat([torch.arange(8).flip(0), torch.arange(8, 1024)])
    changes = {"W_dec": t["W_dec"][order]} if what == "decoder rows permuted" else {"threshold": t["threshold"] * 0.96}
    edit_tensors(tmp_path / "narrow", **({"b_enc": t["b_enc"] * 0.8} if what == "smaller biases" else changes))
    with pytest.raises(ProofFailed, match="further from the source"):
        adopt(adopt_job("saelens", source, tmp_path / "narrow"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale"])
@pytest.mark.parametrize("what", ["decoder 2% larger", "encoder 2% larger", "biases a little higher", "two decoder rows swapped"])
def test_adopting_refuses_what_switches_as_few_features_as_a_copy(what: str, norm: str, dtype: str, tmp_path: Path) -> None:
    """Where few features are kept, one that rounding switches costs more than all of these."""
    fields = {"architecture": "topk", "k": 16, "rescale_acts_by_decoder_norm": False, "normalize_activations": norm}
    source = saelens(tmp_path / "source", d_in=64, d_sae=256, **fields)
    convert("saelens", source, tmp_path / "narrow", dtype, metadata={})
    assert adopt(adopt_job("saelens", source, tmp_path / "narrow")).proof["support_changes"] == 0
    t = load_file(tmp_path / "narrow" / "sae_weights.safetensors")
    order = torch.arange(256)
    order[[3, 7]] = order[[7, 3]]
    changes = {
        "decoder 2% larger": {"W_dec": t["W_dec"] * 1.02},
        "encoder 2% larger": {"W_enc": t["W_enc"] * 1.02},
        "biases a little higher": {"b_enc": t["b_enc"] + 0.02},
        "two decoder rows swapped": {"W_dec": t["W_dec"][order]},
    }
    edit_tensors(tmp_path / "narrow", **changes[what])
    with pytest.raises(ProofFailed, match="further from the source"):
        adopt(adopt_job("saelens", source, tmp_path / "narrow"))


@pytest.mark.filterwarnings("ignore:This SAE has non-empty model_from_pretrained_kwargs:UserWarning")
@pytest.mark.parametrize("architecture", ["batchtopk", "jumprelu", "topk"])
def test_adopting_accepts_what_sae_lens_rounds_and_folds_itself(architecture: str, tmp_path: Path) -> None:
    """In bfloat16 throughout: the threshold, and decoder norms that are folded, too."""
    from sae_lens import SAE, TrainingSAE

    source = saelens(tmp_path / "source", architecture=architecture, d_in=256, d_sae=1024)
    if architecture == "batchtopk":
        TrainingSAE.load_from_disk(source, dtype="bfloat16").save_inference_model(tmp_path / "theirs")
    else:
        SAE.load_from_disk(source, dtype="bfloat16").save_model(tmp_path / "theirs")
    proof = adopt(adopt_job("saelens", source, tmp_path / "theirs")).proof
    assert (proof["dtype"], proof["support_changes"]) == ("bfloat16", 0)


@pytest.mark.parametrize("k", [14, 16])
@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_adopting_refuses_another_k_however_coarse_the_weights_are(architecture: str, k: int, tmp_path: Path) -> None:
    """The smallest of the features that fire are less than what rounding costs."""
    source = saelens(tmp_path / "source", architecture=architecture, k=15)
    convert("saelens", source, tmp_path / "narrow", "bfloat16", metadata={})
    adopt(adopt_job("saelens", source, tmp_path / "narrow"))
    edit_cfg(tmp_path / "narrow", k=k)
    with pytest.raises(ProofFailed, match="not the source's function"):
        adopt(adopt_job("saelens", source, tmp_path / "narrow"))


def test_adopting_refuses_features_of_another_scale_whose_outputs_are_the_same(tmp_path: Path) -> None:
    """What a feature of theirs is called 2, the source calls 1: dashboards and thresholds would be wrong."""
    source = saelens(tmp_path / "source", architecture="standard")
    run(job(source, tmp_path / "out"))
    t = load_file(tmp_path / "out" / "sae_weights.safetensors")
    t["W_enc"][:, 7] *= 2
    t["b_enc"][7] *= 2
    t["W_dec"][7] /= 2
    edit_tensors(tmp_path / "out", **t)
    with pytest.raises(ProofFailed, match="is not the source's function"):
        adopt(adopt_job("saelens", source, tmp_path / "out"))


def test_adopting_refuses_what_is_no_number_also_where_it_never_shows(tmp_path: Path) -> None:
    """A feature whose threshold is infinite never fires: the function is the same, and a conversion refuses it all the same."""
    source = saelens(tmp_path / "source", architecture="jumprelu")
    convert("saelens", source, tmp_path / "out")
    for folder in (source, tmp_path / "out"):
        threshold = load_file(folder / "sae_weights.safetensors")["threshold"].clone()
        threshold[5] = float("inf")
        edit_tensors(folder, threshold=threshold)
    with pytest.raises(Refused, match=r"taken over: sae_weights.safetensors: threshold\[5\] is inf"):
        adopt(adopt_job("saelens", source, tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sae_weights.safetensors", b""),
        ("sae_weights.safetensors", b"\x08\0\0\0\0\0\0\0{{{{{{{{"),
        ("cfg.json", b"not json"),
        ("cfg.json", b"\xff\xfe"),
        ("cfg.json", b"[]"),
        ("cfg.json", b"{}"),
        ("cfg.json", b'"topk"'),
        ("cfg.json", b"[" * 100_000),
    ],
)
def test_damage_to_what_is_taken_over_is_told_of_it_and_not_of_the_source(name: str, content: bytes, tmp_path: Path) -> None:
    source = saelens(tmp_path / "source")
    convert("saelens", source, tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(SaesyncError) as caught:
        adopt(adopt_job("saelens", source, tmp_path / "out"))
    (told,) = caught.value.diagnostics
    assert told.detail.startswith("sae in acme/saes cannot be taken over: ")
    assert told.detail.endswith(" --replace publishes it anew.")
    assert told.key == "publish.huggingface"
    (source / "sae_weights.safetensors").write_bytes(b"")
    with pytest.raises(SaesyncError) as caught:
        adopt(adopt_job("saelens", source, tmp_path / "out"))
    assert caught.value.diagnostics[0].key is None
    assert "taken over" not in caught.value.diagnostics[0].detail


def test_adopting_accepts_sae_lens_own_export(tmp_path: Path) -> None:
    from sae_lens import TrainingSAE

    source = saelens(tmp_path / "source")
    TrainingSAE.load_from_disk(source).save_inference_model(tmp_path / "theirs")
    proof = adopt(adopt_job("saelens", source, tmp_path / "theirs")).proof
    assert proof["support_changes"] == 0


def test_adopting_the_training_checkpoint_itself_is_refused(tmp_path: Path) -> None:
    """Stock SAELens cannot load it, so publishing it as it is serves nobody."""
    source = saelens(tmp_path / "source")
    with pytest.raises(ProofFailed, match="batchtopk"):
        adopt(adopt_job("saelens", source, source))


# ------------------------------------------------------------------------------------------------------------ memory

BOUNDED = """
import sys
from pathlib import Path
import numpy, torch
from saesync import formats
from saesync.convert.writer import write_sae
from saesync.formats import _lazy
from saesync.formats.base import SourceFiles
_lazy.BLOCK_BYTES = 2 << 20
def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) >> 10
chosen = formats.get("goodfire")
weights = chosen.read(SourceFiles({"sae.pth": Path(sys.argv[1])}), chosen.Options())
torch.rand(64, 64).bfloat16().aminmax()  # what torch sets up once
before, peak = anonymous(), 0
def watch(done, total):
    global peak
    peak = max(peak, anonymous() - before)
write_sae(weights, Path(sys.argv[2]), sys.argv[3], {}, {}, watch)
print(peak)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_bounded_by_blocks_not_by_the_file(dtype: str, tmp_path: Path) -> None:
    d_in, d_sae = 1024, 16384
    state = {
        "encoder_linear.weight": torch.rand(d_sae, d_in),
        "encoder_linear.bias": torch.rand(d_sae),
        "decoder_linear.weight": torch.rand(d_in, d_sae),
        "decoder_linear.bias": torch.rand(d_in),
    }
    torch.save(state, tmp_path / "sae.pth")
    words = [sys.executable, "-c", BOUNDED, str(tmp_path / "sae.pth"), str(tmp_path / "out"), dtype]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 48  # MiB, of a file of 128
    written = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert torch.equal(written["W_enc"], state["encoder_linear.weight"].T.to(getattr(torch, dtype)))


# ------------------------------------------------------------------------------------------- what becomes public


def test_no_path_of_somebodys_machine_is_published(tmp_path: Path) -> None:
    """Training tools note where things lay; a name is enough for a reader."""
    private = {
        "dataset_path": "/home/alice/secret-project/pile",
        "checkpoint_path": "C:\\Users\\alice\\runs\\7",
        "training": {"cache": "~/alice/cache", "files": ["file:///mnt/alice/a.jsonl", "monology/pile"]},
    }
    source = saelens(
        tmp_path / "source", architecture="topk", metadata={"hook_name": HOOK, "sae_lens_version": "6.0.0", **private}
    )
    convert("saelens", source, tmp_path / "out")
    text = (tmp_path / "out" / "cfg.json").read_text()
    assert "alice" not in text
    metadata = json.loads(text)["metadata"]
    assert metadata["dataset_path"] == "pile"
    assert metadata["training"]["files"] == ["a.jsonl", "monology/pile"]


def test_what_a_source_says_of_another_hook_is_left_out(tmp_path: Path) -> None:
    said = {
        "hook_name": "blocks.3.hook_resid_pre",
        "hf_hook_name": "transformer.h.2",
        "sae_lens_version": "6.0.0",
        "context_size": 7,
    }
    source = saelens(tmp_path / "source", metadata=said)
    convert("saelens", source, tmp_path / "other", metadata={"hook_name": HOOK})
    metadata = json.loads((tmp_path / "other" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == HOOK
    assert "hf_hook_name" not in metadata
    assert metadata["context_size"] == 7
    relabelled = json.loads(
        rewrite_cfg((tmp_path / "other" / "cfg.json").read_bytes(), {}, {"hook_name": "x", "prepend_bos": True})
    )
    assert relabelled["metadata"]["hook_name"] == "x"
    convert("saelens", source, tmp_path / "same", metadata={"hook_name": said["hook_name"]})
    assert json.loads((tmp_path / "same" / "cfg.json").read_text())["metadata"]["hf_hook_name"] == "transformer.h.2"


def test_what_is_said_of_another_output_hook_goes_with_it() -> None:
    said = {"hook_name": HOOK, "hook_name_out": "blocks.0.hook_mlp_out", "hf_hook_name_out": "transformer.h.0.mlp"}
    text = json.dumps({"architecture": "transcoder", "metadata": said}).encode()
    there = json.loads(rewrite_cfg(text, {}, {"hook_name": HOOK, "hook_name_out": "blocks.1.hook_resid_mid"}))["metadata"]
    assert there["hook_name_out"] == "blocks.1.hook_resid_mid"
    assert "hf_hook_name_out" not in there
    same = json.loads(rewrite_cfg(text, {}, {"hook_name": HOOK, "hook_name_out": said["hook_name_out"]}))["metadata"]
    assert same["hf_hook_name_out"] == "transformer.h.0.mlp"


def test_one_head_is_proved_on_its_own_activations(tmp_path: Path) -> None:
    """Captured are all heads, joined; an SAE of one head reads a part of them."""
    x = torch.randn(30, 36, generator=torch.Generator().manual_seed(0))
    save_file({"x": x}, tmp_path / "x.safetensors")
    said = {"hook_name": "blocks.0.attn.hook_z", "hook_head_index": 2, "sae_lens_version": "6.0.0"}
    head = saelens(tmp_path / "head", architecture="topk", metadata=said)
    metadata = {"hook_name": "blocks.0.attn.hook_z"}
    proof = convert("saelens", head, tmp_path / "out", metadata=metadata, activations=str(tmp_path / "x.safetensors"))
    assert proof["real_rows"] == 30
    with pytest.raises(Refused, match="Hook does not fit"):
        convert("saelens", saelens(tmp_path / "a"), tmp_path / "b", metadata={}, activations=str(tmp_path / "x.safetensors"))


@pytest.mark.filterwarnings("ignore:\\nThis SAE has non-empty:UserWarning")  # advice of SAELens on loading models
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_a_round_trip_keeps_function_and_metadata(architecture: str, tmp_path: Path) -> None:
    """Stock SAELens loads what was written, with everything that was said of it."""
    from sae_lens import SAE

    source = saelens(tmp_path / "source", architecture=architecture)
    metadata = {**METADATA, "context_size": 128, "model_class_name": "HookedTransformer"}
    convert("saelens", source, tmp_path / "out", metadata=metadata)
    before, after = (SAE.load_from_disk(folder, dtype="float32") for folder in (source, tmp_path / "out"))
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before.encode(x), after.encode(x))
    assert torch.equal(before(x), after(x))
    assert after.cfg.architecture() == architecture
    for name, value in metadata.items():
        assert after.cfg.metadata[name] == value


# ------------------------------------------------------------------------------------------------- features' scale


def rescaled(folder: Path, scale: str, factors: Any) -> Any:
    """A reader whose features are the authors' times 2 in even columns and times 3 in odd ones, with the same output."""
    right = weights_of(folder)
    by = torch.tensor([2.0, 3.0] * 20, dtype=torch.float64)
    tensors = dict(right.tensors)
    tensors["W_enc"] = _lazy.Mapped(right.tensors["W_enc"], lambda block, *_: block * by)
    tensors["b_enc"] = _lazy.Mapped(right.tensors["b_enc"], lambda block, start, stop: block * by[start:stop])
    tensors["W_dec"] = _lazy.Mapped(right.tensors["W_dec"], lambda block, start, stop: block / by[start:stop, None])
    if factors == "right":
        factors = _lazy.Mapped(_lazy.Filled(1.0, (40,)), lambda block, start, stop: by[start:stop])
    return replace(right, tensors=tensors, feature_scale=scale, feature_factors=factors)


def test_a_feature_scale_is_proved_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saelens(tmp_path / "source", architecture="standard")
    made = rescaled(source, "decoder_norm", "right")
    monkeypatch.setattr(type(get("saelens")), "read", lambda *_: made)
    assert run(job(source, tmp_path / "out")).proof["feature_scale"] == "decoder_norm"
    assert adopt(adopt_job("saelens", source, tmp_path / "out")).proof["feature_scale"] == "decoder_norm"


@pytest.mark.parametrize(
    ("scale", "factors", "summary"),
    [
        ("raw", None, "Not the same function"),
        ("input_scale", _lazy.Filled(2.0, (40,)), "Not the same function"),
        ("raw", "right", "Feature scale is unknown"),
        ("decoder_norm", None, "Feature scale is unknown"),
        ("twice", "right", "Feature scale is unknown"),
        ("decoder_norm", _lazy.Filled(-1.0, (40,)), "Feature scale is no scale"),
        ("decoder_norm", _lazy.Filled(float("nan"), (40,)), "Feature scale is no scale"),
    ],
)
def test_an_untold_or_untrue_feature_scale_fails(
    scale: str, factors: Any, summary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saelens(tmp_path / "source", architecture="standard")
    made = rescaled(source, scale, factors)
    monkeypatch.setattr(type(get("saelens")), "read", lambda *_: made)
    with pytest.raises(ProofFailed) as caught:
        run(job(source, tmp_path / "out"))
    assert caught.value.diagnostics[0].summary == summary


# ---------------------------------------------------------------------------------------------------- transcoders


def transcoder(folder: Path, **said: Any) -> Path:
    metadata = {"sae_lens_version": "6.54.12", "hook_name": HOOK, **said}
    return saelens(folder, architecture="skip_transcoder", d_out=9, apply_b_dec_to_input=False, metadata=metadata)


def test_the_hook_a_transcoder_predicts_comes_from_source_or_manifest(tmp_path: Path) -> None:
    said = transcoder(tmp_path / "said", hook_name_out="blocks.0.hook_mlp_out", hf_hook_name_out="transformer.h.0.mlp")
    unsaid = transcoder(tmp_path / "unsaid")
    convert("saelens", said, tmp_path / "a", metadata={"hook_name": HOOK})
    convert("saelens", unsaid, tmp_path / "b", metadata={"hook_name": HOOK, "hook_name_out": "blocks.0.hook_mlp_out"})
    for out in ("a", "b"):
        assert json.loads((tmp_path / out / "cfg.json").read_text())["metadata"]["hook_name_out"] == "blocks.0.hook_mlp_out"
    with pytest.raises(Refused, match="Needs hook_out"):
        convert("saelens", unsaid, tmp_path / "c", metadata={"hook_name": HOOK})
    with pytest.raises(Refused, match="Needs hook_out"):  # what it said was of another hook
        convert("saelens", said, tmp_path / "d", metadata={"hook_name": "blocks.1.hook_resid_post"})
    with pytest.raises(Refused, match="no transcoder"):
        convert("saelens", saelens(tmp_path / "sae"), tmp_path / "e", metadata={"hook_name": HOOK, "hook_name_out": HOOK})


def test_another_predicted_hook_is_a_relabel(tmp_path: Path) -> None:
    weights = weights_of(transcoder(tmp_path / "source"))
    before = {"hook_name": HOOK, "hook_name_out": "blocks.0.hook_mlp_out"}
    after = {**before, "hook_name_out": "blocks.0.hook_attn_out"}
    write_sae(weights, tmp_path / "before", "float32", {}, before)
    write_sae(weights, tmp_path / "after", "float32", {}, after)
    text = rewrite_cfg((tmp_path / "before" / "cfg.json").read_bytes(), {}, after)
    assert text == (tmp_path / "after" / "cfg.json").read_bytes()


@pytest.mark.parametrize(("architecture", "fine"), [("topk", True), ("standard", False)])
def test_rescaling_by_decoder_norms_may_be_declared_for_topk_alone(architecture: str, fine: bool, tmp_path: Path) -> None:
    """SAELens ignores the field elsewhere without a word."""
    source = saelens(tmp_path / "source", architecture=architecture)
    cfg = {"rescale_acts_by_decoder_norm": True}
    if fine:
        convert("saelens", source, tmp_path / "out", cfg=cfg)
        return
    with pytest.raises(ProofFailed, match="rescale_acts_by_decoder_norm"):
        convert("saelens", source, tmp_path / "out", cfg=cfg)


def test_a_function_that_is_no_number_at_zero_is_not_the_same(tmp_path: Path) -> None:
    """Everywhere else the two are alike to the last bit: only a row of zeros shows it."""
    chosen, source = get("saelens"), saelens(tmp_path / "source")

    class Divided:
        """The same features, times a number that is 1 of every vector with a length."""

        @staticmethod
        def reference(files: SourceFiles, options: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features, output = chosen.reference(files, options, x)
            length = x.norm(dim=1, keepdim=True)
            return features * (length / length), output

    weights, out = weights_of(source), tmp_path / "out"
    metadata = settled(weights.metadata, METADATA)
    write_sae(weights, out, "float32", {}, metadata)
    files = SourceFiles({name: Path(path) for name, path in files_of("saelens", source).items()})
    proof = prove(Source(chosen, files, chosen.Options()), weights, out, "float32", {}, metadata)
    assert proof["max_feature_diff"] < 1e-12
    with pytest.raises(ProofFailed, match="infinite or not numbers at all"):
        prove(Source(cast(Format, Divided), files, chosen.Options()), weights, out, "float32", {}, metadata)
