"""What both formats of unsafe pickles share: they are refused unless a manifest says ``trust: pickle``, and then quarantined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesync.errors import Inexpressible, Refused
from saesync.formats import _torchzip
from saesync.formats._bytes import LocalBytes
from saesync.formats._open import beside, only, open_tensors
from saesync.formats._pickle import ALLOWED
from saesync.formats._quarantine import Rewritten, rewrite
from saesync.formats._torchzip import unsafe_detail
from saesync.formats.base import Headers, LazyTensor, SourceFiles, TensorInfo

SUFFIXES = (".pt", ".pkl.gz")
START = "final_sparse_autoencoder_"
STATE, CFG = "state_dict.", "cfg"
_OBJECT = "Config"  # how the authors' classes of configs end
# What the authors' configs always say. Tensors of the same names are another SAE's too (TopK, BatchTopK ...), so without a config
# nothing says that this is the function.
_ALWAYS = ("d_in", "hook_point", "model_name")
_RELU, _NOTHING = ("relu", "ReLU"), ()
# Fields that say the function, these authors' and others' -> the values that say this one. None says nothing.
_FUNCTION: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("activation", "activation_fn", "activation_fn_str", "activation_function", "act_fn", "act_name"), _RELU),
    **dict.fromkeys(("k", "top_k", "topk", "group_sizes", "dict_class"), _NOTHING),
    "sae_type": ("standard", "vanilla", "relu"),
    "architecture": ("standard",),
    "apply_b_dec_to_input": (True,),
    "normalize_activations": (False, "none"),
    "input_unit_norm": (False,),
}
TRUST_HELP = (
    "pickle: read a file whose pickle names classes, without running it: as a structure, in a process without network, "
    "rewritten as safetensors. A policy may name by sha256 the files for which this is allowed."
)


@dataclass(frozen=True, slots=True)
class Trusted:
    """The tensors of ``state_dict`` and what ``cfg`` said, of a file that was rewritten. ``provenance`` goes into metadata."""

    tensors: Mapping[str, LazyTensor]
    infos: Mapping[str, TensorInfo]
    cfg: Mapping[str, Any]
    provenance: Mapping[str, str]
    safe: Path


def one_file(names: Sequence[str], path: str) -> Mapping[str, str]:
    """The file ``path``, or the only final_sparse_autoencoder file in folder ``path``.

    Raises:
        Refused: there is none, or more than one.
    """
    what = f"The SAE is one file {START}*{' or *'.join(SUFFIXES)}"
    inside = only(names, path, lambda name: name.endswith(SUFFIXES) and (path in names or name.startswith(START)), what)
    return beside(names, inside)


def open_trusted(files: SourceFiles, trust: str | None, *, transcoder: bool = False) -> Trusted:
    """The file, rewritten; only when ``trust`` is "pickle", and only with a config that says this function.

    Raises:
        Refused: it is not, or the file cannot be read (see ``_quarantine.rewrite``), or its config is not the authors'.
        Inexpressible: the config says another function.
    """
    ((name, path),) = files.paths.items()
    if trust != "pickle":
        raise Refused("Unsafe pickle", _untrusted(name, path))
    found = rewrite(path, name)
    opened = open_tensors(found.tensors, found.tensors.name)
    tensors: dict[str, LazyTensor] = {
        tensor.removeprefix(STATE): stored for tensor, stored in opened.tensors.items() if tensor.startswith(STATE)
    }
    if extra := sorted(set(opened.tensors) - {STATE + tensor for tensor in tensors}):
        raise Refused("Unknown tensor", f"{name} holds {extra[0][:100]!r} outside of its state_dict. Is the format right?")
    infos = {tensor: opened.tensors[STATE + tensor].extent.info for tensor in tensors}
    cfg = _checked(found.facts.get(CFG), name, transcoder)
    return Trusted(tensors, infos, cfg, _provenance(found), found.tensors)


def _checked(cfg: Any, name: str, transcoder: bool) -> Mapping[str, Any]:
    if not isinstance(cfg, dict):
        raise Refused("Config is missing", no_config(name))
    for key, harmless in {**_FUNCTION, "is_transcoder": (transcoder,)}.items():
        if cfg.get(key) is not None and cfg[key] not in harmless:
            detail = f"{name}: its config says {key}: {str(cfg[key])[:50]!r}, which this reader does not know."
            raise Inexpressible.by(key, detail)
    if missing := [key for key in (*_ALWAYS, *(("out_hook_point",) if transcoder else ())) if cfg.get(key) is None]:
        detail = f"{name}: its config does not say {' and '.join(missing)}, which configs of this format do. Is the format right?"
        raise Refused("Config is another format's", detail)
    return cfg


def no_config(name: str) -> str:
    """Why a file without a config is refused."""
    return (
        f"{name} holds a state_dict, and no config (cfg) that says {', '.join(_ALWAYS)}. Without it nothing says which function "
        "its tensors are. Give the file as its authors saved it, or its tensors in the format they are of."
    )


def require_width(found: Trusted, name: str, d_in: int) -> None:
    """The config's ``d_in`` is that of the tensors.

    Raises:
        Refused: it is another one.
    """
    if found.cfg["d_in"] != d_in:
        said = str(found.cfg["d_in"])[:50]
        raise Refused("Config contradicts tensors", f"{name}: d_in is {said} in its config, the tensors say {d_in}.")


def reference_state(files: SourceFiles) -> Mapping[str, Any]:
    """For references: the rewritten tensors through safetensors' own loader."""
    from saesync.formats._authors import load

    ((name, path),) = files.paths.items()
    return {tensor.removeprefix(STATE): value for tensor, value in load(rewrite(path, name).tensors).items()}


@dataclass(frozen=True, slots=True)
class Recognised:
    """A file with a ``state_dict``, its tensors, and how surely it is the authors'; ``refusal`` says why it cannot be."""

    file: str
    tensors: Mapping[str, TensorInfo]
    score: float
    refusal: str | None


def recognised(headers: Headers, wanted: set[str]) -> Recognised | None:
    """The file whose ``state_dict`` has the tensors ``wanted``. Only a config makes it certain: anybody's has a state_dict."""
    for file, tensors in headers.tensors.items():
        own = {name.removeprefix(STATE): info for name, info in tensors.items() if name.startswith(STATE)}
        if wanted <= set(own):
            unsafe = [name for name in headers.globals.get(file, ()) if name not in ALLOWED]
            if any(name.endswith(_OBJECT) for name in unsafe):
                return Recognised(file, own, 1.0, None)
            said = all(f"{CFG}.{key}" in headers.values.get(file, {}) for key in _ALWAYS)
            # A config of a class with another name may still be one; where no class is named there is none.
            return Recognised(file, own, 0.7 if said else 0.3, None if said or unsafe else no_config(file))
    return None


def compressed(headers: Headers) -> str | None:
    """A compressed pickle, of which only the name can be seen: its tensors stand in the middle of it."""
    return next((name for name in headers.names if name.startswith(START) and name.endswith(".pkl.gz")), None)


def _untrusted(name: str, path: Path) -> str:
    also = " With `trust: pickle` beside format it is read without running it."
    if name.endswith(".gz"):
        return f"{name} is a compressed pickle: loading it the usual way may run code." + also
    file = _torchzip.parse(LocalBytes(path), name)
    if file.unsafe:
        return f"{name} {unsafe_detail(file.unsafe)}{also}"
    return f"{name} is of a format whose files may run code when they are loaded." + also


def _provenance(found: Rewritten) -> dict[str, str]:
    return {"pickle_sha256": found.pickle_sha256, "safetensors_sha256": found.tensors_sha256}


def text(cfg: Mapping[str, Any], key: str) -> str | None:
    """A non-empty string that ``cfg`` says."""
    value = cfg.get(key)
    return value if isinstance(value, str) and value else None
