"""Every GPU that torch finds, against the CPU: the same model, SAEs and tokens, through the whole of validate; and its speed
against ``sae_lens.evals`` on the same GPU.

Random weights of real shapes. Every metric is compared but ``ce_loss_score``, which divides small differences of losses by
each other when weights are random. On a machine without a GPU there is nothing to compare, and the table says so.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.table import Row

if TYPE_CHECKING:
    from saesync.jobs import MeasureJob

TITLE = "Measuring on every GPU found, against the CPU (random weights, 2 layers, a topk and a relu SAE each)"
HOOK = "blocks.0.hook_resid_post"
CONTEXT = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and two SAEs; ``compared`` and ``timed`` are sequences of 128 tokens."""

    d_model: int
    d_sae: int
    vocab: int = 32_000
    compared: int = 8
    timed: int = 512


SHAPES = (Shape(2304, 16_384), Shape(4096, 65_536))


def devices() -> tuple[str, ...]:
    """All devices but the CPU."""
    from saesync.worker_main import devices as found

    return tuple(name for name in found({})["devices"] if name != "cpu")


def rows(shapes: tuple[Shape, ...] = SHAPES) -> list[Row]:
    """Per device and shape: how far its metrics are from the CPU's, and how fast it is."""
    here = devices()
    if not here:
        return [Row("GPUs on this machine", 0, "", "nothing to compare: run `python -m benchmarks device` where there is one")]
    made = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            made += compared(shape, Path(folder), here)
    return made


def compared(shape: Shape, folder: Path, here: tuple[str, ...]) -> list[Row]:
    """The rows of one shape."""
    from saesync.executors import validate
    from saesync.jobs import MeasureJob, MeasureSae
    from saesync.measure.devices import device_for, device_label

    make(folder, shape)
    job = MeasureJob(
        model=str(folder / "model"), loader="TransformerBridge", dtype="float32", kwargs={}, dataset=str(folder / "text.txt"),
        dataset_files=(), column="text", split="train", tokens=shape.compared * CONTEXT, context=CONTEXT, prepend_bos=True,
        device="cpu", cache=str(folder / "cache"),
        saes=tuple(MeasureSae(name, name, str(folder / name), HOOK) for name in ("topk", "standard")),
    )  # fmt: skip
    expected = validate.run(job)
    found = []
    for name in here:
        label = f"{device_label(device_for(name))} ({name}), d_in {shape.d_model}, d_sae {shape.d_sae:,}"
        own = validate.run(replace(job, device=name))
        failed = sorted(own.failures)
        apart = max((difference(own.metrics, expected.metrics, sae) for sae in own.metrics), default=(1.0, "nothing measured"))
        speed, theirs = speeds(replace(job, device=name, tokens=shape.timed * CONTEXT))
        worst = f"{apart[1]}{f'; failed: {failed}' if failed else ''}"
        found.append(Row(f"largest relative difference, {label}", 1.0 if failed else apart[0], "", worst, "<= 1e-3"))
        found.append(Row(f"speed, {label}", speed, "tokens/s", f"sae_lens.evals {theirs:,.0f}; both SAEs, loading them included"))
        found.append(Row(f"speed over sae_lens.evals, {label}", speed / theirs, "x", f"{shape.timed * CONTEXT:,} tokens", ">= 1"))
    validate.forget()
    return found


def speeds(job: MeasureJob) -> tuple[float, float]:
    """Tokens per second of saesync and of ``sae_lens.evals``, with the model and packages loaded and the GPU warmed up."""
    from sae_lens.util import get_special_token_ids

    from benchmarks.bench_validate import evals
    from saesync.executors import validate
    from saesync.measure.engine import Engine
    from saesync.measure.products import right_products

    model = validate.model_for(job)
    tokens = validate.rows_for(job, model, job.tokens // CONTEXT, None)
    engine = Engine(model, tokens, get_special_token_ids(model.tokenizer))
    begun = time.perf_counter()
    assert len(engine.run(job.saes).metrics) == len(job.saes)
    own = time.perf_counter() - begun
    with right_products(model.device):  # both compute the same
        theirs, _ = evals(model, tokens, [Path(sae.folder) for sae in job.saes], time.perf_counter)
    return job.tokens / own, job.tokens / theirs


def difference(
    own: dict[str, dict[str, dict[str, float]]], expected: dict[str, dict[str, dict[str, float]]], sae: str
) -> tuple[float, str]:
    """The metric that differs most from the CPU's, relative to it."""
    names = [name for name in expected[sae] if name != "ce_loss_score"]
    values = {name: (own[sae][name]["value"], expected[sae][name]["value"]) for name in names}
    return max((abs(a - b) / max(abs(b), 1e-3), f"{sae} {name}") for name, (a, b) in values.items())


def make(folder: Path, shape: Shape) -> None:
    """The model with its tokenizer, the SAEs, and text."""
    import numpy as np
    import torch
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=shape.vocab, n_positions=CONTEXT, n_embd=shape.d_model, n_layer=2, n_head=shape.d_model // 64,
        initializer_range=0.05, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    words = {"<bos>": 0, **{f"w{index}": index for index in range(1, shape.vocab)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<bos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<bos>", unk_token="<bos>")
    fast.save_pretrained(folder / "model")
    for name, more in (("topk", {"k": 64}), ("standard", {})):
        made, config_class = get_sae_class(name)
        cfg = config_class.from_dict({"architecture": name, "d_in": shape.d_model, "d_sae": shape.d_sae, **more})
        cfg.metadata.hook_name, cfg.metadata.prepend_bos, cfg.metadata.context_size = HOOK, True, CONTEXT
        sae: SAE = made(cfg)
        with torch.no_grad():
            sae.W_enc.copy_(sae.W_dec.T)
            sae.b_enc.fill_(-0.5)
        sae.save_model(folder / name)
    drawn = np.random.default_rng(0).zipf(1.2, (shape.timed + 1) * CONTEXT) % (shape.vocab - 1) + 1
    (folder / "text.txt").write_text("\n".join(" ".join(f"w{word}" for word in line) for line in drawn.reshape(-1, CONTEXT)))
