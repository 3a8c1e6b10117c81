"""Language models from local folders, as the manifest's loader holds them. Never fetches, never runs foreign code."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from saesync.errors import Missing, Refused, SaesyncError
from saesync.measure.devices import out_of_memory, wide
from saesync.measure.folder import check_folder
from saesync.measure.loaders import PROCESSING, check_loader
from saesync.measure.passes import LanguageModel
from saesync.measure.reasons import reason

# What transformers and TransformerLens raise for folders they cannot make a model of.
_LOAD_ERRORS = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError,
)  # fmt: skip


def load_model(
    folder: Path, loader: str, dtype: str, kwargs: Mapping[str, object], device: torch.device, name: str | None = None
) -> LanguageModel:
    """The model in ``folder``, held by ``loader``, in evaluation mode, on ``device``, at ``dtype``.

    ``name`` is the model's Hub id; only HookedTransformer needs it.

    Raises:
        Missing: files of the model are not there.
        Refused: loader, options or model cannot be used; or the model needs its own code.
    """
    wrong = check_loader(loader, dtype, kwargs)
    if wrong:
        raise Refused.of(wrong)
    if dtype == "float64" and wide(device) is not torch.float64:
        raise Refused("Device has no float64", f"{device} has none. Measure with --device cpu, or set `dtype: float32`.")
    config = check_folder(folder)
    load = {"TransformerBridge": _bridge, "HookedTransformer": _hooked, "AutoModelForCausalLM": _proxy}[loader]
    with _quietly():
        try:
            _check_tensors(folder, config)
            module = load(folder, getattr(torch, dtype), kwargs, device, name)
        except SaesyncError:
            raise
        except (*_LOAD_ERRORS, MemoryError) as error:
            if out_of_memory(error):
                fit = f"The model in {folder} does not fit on {device} in {dtype}. Use a device with more memory."
                raise Missing("Not enough memory", fit) from error
            said = _unsaid(error) or reason(error)
            raise Refused("Model cannot be loaded", f"{loader} cannot load the model in {folder}: {said}.") from error
        # Rows are never padded, and HookedTransformer would not attend to EOS at their beginning if its tokenizer padded there.
        module.tokenizer.padding_side = "right"
        _unmake(module.tokenizer)
        return LanguageModel.of(module.eval(), _text_config(folder), device)


def _unsaid(error: BaseException) -> str | None:
    """What config.json lacks, if it is that: HookedTransformer reads names that transformers writes no more (GPT-2's n_ctx)."""
    from transformers import PretrainedConfig

    if not isinstance(error, AttributeError) or not isinstance(error.obj, PretrainedConfig):
        return None
    return (
        f"its config.json has no {error.name}, as models saved by newer versions of transformers have not. Use `loader: "
        "TransformerBridge`, which does not need it, or a revision of the model that has it"
    )


def _bridge(folder: Path, dtype: torch.dtype, kwargs: Mapping[str, object], device: torch.device, _: str | None) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder), device=device, dtype=dtype)
    if kwargs:
        flags = _processing(kwargs)
        bridge.enable_compatibility_mode(disable_warnings=True, no_processing=not any(flags.values()), **flags)
    return bridge


def _hooked(folder: Path, dtype: torch.dtype, kwargs: Mapping[str, object], device: torch.device, name: str | None) -> Any:
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import NEED_REMOTE_CODE_MODELS, get_official_model_name
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        official = get_official_model_name((name or "").removeprefix("openai-community/").removeprefix("distilbert/"))
    except ValueError as error:
        said = f"{name!r} is none of them" if name is not None else f"{folder.name!r} is a local folder"
        raise Refused(
            "HookedTransformer does not know the model",
            f"HookedTransformer loads models by official names only, and {said}. "
            "Use `loader: TransformerBridge`, which loads any folder.",
        ) from error
    if official.startswith(NEED_REMOTE_CODE_MODELS):
        raise Refused("Model needs its own code", f"TransformerLens loads {official} by running code that comes with it.")
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **_LOCAL)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with _found_by_name(official, folder):
        return HookedTransformer.from_pretrained(
            official, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype, **_processing(kwargs)
        )


def _proxy(folder: Path, dtype: torch.dtype, kwargs: Mapping[str, object], device: torch.device, _: str | None) -> Any:
    from sae_lens.load_model import HookedProxyLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **_LOCAL, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return HookedProxyLM(hf_model.to(device), tokenizer)


def _unmake(tokenizer: Any) -> None:
    """Take special tokens back that are not in the vocabulary.

    TransformerLens makes some up where a tokenizer has none at all: rows would begin with the unknown token as BOS, and where
    text has it, it would not count.
    """
    for name in ("bos_token", "eos_token", "pad_token"):
        token = getattr(tokenizer, name)
        number = None if token is None else tokenizer.convert_tokens_to_ids(token)
        if number is None or tokenizer.convert_ids_to_tokens(number) != token:
            setattr(tokenizer, name, None)


_LOCAL: Mapping[str, Any] = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}


def _processing(kwargs: Mapping[str, object]) -> dict[str, Any]:
    return {name: kwargs.get(name, False) for name in PROCESSING}


def _check_tensors(folder: Path, config: Mapping[str, Any]) -> None:
    """transformers fills tensors a checkpoint lacks with random numbers and only logs it; so it is asked first.

    On the meta device nothing but headers is read.
    """
    import transformers

    classes = config.get("architectures") or ["AutoModelForCausalLM"]
    made = getattr(transformers, classes[0])
    _, info = made.from_pretrained(folder, output_loading_info=True, device_map="meta", **_LOCAL)
    absent = sorted(info["missing_keys"])
    if absent:
        shown = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
        raise Missing(
            "Model is incomplete", f"The weights in {folder} lack {len(absent)} tensors: {shown}. Fetch the whole model."
        )


def _text_config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).get_text_config()


@contextlib.contextmanager
def _found_by_name(official: str, folder: Path) -> Iterator[None]:
    """Let TransformerLens find ``folder`` under its official name: it asks for the name and would ask the Hub.

    It takes a relative path that has config.json before anything else, so a link of that name in the working folder will do.
    """
    try:
        before = Path.cwd()
    except FileNotFoundError:  # it went with a cache that is being cleaned: what is missing of the model is then told by name
        before = Path(os.sep)
    with tempfile.TemporaryDirectory() as place:
        link = Path(place, official)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder.resolve(), target_is_directory=True)
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(before)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No bars, no chatter on stdout (workers talk through it), no deprecation notes to people who only chose a loader, and no
    package installed behind the user's back: TransformerBridge runs pip or uv for models with images."""
    from transformers.utils import logging as hf_logging

    held = {name: os.environ.get(name) for name in ("PIP_NO_INDEX", "UV_OFFLINE")}
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    os.environ.update({"PIP_NO_INDEX": "1", "UV_OFFLINE": "1"})
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="HookedTransformer", category=DeprecationWarning)
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
        for name, value in held.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
