"""SAEs as they are measured: loaded by stock SAELens, computing in float32, which is what ``SAE.from_pretrained`` gives users."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from saesync.errors import Missing, Refused
from saesync.formats.base import SEQUENTIAL
from saesync.hooks import name_output
from saesync.jobs import MeasureSae
from saesync.measure.devices import out_of_memory
from saesync.measure.metrics import OF_FEATURES
from saesync.measure.reasons import reason
from saesync.measure.sites import Site
from saesync.measure.statistics import Firing
from saesync.model import SAE_FILES, WEIGHTS_FILE

_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError)
_UNFOLDED = ("expected_average_only_in", "covariance_whitening")


@dataclass(frozen=True, slots=True)
class Coded:
    """``output [batch, ctx, d_out]`` is the reconstruction, ``active [batch, ctx]`` the non-zero features of each token."""

    output: torch.Tensor
    active: torch.Tensor


@dataclass(frozen=True, slots=True)
class LoadedSae:
    """``site`` is what the SAE reads, ``target`` what its output is compared with and put in place of: the same, except in
    transcoders. ``rows`` says that tokens are encoded independently of each other, so that they may be taken in blocks of any
    size; elsewhere whole sequences are, and a reconstruction is more than its decoded features. ``reconstructs`` is False where
    only the features mean something (one layer of a cross-layer transcoder)."""

    address: str
    site: Site
    target: Site
    sae: Any
    d_in: int
    d_sae: int
    rows: bool
    reconstructs: bool

    def coded(self, x: torch.Tensor, cluster: torch.Tensor, dense: int, firing: Firing) -> Coded:
        """Encode and decode ``x [batch, ctx, d_in]``, at most about ``dense`` feature values at a time, and note in ``firing``
        what fires.

        ``cluster [batch, ctx]`` (int32) is what a position is counted to, negative where it does not count.
        """
        step = max(16, dense // self.d_sae)
        blocks = torch.split(x.reshape(-1, self.d_in), step) if self.rows else torch.split(x, max(1, step // x.shape[1]))
        clusters = torch.split(cluster.reshape(-1), [block.numel() // self.d_in for block in blocks])
        parts = [self._block(block, ids, firing) for block, ids in zip(blocks, clusters, strict=True)]
        output = torch.cat([part.output for part in parts]).reshape(*x.shape[:-1], -1)
        active = torch.cat([part.active for part in parts]).reshape(x.shape[:-1])
        return Coded(output, active)

    def _block(self, x: torch.Tensor, cluster: torch.Tensor, firing: Firing) -> Coded:
        features = self.sae.encode(x)
        output = self.sae.decode(features) if self.rows else self.sae(x)
        if hasattr(self.sae, "W_skip"):  # decode knows nothing of the input
            output = output + x.to(output.dtype) @ self.sae.W_skip.T
        if features.is_sparse:
            features = features.to_dense()
        row, column = features.reshape(-1, self.d_sae).nonzero(as_tuple=True)
        # Rows come in order. (bincount would have the host wait for CUDA, and MPS compile a graph for every new number of them.)
        ends = torch.arange(1, cluster.shape[0] + 1, device=row.device)
        active = torch.searchsorted(row.contiguous(), ends).diff(prepend=row.new_zeros(1))
        where = cluster[row]
        counts = where >= 0
        firing.add(column[counts], where[counts])
        return Coded(output.reshape(-1, output.shape[-1]), active)


def weights_size(wanted: MeasureSae) -> tuple[int, int]:
    """Bytes of the weights in float32, and the larger of d_in and d_out, from the file's header alone; zeros for what
    ``load_sae`` will refuse."""
    try:
        with safe_open(str(Path(wanted.folder, WEIGHTS_FILE)), framework="pt") as stored:
            shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError):
        return 0, 0
    widths = [shapes[name][0] for name in ("b_dec", "W_enc") if shapes.get(name)]
    return 4 * sum(math.prod(shape) for shape in shapes.values()), max(widths, default=0)


def load_sae(wanted: MeasureSae, device: torch.device) -> LoadedSae:
    """One SAE from its folder in SAELens layout.

    Raises:
        Missing: the folder is incomplete.
        Refused: SAELens cannot load it, or it cannot be measured truthfully.
    """
    from sae_lens import SAE

    folder = Path(wanted.folder)
    absent = [name for name in SAE_FILES if not (folder / name).is_file()]
    if absent:
        raise Missing("SAE is incomplete", f"{folder} lacks {' and '.join(absent)}. Convert it again.")
    try:
        sae: Any = SAE.load_from_disk(folder, device=str(device), dtype="float32")
    except _LOAD_ERRORS as error:
        if out_of_memory(error):
            raise
        raise Refused("SAE cannot be loaded", f"SAELens cannot load {folder}: {reason(error)}.") from error
    architecture = sae.cfg.architecture()
    reconstructs = _reconstructs(wanted, sae.cfg.metadata.to_dict())
    if sae.cfg.normalize_activations in _UNFOLDED:
        raise Refused(
            "Input scale is not folded",
            f"{wanted.address} was trained on scaled activations ({sae.cfg.normalize_activations}) and the scale is not in its "
            "weights, so its numbers would be wrong. Declare the scaling factor in the source's options.",
        )
    sae.turn_off_forward_pass_hook_z_reshaping()  # heads are joined by the engine, as sae_lens.evals does
    site = Site(wanted.hook, sae.cfg.metadata.hook_head_index)
    target = _target(wanted, sae) if hasattr(sae.cfg, "d_out") else site
    return LoadedSae(
        wanted.address, site, target, sae.eval(), sae.cfg.d_in, sae.cfg.d_sae, architecture not in SEQUENTIAL, reconstructs
    )


def _reconstructs(wanted: MeasureSae, metadata: Mapping[str, Any]) -> bool:
    """Whether the SAE's output is to be compared with anything.

    Raises:
        Refused: no hook yields what it reads, or a metric is required that it cannot have.
    """
    if metadata.get("unhookable"):
        detail = f"{wanted.address} reads the joined activations of several models, which no hook of one model yields. "
        raise Refused("SAE cannot be hooked", detail + "Remove `validate`: its weights can be published without numbers.")
    if metadata.get("reconstruction") != "invalid":
        return True
    if asked := sorted(set(wanted.require) - set(OF_FEATURES)):
        detail = f"{wanted.address} is the encoder of one layer of a cross-layer transcoder: it has no reconstruction, and so no "
        raise Refused("Metric does not exist", f"{detail}{asked[0]}. `require` may name {' and '.join(OF_FEATURES)}.")
    return False


def _target(wanted: MeasureSae, sae: Any) -> Site:
    """What a transcoder predicts: as the manifest says, else as its own cfg.json does."""
    hook = wanted.hook_out or sae.cfg.metadata.hook_name_out
    if not isinstance(hook, str) or not hook:
        architecture = str(sae.cfg.architecture())
        detail = f"{wanted.address} is a {architecture}, and nothing says which activation its output stands for. "
        raise Refused("Needs hook_out", detail + name_output(architecture))
    return Site(hook, sae.cfg.metadata.hook_head_index_out)
