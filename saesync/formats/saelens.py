"""SAELens's own folders: v6, legacy (v2 to v5), and training checkpoints, also of BatchTopK and Matryoshka BatchTopK SAEs.

BatchTopK keeps k x batch features of a whole batch while training; SAELens's own inference form of it is JumpReLU at the
running threshold (``BatchTopKTrainingSAE.process_state_dict_for_saving_inference``), after folding decoder norms when
``rescale_acts_by_decoder_norm`` is on. A factor of ``expected_average_only_in`` is folded as
``SAE.fold_activation_norm_scaling_factor`` does; it also divides a threshold that is in units of decoder norms.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Inexpressible, Refused
from saesync.formats._bytes import LocalBytes
from saesync.formats._checks import read_json, require_tensors, widest
from saesync.formats._fold import divided_rows, row_norms, scaled_features, scaled_rows
from saesync.formats._lazy import Filled, Mapped, Stored, map_file, whole
from saesync.formats._saelens_cfg import BATCH, CFG, FINE_TUNED, SCALED, Config, parse_cfg, processing, require_factor
from saesync.formats._safetensors import parse
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, Weights
from saesync.formats.mistudio import is_export

if TYPE_CHECKING:
    import torch

WEIGHTS = "sae_weights.safetensors"
SCALER = "activation_scaler.json"
_EXPORT = (
    f"{CFG} was written by miStudio's exporter, which leaves out a bias, k and the normalisation. Convert the native checkpoint "
    "with `format: mistudio`, or declare what is missing with `format: mistudio_export`."
)


@dataclass(frozen=True, slots=True)
class SaelensOptions:
    """What the files of a SAELens SAE may fail to say."""

    norm_scaling_factor: float | None = field(
        default=None,
        metadata={"help": "Factor inputs are multiplied by; needed exactly when cfg.json says expected_average_only_in."},
    )


class Saelens:
    """See the module's docstring."""

    name = "saelens"
    version = 2  # 1 read BatchTopK checkpoints of SAELens before 6.14 as if they chose features by decoder norms
    summary = "SAELens folders: v6, legacy, and training checkpoints (cfg.json + sae_weights.safetensors)"
    Options: type[Any] = SaelensOptions
    variants = ("batchtopk", "gated", "topk", "transcoder", "jumprelu_skip_transcoder")

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """cfg.json and the weights in folder ``path`` (or beside the weights file ``path``), and the scaler if it is there."""
        present = set(names)
        folder = path.rstrip("/")
        if folder in present and folder.rsplit("/", 1)[-1] in (WEIGHTS, CFG):
            folder = folder.rpartition("/")[0]
        prefix = f"{folder}/" if folder else ""
        for name in (CFG, WEIGHTS):
            if prefix + name not in present:
                raise Refused("Missing file", f"{prefix}{name} is not in the source; a SAELens SAE is {CFG} with {WEIGHTS}.")
        return {name: prefix + name for name in (CFG, WEIGHTS, SCALER) if prefix + name in present}

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain when cfg.json parses and tensors agree; recognised but refused when only the names fit."""
        cfg, tensors = headers.json.get(CFG), headers.tensors.get(WEIGHTS)
        if not isinstance(cfg, Mapping) or tensors is None or not {"d_in", "d_sae"} <= set(cfg):
            return None
        if is_export(cfg):
            return Candidate(self.name, 0.5, refusal=_EXPORT)
        try:
            config = parse_cfg(cfg)
            require_tensors(WEIGHTS, tensors, _expected(config, tensors))
        except Refused as refusal:
            return Candidate(self.name, 0.9, refusal=refusal.diagnostics[0].detail)
        facts = {
            "architecture": config.architecture,
            "converted_as": config.target,
            "d_in": config.d_in,
            "d_sae": config.d_sae,
            "dtype": widest(tensors),
            "layout": "legacy" if config.legacy else "v6",
            "hook": config.metadata.get("hook_name"),
            "model": config.metadata.get("model_name"),
            "model_kwargs": processing(config.metadata),
        }
        scaler = headers.json.get(SCALER)
        factor = scaler.get("scaling_factor") if config.norm == SCALED and isinstance(scaler, Mapping) else None
        needs = ("norm_scaling_factor",) if config.norm == SCALED and factor is None else ()
        options = {} if factor is None else {"norm_scaling_factor": factor}
        return Candidate(self.name, 1.0, {key: value for key, value in facts.items() if value is not None}, options, needs)

    def read(self, files: SourceFiles, options: SaelensOptions) -> Weights:
        """See ``Format.read``."""
        config, factor = _config(files, options)
        extents = parse(LocalBytes(files.paths[WEIGHTS]), WEIGHTS)
        found = {name: extent.info for name, extent in extents.items()}
        require_tensors(WEIGHTS, found, _expected(config, found))
        buffer = map_file(files.paths[WEIGHTS])
        tensors: dict[str, LazyTensor] = {name: Stored(buffer, extent) for name, extent in extents.items()}
        if (log := tensors.pop("log_threshold", None)) is not None:
            tensors["threshold"] = Mapped(log, lambda block, *_: block.exp())
        _fold_fine_tuning(config, tensors)
        if factor != 1.0:
            tensors["W_enc"] = Mapped(tensors["W_enc"], lambda block, *_: block * factor)
            tensors["W_dec"] = Mapped(tensors["W_dec"], lambda block, *_: block / factor)
            tensors["b_dec"] = Mapped(tensors["b_dec"], lambda block, *_: block / factor)
        if config.architecture in BATCH:
            _fold_threshold(config, factor, tensors)
        metadata = dict(config.metadata)
        if config.architecture != config.target:
            metadata.setdefault("training_architecture", config.architecture)
        return Weights(config.cfg(), tensors, metadata)

    def reference(self, files: SourceFiles, options: SaelensOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        from saesync.formats._saelens_reference import forward

        config, factor = _config(files, options)
        return forward(config, factor, files.paths[WEIGHTS], x)

    def example(self, folder: Path, seed: int, variant: str = "batchtopk") -> SaelensOptions:
        """An SAE of architecture ``variant``; a BatchTopK training checkpoint has most to fold."""
        from saesync.formats._saelens_reference import write_example

        transcoder = {"d_out": 9, "apply_b_dec_to_input": False} if "transcoder" in variant else {}
        write_example(folder, seed, architecture=variant, **transcoder)
        return SaelensOptions()


FORMAT = Saelens()


def _config(files: SourceFiles, options: SaelensOptions) -> tuple[Config, float]:
    raw = read_json(files.paths[CFG], CFG)
    if is_export(raw):
        raise Refused("Not SAELens's own", _EXPORT)
    config = parse_cfg(raw)
    hint = read_json(files.paths[SCALER], SCALER).get("scaling_factor") if SCALER in files.paths else None
    return config, require_factor(config, options.norm_scaling_factor, hint)


def _expected(config: Config, found: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Tensors the file must hold; some training checkpoints hold the logarithm of the threshold."""
    expected = config.shapes()
    if (scale := _scale(found)) is not None:
        expected[scale] = (config.d_sae,)
    if "log_threshold" in found and "threshold" in expected:
        expected["log_threshold"] = expected.pop("threshold")
    return expected


def _scale(found: Collection[str]) -> str | None:
    return next((name for name in FINE_TUNED if name in found), None)


def _fold_fine_tuning(config: Config, tensors: dict[str, LazyTensor]) -> None:
    """``decode`` multiplied features by this tensor in SAELens before v6; it goes into the decoder's rows."""
    name = _scale(tensors)
    if name is None:
        return
    factors = whole(tensors.pop(name)).double()
    if bool((factors == 1).all()):
        return
    if not config.fine_tuned:
        raise Refused(
            "Unexplained scaling factor",
            f"{WEIGHTS} holds a {name} that is not all ones, but {CFG} does not say finetuning_scaling_factor: true. "
            "Whether it belongs to the function is not known.",
        )
    if config.rescale:
        raise Inexpressible.by(name, f"A {name} would change the decoder norms that choose features.")
    tensors["W_dec"] = scaled_rows(tensors["W_dec"], factors)


def _fold_threshold(config: Config, factor: float, tensors: dict[str, LazyTensor]) -> None:
    threshold = whole(tensors.pop("topk_threshold")).double().item()
    if not threshold > 0:
        raise Refused(
            "Untrained threshold",
            f"topk_threshold is {threshold:g}: this {config.architecture} checkpoint has not learned its inference threshold; "
            "without one every positive feature would fire. Train it further, or calibrate the threshold on data.",
        )
    if config.rescale:
        threshold /= factor
        norms = row_norms(tensors["W_dec"]).clamp(min=1e-8)  # as SAELens's get_W_dec_norm
        for name in ("W_enc", "b_enc"):
            tensors[name] = scaled_features(tensors[name], norms)
        tensors["W_dec"] = divided_rows(tensors["W_dec"], norms)
    tensors["threshold"] = Filled(threshold, (config.d_sae,))
