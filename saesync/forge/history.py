"""Which commits of a branch are ours: they carry our trailers, and still are what we made."""

from __future__ import annotations

import re

from saesync.forge.bench import Bench, Commit
from saesync.forge.identity import Identity
from saesync.inert import plain

_TRAILER = re.compile(r"^(Saesync-Release|Saesync-Content): (\S+)$", re.MULTILINE)


def message_of(title: str, release: str, content: str, author: Identity) -> str:
    """A commit message of ours; ``content`` is the id of the registry file in it."""
    line = " ".join(title.split())
    return f"{line}\n\nSaesync-Release: {release}\nSaesync-Content: {content}\nSigned-off-by: {author}\n"


def is_ours(bench: Bench, commit: Commit, release: str, path: str) -> bool:
    """Whether we made a commit, and nobody changed it since (an amended commit keeps its trailers, but not its content).

    A merge of ours is one whose registry file is the one named in it. The parents must be at hand.
    """
    trailers = dict(_TRAILER.findall(commit.message))
    content = trailers.get("Saesync-Content")
    if trailers.get("Saesync-Release") != release or content is None:
        return False
    if len(commit.parents) == 1:
        return bench.changes(commit.parents[0], commit.sha) == [(path, content)]
    entry = bench.entry(commit.sha, path)
    return len(commit.parents) == 2 and entry is not None and entry[1] == content


def foreign_commits(bench: Bench, release: str, path: str, tip: str, base: str) -> tuple[str, ...]:
    """The commits of a branch since it left the base that are not ours, newest first. Needs the full history of both."""
    commits = (bench.read_commit(sha) for sha in bench.since(tip, base))
    return tuple(f"{c.sha[:8]} {plain(c.author, 60)}" for c in commits if not is_ours(bench, c, release, path))
