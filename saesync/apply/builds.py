"""Converted SAEs and measurements in the cache, by their keys: what makes every step a no-op the second time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesync.cache import Cache
from saesync.digest import FileDigest
from saesync.errors import ProofFailed, Refused
from saesync.model import SAE_FILES, WEIGHTS_FILE, Requirement
from saesync.record import Evidence, Native
from saesync.record_json import RecordUnreadable
from saesync.verdict import unmeasured

BUILDS, EVIDENCE, UNPROVED = "build", "evidence", "unproved"
_ABOUT = "build.json"


@dataclass(frozen=True, slots=True)
class Build:
    """A folder in SAELens layout with the digests of its files and the proof that was made of it; or, ``native``, the authors'
    own files and why they are not converted."""

    folder: Path
    files: Mapping[str, FileDigest]
    proof: Mapping[str, Any]
    native: Native | None = None

    @property
    def weights_sha256(self) -> str:
        """Identity of the weights' bytes."""
        weights = self.files.get(WEIGHTS_FILE)
        return "" if weights is None else weights.sha256 or ""


def read_build(cache: Cache, key: str) -> Build | None:
    """The build under a build_key, or None. A damaged entry is removed: it costs time, never truth."""
    folder = cache.path(BUILDS, key)
    if not folder.exists():
        return None
    try:
        about = json.loads((folder / _ABOUT).read_bytes())
        native = None if about.get("native") is None else Native.from_json(about["native"])
        files = {name: FileDigest(**about["files"][name]) for name in (SAE_FILES if native is None else about["files"])}
        if all((folder / name).stat().st_size == digest.size for name, digest in files.items()):
            return Build(folder, files, dict(about["proof"]), native)
    except (OSError, ValueError, KeyError, TypeError, RecordUnreadable):
        pass  # not whole
    cache.discard(BUILDS, key)
    return None


def remembered(cache: Cache, key: str) -> Build | None:
    """A build that was just made and proved. Its digests are known from writing it, so no later run has to read it for them."""
    build = read_build(cache, key)
    if build is not None:
        cache.discard(UNPROVED, key)
        for name, digest in build.files.items():
            cache.remember(build.folder / name, digest)
    return build


def read_whole(cache: Cache, key: str) -> Build | None:
    """A build that was made by an earlier run and still has its digests; None when there is none. A damaged one is removed."""
    build = read_build(cache, key)
    if build is None:
        return None
    with contextlib.suppress(OSError):
        if all(cache.digest_of(build.folder / name).same_bytes(digest) for name, digest in build.files.items()):
            return build
    cache.discard(BUILDS, key)
    return None


def require_whole(cache: Cache, key: str, build: Build) -> None:
    """Compare a build that was made by an earlier run with its digests, before it is relied on.

    Raises:
        Refused: it was damaged since. It is removed, so that the next run makes it again.
    """
    if read_whole(cache, key) is not None:
        return
    detail = f"The cache held other bytes than were proved, in {build.folder}; they were removed. Run the same command again."
    raise Refused("Cached SAE was damaged", detail)


def seal(folder: Path, proof: Mapping[str, Any], digests: Mapping[str, Any], native: Mapping[str, Any] | None = None) -> None:
    """Note what a worker said (each in its JSON form, digests by file name) in a build that is about to enter the cache.

    Raises:
        OSError: no space.
    """
    (folder / _ABOUT).write_text(json.dumps({"files": dict(digests), "proof": dict(proof), "native": native}))


@contextlib.contextmanager
def failed_proofs_kept(cache: Cache, key: str) -> Iterator[None]:
    """Remember what a failed proof under this build_key said, with its numbers: ``saesync show`` tells it. Nothing else is made
    of it: the next apply tries again."""
    try:
        yield
    except ProofFailed as error:
        said = error.diagnostics[0]
        with contextlib.suppress(OSError):  # a full disk is not what this SAE failed with
            cache.write(UNPROVED, key, json.dumps({"summary": said.summary, "detail": said.detail}).encode())
        raise


def read_failed_proof(cache: Cache, key: str) -> Mapping[str, str] | None:
    """What the last proof under a build_key failed with (summary, detail); None when none did, or one has held."""
    found = cache.read_json(UNPROVED, key)
    fine = isinstance(found, dict) and all(isinstance(found.get(name), str) for name in ("summary", "detail"))
    return found if fine and not cache.has(BUILDS, key) else None


def keep_evidence(cache: Cache, evidence: Evidence) -> None:
    """Remember a measurement, passing or failing: the next plan knows it without measuring.

    Raises:
        OSError: no space, no permission.
    """
    cache.write(EVIDENCE, evidence.measure_key, json.dumps(evidence.to_json()).encode())


def read_evidence(cache: Cache, key: str) -> Evidence | None:
    """A remembered measurement, or None when absent or damaged."""
    found = cache.read(EVIDENCE, key)
    try:
        return None if found is None else Evidence.from_bytes(found)
    except RecordUnreadable:
        return None


def usable(evidence: Evidence | None, key: str | None, weights_sha256: str, require: Iterable[Requirement]) -> bool:
    """Whether evidence is of this key and these bytes and has a number for every requirement."""
    if evidence is None or evidence.measure_key != key or evidence.weights_sha256 != weights_sha256:
        return False
    return not unmeasured(evidence, require)
