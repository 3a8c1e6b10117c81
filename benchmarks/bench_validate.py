"""Measuring four SAEs at two hooks, against ``sae_lens.evals`` run on one SAE after the other.

Same model object, same token rows, same metrics (no KL divergence, which saesync has not), one thread each, each in a process of
its own. Loading model and packages is not counted; loading SAEs is. Seconds are CPU seconds: wall time says little on a busy
machine, and with one thread the two are the same on an idle one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.table import Row, run

TITLE = "Measuring 4 topk SAEs (d_in 256, d_sae 4096, k 32) at 2 hooks of a 4-layer model, context 128"
HOOKS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
D_MODEL, D_SAE, VOCAB, CONTEXT, SEQUENCES, BATCH = 256, 4096, 5000, 128, 64, 16
TOKENS = SEQUENCES * CONTEXT


def rows() -> list[Row]:
    """Tokens per CPU second of both, their ratio, and peak memory over that of the imports."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.bench_validate"]
        subprocess.run([*words, "make", folder], check=True, env=env, stderr=subprocess.DEVNULL)
        done = {name: run([*words, name, folder], env) for name in ("idle", "theirs", "ours")}
    found = {name: json.loads(child.output.splitlines()[-1]) for name, child in done.items() if name != "idle"}
    speed = {name: TOKENS / numbers["seconds"] for name, numbers in found.items()}
    peak = {name: child.peak / 2**20 for name, child in done.items()}
    apart = max(abs(a / b - 1) for a, b in zip(found["ours"]["mse"], found["theirs"]["mse"], strict=True))
    return [
        Row("sae_lens.evals", speed["theirs"], "tokens/CPU s", f"{TOKENS:,} tokens, 4 SAEs in turn"),
        Row("saesync", speed["ours"], "tokens/CPU s", "the same tokens, 4 SAEs at once"),
        Row("saesync over sae_lens.evals", speed["ours"] / speed["theirs"], "x", "", ">= 2"),
        Row("mse, largest relative difference", apart, "", "all 4 SAEs", "<= 1e-5"),
        Row("peak memory, sae_lens.evals", peak["theirs"], "MiB", f"{peak['idle']:,.0f} MiB with model loaded"),
        Row(
            "peak memory, saesync", peak["ours"], "MiB", f"{peak['idle']:,.0f} MiB with model loaded", f"<= {peak['theirs']:.0f}"
        ),
    ]


def make(folder: Path) -> None:
    """A random model and tokenizer, four random SAEs, and rows of words that are Zipf-distributed."""
    import numpy as np
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=D_MODEL, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    words = {"<bos>": 0, **{f"w{index}": index for index in range(1, VOCAB)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<bos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<bos>", unk_token="<bos>")
    fast.save_pretrained(folder / "model")
    for index in range(4):
        cfg = TopKSAEConfig.from_dict({"architecture": "topk", "d_in": D_MODEL, "d_sae": D_SAE, "k": 32})
        cfg.metadata.hook_name, cfg.metadata.prepend_bos, cfg.metadata.context_size = HOOKS[index % 2], True, CONTEXT
        TopKSAE(cfg).save_model(folder / f"sae{index}")
    drawn = np.random.default_rng(0).zipf(1.2, (SEQUENCES, CONTEXT)) % (VOCAB - 1) + 1
    drawn[:, 0] = 0
    np.save(folder / "rows.npy", drawn.astype(np.int32))


def loaded(folder: Path) -> tuple[Any, Any]:
    """The model, and the rows."""
    import numpy as np
    import torch

    from saesync.measure.models import load_model

    return load_model(folder / "model", "TransformerBridge", "float32", {}, torch.device("cpu")), np.load(folder / "rows.npy")


def idle(folder: Path) -> list[float]:
    """What both need before they begin."""
    import sae_lens.evals

    assert sae_lens.evals
    loaded(folder)
    return []


def ours(folder: Path) -> tuple[float, list[float]]:
    """CPU seconds and the mse of each SAE."""
    import sae_lens

    from saesync.jobs import MeasureSae
    from saesync.measure.engine import Engine

    assert sae_lens
    model, tokens = loaded(folder)
    saes = [MeasureSae(f"sae{index}", "", str(folder / f"sae{index}"), HOOKS[index % 2]) for index in range(4)]
    begun = time.process_time()
    outcome = Engine(model, tokens, [0]).run(saes)
    return time.process_time() - begun, [outcome.metrics[sae.address]["mse"].value for sae in saes]


def theirs(folder: Path) -> tuple[float, list[float]]:
    """CPU seconds and the mse of each SAE."""
    model, tokens = loaded(folder)
    return evals(model, tokens, [folder / f"sae{index}" for index in range(4)], time.process_time)


def evals(model: Any, tokens: Any, folders: list[Path], clock: Callable[[], float]) -> tuple[float, list[float]]:
    """Seconds and mse of each SAE: ``sae_lens.evals`` on one after the other, on the model's device, loading them included."""
    import datasets
    from sae_lens import SAE, ActivationsStore
    from sae_lens.evals import EvalConfig, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    dataset = datasets.Dataset.from_dict({"tokens": tokens.tolist()})
    batches = len(tokens) // BATCH
    config = EvalConfig(
        BATCH, n_eval_reconstruction_batches=batches, n_eval_sparsity_variance_batches=batches, compute_ce_loss=True,
        compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )  # fmt: skip
    errors = []
    begun = clock()
    for folder in folders:
        sae = SAE.load_from_disk(folder, device=str(model.device))
        store = ActivationsStore.from_sae(model.module, sae, dataset, streaming=False, total_tokens=1, device=str(model.device))
        found, _ = run_evals(sae, store, model.module, ActivationScaler(), config)
        errors.append(found["reconstruction_quality"]["mse"])
    return clock() - begun, errors


def main() -> None:
    """The inside of a child process."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    if name in ("make", "idle"):
        (make if name == "make" else idle)(folder)
        return
    seconds, errors = (ours if name == "ours" else theirs)(folder)
    print(json.dumps({"seconds": seconds, "mse": errors}))


if __name__ == "__main__":
    main()
