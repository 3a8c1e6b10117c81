"""How a format names and orients four or five tensors, and the checks and fields that follow from it. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from saesync.errors import Refused
from saesync.formats._checks import require_tensors
from saesync.formats._lazy import Filled, Transposed
from saesync.formats._open import Opened
from saesync.formats._pickle import ALLOWED
from saesync.formats._torchzip import unsafe_detail
from saesync.formats.base import Headers, LazyTensor, TensorInfo
from saesync.nothing import nothing


@dataclass(frozen=True, slots=True)
class Layout:
    """``names`` maps SAELens's tensor names to the stored ones; matrices in ``turned`` are stored transposed; stored tensors in
    ``ignored`` belong to training, have length d_sae and no part in the function. Output and input have one width."""

    names: Mapping[str, str]
    turned: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()

    def fits(self, found: Collection[str], optional: Collection[str] = ()) -> bool:
        """Whether exactly these tensors are there; those of ``optional`` (SAELens's names) may be missing."""
        needed = {stored for name, stored in self.names.items() if name not in optional}
        return needed <= set(found) <= {*self.names.values(), *self.ignored}

    def dimensions(
        self,
        file: str,
        found: Mapping[str, TensorInfo],
        optional: Collection[str] = (),
        extra: Mapping[str, tuple[int, ...]] = nothing(),
    ) -> tuple[int, int]:
        """d_in and d_sae as the biases say (as ``W_enc`` does where there is none); everything else must agree. Tensors of
        ``optional`` (SAELens's names) may be missing; ``extra`` gives shapes of further stored tensors.

        Raises:
            Refused: missing or unknown tensors, wrong shapes or dtypes.
        """
        stored = found[self.names["W_enc"]].shape if self.names["W_enc"] in found else ()
        seen = (stored[::-1] if "W_enc" in self.turned else stored) if len(stored) == 2 else (0, 0)
        d_in, d_sae = (self._length(found, bias, axis) for bias, axis in zip(("b_dec", "b_enc"), seen, strict=True))
        shapes: dict[str, tuple[int, ...]] = dict(extra)
        for name, kept in self.names.items():
            shape = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "W_skip": (d_in, d_in), "b_dec": (d_in,)}.get(name, (d_sae,))
            shapes[kept] = shape[::-1] if name in self.turned else shape
        absent = tuple(self.names[name] for name in optional if name in self.names)
        require_tensors(file, {name: info for name, info in found.items() if name not in self.ignored}, shapes, absent)
        for name in self.ignored:  # what training counts in may be of any dtype
            if name in found and found[name].shape != (d_sae,):
                raise Refused("Wrong shape", f"{file}: {name} has shape {list(found[name].shape)}, expected [{d_sae}].")
        if 0 in (d_in, d_sae):
            raise Refused("Wrong shape", f"{file}: an axis has length 0.")
        return d_in, d_sae

    def _length(self, found: Mapping[str, TensorInfo], bias: str, axis: int) -> int:
        info = found.get(self.names[bias]) if bias in self.names else None
        return axis if info is None else info.shape[0] if len(info.shape) == 1 else 0

    def tensors(self, opened: Opened, d_in: int, d_sae: int) -> dict[str, LazyTensor]:
        """The tensors under SAELens's names, in its orientation; a bias that is not there is zero."""
        out: dict[str, LazyTensor] = {"b_enc": Filled(0.0, (d_sae,)), "b_dec": Filled(0.0, (d_in,))}
        for name, stored in self.names.items():
            if stored in opened.tensors:
                tensor = opened.tensors[stored]
                out[name] = Transposed(tensor) if name in self.turned else tensor
        return out


LINEAR = frozenset(("W_enc", "W_dec"))  # torch's Linear keeps [out, in]
LINEARS = Layout({"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "encoder.bias", "b_dec": "decoder.bias"}, LINEAR)


@dataclass(frozen=True, slots=True)
class Seen:
    """The first weights file of some headers that ``Layout.fits`` or a caller accepts, with why it must not be read, if so."""

    file: str
    tensors: Mapping[str, TensorInfo]
    unsafe: str | None = None
    values: Mapping[str, Any] = field(default_factory=nothing)


def look(headers: Headers, marks: Collection[str], suffixes: tuple[str, ...]) -> Seen | None:
    """The first weights file that holds all tensors in ``marks``."""
    for file, tensors in headers.tensors.items():
        if set(marks) <= set(tensors) and file.endswith(suffixes):
            names = tuple(name for name in headers.globals.get(file, ()) if name not in ALLOWED)
            return Seen(file, tensors, f"{file} {unsafe_detail(names)}" if names else None, headers.values.get(file, {}))
    return None


def cfg(architecture: str, d_in: int, d_sae: int, subtracts: bool = False, norm: str = "none", **more: Any) -> dict[str, Any]:
    """SAELens's fields. ``subtracts``: b_dec is subtracted from the input; ``norm`` is SAELens's normalize_activations."""
    return {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": subtracts,
        "normalize_activations": norm,
        "reshape_activations": "none",
        **more,
    }


def require_k(k: Any, d_sae: int, where: str) -> int:
    """``k`` as a whole number from 1 to ``d_sae``; ``where`` says who says it.

    Raises:
        Refused: it is none.
    """
    if type(k) is not int or not 0 < k <= d_sae:
        raise Refused("Missing k", f"{where} must be a whole number from 1 to {d_sae}, not {str(k)[:50]!r}.")
    return k
