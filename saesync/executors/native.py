"""Keep what cannot be converted as it is: the authors' own files, with a refusal for machines. Runs in a worker process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saesync.convert.finite import require_finite_file
from saesync.digest import FileDigest, digest_bytes, digest_file
from saesync.errors import Diagnostic, Inexpressible, Refused
from saesync.folders import NATIVE_PREFIX, REFUSAL_FILE
from saesync.formats._native import TENSORS, require_name, require_publishable
from saesync.jobs import ConvertJob, ConvertResult
from saesync.record import Native

REFUSAL_VERSION = 1
_MOST = 2000


def keep(job: ConvertJob, refusal: Inexpressible) -> ConvertResult:
    """Copy the files of the job into ``job.out`` and say in ``refusal.json`` why they are not converted.

    The copies are what is checked and hashed: a local source may be written to meanwhile.

    Raises:
        Refused: a file is of no tensor format, could run code, or holds NaN or infinity; said beside why it is not converted.
    """
    out = Path(job.out)
    native = native_of(refusal)
    copies = {name: out / NATIVE_PREFIX / name for name in job.files}
    for name, copy in copies.items():
        require_name(name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job.files[name], copy)
    try:
        require_publishable(copies)
        for name, copy in copies.items():
            if name.endswith(TENSORS):
                require_finite_file(copy, name)
    except Refused as error:
        said = (Diagnostic(f"Not published as it is: {each.summary}", each.detail, each.origin) for each in error.diagnostics)
        raise Refused.of((*refusal.diagnostics, *said)) from error
    digests = {NATIVE_PREFIX + name: digest_file(copy) for name, copy in copies.items()}
    text = refusal_text(job.format, job.native or {}, native, digests)
    (out / REFUSAL_FILE).write_bytes(text)
    digests[REFUSAL_FILE] = digest_bytes(text)
    return ConvertResult({}, {name: digest.to_json() for name, digest in digests.items()}, native.to_json())


def native_of(refusal: Inexpressible) -> Native:
    """A refusal as a record holds it; it may quote whatever a file says."""
    first = refusal.diagnostics[0]
    return Native(_plain(first.summary, 200), _plain(first.detail, _MOST), _plain(refusal.said_by, 200))


def refusal_text(format_: str, source: Mapping[str, Any], native: Native, digests: Mapping[str, FileDigest]) -> bytes:
    """``refusal.json``: the same bytes for the same source, whenever and with whatever version it is made."""
    files = {name.removeprefix(NATIVE_PREFIX): {"size": each.size, "sha256": each.sha256} for name, each in digests.items()}
    said = {
        "version": REFUSAL_VERSION,
        "convertible": False,
        "format": format_,
        "reason": {"title": native.title, "detail": native.detail},
        "tensor_or_field": native.said_by,
        "source": dict(source),
        "files": dict(sorted(files.items())),
    }
    return (json.dumps(said, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _plain(text: str, limit: int) -> str:
    return text[:limit].encode("utf-8", "backslashreplace").decode()[:limit]
