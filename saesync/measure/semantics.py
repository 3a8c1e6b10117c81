"""Which hook, which normalisation, which activation make sense of an SAE: tried on real activations, ranked by what they explain.

The forward pass is written out here from the weights: SAELens's classes cannot be asked what they would give with other flags.
One product with ``W_enc`` per normalisation serves all variants of it, since ``(x - b_dec) W = x W - b_dec W``. Everything is
streamed: memory is that of one batch of sequences, whatever the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from saesync.errors import Refused
from saesync.formats.base import SEQUENTIAL
from saesync.measure.engine import Batch
from saesync.measure.findings import SCALED, Trial
from saesync.measure.saes import LoadedSae
from saesync.measure.statistics import Estimate, Tally, explained, explained_variance, standard_error

NORMS = ("none", "layer_norm", "constant_norm_rescale", SCALED)
_UNKNOWN = (*SEQUENTIAL, "matching_pursuit")
_TOPK, _BY_NORM = "topk", "topk by decoder norm"
_KEEPING = (_TOPK, _BY_NORM, "abstopk")
_UNIT = 1e-4  # of a norm's difference from 1
_STEPS = 6  # doublings of k, up and down
_BLOCK = 1 << 24  # elements of one [rows, d_sae] block


@dataclass(frozen=True, slots=True)
class Flags:
    """One way to read the weights."""

    norm: str
    subtract: bool
    activation: str
    k: int | None = None  # of activations that keep their k largest


@dataclass(frozen=True, slots=True)
class Condition:
    """Where activations come from."""

    hook: str
    bos: bool


@dataclass
class Sums:
    """Per-sequence sums of one condition: moments of what is to be reconstructed, and of each reading the error and the active
    features. ``scale`` is the one number inputs are multiplied by for SCALED, taken from the first batch."""

    scale: float
    moments: Tally
    trials: dict[Flags, Tally] = field(default_factory=dict)


class Reading:
    """The weights of one SAE, read in every way its architecture leaves open."""

    def __init__(self, sae: LoadedSae) -> None:
        """
        Raises:
            Refused: its architecture has no forward pass that can be written out row by row.
        """
        cfg = sae.sae.cfg
        self.architecture = str(cfg.architecture())
        if self.architecture in _UNKNOWN:
            raise Refused("Cannot be diagnosed", f"{sae.address} is {self.architecture}: its flags cannot be tried one by one.")
        self.transcoder = sae.target is not sae.site
        self._t: Mapping[str, torch.Tensor] = dict(sae.sae.named_parameters())
        self._norms_of_rows = self._t["W_dec"].norm(dim=1)
        self._shift = self._t["b_dec"] @ self._t["W_enc"] if not self.transcoder else torch.zeros(())
        rescales = bool(getattr(cfg, "rescale_acts_by_decoder_norm", False))
        activation = {"standard": "relu", "transcoder": "relu", "skip_transcoder": "relu"}.get(
            self.architecture, self.architecture
        )
        activation = "jumprelu" if "jumprelu" in activation else activation
        if activation == _TOPK and rescales:
            activation = _BY_NORM
        k = int(getattr(cfg, "k", 1)) if activation in _KEEPING else None
        self.declared = Flags(cfg.normalize_activations, bool(cfg.apply_b_dec_to_input), activation, k)

    @property
    def variants(self) -> tuple[Flags, ...]:
        """All readings. A transcoder has neither an input bias nor a normalisation in SAELens.

        Another k is tried with the declared flags only: without it whatever else fits its wrong k better would be found.
        """
        declared = self.declared
        ks = () if declared.k is None else _others(declared.k, len(self._norms_of_rows))
        names = {"jumprelu": ("jumprelu", "relu"), _TOPK: self._topk, _BY_NORM: self._topk}
        activations = names.get(declared.activation, (declared.activation,))
        flags = [("none", False)] if self.transcoder else [(norm, subtract) for norm in NORMS for subtract in (True, False)]
        tried = [Flags(*each, name, declared.k if name in _KEEPING else None) for each in flags for name in activations]
        return (*tried, *(replace(declared, k=k) for k in ks))

    @property
    def _topk(self) -> tuple[str, ...]:
        """Readings of weights that keep their k largest. Where the decoder's rows have norm 1 both kinds are one function."""
        alike = bool(((self._norms_of_rows - 1).abs() < _UNIT).all())
        return (self.declared.activation, "relu") if alike else (_TOPK, _BY_NORM, "relu")

    def outputs(
        self, x: torch.Tensor, scale: float, variants: Sequence[Flags]
    ) -> Iterator[tuple[Flags, torch.Tensor, torch.Tensor]]:
        """Reading, output ``[n, d_out]`` and active features ``[n]`` for inputs ``x [n, d_in]``."""
        for norm in dict.fromkeys(flags.norm for flags in variants):
            inner, undo = _normalised(norm, x, scale)
            product = inner @ self._t["W_enc"]
            for flags in variants:
                if flags.norm == norm:
                    features, factors = self._features(product - self._shift if flags.subtract else product, flags)
                    decoded = (features / factors if factors is not None else features) @ self._t["W_dec"] + self._t["b_dec"]
                    output = undo(decoded)
                    yield flags, output + x @ self._t["W_skip"].T if "W_skip" in self._t else output, (features != 0).sum(1)

    def _features(self, product: torch.Tensor, flags: Flags) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features, and what they are divided by before decoding."""
        t, name = self._t, flags.activation
        if name == "gated":
            # product is z W: the magnitude's encoder is W times exp(r_mag)
            return (product + t["b_gate"] > 0) * (product * t["r_mag"].exp() + t["b_mag"]).relu(), None
        h = product + t["b_enc"]
        if name == "relu":
            return h.relu(), None
        if name == "jumprelu":
            return h.relu() * (h > t["threshold"]), None
        if name == "abstopk":
            return _kept(h, h.abs(), flags.k), None
        by_norm = name == _BY_NORM
        h = h * self._norms_of_rows if by_norm else h
        return _kept(h.relu(), h, flags.k), self._norms_of_rows.clamp(min=1e-8) if by_norm else None

    def block_rows(self) -> int:
        """Rows that are encoded at a time."""
        return max(16, _BLOCK // self._t["W_dec"].shape[0])


def _others(k: int, features: int) -> tuple[int, ...]:
    """Other numbers of features to keep: halves and doubles, as far as a slip goes, and as there are features."""
    less = [k >> step for step in range(1, _STEPS + 1)]
    more = [k << step for step in range(1, _STEPS + 1)]
    return tuple(dict.fromkeys(other for other in (*less, *more) if 1 <= other <= features))


def _kept(values: torch.Tensor, order: torch.Tensor, k: int | None) -> torch.Tensor:
    top = order.topk(k or 1, dim=1).indices
    return torch.zeros_like(values).scatter_(1, top, values.gather(1, top))


def _normalised(norm: str, x: torch.Tensor, scale: float) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    if norm == "layer_norm":
        mean, deviation = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
        return (x - mean) / (deviation + 1e-5), lambda y: y * deviation + mean
    if norm == "constant_norm_rescale":
        factor = x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return x * factor, lambda y: y / factor
    if norm == SCALED:
        return x * scale, lambda y: y / scale
    return x, lambda y: y


def add(reading: Reading, sums: Sums, batch: Batch, x: torch.Tensor, y: torch.Tensor, variants: Sequence[Flags]) -> None:
    """Take in a batch: inputs ``x [batch, ctx, d_in]``, and what shall come out ``y [batch, ctx, d_out]``."""
    keep = batch.keep
    flat_x, flat_y = x.reshape(-1, x.shape[-1]).float(), y.reshape(-1, y.shape[-1]).float()
    weights = keep.reshape(-1)
    found: dict[Flags, dict[str, list[torch.Tensor]]] = {flags: {"error": [], "active": []} for flags in variants}
    step = reading.block_rows()
    for start in range(0, len(flat_x), step):
        part = slice(start, start + step)
        for flags, output, active in reading.outputs(flat_x[part], sums.scale, variants):
            error = torch.where(weights[part], (flat_y[part] - output).square().sum(1), 0.0)
            found[flags]["error"].append(error.cpu().double())  # MPS has no float64
            found[flags]["active"].append(torch.where(weights[part], active, 0).cpu().double())
    for flags, parts in found.items():
        tally = sums.trials.setdefault(flags, Tally(sums.moments.clusters))
        tally.add(batch.clusters, {name: torch.cat(values).reshape(len(x), -1).sum(1) for name, values in parts.items()})
    exact = torch.where(keep[..., None], y.float(), 0.0).cpu().double()
    moments = {"square": exact.square().sum((1, 2)), "total": exact.sum(1), "count": keep.sum(1)}
    sums.moments.add(batch.clusters, moments)


def scale_of(x: torch.Tensor, keep: torch.Tensor) -> float:
    """The number that gives inputs a mean norm of sqrt(d_in)."""
    norms = x.float().norm(dim=-1)[keep]
    return x.shape[-1] ** 0.5 / max(float(norms.mean()), 1e-12) if norms.numel() else 1.0


def trials(sums: Mapping[Condition, Sums], declared: tuple[Condition, Flags]) -> list[Trial]:
    """Every reading under every condition, with what it leaves unexplained.

    Clusters are the same text everywhere, so differences to the declared reading are judged in pairs.
    """
    origin = _explained(sums[declared[0]], declared[1])[1]
    return [_trial(condition, flags, each, origin, declared) for condition, each in sums.items() for flags in each.trials]


def _explained(sums: Sums, flags: Flags) -> tuple[Estimate, torch.Tensor]:
    moments, tally = sums.moments, sums.trials[flags]
    about = (tally["error"], moments["square"], moments["total"], moments["count"])
    return explained_variance(*about), explained(*about)[1]


def _trial(condition: Condition, flags: Flags, sums: Sums, origin: torch.Tensor, declared: tuple[Condition, Flags]) -> Trial:
    estimate, influence = _explained(sums, flags)
    return Trial(
        condition.hook,
        condition.bos,
        flags.norm,
        flags.subtract,
        flags.activation,
        1 - estimate.value,
        estimate.stderr,
        float(sums.trials[flags]["active"].sum() / sums.moments["count"].sum().clamp(min=1)),
        sums.scale if flags.norm == SCALED else None,
        (condition, flags) == declared,
        standard_error(influence - origin),
        flags.k,
    )


# Where SAEs are trained, as TransformerLens names it; a block has many more hooks of the same width (queries, keys ...).
_LIKELY = (
    "hook_resid_post", "hook_resid_mid", "hook_resid_pre", "hook_mlp_out", "hook_attn_out", "attn.hook_z", "mlp.hook_post",
    "mlp.hook_in", "attn.hook_in", "ln1.hook_normalized", "ln2.hook_normalized",
)  # fmt: skip


def neighbours(points: Mapping[str, Any], hook: str, layer: int | None) -> list[str]:
    """Hooks that may have been meant: the same site one layer up and down, then other sites of the same layer, in the order of
    how often SAEs are trained there. Of a model whose hooks are module names, all modules of the layer."""
    if layer is None:
        return []
    head, _, tail = hook.partition(f".{layer}")
    same = [f"{head}.{other}{tail}" for other in (layer - 1, layer + 1)]
    own = sorted(name for name in points if name == f"{head}.{layer}" or name.startswith(f"{head}.{layer}."))
    likely = [f"{head}.{layer}.{site}" for site in _LIKELY if f"{head}.{layer}.{site}" in points]
    return [name for name in (*same, *(likely or own)) if name in points and name != hook]
