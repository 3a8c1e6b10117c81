"""The executor: what it measures, that its numbers depend on its inputs alone, and what it says of what cannot be measured."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from measure_world import CONTEXT, D_MODEL, D_SAE, THIRD_PARTY, VOCAB, make_sae, make_tokenizer, only
from sae_lens.util import get_special_token_ids
from safetensors.torch import load_file, save_file
from transformers import OPTConfig, OPTForCausalLM

from saesync.digest import digest_file
from saesync.errors import Diagnostic, Missing, Refused
from saesync.executors import validate
from saesync.jobs import CaptureJob, MeasureResult, MeasureSae
from saesync.measure import devices, engine, models
from saesync.measure.metrics import METRICS
from saesync.workers import Worker, spawn

pytestmark = [pytest.mark.filterwarnings(note) for note in THIRD_PARTY]


@pytest.fixture(scope="module")
def whole(world: SimpleNamespace) -> MeasureResult:
    return validate.run(world.job)


def diagnostics(result: MeasureResult, address: str) -> list[Diagnostic]:
    return [Diagnostic.from_json(entry) for entry in result.failures[address]]


def test_all_metrics_and_what_is_recorded(world: SimpleNamespace, whole: MeasureResult) -> None:
    assert set(whole.metrics) == set(whole.about) == set(whole.weights_sha256) == {sae.address for sae in world.saes}
    assert not whole.failures
    for found in whole.metrics.values():
        assert set(found) == set(METRICS)
        assert {name for name, entry in found.items() if "stderr" in entry} == set(METRICS)
    about = whole.about["rel/topk"]
    assert about["device"] == "cpu"
    assert about["torch"] == torch.__version__.partition("+")[0] or about["torch"] == torch.__version__
    assert (about["tokens"], about["sequences"], about["bos_token_id"]) == (20 * CONTEXT, 20, 1)
    assert {"sae_lens", "transformer_lens", "transformers", "loader", "dtype", "context"} <= set(about)
    assert whole.weights_sha256["rel/topk"] == digest_file(world.root / "topk" / "sae_weights.safetensors").sha256
    assert json.loads(json.dumps(asdict(whole)))  # it crosses a pipe


def test_an_sae_has_the_same_numbers_alone(world: SimpleNamespace, whole: MeasureResult) -> None:
    """Bit for bit: a run that was stopped measures the rest in another company."""
    for name in ("topk", "standard-z"):
        assert validate.run(only(world.job, name)).metrics[f"rel/{name}"] == whole.metrics[f"rel/{name}"]


def test_a_small_device_measures_in_groups(world: SimpleNamespace, whole: MeasureResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than one SAE at a time, in blocks of few features: the same numbers, and progress still goes up to the end."""
    small = replace(devices.limits_for(torch.device("cpu")), resident=1, dense=20 * D_SAE)
    monkeypatch.setattr(engine, "limits_for", lambda device: small)
    seen: list[tuple[int, int]] = []
    grouped = validate.run(world.job, lambda done, total: seen.append((done, total)))
    for address, found in whole.metrics.items():
        for name, entry in found.items():
            assert grouped.metrics[address][name]["value"] == pytest.approx(entry["value"], rel=1e-5, abs=1e-5)
    assert seen == sorted(seen)
    assert seen[-1] == (20 * CONTEXT, 20 * CONTEXT)
    assert len({done for done, _ in seen}) == len(world.saes)


def test_tokens_are_rounded_up_to_sequences(world: SimpleNamespace) -> None:
    result = validate.run(replace(only(world.job, "topk"), tokens=3 * CONTEXT + 1))
    assert result.about["rel/topk"]["tokens"] == 4 * CONTEXT


def test_loaders_agree(world: SimpleNamespace, whole: MeasureResult) -> None:
    topk = replace(only(world.job, "topk").saes[0], hook="transformer.h.1")
    proxied = validate.run(replace(world.job, saes=(topk,), loader="AutoModelForCausalLM"))
    hooked = validate.run(replace(only(world.job, "topk"), loader="HookedTransformer", model_name="gpt2"))
    for result in (proxied, hooked):
        for name, entry in whole.metrics["rel/topk"].items():
            assert result.metrics["rel/topk"][name]["value"] == pytest.approx(entry["value"], rel=1e-3, abs=1e-3), name


def test_bfloat16_is_near_float32(world: SimpleNamespace, whole: MeasureResult) -> None:
    found = validate.run(replace(only(world.job, "topk"), dtype="bfloat16")).metrics["rel/topk"]
    exact = whole.metrics["rel/topk"]
    assert found["explained_variance"]["value"] == pytest.approx(exact["explained_variance"]["value"], abs=0.02)
    assert found["ce_loss_without_sae"]["value"] == pytest.approx(exact["ce_loss_without_sae"]["value"], rel=0.01)
    assert found["ce_loss_without_sae"] != exact["ce_loss_without_sae"]


def test_without_bos(world: SimpleNamespace, whole: MeasureResult) -> None:
    result = validate.run(replace(only(world.job, "topk"), prepend_bos=False))
    assert result.about["rel/topk"]["bos_token_id"] is None
    assert result.metrics["rel/topk"]["ce_loss_without_sae"] != whole.metrics["rel/topk"]["ce_loss_without_sae"]


def test_one_head(world: SimpleNamespace) -> None:
    """An SAE on one attention head reads d_head numbers and leaves the other heads alone."""
    folder = make_sae(world.root / "head", "standard", "blocks.1.attn.hook_z", 9, d_in=8)
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["metadata"]["hook_head_index"] = 2
    (folder / "cfg.json").write_text(json.dumps(cfg))
    sae = MeasureSae("rel/head", "head", str(folder), "blocks.1.attn.hook_z")
    both = validate.run(replace(world.job, saes=(sae, *only(world.job, "standard-z").saes)))
    one, all_heads = both.metrics["rel/head"], both.metrics["rel/standard-z"]
    assert one["ce_loss_without_sae"] == all_heads["ce_loss_without_sae"]
    assert one["ce_loss_with_ablation"] != all_heads["ce_loss_with_ablation"]


def test_a_silent_reconstruction_has_cosine_zero(world: SimpleNamespace) -> None:
    """SAELens has NaN here, which no gate could judge."""
    folder = edited(world, "silent", lambda tensors: tensors.update({name: value * 0 for name, value in tensors.items()}))
    found = validate.run(
        replace(world.job, saes=(MeasureSae("rel/silent", "s", str(folder), "blocks.1.hook_resid_post"),))
    ).metrics
    assert found["rel/silent"]["cossim"]["value"] == 0
    assert found["rel/silent"]["l0"]["value"] == 0
    assert found["rel/silent"]["dead_features"]["value"] == 1


def edited(world: SimpleNamespace, name: str, change: Callable[[dict[str, torch.Tensor]], None], **cfg: Any) -> Path:
    folder: Path = world.root / name
    shutil.copytree(world.root / "standard", folder)
    tensors = load_file(folder / "sae_weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "sae_weights.safetensors")
    path = folder / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **cfg}))
    return folder


def test_what_cannot_be_measured_is_named_and_the_rest_is_measured(world: SimpleNamespace, whole: MeasureResult) -> None:
    resid = "blocks.1.hook_resid_post"
    gone = edited(world, "gone", lambda tensors: None)
    (gone / "sae_weights.safetensors").unlink()
    broken: dict[str, tuple[Path, str, str, str]] = {
        "hook": (world.root / "topk", "blocks.1.hook_resid_pots", "Hook does not exist", "Did you mean 'blocks.1.hook_res"),
        "layer": (world.root / "topk", "blocks.7.hook_resid_post", "Hook does not exist", "The model has layers 0 to 2"),
        "silent-hook": (world.root / "topk", "blocks.1.hook_mlp_in", "Hook never fires", "gives no tensor there"),
        "width": (world.root / "topk", "blocks.1.mlp.hook_post", "Width does not fit the hook", f"reads d_in {D_MODEL}"),
        "nan": (edited(world, "nan", lambda t: t["W_dec"][0].fill_(torch.nan)), resid, "Metric is not a number", "NaN or inf"),
        "scale": (
            edited(world, "scale", lambda t: None, normalize_activations="expected_average_only_in"), resid,
            "Input scale is not folded", "scaling factor",
        ),
        "tensor": (edited(world, "tensor", lambda t: t.__delitem__("b_dec")), resid, "SAE cannot be loaded", "b_dec"),
        "gone": (gone, resid, "SAE is incomplete", "lacks sae_weights.safetensors"),
    }  # fmt: skip
    saes = tuple(MeasureSae(f"rel/{name}", name, str(folder), hook) for name, (folder, hook, _, _) in broken.items())
    result = validate.run(replace(world.job, saes=(*saes, *only(world.job, "topk").saes)))
    assert result.metrics == {"rel/topk": whole.metrics["rel/topk"]}
    assert set(result.weights_sha256) == {"rel/topk"}
    assert set(result.failures) == {f"rel/{name}" for name in broken}
    for name, (_, _, summary, detail) in broken.items():
        found = diagnostics(result, f"rel/{name}")[0]
        assert found.summary == summary, name
        assert detail in found.detail
        assert not found.detail.startswith(f"rel/{name}: "), "who reports it names the SAE"
        assert found.key == ("hook" if "ook" in found.summary else None)
        assert found.detail[-1] in ".?"
    assert (
        f"'blocks.1.mlp.hook_post' gives {4 * D_MODEL}. Hooks with {D_MODEL}: blocks.1.mlp"
        in diagnostics(result, "rel/width")[0].detail
    )


def test_when_nothing_can_be_measured_each_has_its_own_reason(world: SimpleNamespace) -> None:
    saes = tuple(replace(sae, hook="nowhere") for sae in world.saes[:2])
    result = validate.run(replace(world.job, saes=saes))
    assert not result.metrics
    for sae in saes:
        (found,) = diagnostics(result, sae.address)
        assert found.summary == "Hook does not exist"
        assert "'nowhere'" in found.detail


def test_a_hook_without_effect_has_no_score(world: SimpleNamespace) -> None:
    """In a model whose last attention writes nothing, ablating its input changes nothing: that is said, not divided by."""
    sae = replace(only(world.job, "standard").saes[0], hook="blocks.2.attn.q.hook_in")
    folder = world.root / "flat-model"
    shutil.copytree(world.model, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if name.startswith("transformer.h.2.attn"):
            value.zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    result = validate.run(replace(world.job, model=str(folder), saes=(sae,)))
    assert "does not change the model's loss" in diagnostics(result, sae.address)[0].detail


def test_a_worker_without_network_gives_the_same_numbers(world: SimpleNamespace, whole: MeasureResult, tmp_path: Path) -> None:
    """In a process that may not open a socket, with all three loaders; and measuring again gives the very same bytes."""
    worker = Worker(tmp_path / "home", spawn)
    hook = replace(only(world.job, "topk").saes[0], hook="transformer.h.1")
    try:
        told: list[tuple[int, int]] = []
        found = worker.run("measure", replace(world.job, cache=str(tmp_path / "cache")), lambda *at: told.append(at))
        assert {name: set(entry) for name, entry in found["metrics"].items()} == {n: set(e) for n, e in whole.metrics.items()}
        for address, metrics in whole.metrics.items():
            for name, entry in metrics.items():
                assert found["metrics"][address][name]["value"] == pytest.approx(entry["value"], rel=1e-5, abs=1e-5)
        assert found["weights_sha256"] == whole.weights_sha256
        assert found["about"] == whole.about
        assert told[-1] == (20 * CONTEXT, 20 * CONTEXT)
        again = worker.run("measure", replace(world.job, cache=str(tmp_path / "other")))
        assert again == found
        assert worker.run("measure", replace(world.job, loader="AutoModelForCausalLM", saes=(hook,)))["metrics"]
        named = replace(only(world.job, "topk"), loader="HookedTransformer", model_name="gpt2")
        assert worker.run("measure", named)["metrics"]
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"context": 64}, Refused, r"must be at least 2 and at most 32"),
        ({"context": 1}, Refused, r"must be at least 2"),
        ({"tokens": 10**6}, Missing, r"1,000,000 are asked for"),
        ({"device": "cuda:7"}, Missing, r"no device 'cuda:7'"),
        ({"dataset": "/nowhere.jsonl"}, Missing, r"There is no /nowhere.jsonl"),
        ({"column": "body"}, Missing, r"no column 'body'"),
    ],
)
def test_what_is_wrong_with_a_job_is_said(world: SimpleNamespace, fields: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        validate.run(replace(only(world.job, "topk"), **fields))


def test_a_tokenizer_without_bos(world: SimpleNamespace, tmp_path: Path) -> None:
    """As loaded by Hugging Face's class it has none; TransformerLens makes one up, which the model has no embedding for."""
    folder = tmp_path / "model"
    shutil.copytree(world.model, folder)
    make_tokenizer(folder, ("<unk>", "<eos>"))
    job = replace(only(world.job, "topk"), model=str(folder), cache=str(tmp_path / "cache"))
    proxied = replace(job, loader="AutoModelForCausalLM", saes=(replace(job.saes[0], hook="transformer.h.1"),))
    with pytest.raises(Refused, match="has no BOS token"):
        validate.run(proxied)
    assert validate.run(replace(proxied, prepend_bos=False)).metrics


@pytest.mark.parametrize("loader", ["TransformerBridge", "HookedTransformer"])
def test_the_unknown_token_is_no_bos(world: SimpleNamespace, tmp_path: Path, loader: str) -> None:
    """Of a tokenizer without any special token TransformerLens makes BOS and EOS up, which are then the unknown token."""
    folder = tmp_path / "model"
    shutil.copytree(world.model, folder)
    make_tokenizer(folder, ("<unk>",))
    changes = {"model": str(folder), "loader": loader, "model_name": "gpt2", "cache": str(tmp_path / "cache")}
    job = replace(only(world.job, "topk"), **changes)
    with pytest.raises(Refused, match="has no BOS token"):
        validate.run(job)
    model = validate.model_for(job)
    assert get_special_token_ids(model.tokenizer) == []  # so that unknown words count
    assert validate.run(replace(job, prepend_bos=False)).metrics


def test_a_tokenizer_of_another_model(world: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(world.model, folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"] |= {"w0": 500}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(Refused, match="gives token id 500, but the model has 120 embeddings"):
        validate.run(replace(only(world.job, "topk"), model=str(folder)))


def test_models_that_read_the_same_tokenizer_otherwise_share_no_rows(world: SimpleNamespace, tmp_path: Path) -> None:
    """transformers goes by config.json's model_type: Qwen 2 makes nothing of a vocabulary of words."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    validate.run(replace(only(world.job, "topk"), cache=str(tmp_path / "cache")))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    folder = tmp_path / "model"
    Qwen2ForCausalLM(Qwen2Config(vocab_size=120, bos_token_id=1, eos_token_id=2, **sizes)).save_pretrained(folder)
    make_tokenizer(folder)
    job = replace(only(world.job, "topk"), cache=str(tmp_path / "cache"), model=str(folder))
    assert validate.model_for(job).token_ids("w1 w2") == []
    with pytest.raises(Missing, match="gives 0 tokens"):
        validate.run(job)


def capture_job(world: SimpleNamespace, out: dict[str, str], **fields: Any) -> CaptureJob:
    job = world.job
    shared = {
        name: getattr(job, name) for name in ("model", "loader", "dtype", "kwargs", "dataset", "dataset_files", "column", "split")
    }
    rest = {"context": job.context, "prepend_bos": True, "device": "cpu", "rows": 50, "cache": job.cache}
    return CaptureJob(**{**shared, **rest, "out": out, **fields})


def test_capture_writes_real_activations(world: SimpleNamespace, tmp_path: Path) -> None:
    out = {"blocks.1.hook_resid_post": str(tmp_path / "a.safetensors"), "blocks.1.attn.hook_z": str(tmp_path / "z.safetensors")}
    seen: list[tuple[int, int]] = []
    validate.capture(capture_job(world, out), lambda done, total: seen.append((done, total)))
    for path in out.values():
        x = load_file(path)["x"]
        assert x.shape == (50, D_MODEL)
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert x.std(0).min() > 0
    assert seen[-1] == (50, 50)
    row = torch.tensor(first_row(world))
    _, kept = world.loaded.clean(row[None], frozenset({"blocks.1.hook_resid_post"}))
    first = kept.hooks["blocks.1.hook_resid_post"][0, row > 3]
    assert torch.allclose(load_file(out["blocks.1.hook_resid_post"])["x"][: len(first)], first, atol=1e-4)


def first_row(world: SimpleNamespace) -> list[int]:
    """The first row of the world's text, cut by hand: BOS, then documents with BOS between them."""
    texts = [json.loads(line)["text"] for line in Path(world.job.dataset).read_text().splitlines()]
    ids = [token for text in texts for token in [1, *world.loaded.token_ids(text)]]
    return ids[:CONTEXT]


def test_capture_of_a_short_dataset_gives_what_there_is(world: SimpleNamespace, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("w1 w2 w3 w4 w5 w6 w7 w8 " * 5)
    out = {"blocks.1.hook_resid_post": str(tmp_path / "a.safetensors")}
    validate.capture(capture_job(world, out, dataset=str(text), rows=1000))
    assert len(load_file(out["blocks.1.hook_resid_post"])["x"]) == 2 * (CONTEXT - 1)


def test_capture_names_hooks_that_are_not_there_and_writes_the_others(world: SimpleNamespace, tmp_path: Path) -> None:
    hooks = {"blocks.1.hook_resid_pst": "Did you mean", "blocks.1.hook_mlp_in": "gives no activation per token"}
    out = {hook: str(tmp_path / hook) for hook in (*hooks, "blocks.1.hook_resid_post")}
    failures = validate.capture(capture_job(world, out)).failures
    assert failures.keys() == hooks.keys()
    for hook, words in hooks.items():
        assert words in failures[hook][0]["detail"]
        assert not Path(out[hook]).exists()
    assert load_file(out["blocks.1.hook_resid_post"])["x"].shape == (50, D_MODEL)


def test_activations_that_are_not_by_sequence_are_named(world: SimpleNamespace, tmp_path: Path) -> None:
    """OPT joins the sequences of a batch before it normalises what its MLP reads."""
    sizes = {
        "hidden_size": D_MODEL,
        "word_embed_proj_dim": D_MODEL,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = OPTConfig(**sizes, vocab_size=VOCAB, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    OPTForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    hook = "blocks.1.ln2.hook_normalized"
    (captured,) = validate.capture(capture_job(world, {hook: str(tmp_path / "x")}, model=str(tmp_path))).failures.values()
    assert "gives no activation per token" in captured[0]["detail"]
    asked = replace(only(world.job, "topk").saes[0], hook=hook)
    result = validate.run(replace(world.job, model=str(tmp_path), saes=(asked,)))
    assert (
        f"gives a tensor of shape [{CONTEXT}, {D_MODEL}] for tokens [1, {CONTEXT}]"
        in diagnostics(result, asked.address)[0].detail
    )


def test_a_model_is_loaded_once_for_many_jobs(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[object] = []
    load = models.load_model
    monkeypatch.setattr(models, "load_model", lambda *given: (loads.append(given), load(*given))[1])
    folder = tmp_path / "model"
    shutil.copytree(world.model, folder)
    job = replace(only(world.job, "topk"), model=str(folder))
    first = validate.run(job)
    validate.capture(capture_job(world, {"blocks.1.hook_resid_post": str(tmp_path / "x")}, model=str(folder)))
    assert validate.run(job) == first
    assert len(loads) == 1
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.mlp.c_proj.bias"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert validate.run(job) != first
    assert validate.run(replace(job, dtype="bfloat16")) != first
    assert len(loads) == 3


def test_one_group_is_gone_before_the_next_is_loaded(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """``resident`` bounds what is held; two groups at once would be twice as much."""
    small = replace(devices.limits_for(torch.device("cpu")), resident=1)
    monkeypatch.setattr(engine, "limits_for", lambda device: small)
    alive: list[weakref.ref[torch.nn.Module]] = []
    most = 0
    load = engine.load_sae

    def counted(*given: Any) -> Any:
        nonlocal most
        most = max(most, sum(held() is not None for held in alive))
        found = load(*given)
        alive.append(weakref.ref(found.sae))
        return found

    monkeypatch.setattr(engine, "load_sae", counted)
    validate.run(world.job)
    assert len(alive) == len(world.saes)
    assert most == 0
