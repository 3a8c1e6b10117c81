"""Write one SAE in another tool's layout and prove it. Runs in a worker process without network and tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from saesync.executors.convert import halves, open_source
from saesync.formats.base import SEQUENTIAL, Weights
from saesync.jobs import ConvertResult, ExportJob
from saesync.writers import get
from saesync.writers._files import write_layout
from saesync.writers._proof import prove_layout
from saesync.writers.base import cannot

Progress = Callable[[int, int], None]


def run(job: ExportJob, progress: Progress | None = None) -> ConvertResult:
    """Fill ``job.out`` and prove it. ``progress`` is told bytes: half of the total are written, half are proved.

    Raises:
        Refused: the source is unsafe or damaged, or one of the two tools cannot express the function.
        ProofFailed: the result is not the authors' function.
        Missing: a file of the job is not there.
    """
    source = open_source(job.format, job.options, job.files)
    weights = source.format.read(source.files, source.options)
    said = {name: value for name, value in job.metadata.items() if value is not None}
    weights = replace(weights, metadata={**weights.metadata, **said})
    writer = get(job.to)
    _require_expressible(weights, writer.name)
    layout = writer.layout(weights)
    written, proved = halves(progress)
    out = Path(job.out)
    digests = write_layout(layout, out, job.dtype, written)
    proof = prove_layout(source, weights, writer, layout, out, job.dtype, proved)
    return ConvertResult(proof, {name: digest.to_json() for name, digest in digests.items()})


def _require_expressible(weights: Weights, tool: str) -> None:
    """What no other layout has a place for, whatever its tensors.

    Raises:
        Refused: the SAE is of such a kind.
    """
    if weights.metadata.get("reconstruction") == "invalid":
        raise cannot(
            tool, "Only the features of a cross-layer transcoder's layer mean something, and this layout cannot say that."
        )
    if weights.cfg["architecture"] in SEQUENTIAL:
        what = f"its features depend on the tokens before, and SAEs of {tool} read each token by itself"
        raise cannot(tool, f"architecture is {weights.cfg['architecture']}: {what}.")
