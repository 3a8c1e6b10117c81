"""What a model folder must hold before anything of it is loaded: weights as safetensors, a tokenizer, no code of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saesync.errors import Diagnostic, Missing, Refused

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def check_folder(folder: Path) -> dict[str, Any]:
    """config.json of a Hugging Face model folder that can be loaded safely.

    Raises:
        Missing, Refused: see ``check_files``.
        Refused: it needs code of its own, or is no causal language model.
    """
    config = check_files(folder)
    _check_code(folder, config)
    return config


def check_files(folder: Path) -> dict[str, Any]:
    """config.json of a folder that holds all files of a model. Imports nothing heavy.

    Raises:
        Missing: files are not there; every missing one is named.
        Refused: its weights are pickled, or a file is unreadable.
    """
    if not folder.is_dir():
        raise Missing(
            "Model is not here", f"There is no model folder {folder}. Correct model.path; of a cached model, run again."
        )
    config = _json(folder, "config.json")
    missing = [*_weights(folder), *_tokenizer(folder)]
    if missing:
        raise Missing.of(missing)
    return config


def longest_context(config: Mapping[str, Any]) -> int | None:
    """How many tokens the model of a config.json can read at once; None when it does not say so. Where text is one of several
    inputs, its part of the config counts."""
    text = config.get("text_config")
    for part in (text if isinstance(text, dict) else {}, config):
        for name in ("max_position_embeddings", "n_positions"):  # GPT-2 and its kin use the second name for the first
            if isinstance(part.get(name), int) and part[name] > 0:
                return int(part[name])
    return None


def check_context(context: int, longest: int | None) -> None:
    """Whether a model that can read ``longest`` tokens at once (None: no limit is known) can read ``context``.

    Raises:
        Refused: it cannot, or these are too few to predict one from another.
    """
    if context < 2 or (longest is not None and context > longest):
        most = "" if longest is None else f" and at most {longest:,}, which is what the model can read"
        raise Refused("Context does not fit the model", f"The context is {context:,} tokens; it must be at least 2{most}.")


def _check_code(folder: Path, config: dict[str, Any]) -> None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = config.get("model_type")
    classes = [name for name in config.get("architectures") or () if isinstance(name, str)]
    known = kind in CONFIG_MAPPING_NAMES and all(hasattr(transformers, name) for name in classes[:1])
    named = f"{classes[0] if classes else kind} in {folder.name}"
    if not known and config.get("auto_map"):
        raise Refused(
            "Model needs its own code",
            f"{named} can only be loaded by running code that comes with it, which saesync never does. "
            "Use a model that transformers has built in.",
        )
    if not known:
        raise Refused(
            "Model is not known",
            f"transformers {transformers.__version__} does not know {named}. Install a version that does, or correct model.path.",
        )
    if config.get("is_encoder_decoder"):
        raise Refused("Model is not causal", f"{named} is an encoder-decoder; only causal language models are measured.")
    if (folder / "adapter_config.json").exists():
        raise Refused(
            "Model folder holds an adapter",
            f"{folder} holds a PEFT adapter, whose base model would be fetched. Merge it into its base model first.",
        )


def _weights(folder: Path) -> list[Diagnostic]:
    if (folder / _WEIGHTS).is_file():
        return []
    if (folder / _INDEX).is_file():
        listed = _json(folder, _INDEX).get("weight_map")
        shards = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
        inside = [name for name in shards if Path(name).name == name]
        if not shards or len(inside) != len(shards):
            raise Refused("Model index is unreadable", f"{_INDEX} in {folder} does not list the shards of the model.")
        absent = [name for name in shards if not (folder / name).is_file()]
        if not absent:
            return []
        shown = ", ".join(absent[:5]) + (" ..." if len(absent) > 5 else "")
        return [Diagnostic("Model is incomplete", f"{folder} lacks {len(absent)} of {len(shards)} weight files: {shown}.")]
    if any(path.suffix in _PICKLES for path in folder.iterdir()):
        raise Refused(
            "Model weights are pickled",
            f"{folder} has no {_WEIGHTS}, only weights in a form that can run code when it is read. "
            "Use a revision with safetensors.",
        )
    return [Diagnostic("Model is incomplete", f"{folder} holds neither {_WEIGHTS} nor {_INDEX}. Fetch the whole model.")]


def _tokenizer(folder: Path) -> list[Diagnostic]:
    if any((folder / name).is_file() for name in _VOCABULARIES):
        return []
    wanted = ", ".join(_VOCABULARIES)
    return [Diagnostic("Tokenizer is missing", f"{folder} holds none of {wanted}. Save the model's tokenizer into it.")]


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if path.exists() and not path.is_file():  # to read a pipe is to wait for whoever writes into it
        raise Refused("Model file is unreadable", f"{name} in {folder} is not a regular file. Put the model's own there.")
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Missing("Model is incomplete", f"{folder} holds no {name}. Fetch the whole model.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise Refused("Model file is unreadable", f"{name} in {folder} is not readable JSON.") from error
    if not isinstance(value, dict):
        raise Refused("Model file is unreadable", f"{name} in {folder} is not a JSON object.")
    return value
