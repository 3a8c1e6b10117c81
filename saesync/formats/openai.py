"""OpenAI's sparse_autoencoder (Gao et al. 2024, GPT-2 small): one ``.pt`` per layer, a state dict that also holds the name and
the settings of its activation.

Authors' forward pass (sparse_autoencoder/model.py): with TopK the input is normalised token by token (mean subtracted, divided by
the unbiased standard deviation + 1e-5), else not; ``f = activation(encoder(x - pre_bias) + latent_bias)``, output ``decoder(f) +
pre_bias``, times the standard deviation plus the mean where the input was normalised. That is SAELens's layer_norm, the epsilon
that is not undone included. TopK applies its ``postact_fn`` to the k largest; without an ``activation`` entry it is ReLU.

A tied decoder is the encoder's transpose; its class stores the encoder once more, as ``decoder.linear.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Inexpressible, Refused
from saesync.formats._checks import require_only, unknown_value, widest
from saesync.formats._layout import LINEAR, Layout, cfg, look, require_k
from saesync.formats._open import TORCH, beside, choose, open_tensors
from saesync.formats.base import Candidate, Headers, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

_COUNTS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_NAMES = {"W_enc": "encoder.weight", "b_enc": "latent_bias", "b_dec": "pre_bias"}
UNTIED = Layout({**_NAMES, "W_dec": "decoder.weight"}, LINEAR, _COUNTS)
TIED = Layout({**_NAMES, "W_dec": "encoder.weight"}, frozenset(("W_enc",)), _COUNTS)
COPY = "decoder.linear.weight"
ACTIVATION, K, POSTACT = "activation", "activation_state_dict.k", "activation_state_dict.postact_fn"
_KNOWN = (ACTIVATION, K, POSTACT)
_NUMBER = re.compile(r"\d+\.pt", re.ASCII)
_PLACE = re.compile(r"(?:^|/)(?P<site>[a-z_]+?)(?:_v\d[a-z0-9_]*)?/autoencoders/(?P<layer>\d+)\.pt$", re.ASCII)
_HOOKS = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_post_mlp": "hook_resid_post",
}
# How the authors' README loads the model whose activations these are.
_MODEL_KWARGS = {"center_writing_weights": False}


@dataclass(frozen=True, slots=True)
class OpenAIOptions:
    """The file says everything."""


class OpenAI:
    """See the module's docstring."""

    name = "openai"
    version = 1
    summary = "OpenAI sparse_autoencoder: ReLU, or TopK with layer-normalised inputs, one .pt per layer"
    Options: type[Any] = OpenAIOptions
    variants = ("topk", "relu", "undeclared", "tied")

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only {layer}.pt directly in folder ``path``."""
        folder = f"{path.rstrip('/')}/" if path else ""
        main = [name[len(folder) :] for name in names if name.startswith(folder) and _NUMBER.fullmatch(name[len(folder) :])]
        return beside(names, choose(names, path, main or ("{layer}.pt",), TORCH, "An OpenAI SAE"))

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain: nobody else has these tensor names."""
        seen = look(headers, _NAMES.values(), TORCH)
        if seen is None:
            return None
        if seen.unsafe is not None:
            return Candidate(self.name, 0.9, refusal=seen.unsafe)
        try:
            _, d_in, d_sae = _dimensions(seen.file, seen.tensors)
            k = _activation(seen.file, seen.values, d_sae)
        except Refused as refusal:
            return Candidate(self.name, 0.9, refusal=refusal.diagnostics[0].detail)
        facts: dict[str, Any] = {"architecture": "standard" if k is None else "topk", "d_in": d_in, "d_sae": d_sae}
        weights = {name: info for name, info in seen.tensors.items() if name not in _COUNTS}
        facts |= {"dtype": widest(weights)} | ({} if k is None else {"k": k})
        return Candidate(self.name, 1.0, facts | _place(headers.place))

    def read(self, files: SourceFiles, options: OpenAIOptions) -> Weights:
        """See ``Format.read``."""
        ((name, path),) = files.paths.items()
        opened = open_tensors(path, name)
        require_only(name, opened.others, _KNOWN)
        layout, d_in, d_sae = _dimensions(name, opened.infos)
        if COPY in opened.tensors and opened.tensors[COPY].extent != opened.tensors["encoder.weight"].extent:
            raise Refused("Not tied", f"{name}: {COPY} is not the same storage as encoder.weight, which its class ties it to.")
        k = _activation(name, opened.values, d_sae)
        fields = cfg("standard", d_in, d_sae, subtracts=True)
        if k is not None:
            fields |= {"architecture": "topk", "normalize_activations": "layer_norm"}
            fields |= {"k": k, "rescale_acts_by_decoder_norm": False}
        return Weights(fields, layout.tensors(opened, d_in, d_sae), {"model_from_pretrained_kwargs": dict(_MODEL_KWARGS)})

    def reference(self, files: SourceFiles, options: OpenAIOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``. Written out from the authors' ``encode`` and ``decode``."""
        from saesync.formats._authors import decode, encode, load, top_k

        ((_, path),) = files.paths.items()
        t = load(path)
        x = x.double()
        topk = t.get("activation", "ReLU") == "TopK"
        mean, deviation = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        z = (x - mean) / (deviation + 1e-5) if topk else x
        pre = encode(z - t["pre_bias"].double(), t["encoder.weight"], linear=True) + t["latent_bias"].double()
        features = (top_k(pre, t["activation_state_dict"]["k"]) if topk else pre).relu()
        tied = "decoder.weight" not in t
        output = decode(features, t["encoder.weight" if tied else "decoder.weight"], t["pre_bias"], linear=not tied)
        return features, output * deviation + mean if topk else output

    def example(self, folder: Path, seed: int, variant: str = "topk") -> OpenAIOptions:
        """A tiny ``3.pt``; "undeclared" is a ReLU SAE that does not name its activation, "tied" one without a decoder."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        shapes = {"encoder.weight": (40, 12), "decoder.weight": (12, 40), "latent_bias": (40,), "pre_bias": (12,)}
        state: dict[str, Any] = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
        state |= {"stats_last_nonzero": torch.zeros(40, dtype=torch.long), "latents_mean_square": torch.zeros(40)}
        state["latents_activation_frequency"] = torch.ones(40)
        if variant == "topk":
            state |= {"activation": "TopK", "activation_state_dict": {"k": 6, "postact_fn": "ReLU"}}
        elif variant != "undeclared":
            state |= {"activation": "ReLU", "activation_state_dict": {}}
        if variant == "tied":
            del state["decoder.weight"]
            state[COPY] = state["encoder.weight"]
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / "3.pt")
        return OpenAIOptions()


FORMAT = OpenAI()


def _dimensions(file: str, found: Mapping[str, TensorInfo]) -> tuple[Layout, int, int]:
    """The layout, d_in and d_sae.

    Raises:
        Refused: missing or unknown tensors, wrong shapes.
    """
    layout = UNTIED if "decoder.weight" in found else TIED
    extra = {COPY: found["encoder.weight"].shape} if COPY in found and "encoder.weight" in found and layout is TIED else {}
    return layout, *layout.dimensions(file, found, extra=extra)


def _activation(file: str, values: Mapping[str, Any], d_sae: int) -> int | None:
    """k of a TopK, None for ReLU.

    Raises:
        Refused: it is neither, or TopK keeps negative values.
    """
    found = values.get(ACTIVATION, "ReLU")
    if found == "ReLU":
        return None
    if found != "TopK":
        raise unknown_value(file, "activation", found, "ReLU, TopK")
    if values.get(POSTACT) != "ReLU":
        after = str(values.get(POSTACT))[:50]
        raise Inexpressible.by(
            POSTACT,
            f"{file}: {POSTACT} is {after!r}: the k largest may be negative, and SAELens's topk sets negative ones to 0.",
        )
    return require_k(values.get(K), d_sae, f"{file}: {K}")


def _place(place: str) -> dict[str, str]:
    """Model and hook, as the authors name the folders of their SAEs of GPT-2 small."""
    match = _PLACE.search(place)
    if match is None or match["site"] not in _HOOKS:
        return {}
    facts = {"hook": f"blocks.{int(match['layer'])}.{_HOOKS[match['site']]}"}
    return facts | ({"model": "gpt2"} if "gpt2-small/" in place else {})
