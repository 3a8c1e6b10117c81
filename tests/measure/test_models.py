"""Which models are loaded, and what is said of the others."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from measure_world import THIRD_PARTY
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from saesync.errors import Missing, Refused, SaesyncError
from saesync.measure.devices import device_for
from saesync.measure.loaders import LOADERS, check_loader
from saesync.measure.models import _found_by_name, load_model

pytestmark = [pytest.mark.filterwarnings(note) for note in THIRD_PARTY]
CPU = torch.device("cpu")


def change_config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [folder.joinpath(name).unlink() for name in names] and None


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def escaping(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))


def lacking_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


BROKEN: dict[str, tuple[Callable[[Path], None], type[SaesyncError], str]] = {
    "no config": (without("config.json"), Missing, r"holds no config.json"),
    "bad config": (lambda folder: (folder / "config.json").write_text("{") and None, Refused, "not readable JSON"),
    "no weights": (without("model.safetensors"), Missing, "holds neither model.safetensors"),
    "pickled": (pickled, Refused, "can run code when it is read"),
    "a shard missing": (sharded, Missing, r"lacks 1 of 2 weight files: model-00002-of-00002.safetensors"),
    "a shard outside": (escaping, Refused, "does not list the shards"),
    "a tensor missing": (lacking_a_tensor, Missing, r"lack 1 tensors: transformer.h.1.mlp.c_fc.weight"),
    "truncated": (truncated, Refused, "cannot load the model"),
    "no tokenizer": (without("tokenizer.json"), Missing, "holds none of tokenizer.json"),
    "own code": (
        change_config(model_type="ourown", architectures=["OurOwn"], auto_map={"AutoConfig": "code.OurOwn"}),
        Refused,
        "running code that comes with it",
    ),
    "own class": (
        change_config(architectures=["OurOwn"], auto_map={"AutoModel": "code.OurOwn"}),
        Refused,
        "running code that comes",
    ),
    "unknown": (change_config(model_type="ourown", architectures=["OurOwn"]), Refused, r"does not know OurOwn"),
    "encoder-decoder": (change_config(is_encoder_decoder=True), Refused, "only causal language models"),
    "adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}") and None, Refused, "PEFT adapter"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_folder_is_said(world: SimpleNamespace, tmp_path: Path, name: str) -> None:
    change, kind, message = BROKEN[name]
    folder = tmp_path / "model"
    shutil.copytree(world.model, folder)
    change(folder)
    with pytest.raises(kind, match=message):
        load_model(folder, "TransformerBridge", "float32", {}, CPU)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="There is no model folder"):
        load_model(tmp_path / "nowhere", "TransformerBridge", "float32", {}, CPU)


def test_code_beside_the_weights_is_not_run(world: SimpleNamespace, tmp_path: Path) -> None:
    """A folder whose class transformers has built in loads with that class, whatever code lies beside it."""
    folder = tmp_path / "model"
    shutil.copytree(world.model, folder)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own: pass\n")
    change_config(auto_map={"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"})(folder)
    for loader in LOADERS:
        load_model(folder, loader, "float32", {}, CPU, "gpt2")
    assert not (tmp_path / "ran").exists()


def test_hooked_transformer_goes_by_official_names(world: SimpleNamespace, tmp_path: Path) -> None:
    before = Path.cwd()
    with pytest.raises(Refused, match=r"none of them\. Use `loader: TransformerBridge`"):
        load_model(world.model, "HookedTransformer", "float32", {}, CPU, "acme/small")
    with pytest.raises(Refused, match="'model' is a local folder"):
        load_model(world.model, "HookedTransformer", "float32", {}, CPU)
    plain = shutil.copytree(world.model, tmp_path / "resaved")
    config = json.loads((plain / "config.json").read_text())
    del config["n_ctx"]  # transformers 5 does not write it
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=r"its config\.json has no n_ctx.* Use `loader: TransformerBridge`"):
        load_model(plain, "HookedTransformer", "float32", {}, CPU, "openai-community/gpt2")
    model = load_model(world.model, "HookedTransformer", "float32", {}, CPU, "openai-community/gpt2")
    assert type(model.module).__name__ == "HookedTransformer"
    assert Path.cwd() == before


@torch.no_grad()
def test_the_loaders_hold_the_same_model(world: SimpleNamespace) -> None:
    tokens = torch.randint(4, 120, (2, 16), generator=torch.Generator().manual_seed(0))
    names = {"TransformerBridge": "blocks.1.hook_resid_post", "HookedTransformer": "blocks.1.hook_resid_post"}
    found = {}
    for loader in LOADERS:
        model = load_model(world.model, loader, "float32", {}, CPU, "gpt2")
        hook = names.get(loader, "transformer.h.1")
        logits, seen = model.clean(tokens, frozenset({hook}))
        found[loader] = (logits.log_softmax(-1), seen.hooks[hook])
    for logits, activation in found.values():
        assert torch.allclose(logits, found["TransformerBridge"][0], atol=1e-4)
        assert torch.allclose(activation, found["TransformerBridge"][1], atol=1e-4)


@pytest.mark.parametrize("loader", LOADERS)
@torch.no_grad()
def test_nothing_is_taken_for_padding(world: SimpleNamespace, tmp_path: Path, loader: str) -> None:
    """A tokenizer that pads on the left, with EOS: HookedTransformer would mask the EOS that a row begins with."""
    folder = tmp_path / "model"
    shutil.copytree(world.model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    said = json.dumps({**config, "padding_side": "left", "pad_token": "<eos>", "bos_token": "<eos>"})
    (folder / "tokenizer_config.json").write_text(said)
    tokens = torch.randint(4, 120, (2, 16), generator=torch.Generator().manual_seed(0))
    tokens[0, :2] = tokens[1, 0] = tokens[1, 15] = 2
    expected = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
    logits, _ = load_model(folder, loader, "float32", {}, CPU, "gpt2").clean(tokens, frozenset())
    assert torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("single", ["<bos> $A", "$A <eos>", "<bos> $A <eos>"])
def test_no_loader_leaves_what_the_tokenizer_adds(world: SimpleNamespace, tmp_path: Path, single: str) -> None:
    """As Llama 3's does: `prepend_bos: false`, and the pieces of a long text, would otherwise not be what they are said to be."""
    folder = tmp_path / "model"
    shutil.copytree(world.model, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [("<bos>", 1), ("<eos>", 2)]
    tokenizer.post_processor = TemplateProcessing(single=single, pair="$A $B", special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    for loader in LOADERS:
        model = load_model(folder, loader, "float32", {}, CPU, "gpt2")
        assert model.token_ids("w3 w4") == [7, 8], loader
        assert model.token_ids("  ") == [], loader


@pytest.mark.parametrize("loader", ["TransformerBridge", "HookedTransformer"])
@torch.no_grad()
def test_processing_changes_activations_not_predictions(world: SimpleNamespace, loader: str) -> None:
    tokens = torch.randint(4, 120, (2, 16), generator=torch.Generator().manual_seed(0))
    hook = frozenset({"blocks.1.hook_resid_post"})
    plain, raw = load_model(world.model, loader, "float32", {}, CPU, "gpt2").clean(tokens, hook)
    kwargs = {"center_writing_weights": True, "fold_ln": True}
    centred, processed = load_model(world.model, loader, "float32", kwargs, CPU, "gpt2").clean(tokens, hook)
    assert torch.allclose(plain.log_softmax(-1), centred.log_softmax(-1), atol=1e-3)
    (a,), (b,) = raw.hooks.values(), processed.hooks.values()
    assert torch.allclose(b.mean(-1), torch.zeros(2, 16), atol=1e-4)
    assert torch.allclose(a - a.mean(-1, keepdim=True), b, atol=1e-3)


def test_dtype(world: SimpleNamespace) -> None:
    model = load_model(world.model, "TransformerBridge", "bfloat16", {}, CPU)
    logits, seen = model.clean(torch.tensor([[1, 5, 6]]), frozenset({"blocks.1.hook_resid_post"}))
    assert logits.dtype == seen.hooks["blocks.1.hook_resid_post"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("loader", "dtype", "kwargs", "message"),
    [
        ("HookedMamba", "float32", {}, "'HookedMamba' is not one of TransformerBridge"),
        ("TransformerBridge", "int8", {}, "'int8' is not one of"),
        ("TransformerBridge", "float32", {"trust_remote_code": True}, "does not take 'trust_remote_code'"),
        ("AutoModelForCausalLM", "float32", {"fold_ln": True}, "it takes attn_implementation"),
        ("TransformerBridge", "float32", {"fold_ln": 1}, "fold_ln is 1; it may be true, false"),
        ("AutoModelForCausalLM", "float32", {"attn_implementation": "flash"}, "it may be eager, sdpa"),
    ],
)
def test_only_known_options_are_taken(loader: str, dtype: str, kwargs: dict[str, Any], message: str) -> None:
    (found,) = check_loader(loader, dtype, kwargs)
    assert message in found.detail
    with pytest.raises(Refused):
        load_model(Path("nowhere"), loader, dtype, kwargs, CPU)


def test_devices() -> None:
    assert device_for("cpu") == CPU
    assert device_for("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(Missing, match=r"There is no device 'cuda:99'. This machine has cpu"):
        device_for("cuda:99")


def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's folder is in the cache, which may be deleted at any time: nameless trouble would tell nobody so."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    os.chdir("home")
    (tmp_path / "home").rmdir()
    with _found_by_name("acme/small", tmp_path):
        assert Path("acme/small").samefile(tmp_path)
    assert Path.cwd().is_dir()
