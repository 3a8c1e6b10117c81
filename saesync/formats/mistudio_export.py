"""miStudio's exports ("Community Standard", Neuronpedia): folders that look like legacy SAELens ones and hold another function.

Its exporters (hitsainet/miStudio cc5eed0) write one of the two decoder biases, no k and no normalisation, and ``skip`` and
``transcoder`` as architectures SAELens does not know; every hook becomes ``hook_resid_post``. The native checkpoint holds it
all: convert that (format ``mistudio``) where it can be had. Without it, an export of a SparseAutoencoder is repaired by what its
owner declares: the trained function is ``f = relu(c x W_enc + b_enc)``, maybe its k largest, output ``(f W_dec + b) / c``, where
``c`` is ``sqrt(d) / max(|x|, 1e-6)`` or 1, and ``b`` the sum of both biases.

Both biases start at zero and get the same gradients, so they are equal unless something else changed one: then ``b`` is twice
what was exported. Whether that is so only its owner can know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saesync.errors import Refused
from saesync.formats import _dense
from saesync.formats._authors import decode, encode, load, random_state, top_k
from saesync.formats._checks import read_json
from saesync.formats._dense import PLAIN, Layout
from saesync.formats._lazy import Mapped
from saesync.formats._open import beside, choose, open_tensors
from saesync.formats._saelens_cfg import CFG
from saesync.formats.base import Candidate, Headers, SourceFiles, Weights
from saesync.formats.mistudio import MISNAMED as WEIGHTS
from saesync.formats.mistudio import RESCALE, is_export

if TYPE_CHECKING:
    import torch

_LAYOUT = Layout(PLAIN)


@dataclass(frozen=True, slots=True)
class MiStudioExportOptions:
    """What the exporter dropped."""

    k: int = field(
        metadata={
            "help": "Active features per token of the training: max(1, int(top_k_sparsity / 100 * d_sae)), or 0 if it had no "
            "top_k_sparsity."
        }
    )
    normalize_activations: Literal["constant_norm_rescale", "none"] = field(
        metadata={"help": "How the training normalised activations; miStudio's default is constant_norm_rescale."}
    )
    b_dec: Literal["half", "whole"] = field(
        metadata={
            "help": "half: an untied SAE whose two biases nobody touched after training, so that the exported one is doubled; "
            "whole: a tied SAE, which has one."
        }
    )


class MiStudioExport:
    """See the module's docstring."""

    name = "mistudio_export"
    version = 1
    summary = "miStudio exports that look like SAELens folders: repaired by what their owner declares, or refused"
    Options: type[Any] = MiStudioExportOptions
    variants = ("half", "whole", "relu")

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """cfg.json and the weights in folder ``path``, or beside the file ``path``."""
        before, _, last = path.rstrip("/").rpartition("/")
        folder = before if path in names and last in (CFG, WEIGHTS) else path
        found = choose(names, folder, (WEIGHTS,), (".safetensors",), "A miStudio export")
        both = beside(names, found, CFG)
        if CFG not in both:
            raise Refused("Missing file", f"{CFG} is not beside {found}; a miStudio export has both.")
        return both

    def sniff(self, headers: Headers) -> Candidate | None:
        """Recognised by cfg.json; what it fails to say must be declared."""
        cfg, tensors = headers.json.get(CFG), headers.tensors.get(WEIGHTS)
        if tensors is None or not is_export(cfg) or not isinstance(cfg, Mapping):
            return None
        try:
            _check(cfg)
            size = _dense.measure(WEIGHTS, tensors, _LAYOUT)
        except Refused as refusal:
            return Candidate(self.name, 1.0, refusal=_dense.reason(refusal))
        return Candidate(
            self.name, 1.0, {"architecture": "standard", **size.facts}, needs=("k", "normalize_activations", "b_dec")
        )

    def read(self, files: SourceFiles, options: MiStudioExportOptions) -> Weights:
        """See ``Format.read``."""
        cfg = read_json(files.paths[CFG], CFG)
        if not is_export(cfg):
            raise Refused("No miStudio export", f"{CFG} is not one that miStudio writes. Is the format right?")
        _check(cfg)
        opened = open_tensors(files.paths[WEIGHTS], WEIGHTS)
        size = _dense.measure(WEIGHTS, opened.infos, _LAYOUT)
        k = 0 if options.k == 0 else _dense.checked_k(options.k, size.d_sae)
        if options.normalize_activations not in (RESCALE, "none") or options.b_dec not in ("half", "whole"):
            raise Refused("Option does not fit", f"normalize_activations is {RESCALE} or none, b_dec half or whole.")
        tensors = _dense.pick(opened.tensors, _LAYOUT)
        if options.b_dec == "half":
            tensors["b_dec"] = Mapped(tensors["b_dec"], lambda block, *_: block * 2)
        found = _dense.cfg("topk" if k else "standard", size, norm=options.normalize_activations, k=k)
        return Weights(found, tensors)

    def reference(self, files: SourceFiles, options: MiStudioExportOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        t, x = load(files.paths[WEIGHTS]), x.double()
        bias = t["b_dec"].double() + (t["b_dec"].double() if options.b_dec == "half" else 0)
        c = x.new_ones(len(x), 1)
        if options.normalize_activations == RESCALE:
            c = x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True).clamp(min=1e-6)
        features = (encode(x * c, t["W_enc"], linear=False) + t["b_enc"].double()).relu()
        features = top_k(features, options.k) if options.k else features
        return features, (decode(features, t["W_dec"], linear=False) + bias) / c

    def example(self, folder: Path, seed: int, variant: str = "half") -> MiStudioExportOptions:
        """A tiny export; "half" is of a TopK SAE with two biases, whose cfg says no k, as miStudio writes it."""
        import json

        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        shapes = {"W_enc": (12, 40), "W_dec": (40, 12), "b_enc": (40,), "b_dec": (12,)}
        save_file(random_state(seed, shapes), folder / WEIGHTS)
        cfg = {
            "architecture": "standard",
            "d_in": 12,
            "d_sae": 40,
            "activation_fn_str": "relu" if variant == "relu" else "topk",
            "normalize_activations": "none",
            "apply_b_dec_to_input": False,
            "hook_name": "blocks.3.hook_resid_post",
            "mistudio_training_id": "train_1",
        }
        (folder / CFG).write_text(json.dumps(cfg))
        chosen: Literal["half", "whole"] = "whole" if variant == "whole" else "half"
        return MiStudioExportOptions(0 if variant == "relu" else 14, RESCALE, chosen)


FORMAT = MiStudioExport()


def _check(cfg: Mapping[str, Any]) -> None:
    """What of an export can be repaired: a SparseAutoencoder.

    Raises:
        Refused: it is something else, or was changed by somebody.
    """
    architecture = cfg.get("architecture", "standard")
    native = "Convert the native checkpoint.safetensors with `format: mistudio`."
    if architecture not in ("standard", "topk"):
        detail = (
            f"{CFG}: this miStudio export says architecture {str(architecture)[:50]!r}, and does not hold the whole function. "
        )
        raise Refused("Cannot be repaired", detail + native)
    if cfg.get("apply_b_dec_to_input", False) is not False:
        detail = f"{CFG}: this miStudio export says apply_b_dec_to_input, which no miStudio encoder does. "
        raise Refused("Cannot be repaired", detail + native)
