"""Convert one SAE and prove it. Runs in a worker process without network and tokens: everything is in the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from saesync.convert.proof import Published, Source, prove, prove_published
from saesync.convert.said import KWARGS, noted, require_same_hooks, require_same_processing, require_source_hooks, settled
from saesync.convert.writer import write_sae
from saesync.errors import Inexpressible, Missing, Refused, SaesyncError
from saesync.executors.native import keep
from saesync.formats import get, make_options
from saesync.formats.base import SourceFiles, Weights
from saesync.jobs import AdoptJob, ConvertJob, ConvertResult, Json

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]


def run(job: ConvertJob, progress: Progress | None = None) -> ConvertResult:
    """Write ``job.out`` and prove it. ``progress`` is told bytes: half of the total are written, half are proved.

    With ``job.native``, what SAELens cannot express is kept as it is, and the result says why.

    Raises:
        Refused: the source is unsafe, damaged, not expressible in SAELens, or contradicts the manifest.
        ProofFailed: the result is not the authors' function, or stock SAELens loses part of it.
        Missing: a file of the job is not there.
    """
    source = open_source(job.format, job.options, job.files)
    try:
        weights = source.format.read(source.files, source.options)
    except Inexpressible as refusal:
        if job.native is None:
            raise
        return keep(job, refusal)
    written, proved = halves(progress)
    if job.unbounded:
        require_source_hooks(weights.metadata, job.metadata)
    out, metadata = Path(job.out), settled(weights.metadata, job.metadata)
    digests = write_sae(weights, out, job.dtype, job.cfg, metadata, written)
    real = _activations(job.activations, weights)
    proof = prove(source, weights, out, job.dtype, job.cfg, metadata, real, proved)
    return ConvertResult({**proof, **noted(weights.metadata)}, {name: digest.to_json() for name, digest in digests.items()})


def adopt(job: AdoptJob) -> ConvertResult:
    """Prove that a published folder is the source's function; its bytes stay as they are.

    Raises:
        Refused: the source or the folder is unsafe, damaged, not expressible in SAELens, or says another hook than the manifest.
        ProofFailed: they are different functions.
        Missing: a file of the job is not there.
    """
    source = open_source(job.format, job.options, job.files)
    weights = source.format.read(source.files, source.options)  # refuses what a conversion would refuse
    real = _activations(job.activations, weights)
    with _told_of(job):
        published = Published.of(Path(job.published))
        said = published.function.metadata()
        require_same_hooks(said, job.metadata)
        if KWARGS in job.metadata:
            require_same_processing(said.get(KWARGS), job.metadata[KWARGS], "its cfg.json")
    return ConvertResult({**prove_published(source, weights, published, real), **noted(said)})


@contextmanager
def _told_of(job: AdoptJob) -> Iterator[None]:
    """What is wrong with what is published is told of its place, and not of the source that it is compared with."""
    try:
        yield
    except SaesyncError as error:
        told = [
            replace(each, detail=f"{job.place} cannot be taken over: {each.detail} --replace publishes it anew.", key=job.home)
            for each in error.diagnostics
        ]
        raise type(error).of(told) from error


def open_source(name: str, options: Mapping[str, Json], files: Mapping[str, str]) -> Source:
    """The original of a job.

    Raises:
        Missing: a file is not there.
        Refused: the format or an option is unknown.
    """
    paths = {key: Path(path) for key, path in files.items()}
    for path in paths.values():
        if not path.is_file():
            raise Missing("Source file is gone", f"{path} is not there any more. Run apply again; it is fetched anew.")
    chosen = get(name)
    return Source(chosen, SourceFiles(paths), make_options(chosen, options))


def _activations(path: str | None, weights: Weights) -> torch.Tensor | None:
    """What the SAE reads of the captured activations: all of them, or its attention head."""
    d_in, head = weights.cfg["d_in"], weights.metadata.get("hook_head_index")
    if path is None:
        return None
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        found: torch.Tensor = stored.get_tensor("x")
    if type(head) is int and 0 <= head < found.shape[-1] // d_in:
        found = found[:, head * d_in : (head + 1) * d_in]
    if found.dim() != 2 or found.shape[1] != d_in:
        raise Refused(
            "Hook does not fit", f"Activations at the hook are {found.shape[-1]} wide, the SAE reads {d_in}. Is the hook right?"
        )
    return found


def halves(progress: Progress | None) -> tuple[Progress, Progress]:
    """Two reports that share one bar: what is written is its first half in bytes, the proof its second."""
    size = 1

    def written(done: int, total: int) -> None:
        nonlocal size
        size = total
        if progress is not None:
            progress(done, 2 * total)

    def proved(done: int, total: int) -> None:
        if progress is not None:
            progress(size + size * done // total, 2 * size)

    return written, proved
