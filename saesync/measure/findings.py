"""What the ranking of an SAE's possible meanings says about the declared one. Pure: numbers in, sentences out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# How much better another meaning must be before it is evidence: by a tenth, and by more than chance (three standard errors of
# the difference). One that lets more features fire explains more anyway, so it must be twice as good.
_RATIO, _SIGMAS = 0.9, 3.0
_MORE_FEATURES, _CLEARLY = 1.2, 0.5
_AS_GOOD = 1.1
_ALIKE = 1e-3  # of the variance: less tells no two readings apart
_DIGITS = 4  # that are shown: what looks equal is equal
TOLERANCE = "a tenth less variance unexplained, half where many more features fire, and more than chance"
# Above this nothing is explained that the mean activation would not explain.
_NOTHING = 0.9
SCALED = "mean_norm_scale"  # inputs times one number, so that their mean norm is sqrt(d_in)
_SIMPLE = ("none", SCALED, "constant_norm_rescale", "layer_norm")
DIMENSIONS = ("hook", "bos", "norm", "subtract", "activation", "k")


@dataclass(frozen=True, slots=True)
class Trial:
    """One meaning and how it fared: where the SAE reads, whether rows begin with BOS, what its input is normalised by
    (SAELens's names, or ``mean_norm_scale`` with its ``scale``), whether b_dec is subtracted, and the activation.

    ``fvu`` is the fraction of variance unexplained, ``stderr`` its standard error over documents (None: too little), ``l0`` the
    mean number of features that fire; ``difference_stderr`` is the standard error of the difference to the declared one's fvu.
    ``k`` is how many features an activation keeps that keeps the largest.
    """

    hook: str
    bos: bool
    norm: str
    subtract: bool
    activation: str
    fvu: float
    stderr: float | None
    l0: float
    scale: float | None = None
    declared: bool = False
    difference_stderr: float | None = None
    k: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """``kind`` is a constant that can be searched for; ``detail`` full sentences with the numbers and what to do."""

    kind: str
    detail: str

    def to_json(self) -> dict[str, str]:
        """Plain data."""
        return asdict(self)


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Best first; those that are not numbers last; of those that show the same number the declared one first."""
    return sorted(trials, key=lambda trial: (_shown(trial), not trial.declared, trial.fvu))


def _shown(trial: Trial) -> float:
    return round(trial.fvu, _DIGITS) if math.isfinite(trial.fvu) else math.inf


def findings(trials: Sequence[Trial]) -> list[Finding]:
    """What is not as declared, as far as these numbers show it. Empty: nothing is clearly better than what is declared."""
    declared, better = _standing(trials)
    best = better[0] if better else declared
    if not best.fvu < _NOTHING:
        detail = (
            f"At best ({best.hook}) {best.fvu:.2f} of the variance stays unexplained: no hook and no flag that was tried makes"
            " sense of these weights. Is it the base model they were trained on, at this revision, and are they trained at all?"
        )
        return [Finding("Nothing fits", detail)]
    if not better:
        return []
    chosen = _simplest(better, declared)
    differing = _differing(chosen, declared)
    if _entangled(chosen, differing, declared, trials):
        return [_unseparated(chosen, differing, declared)]
    return [_SAYS[name](chosen, declared) for name in differing]


def meant(trials: Sequence[Trial]) -> Trial | None:
    """The reading that ``findings`` speak of, or None where none is clearly better than the declared one."""
    declared, better = _standing(trials)
    return _simplest(better, declared) if better and better[0].fvu < _NOTHING else None


def tolerated(trials: Sequence[Trial]) -> str:
    """In words, how the declared reading stands where nothing is clearly better.

    Readings that let many more features fire explain more for that alone: they are no rivals.
    """
    declared = next(trial for trial in trials if trial.declared)
    order = ranked([trial for trial in trials if trial.declared or trial.l0 <= _MORE_FEATURES * declared.l0])
    place = order.index(declared)
    if place == 0:
        first = ranked(trials)[0].declared
        return f"What is declared is the best of {'them' if first else 'those that let no more features fire'}."
    best = order[0]
    what = ", ".join(_SETTING[name](best) for name in _differing(best, declared))
    others = "1 other reading leaves" if place == 1 else f"{place} other readings leave"
    return (
        f"What is declared is within the tolerance of the best: {others} less unexplained, the best of them {_number(best)} where"
        f" what is declared leaves {_number(declared)}, with {what}. None is clearly better ({TOLERANCE})."
        " Ask the authors which one is meant."
    )


def _standing(trials: Sequence[Trial]) -> tuple[Trial, list[Trial]]:
    """The declared reading, and those clearly better, best first."""
    order = ranked(trials)
    declared = next(trial for trial in order if trial.declared)
    return declared, [trial for trial in order if _beats(trial, declared)]


def _differing(trial: Trial, declared: Trial) -> list[str]:
    """What is not as declared. An activation that has no k differs as an activation."""
    found = [name for name in DIMENSIONS if getattr(trial, name) != getattr(declared, name)]
    return [name for name in found if name != "k" or (trial.k is not None and declared.k is not None)]


def _entangled(chosen: Trial, differing: Sequence[str], declared: Trial, trials: Sequence[Trial]) -> bool:
    """Whether another hook is found only together with something else: at that hook alone the SAE makes no more sense."""
    if "hook" not in differing or len(differing) == 1:
        return False
    alone = [trial for trial in trials if trial.hook == chosen.hook and _differing(trial, declared) == ["hook"]]
    return any(not trial.fvu < declared.fvu for trial in alone)


def _unseparated(chosen: Trial, differing: Sequence[str], declared: Trial) -> Finding:
    what = " and ".join(_SETTING[name](chosen) for name in differing)
    detail = (
        f"With {what} together {_number(chosen)} of the variance stays unexplained, as declared {_number(declared)}; with the"
        " hook alone no less does. Something is wrong, and these numbers do not tell what: ask the authors for all of it."
    )
    return Finding("Not as declared", detail)


def _beats(trial: Trial, declared: Trial) -> bool:
    if trial.declared or not math.isfinite(trial.fvu):
        return False
    if not math.isfinite(declared.fvu):
        return True
    paired = trial.difference_stderr
    known = paired is not None and math.isfinite(paired)
    chance = _SIGMAS * (paired if known and paired is not None else math.hypot(trial.stderr or 0.0, declared.stderr or 0.0))
    needed = _RATIO if trial.l0 <= _MORE_FEATURES * declared.l0 else _CLEARLY
    return trial.fvu < needed * declared.fvu and declared.fvu - trial.fvu > chance


def _simplest(better: Sequence[Trial], declared: Trial) -> Trial:
    """Of the meanings that are as good as the best, the one nearest to what is declared: not everything that differs matters.

    Of normalisations that explain about as much, one number for all tokens is the simplest, and of several k the smallest.
    """
    best = better[0]
    near = [trial for trial in better if trial.fvu <= best.fvu * _AS_GOOD + 2 * (best.stderr or 0.0) + _ALIKE]

    def effort(trial: Trial) -> tuple[int, int, float, float]:
        norm = _SIMPLE.index(trial.norm) if trial.norm in _SIMPLE else len(_SIMPLE)
        return len(_differing(trial, declared)), norm, trial.k or math.inf, trial.fvu

    return min(near, key=effort)


def _number(trial: Trial) -> str:
    """As rows of the table have it."""
    return f"{trial.fvu:.{_DIGITS}f}"


def _numbers(chosen: Trial, declared: Trial) -> str:
    """The number is that of the whole reading: where more than one thing differs, none of them alone gives it."""
    together = " (with all that is found here corrected)" if len(_differing(chosen, declared)) > 1 else ""
    return f"{_number(chosen)} of the variance stays unexplained{together}, as declared {_number(declared)}"


def _hook(chosen: Trial, declared: Trial) -> Finding:
    detail = f"At {chosen.hook} {_numbers(chosen, declared)} ({declared.hook}). Correct `hook` if the authors say so, too."
    return Finding("Wrong hook", detail)


def _bos(chosen: Trial, declared: Trial) -> Finding:
    if chosen.bos:
        return Finding(
            "Missing BOS", f"With BOS at the start of every row {_numbers(chosen, declared)}. Set `prepend_bos: true`."
        )
    return Finding("BOS is not wanted", f"Without BOS {_numbers(chosen, declared)}. Set `prepend_bos: false`.")


def _norm(chosen: Trial, declared: Trial) -> Finding:
    if chosen.norm == SCALED:
        detail = (
            f"With inputs multiplied by {chosen.scale:.4g}, so that their mean norm is the root of d_in, "
            f"{_numbers(chosen, declared)}."
            " Declare the factor the SAE was trained with (`norm_scaling_factor`), so that it is folded in."
        )
        return Finding("Missing scale", detail)
    detail = f"With normalize_activations: {chosen.norm} {_numbers(chosen, declared)} ({declared.norm}). Set it under `cfg`."
    return Finding("Wrong normalisation", detail)


def _subtract(chosen: Trial, declared: Trial) -> Finding:
    said = f"With {_SETTING['subtract'](chosen)}"
    return Finding("Wrong input bias", f"{said} {_numbers(chosen, declared)}. Set it under `cfg`.")


def _activation(chosen: Trial, declared: Trial) -> Finding:
    detail = f"With {_SETTING['activation'](chosen)} {_numbers(chosen, declared)} ({declared.activation}), and"
    fire = f"{chosen.l0:.4g} features fire, as declared {declared.l0:.4g}"
    return Finding(
        "Wrong activation", f"{detail} {fire}. Look at what the source says of the activation and, where it has one, of k."
    )


def _k(chosen: Trial, declared: Trial) -> Finding:
    detail = f"With k = {chosen.k} {_numbers(chosen, declared)} (k = {declared.k}). Look at what the source says of k."
    return Finding("Wrong k", detail)


_SETTING: Mapping[str, Callable[[Trial], str]] = {
    "hook": lambda trial: f"the hook {trial.hook}",
    "bos": lambda trial: f"{'' if trial.bos else 'no '}BOS at the start of every row",
    "norm": lambda trial: f"normalize_activations: {trial.norm}",
    "subtract": lambda trial: f"apply_b_dec_to_input: {str(trial.subtract).lower()}",
    "activation": lambda trial: f"the activation {trial.activation}",
    "k": lambda trial: f"k = {trial.k}",
}
_SAYS: Mapping[str, Callable[[Trial, Trial], Finding]] = {
    "hook": _hook,
    "bos": _bos,
    "norm": _norm,
    "subtract": _subtract,
    "activation": _activation,
    "k": _k,
}
