"""What both formats of unsafe pickles share: they are refused unless a manifest says ``trust: pickle``, and then quarantined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesync.errors import Refused
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


def open_trusted(files: SourceFiles, trust: str | None) -> Trusted:
    """The file, rewritten; only when ``trust`` is "pickle".

    Raises:
        Refused: it is not, or the file cannot be read; see ``_quarantine.rewrite``.
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
    cfg = found.facts.get(CFG)
    return Trusted(tensors, infos, cfg if isinstance(cfg, dict) else {}, _provenance(found), found.tensors)


def reference_state(files: SourceFiles) -> Mapping[str, Any]:
    """For references: the rewritten tensors through safetensors' own loader."""
    from saesync.formats._authors import load

    ((name, path),) = files.paths.items()
    return {tensor.removeprefix(STATE): value for tensor, value in load(rewrite(path, name).tensors).items()}


def recognised(headers: Headers, wanted: set[str]) -> tuple[str, Mapping[str, TensorInfo], tuple[str, ...]] | None:
    """The file whose ``state_dict`` has the tensors ``wanted``, these tensors, and the unsafe names in its pickle."""
    for file, tensors in headers.tensors.items():
        own = {name.removeprefix(STATE): info for name, info in tensors.items() if name.startswith(STATE)}
        if wanted <= set(own):
            return file, own, tuple(name for name in headers.globals.get(file, ()) if name not in ALLOWED)
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
