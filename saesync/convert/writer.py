"""The one place that writes a SAELens folder: cfg.json and sae_weights.safetensors, reproducibly and in bounded memory.

The safetensors file is written directly (length, JSON header, data): row blocks are made by the main thread while a second
one hashes and writes the block before, so the digests cost no second pass. No ``__metadata__`` is written, and nothing
depends on time, versions or the order of a set: the same source gives the same bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, cast

from saesync.convert.finite import finite, not_finite
from saesync.digest import FileDigest, Hasher, digest_bytes
from saesync.errors import Refused
from saesync.formats._lazy import WIDTHS, holds, spans
from saesync.formats._safetensors import CODES
from saesync.formats.base import LazyTensor, Weights
from saesync.hooks import name_output
from saesync.model import CFG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    import torch

# The version of SAELens whose cfg.json layout is written. Constant, not the installed version: the bytes must not change
# with an upgrade, and without a version of at least 6 SAELens reads cfg.json as legacy and drops all metadata.
CFG_LAYOUT = "6.54.12"
# Fields a manifest may set for a format whose files do not say them. The proof decides whether they are true.
OVERRIDABLE = ("apply_b_dec_to_input", "normalize_activations", "reshape_activations", "rescale_acts_by_decoder_norm")
_PIECE = 4 << 20
_OF_HOOK = {"hook_name": ("hf_hook_name", "hf_hook_name_out", "hook_name_out"), "hook_name_out": ("hf_hook_name_out",)}
_LOCAL_PATH = re.compile(r"/|~|[A-Za-z]:[\\/]|\\\\|file:")

Progress = Callable[[int, int], None]


def write_sae(
    weights: Weights,
    out: Path,
    dtype: str,
    cfg: Mapping[str, Any],
    metadata: Mapping[str, Any],
    progress: Progress | None = None,
) -> dict[str, FileDigest]:
    """Write ``weights`` as a SAELens v6 folder into ``out``; returns the digests of both files by name.

    ``dtype`` is the type of the stored weights; a ``threshold`` is kept in float32 when they are narrower, for it decides which
    features fire. ``progress`` is told (bytes written, bytes in all).

    Raises:
        Refused: NaN or infinity in the source, a value that ``dtype`` cannot hold, an unknown dtype or cfg field.
        OSError: no space, no permission.
    """
    if dtype not in WIDTHS:
        raise Refused("Unknown dtype", f"dtype must be one of {', '.join(WIDTHS)}, not {dtype[:50]!r}.")
    text = _cfg_text(weights, dtype, cfg, metadata)
    out.mkdir(parents=True, exist_ok=True)
    kinds = {name: stored_dtype(name, dtype) for name in weights.tensors}
    digests = {WEIGHTS_FILE: write_tensors(weights.tensors, out / WEIGHTS_FILE, kinds, progress)}
    (out / CFG_FILE).write_bytes(text)
    (out / CFG_FILE).chmod(0o644)
    return digests | {CFG_FILE: digest_bytes(text)}


def write_cfg(weights: Weights, out: Path, dtype: str) -> None:
    """cfg.json alone, without a hook's name: for a SAELens object that gets its tensors from ``weights`` directly."""
    nowhere = dict.fromkeys(("hook_name", "hook_name_out", "hook_head_index"))
    (out / CFG_FILE).write_bytes(_cfg_text(weights, dtype, {}, nowhere))


def rewrite_cfg(text: bytes, cfg: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes:
    """cfg.json with other labels and the same weights: what a relabel writes. ``text`` is the published file.

    A key of ``metadata`` that is None is removed.

    Raises:
        Refused: ``text`` is not a SAELens v6 cfg.json.
    """
    try:
        found = json.loads(text)
        known = dict(found["metadata"])
    except (ValueError, TypeError, KeyError) as error:
        raise Refused("Damaged config", "The published cfg.json is not a SAELens v6 config.") from error
    return _dump({**found, **_checked(cfg), "metadata": _merged(known, metadata)})


def stored_dtype(name: str, dtype: str) -> str:
    """The type tensor ``name`` is stored in when the SAE's is ``dtype``."""
    return "float32" if name == "threshold" and WIDTHS[dtype] < 4 else dtype


def is_exact(weights: Weights, dtype: str) -> bool:
    """Whether storing as ``dtype`` keeps every value of the source without rounding."""
    return all(holds(stored_dtype(name, dtype), tensor.dtype) for name, tensor in weights.tensors.items())


def _cfg_text(weights: Weights, dtype: str, cfg: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes:
    merged = _merged(weights.metadata, metadata)
    fields = {**weights.cfg, **_checked(cfg), "dtype": dtype, "device": "cpu", "metadata": merged}
    hook = str(merged.get("hook_name") or "")
    if fields.get("reshape_activations") == "hook_z" and hook and not hook.endswith("_z"):
        raise Refused("Hook does not fit", f"reshape_activations is hook_z; SAELens refuses that for the hook {hook[:100]!r}.")
    _check_output(str(fields.get("architecture")), merged, metadata)
    return _dump(fields)


def _check_output(architecture: str, merged: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """A transcoder predicts another hook than it reads: without that hook's name nobody can use it. SAEs have none."""
    if not architecture.endswith("transcoder"):
        if said.get("hook_name_out") is not None:
            detail = (
                f"hook_out is {str(said['hook_name_out'])[:100]!r}, but the source is no transcoder ({architecture}): what it "
            )
            raise Refused("Hook does not fit", detail + "reads is what it reconstructs. Remove `hook_out` (`--hook-out`).")
    elif merged.get("hook_name") and not merged.get("hook_name_out"):
        detail = (
            f"The source is a {architecture}: it reads {merged['hook_name'][:100]!r}, and what it predicts must be said, too. "
        )
        raise Refused("Needs hook_out", detail + name_output(architecture))


def _merged(source: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The source's metadata under the manifest's; None removes a key, which SAELens reads as None anyway.

    What the source says of its hook is left out when the manifest names another one.
    """
    moved = {key for name, keys in _OF_HOOK.items() for key in keys if metadata.get(name, source.get(name)) != source.get(name)}
    kept = {key: _public(value) for key, value in source.items() if key not in moved}
    known = {key: value for key, value in {**kept, **metadata}.items() if value is not None}
    # Absent, SAELens fills in the version that happens to load the file.
    return {"sae_lens_training_version": None, **known, "sae_lens_version": CFG_LAYOUT}


def _public(value: Any) -> Any:
    """A source's metadata as it may be published: of a path on somebody's machine only the last name."""
    if isinstance(value, Mapping):
        return {key: _public(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_public(entry) for entry in value]
    if isinstance(value, str) and _LOCAL_PATH.match(value):
        return PureWindowsPath(value).name  # both kinds of slash
    return value


def _checked(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    if unknown := sorted(set(cfg) - set(OVERRIDABLE)):
        raise Refused("Unknown cfg field", f"cfg may set {', '.join(OVERRIDABLE)}; not {unknown[0][:50]!r}.")
    return cfg


def _dump(fields: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(fields, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise Refused("Damaged config", "cfg.json would hold NaN or an infinity, which JSON cannot say.") from error


def _header(
    tensors: Mapping[str, LazyTensor], kinds: Mapping[str, str], metadata: Mapping[str, str]
) -> tuple[bytes, list[str], int]:
    """Header bytes, the order of tensors in the file and the length of the data."""
    # Wider types first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-WIDTHS[kinds[name]], name))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    codes = {kind: CODES[kind] for kind in WIDTHS}
    for name in order:
        end = at + math.prod(tensors[name].shape) * WIDTHS[kinds[name]]
        entries[name] = {"dtype": codes[kinds[name]], "shape": list(tensors[name].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order, at


def write_tensors(
    tensors: Mapping[str, LazyTensor],
    path: Path,
    kinds: Mapping[str, str],
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
) -> FileDigest:
    """Write a safetensors file in bounded memory; ``kinds`` is the type each tensor is stored in, by name.

    ``metadata`` is for layouts whose readers need it; SAELens folders have none.

    Raises:
        Refused: NaN or infinity in the source, or a value that its type cannot hold.
        OSError: no space, no permission.
    """
    header, order, length = _header(tensors, kinds, metadata or {})
    total = len(header) + length
    hasher = Hasher(total)
    hasher.update(header)
    done = len(header)
    with path.open("wb") as stream, ThreadPoolExecutor(1) as pool:
        stream.write(header)
        writing: Future[int] | None = None
        for name in order:
            for block in _blocks(name, tensors[name], kinds[name]):
                if writing is not None:  # at most one block waits while the next is made
                    done += writing.result()
                    if progress is not None:
                        progress(done, total)
                writing = pool.submit(_emit, block, stream, hasher)
        if writing is not None:
            done += writing.result()
    path.chmod(0o644)
    if progress is not None:
        progress(done, total)
    return hasher.digest()


def _blocks(name: str, tensor: LazyTensor, dtype: str) -> Iterator[torch.Tensor]:
    import torch

    kind = getattr(torch, dtype)
    columns = math.prod(tensor.shape[1:])
    for start, stop in spans(tensor.shape[0], columns * WIDTHS[tensor.dtype]):
        source = tensor.rows(start, stop)
        block = source.to(kind).contiguous()
        if not finite(block):
            raise _out_of_range(name, dtype) if bool(source.isfinite().all()) else not_finite(name, source, start)
        yield block


def _out_of_range(name: str, dtype: str) -> Refused:
    return Refused("Value out of range", f"{name} holds values that {dtype} cannot: choose float32 or bfloat16 as dtype.")


def _emit(block: torch.Tensor, stream: IO[bytes], hasher: Hasher) -> int:
    import torch

    data = memoryview(cast("bytes", block.view(-1).view(torch.uint8).numpy()))
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        stream.write(piece)
        hasher.update(piece)
    return len(data)
