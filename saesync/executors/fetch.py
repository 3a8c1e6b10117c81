"""Fetch: bring what a plan needs onto this disk, every byte checked. With publish, the only step that has the network.

A ``Parcel`` names files of one Hub repo at one commit. ``bring`` downloads what is missing into the cache by content and lays the
parcel out as a folder of hard links, whole or not at all. Local paths are used in place.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from saesync.cache import Cache
from saesync.digest import FileDigest, key_of
from saesync.errors import Conflict, Missing, Refused
from saesync.executors.kept import BLOBS, FOLDERS, laid_out, lay_out, whole
from saesync.folders import path_of
from saesync.hub import Hub
from saesync.model import SAE_FILES, DatasetSpec, ModelSpec, Observed, Sae, SourceSpec
from saesync.resolve import TEXT_NAME, ResolvedSource, Resolver, SourceFile, snapshot_names
from saesync.splits import of_split, says
from saesync.targets.base import Target

Progress = Callable[[int, int], None]

BYTES_PER_TOKEN = 16  # of a dataset's files: text has about 4, and other columns and short documents cost some
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
_README_LIMIT = 1 << 20
_locks: dict[str, threading.Lock] = {}
_locks_guard = threading.Lock()


@dataclass(frozen=True, slots=True)
class Parcel:
    """Files of one repo at one commit, by the names they get on this disk."""

    repo: str
    sha: str
    kind: str
    files: Mapping[str, SourceFile]

    @property
    def key(self) -> str:
        """Identity by names and content."""
        return key_of({name: _name_of(file.digest) for name, file in self.files.items()})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.digest.size for file in self.files.values())

    def missing(self, cache: Cache) -> Mapping[str, int]:
        """Bytes that would have to be downloaded, by digest: parcels may share files."""
        if cache.has(FOLDERS, self.key):
            return {}
        return {_name_of(f.digest): f.digest.size for f in self.files.values() if not cache.has(BLOBS, _name_of(f.digest))}


# ------------------------------------------------------------------------------------------------- what to fetch


def source_parcel(spec: SourceSpec, resolved: ResolvedSource) -> Parcel | None:
    """The files of a source; None when it is local and used in place."""
    if spec.repo is None:
        return None
    return Parcel(spec.repo, spec.revision or "", "model", resolved.files)


def model_parcel(spec: ModelSpec, hub: Hub) -> Parcel | None:
    """A model and its tokenizer, without code and without pickles; None when it is local.

    Raises:
        Refused: the commit is only in a pull request, or the repo holds no safetensors weights.
        Missing: a shard is not in the repo.
        NotVisible, Unavailable: the Hub does not answer or does not let us see it.
    """
    if spec.name is None:
        return None
    sha = _pinned(hub, spec.name, spec.revision, "model")
    tree = hub.tree(spec.name, sha)
    weights = _weights(spec.name, sha, tree, hub)
    # Some repos hold the same weights a second time, in their authors' own layout or in another precision.
    names = [name for name in snapshot_names(tree) if name in weights or not name.endswith(".safetensors")]
    return Parcel(spec.name, sha, "model", {name: SourceFile(name, tree[name]) for name in names})


def _weights(repo: str, sha: str, tree: Mapping[str, FileDigest], hub: Hub) -> frozenset[str]:
    """The files transformers would read: model.safetensors, else the shards its index lists."""
    if _WHOLE in tree:
        return frozenset({_WHOLE})
    if _INDEX not in tree:
        found = sorted(name for name in tree if name.endswith(_PICKLED))
        held = f"only weights that can run code when read ({found[0]})" if found else "no weights that transformers would read"
        raise Refused("Model has no safetensors", f"{repo} at {sha[:8]} holds {held}. Pin a revision that has {_WHOLE}.")
    try:
        shards = frozenset(map(str, json.loads(hub.read(repo, sha, _INDEX, tree[_INDEX]))["weight_map"].values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Refused(
            "Model index is unreadable", f"{_INDEX} of {repo} at {sha[:8]} does not list the model's shards."
        ) from error
    if absent := sorted(shards - tree.keys()):
        raise Missing("Model is incomplete", f"{repo} at {sha[:8]} lacks {absent[0][:200]}, which {_INDEX} lists. Pin another.")
    return shards


def model_config(spec: ModelSpec, hub: Hub) -> bytes | None:
    """config.json of a model on the Hub; None when it has none.

    Raises:
        NotVisible, Unavailable: the Hub does not answer or does not let us see it.
    """
    repo, revision = str(spec.name), spec.revision or ""
    digest = hub.tree(repo, revision).get("config.json")
    return None if digest is None else hub.read(repo, revision, "config.json", digest)


def dataset_parcel(spec: DatasetSpec, tokens: int, hub: Hub) -> Parcel | None:
    """The first files of a dataset's split that hold enough text for ``tokens`` tokens; None when it is local.

    Raises:
        Refused: the commit is only in a pull request, no file of the split can be read as text, or there are several configs
            and none is named.
        NotVisible, Unavailable: the Hub does not answer or does not let us see it.
    """
    if spec.repo is None:
        return None
    sha = _pinned(hub, spec.repo, spec.revision, "dataset")
    tree = hub.tree(spec.repo, sha, "dataset")
    declared = _declared(spec, tree, sha, hub)
    names = declared if declared is not None else _by_name(spec, tree)
    readable = [name for name in names if TEXT_NAME.search(name)]
    if not readable:
        asked = f"split {spec.split!r}" + (f" of config {spec.config!r}" if spec.config else "")
        raise Refused(
            "Dataset cannot be read",
            f"{spec.repo} at {sha[:8]} holds no .parquet, .jsonl or .txt files for {asked}. "
            "Correct validate.dataset, or use the branch refs/convert/parquet pinned to a commit.",
        )
    chosen: list[str] = []
    for name in readable:
        chosen.append(name)
        if sum(tree[name].size for name in chosen) >= tokens * BYTES_PER_TOKEN:
            break
    return Parcel(spec.repo, sha, "dataset", {name: SourceFile(name, tree[name]) for name in chosen})


def _pinned(hub: Hub, repo: str, revision: str | None, kind: str) -> str:
    if revision is None:
        raise Missing("Revision is not pinned", f"{kind} {repo} needs a 40-digit commit hash; `saesync pin` fills it in.")
    hub.tree(repo, revision, kind)  # a commit that is nowhere is called so
    if not hub.reachable(repo, revision, kind):
        raise Refused(
            "Commit is only in a pull request",
            f"{revision[:8]} is in no branch or tag of {kind} {repo}, and anyone can open a pull request. Pin another commit.",
        )
    return revision


def _by_name(spec: DatasetSpec, tree: Mapping[str, FileDigest]) -> list[str]:
    """Files of a config and split by the words in their names."""
    names = sorted(name for name in tree if not PurePosixPath(name).name.startswith(".") and TEXT_NAME.search(name))
    if spec.config is not None:
        inside = [name for name in names if spec.config in PurePosixPath(name).parts[:-1]]
        names = inside or [name for name in names if says(PurePosixPath(name).name, spec.config)]
    return of_split(names, spec.split)


def _declared(spec: DatasetSpec, tree: Mapping[str, FileDigest], sha: str, hub: Hub) -> list[str] | None:
    """Files that the dataset card's ``configs`` names for the split; None when it names none."""
    readme = tree.get("README.md")
    if readme is None or readme.size > _README_LIMIT or spec.repo is None:
        return None
    text = hub.read(spec.repo, sha, "README.md", readme, "dataset").decode(errors="replace")
    patterns = _patterns(text, spec)
    if not patterns:
        return None
    found = [name for pattern in patterns for name in sorted(tree) if _matches(name, pattern)]
    return list(dict.fromkeys(found)) or None


def _patterns(text: str, spec: DatasetSpec) -> list[str]:
    """Globs of the split's files in a card's front matter (``configs: [{config_name, data_files: [{split, path}]}]``)."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        front = yaml.safe_load(match.group(1)) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return []  # a broken card is no reason not to read the files it stands beside
    found = front.get("configs") if isinstance(front, dict) else None
    configs = [config for config in found if isinstance(config, dict)] if isinstance(found, list) else []
    chosen = _config(configs, spec)
    return [] if chosen is None else _split_patterns(chosen.get("data_files"), spec.split)


def _config(configs: Sequence[Mapping[str, Any]], spec: DatasetSpec) -> Mapping[str, Any] | None:
    """The config asked for, else the default one, else the only one: configs may be languages, and are never mixed."""
    names = [str(config.get("config_name", "default")) for config in configs]
    if spec.config is None and len(configs) > 1:
        marked = [
            config for config, name in zip(configs, names, strict=True) if config.get("default") is True or name == "default"
        ]
        if not marked:
            known = ", ".join(name[:60] for name in names[:10]) + (" ..." if len(names) > 10 else "")
            raise Refused("Dataset has several configs", f"{spec.repo} has {known}. Name one as `config`.")
        return marked[0]
    wanted = names[0] if spec.config is None and names else spec.config
    return next((config for config, name in zip(configs, names, strict=True) if name == wanted), None)


def _split_patterns(data_files: Any, split: str) -> list[str]:
    if isinstance(data_files, str):
        return [data_files] if split == "train" else []
    found: list[str] = []
    for entry in data_files if isinstance(data_files, list) else []:
        if isinstance(entry, str) and split == "train":
            found.append(entry)
        elif isinstance(entry, dict) and entry.get("split") == split:
            paths = entry.get("path")
            found += [paths] if isinstance(paths, str) else [path for path in paths or [] if isinstance(path, str)]
    return found


def _matches(name: str, pattern: str) -> bool:
    """A file glob: ``*`` stays inside a folder, ``**`` does not."""
    parts, wanted = name.split("/"), pattern.split("/")
    if "**" in pattern:
        return fnmatchcase(name, pattern.replace("**/", "*").replace("**", "*"))
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


# ---------------------------------------------------------------------------------------------------- fetching


def bring(parcel: Parcel, hub: Hub, cache: Cache, progress: Progress | None = None) -> Path:
    """The parcel as a folder in the cache; what is there already is not downloaded again.

    Raises:
        Refused: a name would leave the folder.
        Missing: the disk is full.
        NotVisible, Unavailable: the Hub does not answer, or its bytes are not those its tree lists.
    """
    digests = {name: file.digest for name, file in parcel.files.items()}
    if (folder := laid_out(cache, parcel.key, digests)) is not None:
        return folder
    done, total = 0, parcel.size
    blobs: dict[str, Path] = {}
    for name, file in parcel.files.items():
        _check_name(name, parcel.repo)
        told = _shifted(progress, done, total)
        with _fetching(cache, file.digest) as blob:
            if not whole(cache, blob, file.digest):
                hub.download(parcel.repo, parcel.sha, file.place, file.digest, blob, told, kind=parcel.kind)
                cache.remember(blob, file.digest)
        blobs[name] = blob
        done += file.digest.size
        if progress is not None:
            progress(done, total)
    return lay_out(cache, parcel.key, blobs, digests)


@contextmanager
def _fetching(cache: Cache, digest: FileDigest) -> Iterator[Path]:
    """The place of a blob, for one lane at a time: several SAEs may need the same file, and it is to be fetched once."""
    blob = cache.path(BLOBS, _name_of(digest))
    with _locks_guard:
        lock = _locks.setdefault(str(blob), threading.Lock())
    with lock:
        blob.parent.mkdir(parents=True, exist_ok=True)
        yield blob


def may_read(parcel: Parcel, hub: Hub) -> None:
    """Read one byte: a gated repo lists its files to everybody, but gives them only to those who were granted access.

    Raises:
        NotVisible, Unavailable: as the Hub says.
    """
    filled = (file for file in parcel.files.values() if file.digest.size)
    smallest = min(filled, key=lambda file: file.digest.size, default=None)
    if smallest is not None:
        hub.read_range(parcel.repo, parcel.sha, smallest.place, 0, 1, parcel.kind)


def source_files(
    sae: Sae, resolver: Resolver, expected: str, hub: Callable[[], Hub], cache: Cache, progress: Progress | None
) -> Mapping[str, Path]:
    """The files of an SAE's source by relative name. ``expected`` is the source digest the plan was made with.

    Raises:
        Conflict: a local source was changed since.
        Missing: a local source is gone.
    """
    if sae.source is None:
        raise Refused("SAE has no source", f"{sae.address} is to be trained, which this version does not do.")
    try:
        resolved = resolver.source(sae.source)
    except FileNotFoundError as error:
        raise Missing("Source is not here", f"{error.filename} is gone. Put it back, or correct source.path.") from error
    if resolved.digest != expected:
        raise source_changed(sae)
    parcel = source_parcel(sae.source, resolved)
    if parcel is None:
        return {name: Path(file.place) for name, file in resolved.files.items()}
    folder = bring(parcel, hub(), cache, progress)
    return {name: folder / name for name in parcel.files}


def source_changed(sae: Sae) -> Conflict:
    """What is said when a local source is not what the plan was made from."""
    where = sae.source.path if sae.source is not None else sae.id
    return Conflict("Source changed meanwhile", f"{where} is not what the plan was made from. Run the same command again.")


def published_files(
    target: Target,
    observed: Observed,
    sae_id: str,
    names: Sequence[str] | None,
    cache: Cache,
    progress: Progress | None = None,
) -> Path:
    """Files of a published SAE (None: all of them) as a folder in the cache, each compared with what was observed.

    Raises:
        Missing: a file is not there.
        Conflict: the bytes are not those that were observed.
        NotVisible, Unavailable: as named.
    """
    there = {name: digest for name, digest in observed.folder(sae_id).items() if "/" not in name}
    absent = [name for name in names or SAE_FILES if name not in there]
    if absent:
        raise Missing("Published file is not there", f"{observed.location} has no {sae_id}/{absent[0]}. Make a new plan.")
    files = {name: there[name] for name in names or sorted(there)}
    key = key_of({name: _name_of(digest) for name, digest in files.items()})
    if (folder := laid_out(cache, key, files)) is not None:
        return folder
    done, total = 0, sum(digest.size for digest in files.values())
    blobs: dict[str, Path] = {}
    for name, digest in files.items():
        _check_name(name, observed.location)
        with _fetching(cache, digest) as blob:
            if not whole(cache, blob, digest):
                target.fetch(observed.location, observed, path_of(sae_id, name), blob, _shifted(progress, done, total))
                cache.remember(blob, digest)
        blobs[name] = blob
        done += digest.size
    return lay_out(cache, key, blobs, files)


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one file as progress of the whole."""
    if progress is None:
        return None
    return lambda done, _size: progress(before + done, total)


def _name_of(digest: FileDigest) -> str:
    return digest.sha256 or digest.blob_id or ""


def _check_name(name: str, place: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or any(part in ("..", ".") for part in parts):
        raise Refused("File name is unsafe", f"{place} holds a file whose name would leave its folder. It is not fetched.")
