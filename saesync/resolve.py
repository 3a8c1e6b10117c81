"""From a manifest's words to keys: what each SAE's source, model and dataset are, by content.

Reads listings and local files' digests, never weights from the network. The result is what the planner compares.
"""

from __future__ import annotations

import functools
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from saesync import formats
from saesync.cache import Cache, printable
from saesync.digest import FileDigest, key_of
from saesync.errors import NotVisible, Refused, SaesyncError, Unavailable, raised
from saesync.hooks import hf_hook_name
from saesync.hub import Hub
from saesync.keys import Inputs, Wanted
from saesync.lanes import in_lanes
from saesync.measure.metrics import metric_versions
from saesync.model import DatasetSpec, ModelSpec, Observed, PublishSpec, Release, Sae, SourceSpec
from saesync.reason import Reason, ReasonCode, not_visible
from saesync.record import Evidence, SaeRecord
from saesync.record_json import RecordUnreadable
from saesync.source_history import unreachable
from saesync.verdict import judge

Place = tuple[str, str]  # target, location
SAVED_MARKS = ("state.json", "dataset_dict.json")
SAVED_SUFFIXES = (".arrow", ".json")
TEXT_NAME = re.compile(r"\.(txt|jsonl|parquet)(\.(gz|bz2|zst|lz4))?$")
_KWARGS = "model_from_pretrained_kwargs"  # of a key's inputs the model's own hold them, one by one
SNAPSHOT_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")  # what a model snapshot holds: no code, no pickles


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source: where it is in the repo or on disk, and its digest."""

    place: str
    digest: FileDigest


@dataclass(frozen=True, slots=True)
class ResolvedSource:
    """The files of one SAE's source by relative name; ``digest`` is over names and content, not over places."""

    files: Mapping[str, SourceFile]

    @property
    def digest(self) -> str:
        """Identity of the source's content."""
        return key_of({name: file.digest.sha256 or file.digest.blob_id for name, file in self.files.items()})


class _Blocked(Exception):
    """Keys cannot be made; carries the reason the plan shows."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        super().__init__(reason.code)


def _stay_inside(file: Path, folder: Path) -> None:
    """A link in a source's folder must not lead out of it; only the Hub's own cache keeps its files beside its snapshots.

    Raises:
        Refused: it does.
    """
    found, home = file.resolve(), folder.resolve()
    blobs = [parent.parent / "blobs" for parent in (home, *home.parents) if parent.name == "snapshots"]
    if not any(found.is_relative_to(root) for root in (home, *blobs)):
        detail = f"{file} is a link to {found}, outside of the source's folder. Put the file itself there."
        raise Refused("Link leads out of the source", detail)


@dataclass
class _Recorded:
    """What the record says of local inputs that are not on this machine (a CI runner's); the first of them is ``named``."""

    entry: SaeRecord | None
    named: Reason | None = None

    def digest(self, what: str, path: str, name: str) -> str:
        """The digest that stands in the record for the key input ``name``.

        Raises:
            _Blocked: there is none.
        """
        reason = Reason(ReasonCode.SOURCE_NOT_HERE, {"what": what, "path": path})
        self.named = self.named or reason
        parts: list[Mapping[str, Any]] = []
        if self.entry is not None:
            parts = [*self.entry.inputs.values(), *(evidence.inputs for evidence in self.entry.evidence)]
        found = next((part[name] for part in parts if isinstance(part.get(name), str)), None)
        if found is None:
            raise _Blocked(reason)
        return str(found)


@dataclass(frozen=True)
class Listing:
    """The files of one repo at one commit, sorted for looking up one folder among many thousand."""

    files: Mapping[str, FileDigest]

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.files)

    def near(self, path: str) -> list[str]:
        """Names that can belong to the SAE at ``path``: the folder's content, or a file and its neighbours."""
        folder = path.rpartition("/")[0] if path in self.files else path
        if not folder:
            return self._sorted
        prefix = f"{folder}/"
        start = bisect_left(self._sorted, prefix)
        return self._sorted[start : bisect_left(self._sorted, prefix[:-1] + "0", lo=start)]


@dataclass
class Resolver:
    """Resolves sources, models and datasets; everything is looked up once per run. The Hub is opened when first needed."""

    cache: Cache
    hub: Hub | None = None
    _listings: dict[tuple[str, str], Listing | Reason] = field(default_factory=dict)
    _local: dict[str, str | None] = field(default_factory=dict)
    _folders: dict[Path, list[str]] = field(default_factory=dict)

    def resolve(self, releases: Sequence[Release], observed: Mapping[Place, Observed]) -> Mapping[str, Wanted]:
        """Keys of every SAE that is to be published or measured, by address. What is only registered is not looked at."""
        publishing = [release for release in releases if release.home is not None and not release.retire]
        saes = [(release, sae) for release in publishing for sae in release.saes]
        self._list_repos(sae.source for _, sae in saes)
        found = {sae.address: self._wanted(release, sae, observed) for release, sae in saes}
        entries = {sae.address: _entry(release.home, sae, observed) for release, sae in saes}
        return {**found, **unreachable(found, entries, self._opened)}

    def _opened(self) -> Hub:
        self.hub = self.hub or Hub(self.cache)
        return self.hub

    def source(self, spec: SourceSpec) -> ResolvedSource:
        """The files of a source with their digests.

        Raises:
            Refused: the files the format needs are not there.
            NotVisible, Unavailable: the repo cannot be listed.
            FileNotFoundError: a local source that is not on this machine.
        """
        format_ = formats.get(spec.format)
        if spec.repo is None:
            return self._local_source(spec, format_)
        listing = self._listing(spec.repo, spec.revision or "")
        if isinstance(listing, Reason):
            raise _Blocked(listing)
        chosen = format_.files(listing.near(spec.path), spec.path)
        return ResolvedSource({name: SourceFile(place, listing.files[place]) for name, place in chosen.items()})

    def sha256s(self, spec: SourceSpec) -> tuple[str | None, ...]:
        """The sha256 of each of a source's files, None where the Hub does not say it; empty when the source is not reachable."""
        try:
            return tuple(file.digest.sha256 for file in self.source(spec).files.values())
        except (_Blocked, SaesyncError, OSError):
            return ()

    def _local_source(self, spec: SourceSpec, format_: Any) -> ResolvedSource:
        path = Path(spec.path)
        if path.is_file():
            names, inside, base = self._beside(path), path.name, path.parent
        else:
            names, inside, base = list(local_files(path)), "", path
        chosen = {name: base / place for name, place in format_.files(names, inside).items()}
        for file in chosen.values():
            _stay_inside(file, base)
        return ResolvedSource({name: SourceFile(str(file), self.cache.digest_of(file)) for name, file in chosen.items()})

    def _beside(self, path: Path) -> list[str]:
        """A file and its neighbours. A folder that thousands of SAEs share is listed once."""
        if path.name not in self._folders.get(path.parent, ()):
            with os.scandir(path.parent) as entries:
                self._folders[path.parent] = sorted(entry.name for entry in entries if entry.is_file())
        return self._folders[path.parent]

    def _wanted(self, release: Release, sae: Sae, observed: Mapping[Place, Observed]) -> Wanted:
        if sae.source is None:
            return Wanted(sae, None, Reason(ReasonCode.NOT_IN_THIS_VERSION, {"section": "train"}))
        recorded = _Recorded(_entry(release.home, sae, observed))
        try:
            inputs = self._inputs(sae, sae.source, self._source_digest(sae.source, recorded), recorded)
        except _Blocked as blocked:
            return Wanted(sae, None, blocked.reason)
        except Refused as error:
            detail = error.diagnostics[0].detail
            return Wanted(sae, None, Reason(ReasonCode.SOURCE_MISSING, {"path": sae.source.path, "detail": detail}))
        except OSError as error:  # one file that cannot be read never stops the plan of the others
            about = {
                "path": str(error.filename or sae.source.path or sae.source.repo),
                "detail": error.strerror or type(error).__name__,
            }
            return Wanted(sae, None, Reason(ReasonCode.SOURCE_MISSING, about))
        return Wanted(sae, inputs, not_here=recorded.named, evidence=self._evidence(release, sae, inputs, observed))

    def _source_digest(self, source: SourceSpec, recorded: _Recorded) -> str:
        try:
            return self.source(source).digest
        except FileNotFoundError:
            return recorded.digest("source", source.path, "source.digest")

    def _inputs(self, sae: Sae, source: SourceSpec, digest: str, recorded: _Recorded) -> Inputs:
        format_ = formats.get(source.format)
        weights = {
            "source.digest": digest,
            "source.format": source.format,
            "source.converter": format_.version,
            "writer": formats.WRITER_VERSION,
            "dtype": sae.dtype,
            **{f"source.{name}": value for name, value in source.options.items()},
            **{f"cfg.{name}": value for name, value in sae.cfg.items()},
        }
        model = self._model(sae.model, recorded)
        named = {f"metadata.{name}": value for name, value in metadata_for(sae).items() if name != _KWARGS}
        return Inputs(weights, {**named, **model}, self._measure(sae, model, recorded))

    def _measure(self, sae: Sae, model: Mapping[str, Any], recorded: _Recorded) -> Mapping[str, Any] | None:
        spec = sae.validate
        if spec is None:
            return None
        return {
            "hook": sae.hook,
            **({} if sae.hook_out is None else {"hook_out": sae.hook_out}),
            **model,
            **self._dataset(spec.dataset, recorded),
            "validate.tokens": spec.tokens,
            "validate.context": spec.context,
            "validate.prepend_bos": spec.prepend_bos,
            "metrics": _metrics(),
        }

    def _model(self, model: ModelSpec, recorded: _Recorded) -> dict[str, Any]:
        kwargs = {f"model.kwargs.{name}": value for name, value in model.kwargs.items()}
        found = {"model.loader": model.loader, "model.dtype": model.dtype, **kwargs}
        if model.path is not None:
            return {"model.digest": self._local_digest("model", model.path, snapshot_names, recorded), **found}
        return {"model.name": model.name, "model.revision": model.revision, **found}

    def _dataset(self, dataset: DatasetSpec, recorded: _Recorded) -> dict[str, Any]:
        where: dict[str, Any] = {"validate.dataset.split": dataset.split, "validate.dataset.column": dataset.column}
        if dataset.path is not None:
            return {"validate.dataset.digest": self._local_digest("dataset", dataset.path, text_names, recorded), **where}
        named = {"repo": dataset.repo, "revision": dataset.revision, "config": dataset.config}
        return {**{f"validate.dataset.{name}": value for name, value in named.items()}, **where}

    def _local_digest(self, what: str, path: str, read: Callable[[Iterable[str]], list[str]], recorded: _Recorded) -> str:
        """Identity of what is read of a local model or dataset."""
        if path not in self._local:
            try:
                self._local[path] = local_digest(Path(path), self.cache, read)
            except FileNotFoundError:
                self._local[path] = None
        found = self._local[path]
        name = "model.digest" if what == "model" else "validate.dataset.digest"
        return found if found is not None else recorded.digest(what, path, name)

    def _evidence(self, release: Release, sae: Sae, inputs: Inputs, observed: Mapping[Place, Observed]) -> Evidence | None:
        """Measured before under this very key: in the target or ``records:``, else in the cache.

        What misses a requirement and belongs in ``records:`` does not count before it is there: apply, to which nothing of it
        is new, brings it there. The same goes for all evidence of somebody else's SAEs.
        """
        key = inputs.measure_key
        if key is None:
            return None
        for spec in (release.publish, release.records):
            entry = _entry(spec, sae, observed)
            for evidence in entry.evidence if entry is not None else ():
                if evidence.measure_key == key:
                    return evidence
        if release.evidence_only:
            return None
        found = self.cache.read("evidence", key)
        try:
            cached = None if found is None else Evidence.from_bytes(found)
        except RecordUnreadable:
            return None  # a damaged cache entry costs a measurement, never truth
        if cached is not None and release.records is not None and judge(cached, sae.validate.require if sae.validate else ()):
            return None
        return cached

    def _list_repos(self, sources: Iterable[SourceSpec | None]) -> None:
        repos = dict.fromkeys((s.repo, s.revision or "") for s in sources if s is not None and s.repo is not None)
        if repos:
            self._opened()
            list(in_lanes("sources", lambda pair: self._listing(*pair), repos))

    def _listing(self, repo: str, revision: str) -> Listing | Reason:
        if (repo, revision) not in self._listings:
            self._listings[repo, revision] = self._look(repo, revision)
        return self._listings[repo, revision]

    def _look(self, repo: str, revision: str) -> Listing | Reason:
        try:
            return Listing(self._opened().tree(repo, revision))
        except (NotVisible, Unavailable) as error:
            return not_visible(repo, error.diagnostics[0].detail, isinstance(error, Unavailable))


@functools.cache
def _metrics() -> str:
    """The definitions that numbers are measured by."""
    return ",".join(f"{name}:{version}" for name, version in sorted(metric_versions().items()))


def metadata_for(sae: Sae, model_type: str | None = None) -> dict[str, Any]:
    """What the manifest says for cfg.json's ``metadata`` (names as SAELens reads them).

    ``model_type`` (config.json's) adds hf_hook_name; it is a function of model and hook, so keys leave it out.
    ``model_class_name`` is what ``sae_lens.load_model`` takes: a TransformerBridge without processing computes what
    ``HookedTransformer.from_pretrained_no_processing`` does.
    """
    hooked = sae.model.loader in ("TransformerBridge", "HookedTransformer")
    found: dict[str, Any] = {
        "model_name": sae.model.label,
        "hook_name": sae.hook,
        "model_class_name": "HookedTransformer" if hooked else sae.model.loader,
        _KWARGS: dict(sae.model.kwargs),
    }
    if sae.neuronpedia_id is not None:
        found["neuronpedia_id"] = sae.neuronpedia_id
    if sae.validate is not None:
        found |= {"prepend_bos": sae.validate.prepend_bos, "context_size": sae.validate.context}
    if sae.hook_out is not None:
        found["hook_name_out"] = sae.hook_out
    if model_type is not None:
        named = {"hf_hook_name": sae.hook, "hf_hook_name_out": sae.hook_out}
        for key, hook in named.items():
            hf_name = hf_hook_name(hook, model_type) if hooked and hook is not None else hook
            if sae.model.kwargs.get("center_writing_weights"):
                found[key] = None  # another residual stream, which no module of the Hugging Face model gives
            elif hf_name is not None:
                found[key] = hf_name
    return found


def snapshot_names(names: Iterable[str]) -> list[str]:
    """Which files of a model repo make up model and tokenizer: no code, no pickles, nothing in subfolders."""
    return sorted(name for name in names if "/" not in name and name.endswith(SNAPSHOT_SUFFIXES))


def local_files(path: Path) -> dict[str, Path]:
    """The files of a local file or folder by relative name, hidden ones left out.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: a folder in it cannot be read.
    """
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise FileNotFoundError(2, "No such file or folder", str(path))
    found: list[Path] = []
    for folder, inside, names in os.walk(path, onerror=raised):
        inside[:] = [name for name in inside if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return {str(file.relative_to(path)): file for file in sorted(found) if file.is_file()}


def text_names(names: Iterable[str]) -> list[str]:
    """Which files of a local dataset hold its text: those of a dataset saved by ``datasets``, else text of known kinds."""
    found = sorted(names)
    saved = [name for name in found if name.endswith(SAVED_SUFFIXES)]
    return saved if any(name in SAVED_MARKS for name in found) else [name for name in found if TEXT_NAME.search(name)]


def local_digest(path: Path, cache: Cache, read: Callable[[Iterable[str]], list[str]]) -> str:
    """Identity of a local file, or of the files in a folder that ``read`` chooses: sha256 by relative name.

    A README or an editor's backup beside them changes nothing. Where none is chosen, every file counts.

    Raises:
        FileNotFoundError: nothing is there.
    """
    files = local_files(path)
    chosen = files if path.is_file() else read(files) or files
    return key_of({printable(name): cache.digest_of(files[name]).sha256 for name in chosen})


def _entry(spec: PublishSpec | None, sae: Sae, observed: Mapping[Place, Observed]) -> SaeRecord | None:
    """What the record at one place says of an SAE."""
    place = None if spec is None else observed.get((spec.target, spec.location))
    record = None if place is None else place.records.get(sae.release)
    return None if record is None else record.saes.get(sae.id)
