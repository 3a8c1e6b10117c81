"""A converted SAE as stock SAELens loads it: the other side of every comparison. torch and sae_lens are imported here only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import ProofFailed
from saesync.formats._lazy import WIDTHS, spans
from saesync.formats.base import SEQUENTIAL, LazyTensor, Weights

if TYPE_CHECKING:
    import torch


class Stock:
    """One SAE loaded by ``sae_lens.SAE.load_from_disk``, with the pieces a proof needs. Everything runs without gradients.

    Rows ``x [n, d_in]`` are tokens each by itself, or of a ``sequential`` SAE those of one sequence. A number that it multiplies
    inputs by counts as part of its encoder, so that all pieces speak of inputs as they are.

    Args:
        folder: The SAELens folder; its cfg.json is read in any case.
        dtype: What SAELens is asked to load it as, and computes in.
        weights: When given, SAELens gets these tensors instead of the folder's, in ``dtype`` without any rounding before.

    Raises:
        ProofFailed: SAELens refuses the folder.
    """

    def __init__(self, folder: Path, dtype: str, weights: Weights | None = None) -> None:
        import torch

        def converter(path: Any, device: str, cfg_overrides: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
            from sae_lens.loading.pretrained_sae_loaders import get_sae_lens_config_from_disk, sae_lens_disk_loader

            if weights is None:
                found: tuple[dict[str, Any], dict[str, Any]] = sae_lens_disk_loader(path, device, cfg_overrides)
                return found
            cfg = get_sae_lens_config_from_disk(path, device, cfg_overrides)
            return cfg, {name: _gather(tensor, dtype) for name, tensor in weights.tensors.items()}

        with warnings.catch_warnings():
            # SAELens warns about model_from_pretrained_kwargs, which concerns loading models, not SAEs; and on import
            # about a module of its own.
            warnings.simplefilter("ignore")
            from sae_lens import SAE

            try:
                self.sae: Any = SAE.load_from_disk(folder, device="cpu", dtype=dtype, converter=converter)
            except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
                raise ProofFailed("SAELens cannot load it", f"sae_lens refuses the folder: {str(error)[:500]}.") from error
        self.sae.requires_grad_(False)
        self.dtype: torch.dtype = getattr(torch, dtype)

    @property
    def architecture(self) -> str:
        """As SAELens names the loaded class."""
        return str(self.sae.cfg.architecture())

    @property
    def d_in(self) -> int:
        """Input width."""
        return int(self.sae.cfg.d_in)

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return int(self.sae.cfg.d_sae)

    @property
    def per_token_norm(self) -> bool:
        """Whether the input is normalised token by token, so that scale is lost."""
        return self.sae.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale")

    @property
    def sequential(self) -> bool:
        """Whether features depend on the rows before."""
        return self.architecture in SEQUENTIAL

    @property
    def unit(self) -> float:
        """Size of an input that is 1 for the SAE.

        Raises:
            ProofFailed: inputs are multiplied by what is no scale.
        """
        if self.sae.cfg.normalize_activations != "constant_scalar_rescale":
            return 1.0
        factor: Any = getattr(self.sae.cfg, "activation_normalization_factor", None)
        if type(factor) not in (int, float) or not 1e-30 < factor < 1e30:
            raise ProofFailed("Not the same function", f"cfg.json multiplies inputs by {str(factor)[:50]!r}, which is no scale.")
        return 1 / float(factor)

    @property
    def b_dec(self) -> torch.Tensor:
        """Decoder bias, float64."""
        return self._double("b_dec") * self.unit

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Features ``[n, d_sae]`` in the SAE's own dtype; of a sequential one also for sequences ``[b, n, d_in]``."""
        found: torch.Tensor = self.sae.encode(self._shaped(x))
        return found.reshape(*x.shape[:-1], -1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and output of the same rows.

        A skip connection, and what is predicted from the rows before, live in ``forward`` only; elsewhere decode saves an encode.
        """
        features = self.encode(x)
        whole = "skip" in self.architecture or self.sequential
        output = self.sae(self._shaped(x)) if whole else self.sae.decode(features)
        return features, output.reshape(len(x), -1)

    def decoded(self, x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """What any features ``[n, d_sae]`` decode to where the input is ``x``, without a skip connection."""
        self.encode(x)  # SAELens keeps of it what decode needs to undo a norm
        found: torch.Tensor = self.sae.decode(features)
        return found.reshape(len(x), -1)

    def input_bias(self) -> torch.Tensor:
        """What is subtracted from the input: b_dec or zeros, float64 ``[d_in]``."""
        import torch

        return self.b_dec if self.sae.cfg.apply_b_dec_to_input else torch.zeros(self.d_in, dtype=torch.float64)

    def offsets(self) -> torch.Tensor:
        """Encoder bias that decides whether a feature fires, float64 ``[d_sae]``."""
        import torch

        if self.sequential:
            return torch.zeros(self.d_sae, dtype=torch.float64)
        return self._double("b_gate" if self.architecture == "gated" else "b_enc")

    def thresholds(self) -> torch.Tensor:
        """Pre-activation above which a feature fires; 0 where there is none. float64 ``[d_sae]``."""
        import torch

        jump = "jumprelu" in self.architecture
        return self._double("threshold") if jump else torch.zeros(self.d_sae, dtype=torch.float64)

    def columns(self, chosen: torch.Tensor) -> torch.Tensor:
        """Encoder directions of some features, float64 ``[d_in, chosen]``."""
        found: torch.Tensor = self._encoder[:, chosen].double() * self._gain
        return found

    def column_norms(self) -> torch.Tensor:
        """L2 norm of every encoder direction, float64 ``[d_sae]``, in blocks."""
        import torch

        squares = torch.zeros(self.d_sae, dtype=torch.float64)
        for block in self._row_blocks():
            squares += block.square_().sum(dim=0)
        return squares.sqrt()

    def sum_of_columns(self) -> torch.Tensor:
        """Sum of all encoder directions, float64 ``[d_in]``, in blocks."""
        import torch

        return torch.cat([block.sum(dim=1) for block in self._row_blocks()])

    def _row_blocks(self) -> Iterator[torch.Tensor]:
        import torch

        for start, stop in spans(self.d_in, self.d_sae * 8):
            yield self._encoder[start:stop].to(torch.float64, copy=True).mul_(self._gain)

    @property
    def _encoder(self) -> torch.Tensor:
        found: torch.Tensor = self.sae.W_dec.T if getattr(self.sae.cfg, "tied_weights", False) else self.sae.W_enc
        return found

    @property
    def _gain(self) -> float:
        """What the encoder's matrix is multiplied by at run time."""
        return float(self.sae.lam) / self.unit if self.sequential else 1.0

    def _double(self, name: str) -> torch.Tensor:
        found: torch.Tensor = getattr(self.sae, name).detach().double()
        return found

    def _shaped(self, x: torch.Tensor) -> torch.Tensor:
        # hook_z SAEs flatten (heads, d_head) themselves; one head as wide as d_in is the same numbers.
        x = x.to(self.dtype)
        if self.sequential:
            return x if x.dim() == 3 else x[None]
        return x[:, None, :] if self.sae.cfg.reshape_activations == "hook_z" else x

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """What is compared with thresholds ``[n, d_sae]``, for an SAE in float64.

        For gated SAEs that is the gate or the magnitude, whichever is nearer to zero. A sequential SAE says itself what is left
        to encode.
        """
        import torch

        if self.sequential:
            with watched(self.sae.hook_sae_acts_pre) as seen:
                self.encode(x)
            return seen[0][0]
        z = self.sae.process_sae_in(self._shaped(x)).reshape(len(x), -1)
        h = z @ self.sae.W_enc + self.offsets()
        if self.architecture == "gated":
            magnitude = z @ (self.sae.W_enc * self.sae.r_mag.exp()) + self.sae.b_mag
            h = torch.where(h.abs() < magnitude.abs(), h, magnitude)
        found: torch.Tensor = h * self.decoder_norms() if self.rescales else h
        return found

    @property
    def rescales(self) -> bool:
        """Whether pre-activations are multiplied by decoder norms before the largest k are chosen."""
        return bool(getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False))

    @property
    def k(self) -> int | None:
        """How many features fire at most; None without such a rule."""
        if self.sequential:
            return self.sae.cfg.kval_topk if self.sae.cfg.sae_diff_type == "topk" else None
        return self.sae.cfg.k if "topk" in self.architecture else None

    def decoder_norms(self) -> torch.Tensor:
        """L2 norm of every decoder row ``[d_sae]``."""
        found: torch.Tensor = self.sae.W_dec.norm(dim=-1)
        return found

    def metadata(self) -> Mapping[str, Any]:
        """What SAELens kept of cfg.json's metadata."""
        return dict(self.sae.cfg.metadata.items())

    def cfg(self) -> Mapping[str, Any]:
        """What SAELens made of cfg.json."""
        return dict(self.sae.cfg.to_dict())


@contextmanager
def watched(module: Any) -> Iterator[list[torch.Tensor]]:
    """What a module of the SAE puts out while it lasts."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def _gather(tensor: LazyTensor, dtype: str) -> torch.Tensor:
    """A whole tensor in ``dtype``, filled block by block."""
    import torch

    out = torch.empty(tensor.shape, dtype=getattr(torch, dtype))
    for start, stop in spans(tensor.shape[0], max(1, out[0].numel()) * WIDTHS[tensor.dtype]):
        out[start:stop] = tensor.rows(start, stop)
    return out
