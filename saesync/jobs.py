"""What worker processes are asked to do, as plain data that crosses a pipe as JSON. Paths are absolute.

Workers have no tokens and no network; everything they need is in the job or in the files it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = Any


@dataclass(frozen=True, slots=True)
class ConvertJob:
    """Convert one SAE and prove it. ``out`` is a fresh folder to fill: cfg.json, sae_weights.safetensors.

    ``cfg`` are manifest overrides of cfg fields; ``metadata`` what goes into cfg.json's ``metadata`` (hook_name,
    hf_hook_name, model_name, model_from_pretrained_kwargs, neuronpedia_id, prepend_bos, context_size ...).
    ``activations`` may name a safetensors file with real activations (key "x", ``[n, d_in]``) to prove on as well.
    ``native`` allows to keep the files as they are when SAELens cannot express them; it says where they are from. With
    ``unbounded`` nothing that is measured would tell a wrong hook: the source's own must not contradict ``metadata``.
    """

    address: str
    format: str
    options: Mapping[str, Json]
    files: Mapping[str, str]
    dtype: str
    cfg: Mapping[str, Json]
    metadata: Mapping[str, Json]
    out: str
    activations: str | None = None
    native: Mapping[str, Json] | None = None
    unbounded: bool = False


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """``proof`` is flat JSON: max differences, tolerances, rows compared, feature scale, cast differences, versions.

    ``digests`` are those of the written files, taken while they were written (``FileDigest.to_json`` by name); empty after adopt.
    ``native`` is why the files are the authors' own (``record.Native.to_json``); there is no proof then.
    """

    proof: Mapping[str, Json]
    digests: Mapping[str, Json] = field(default_factory=dict)
    native: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class AdoptJob:
    """Prove that a published folder (``published``: cfg.json + weights) is the same function as the source.

    ``place`` says in words where it is published, ``home`` is the manifest's key that names the place. ``metadata`` is what the
    manifest says for cfg.json: the published one must name the same hooks. ``activations`` is as in ``ConvertJob``.
    """

    address: str
    format: str
    options: Mapping[str, Json]
    files: Mapping[str, str]
    published: str
    place: str
    home: str
    metadata: Mapping[str, Json] = field(default_factory=dict)
    activations: str | None = None


@dataclass(frozen=True, slots=True)
class MeasureSae:
    """One SAE to measure. ``folder`` is in SAELens layout; ``key`` is its measure_key.

    ``hook_out`` is what a transcoder is compared with; None leaves it to cfg.json's ``hook_name_out``. ``require`` names the
    metrics that bounds are put on: an SAE that cannot have one of them is refused before anything is measured.
    """

    address: str
    key: str
    folder: str
    hook: str
    hook_out: str | None = None
    require: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextJob:
    """A model run on text: what all jobs share that look at activations.

    ``model`` and ``dataset`` are local (a snapshot already fetched). ``kwargs`` and ``loader`` as in the manifest.
    ``dataset_files`` are the files to read, in order, absolute or relative to ``dataset``; empty means all that is there.
    ``cache`` is a folder for tokenised shards. ``model_name`` is the Hub id, if any: HookedTransformer goes by names.
    """

    model: str
    loader: str
    dtype: str
    kwargs: Mapping[str, Json]
    dataset: str
    dataset_files: tuple[str, ...]
    column: str
    split: str
    context: int
    prepend_bos: bool
    device: str
    cache: str
    model_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureJob(TextJob):
    """Measure several SAEs of one model on one dataset with shared forward passes."""

    tokens: int
    saes: tuple[MeasureSae, ...]


@dataclass(frozen=True, slots=True)
class MeasureResult:
    """By address: metrics {name: {"value", "stderr"?}} and what is recorded beside them (device, versions, tokens).

    An SAE that could not be measured stands in ``failures`` alone, with its diagnostics as JSON (``Diagnostic.to_json``);
    the others of the job are measured all the same.
    """

    metrics: Mapping[str, Mapping[str, Mapping[str, float]]]
    about: Mapping[str, Mapping[str, Json]]
    weights_sha256: Mapping[str, str]
    failures: Mapping[str, Sequence[Mapping[str, Json]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureJob(TextJob):
    """Real activations for the proof: ``rows`` tokens at each hook, one safetensors file (key "x", float32 ``[rows, d_in]``)
    per hook at ``out[hook]``."""

    rows: int
    out: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """Hooks at which nothing could be captured, each with its diagnostics as JSON; the others are written."""

    failures: Mapping[str, Sequence[Mapping[str, Json]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExportJob:
    """Write one SAE in another tool's layout (``to``: a name of ``saesync.writers``) and prove it. ``out`` is a fresh folder to
    fill; ``metadata`` is laid over what the source says of hook and model. The result is a ConvertResult."""

    to: str
    format: str
    options: Mapping[str, Json]
    files: Mapping[str, str]
    dtype: str
    metadata: Mapping[str, Json]
    out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnoseJob(TextJob):
    """Ask which hook and which flags explain an SAE best. ``folder`` is in SAELens layout; ``tokens`` are those looked at.
    The result is a DiagnoseResult."""

    tokens: int
    address: str
    folder: str
    hook: str
    hook_out: str | None = None


@dataclass(frozen=True, slots=True)
class DiagnoseResult:
    """``trials`` are ranked, best first, each as JSON (``saesync.measure.findings.Trial``), one of them ``declared``;
    ``findings`` say what is not as declared; none means that nothing is clearly better."""

    trials: Sequence[Mapping[str, Json]]
    findings: Sequence[Mapping[str, Json]]
    tokens: int
    about: Mapping[str, Json]
