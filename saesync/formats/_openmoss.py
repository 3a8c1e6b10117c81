"""What both generations of OpenMOSS's SAEs share: scales of activations, and settings that SAELens cannot express. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saesync.errors import Inexpressible, Refused

# sqrt(d_model) / norm is the scale. A norm nobody set is uninitialised memory, which is rarely a number of this size.
_PLAUSIBLE = (1e-6, 1e7)


@dataclass(frozen=True, slots=True)
class Scales:
    """Inputs are multiplied by ``inside``, targets by ``out``; ``per_token``: by sqrt(d_model) / norm of each token instead."""

    inside: float = 1.0
    out: float = 1.0
    per_token: bool = False


def require_norm(value: Any, where: str) -> float:
    """An average norm of activations.

    Raises:
        Refused: it is no positive number, or one that no activations have.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not _PLAUSIBLE[0] < value < _PLAUSIBLE[1]:
        raise Refused(
            "Activation norm is not set",
            f"{where} is {str(value)[:50]}: no average norm of activations. Inputs cannot be scaled as in training without it.",
        )
    return float(value)


def scale(d_model: int, norm: float) -> float:
    """The factor that brings activations of this average norm to sqrt(d_model)."""
    return math.sqrt(d_model) / norm


def flag(config: Mapping[str, Any], name: str, default: bool, file: str) -> bool:
    """A true-or-false setting.

    Raises:
        Refused: it is something else.
    """
    found = config.get(name, default)
    if type(found) is not bool:
        raise Refused("Damaged config", f"{file}: {name} must be true or false, not {str(found)[:50]!r}.")
    return found


def hooks(config: Mapping[str, Any], file: str) -> tuple[str, str]:
    """Where activations are read and what is predicted; equal in an SAE.

    Raises:
        Refused: config does not say.
    """
    inside, out = config.get("hook_point_in"), config.get("hook_point_out")
    out = inside if out is None else out
    if not isinstance(inside, str) or not isinstance(out, str) or not inside or not out:
        raise Refused("Damaged config", f"{file}: hook_point_in is {str(inside)[:100]!r}, hook_point_out {str(out)[:100]!r}.")
    return inside, out


def check_expressible(config: Mapping[str, Any], file: str, transcoder: bool, subtracts: bool) -> None:
    """Settings that no class of SAELens has.

    Raises:
        Inexpressible: with the setting.
    """
    norm, act = config.get("norm_activation"), config.get("act_fn")
    problem = None
    if flag(config, "use_glu_encoder", False, file):
        problem = "use_glu_encoder is true: its encoder is gated by a second one"
    elif norm == "batch-wise":
        problem = "norm_activation is batch-wise: the scale of a token depends on the batch around it"
    elif transcoder and norm == "token-wise":
        problem = "norm_activation is token-wise in a transcoder, whose output SAELens does not scale back"
    elif transcoder and subtracts:
        problem = "apply_decoder_bias_to_pre_encoder is true in a transcoder, which subtracts nothing in SAELens"
    elif transcoder and act == "topk":
        problem = "act_fn is topk in a transcoder, and SAELens has no TopK transcoder"
    if problem is not None:
        raise Inexpressible.by(problem.partition(" ")[0], f"{file}: {problem}.")


def facts(config: Mapping[str, Any]) -> dict[str, str]:
    """Hooks as far as config says them."""
    inside, out = config.get("hook_point_in"), config.get("hook_point_out")
    found = {"hook": inside} if isinstance(inside, str) and inside else {}
    return found | ({"hook_out": out} if isinstance(out, str) and out not in ("", inside) else {})


def architecture(base: str, transcoder: bool) -> str:
    """SAELens's name of ``base`` ("standard", "jumprelu", "topk") for an SAE or a transcoder."""
    if not transcoder:
        return base
    return "transcoder" if base == "standard" else f"{base}_transcoder"
