"""What formats of two plain matrices and their biases share: where SAELens's tensors are stored, their checks, cfg fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saesync.errors import Refused
from saesync.formats._checks import require_only, require_tensors, widest
from saesync.formats._lazy import Transposed
from saesync.formats._open import Opened
from saesync.formats._pickle import ALLOWED
from saesync.formats._torchzip import unsafe_detail
from saesync.formats.base import Candidate, Headers, LazyTensor, TensorInfo
from saesync.nothing import nothing

PLAIN: Mapping[str, str] = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
LINEAR = frozenset(("W_enc", "W_dec"))
_MATRICES = ("W_enc", "W_dec", "W_skip")


@dataclass(frozen=True, slots=True)
class Layout:
    """SAELens's tensor names -> stored names. ``turned`` names (SAELens's) are stored with their axes swapped; ``extra`` maps
    stored names of further vectors to the axis they lie along: "d_in", "d_sae", "d_out", or "" for a scalar."""

    names: Mapping[str, str]
    turned: frozenset[str] = frozenset()
    extra: Mapping[str, str] = field(default_factory=nothing)


@dataclass(frozen=True, slots=True)
class Size:
    """Dimensions, and the widest dtype."""

    d_in: int
    d_sae: int
    d_out: int
    dtype: str

    @property
    def facts(self) -> dict[str, Any]:
        """What an inspection shows of it."""
        return {"d_in": self.d_in, "d_sae": self.d_sae, "dtype": self.dtype}


def measure(file: str, found: Mapping[str, TensorInfo], layout: Layout, *, transcoder: bool = False) -> Size:
    """Dimensions as the biases say, and in a transcoder the encoder; everything else must agree.

    Raises:
        Refused: missing or unknown tensors, wrong shapes or dtypes.
    """
    names = layout.names
    d_sae, d_out = _length(found, names.get("b_enc"), 0), _length(found, names.get("b_dec"), 0)
    encoder = found[names["W_enc"]].shape if names["W_enc"] in found else ()
    d_in = d_out
    if len(encoder) == 2 and (transcoder or "b_dec" not in names):
        d_in = encoder[1] if "W_enc" in layout.turned else encoder[0]
    d_out = d_out if transcoder else d_in
    matrices = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "W_skip": (d_out, d_in)}
    expected: dict[str, tuple[int, ...]] = {}
    for name, stored in names.items():
        shape = matrices.get(name, (d_out,) if name == "b_dec" else (d_sae,))
        expected[stored] = shape[::-1] if name in layout.turned else shape
    axes = {"d_in": (d_in,), "d_sae": (d_sae,), "d_out": (d_out,), "": ()}
    expected |= {stored: axes[axis] for stored, axis in layout.extra.items()}
    require_tensors(file, found, expected)
    if 0 in (d_in, d_sae, d_out):
        raise Refused("Wrong shape", f"{file}: an axis has length 0.")
    return Size(d_in, d_sae, d_out, widest(found))


def _length(found: Mapping[str, TensorInfo], name: str | None, axis: int) -> int:
    shape = found[name].shape if name is not None and name in found else ()
    return shape[axis] if len(shape) == 1 else 0


def pick(opened: Mapping[str, LazyTensor], layout: Layout) -> dict[str, LazyTensor]:
    """SAELens's tensors, in its orientation."""
    return {
        name: Transposed(opened[stored]) if name in layout.turned and name in _MATRICES else opened[stored]
        for name, stored in layout.names.items()
    }


def cfg(
    architecture: str, size: Size, *, subtracts: bool = False, norm: str = "none", heads: bool = False, k: int = 0
) -> dict[str, Any]:
    """SAELens's fields. ``heads``: the input is attention heads, joined; ``k`` counts for topk alone."""
    found: dict[str, Any] = {
        "architecture": architecture,
        "d_in": size.d_in,
        "d_sae": size.d_sae,
        "apply_b_dec_to_input": subtracts,
        "normalize_activations": norm,
        "reshape_activations": "hook_z" if heads else "none",
    }
    if architecture.endswith("transcoder"):
        found["d_out"] = size.d_out
    if architecture == "topk":
        found |= {"k": k, "rescale_acts_by_decoder_norm": False}
    return found


def no_others(file: str, opened: Opened) -> Mapping[str, LazyTensor]:
    """The tensors of a file that must hold nothing else.

    Raises:
        Refused: it does, by name.
    """
    require_only(file, opened.others)
    return opened.tensors


def unsafe(name: str, headers: Headers, file: str) -> Candidate | None:
    """The refusal of a recognised file whose pickle names what is not of torch."""
    names = tuple(found for found in headers.globals.get(file, ()) if found not in ALLOWED)
    return Candidate(name, 0.9, refusal=f"{file} {unsafe_detail(names)}") if names else None


def more_than_tensors(name: str, headers: Headers, file: str) -> Candidate | None:
    """The refusal of a recognised file that must hold tensors alone, as ``no_others`` and reading refuse it."""
    if (refused := unsafe(name, headers, file)) is not None:
        return refused
    try:
        require_only(file, headers.others.get(file, ()))
    except Refused as refusal:
        return Candidate(name, 0.9, refusal=reason(refusal))
    return None


def reason(refusal: Refused) -> str:
    """What a candidate's ``refusal`` says."""
    return refusal.diagnostics[0].detail


def checked_k(k: Any, d_sae: int) -> int:
    """A declared number of active features.

    Raises:
        Refused: it is none.
    """
    if type(k) is not int or not 0 < k <= d_sae:
        raise Refused("Missing k", f"k must be a whole number from 1 to {d_sae}, not {str(k)[:50]!r}.")
    return k
