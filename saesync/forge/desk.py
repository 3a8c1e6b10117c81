"""Looking at commits of a registry with the least traffic: what is known of an object id is remembered for ever."""

from __future__ import annotations

import contextlib
import json
from types import TracebackType
from typing import Self

from saesync.cache import Cache
from saesync.digest import digest_bytes, key_of
from saesync.forge.bench import Bench, Refs, Remote, bench, list_refs
from saesync.forge.credentials import Credentials
from saesync.forge.history import foreign_commits, is_ours
from saesync.forge.runner import Git
from saesync.forge.types import REGISTRY_PATHS


class Desk:
    """One operation's view of a registry and its forks. Repositories are made when they are first needed, and go with it."""

    def __init__(self, cache: Cache, credentials: Credentials) -> None:
        self._cache = cache
        self.credentials = credentials
        self._stack = contextlib.ExitStack()
        self._benches: dict[bool, Bench] = {}
        self._fetched: set[tuple[bool, str]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def refs(self, remote: Remote) -> Refs:
        """What a remote advertises now."""
        return list_refs(Git(self._cache.root / "no-repository", self.credentials), remote)

    def bench(self, full: bool, *wanted: tuple[Remote, str]) -> Bench:
        """A repository that holds these commits: alone, or (``full``) with their history."""
        if full not in self._benches:
            self._benches[full] = self._stack.enter_context(bench(self._cache, self.credentials))
        for remote, sha in wanted:
            if (full, sha) not in self._fetched:
                self._benches[full].fetch(remote, [sha], full)
                self._fetched.add((full, sha))
        return self._benches[full]

    def file(self, remote: Remote, commit: str) -> tuple[str, str] | None:
        """Path and blob id of the registry file in a commit; None when there is none."""
        known = self._cache.read_json("forge-file", key_of([commit]))
        if isinstance(known, list) and len(known) in (0, 2) and all(isinstance(part, str) for part in known):
            return (known[0], known[1]) if known else None
        work = self.bench(False, (remote, commit))
        found = next(((path, entry[1]) for path in REGISTRY_PATHS if (entry := work.entry(commit, path))), None)
        self._write("forge-file", [commit], list(found or ()))
        return found

    def data(self, remote: Remote, commit: str, blob: str) -> bytes:
        """A file's bytes by its blob id, from a commit that holds it."""
        known = self._cache.read("forge-blob", blob)
        if known is not None and digest_bytes(known).blob_id == blob:
            return known
        data = self.bench(False, (remote, commit)).blob(blob)
        self._cache.write("forge-blob", blob, data, durable=False)
        return data

    def foreign(self, release: str, path: str, upstream: Remote, base: str, head: Remote, tip: str) -> tuple[str, ...]:
        """See ``history.foreign_commits``. A branch that was ours alone stays so, however the base moves on."""
        if tip == base or self._cache.has("forge-ours", key_of([release, tip])):
            return ()
        key = [release, tip, base]
        known = self._cache.read_json("forge-foreign", key_of(key))
        if isinstance(known, list) and all(isinstance(line, str) for line in known):
            return tuple(known)
        if self._plainly_ours(release, path, upstream, base, head, tip):
            found: tuple[str, ...] = ()
        else:
            found = foreign_commits(self.bench(True, (upstream, base), (head, tip)), release, path, tip, base)
        if found:
            self._write("forge-foreign", key, list(found))
        else:
            self.remember_ours(release, tip)
        return found

    def _plainly_ours(self, release: str, path: str, upstream: Remote, base: str, head: Remote, tip: str) -> bool:
        """The common case, told without any history: one commit of ours on the base."""
        work = self.bench(False, (upstream, base), (head, tip))
        commit = work.read_commit(tip)
        return commit.parents == (base,) and is_ours(work, commit, release, path)

    def remember_ours(self, release: str, tip: str) -> None:
        """All commits of a branch at ``tip`` are ours."""
        self._cache.write("forge-ours", key_of([release, tip]), b"", durable=False)

    def remember_made(self, commit: str, path: str, data: bytes, title: str) -> None:
        """What a commit holds that was just made here."""
        blob = digest_bytes(data).blob_id or ""
        self._cache.write("forge-blob", blob, data, durable=False)
        self._write("forge-file", [commit], [path, blob])
        self._write("forge-title", [commit], title)

    def title(self, remote: Remote, commit: str) -> str:
        """First line of a commit's message."""
        known = self._cache.read_json("forge-title", key_of([commit]))
        if isinstance(known, str):
            return known
        title = self.bench(False, (remote, commit)).read_commit(commit).title
        self._write("forge-title", [commit], title)
        return title

    def _write(self, kind: str, key: list[str], value: object) -> None:
        self._cache.write(kind, key_of(key), json.dumps(value).encode(), durable=False)
