"""A bare repository for one operation, in the cache's temporary space: what is fetched, looked at, built and pushed there.

It lives as long as the operation, so runs at the same time have nothing in common; what is worth keeping is kept in the cache by
object id.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saesync.cache import Cache
from saesync.errors import Missing
from saesync.forge.credentials import Credentials
from saesync.forge.git_trouble import Asked, stumbled
from saesync.forge.identity import Identity
from saesync.forge.patience import patiently
from saesync.forge.runner import Done, Git

_SHA = re.compile(r"[0-9a-f]{40}")
_NO_FILTER = re.compile(r"filter", re.IGNORECASE)
_NO_SHALLOW = re.compile(r"shallow|depth", re.IGNORECASE)
_BLOBLESS, _SHALLOW = "--filter=blob:none", "--depth=1"


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository git talks to: what is asked of it is worded by ``where``."""

    url: str
    where: str
    github: bool

    def asked(self, what: str, credentials: Credentials, write: bool = False) -> Asked:
        """For messages."""
        return Asked(what, self.where, credentials.token is not None, self.github, write)


@dataclass(frozen=True, slots=True)
class Refs:
    """What a remote advertises: the default branch (None in an empty repository) and branches by name."""

    default: str | None
    branches: Mapping[str, str]

    @property
    def head(self) -> str | None:
        """Newest commit of the default branch."""
        return None if self.default is None else self.branches.get(self.default)


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit: ``author`` is a name, ``message`` all of it. Text somebody else may have written."""

    sha: str
    parents: tuple[str, ...]
    author: str
    message: str

    @property
    def title(self) -> str:
        """First line of the message."""
        return self.message.partition("\n")[0]


@contextlib.contextmanager
def bench(cache: Cache, credentials: Credentials) -> Iterator[Bench]:
    """A fresh one, gone afterwards.

    Raises:
        Missing: no space, no permission, no git.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(cache.scratch())
        except OSError as error:
            raise Missing("Cache cannot be written", f"{cache.root}: {error.strerror or error}.") from None
        git = Git(folder / "repo.git", credentials)
        git.folder.mkdir()
        made = Bench(git)
        made.ask("init", "--quiet", "--bare", "--template=", "--object-format=sha1", "--initial-branch=main", str(git.folder))
        yield made


def list_refs(git: Git, remote: Remote) -> Refs:
    """The branches of a remote and which of them is the default, by one `ls-remote`.

    Raises:
        NotVisible, Unavailable, Missing: it cannot be seen.
    """
    asked = remote.asked(f"list the branches of {remote.where}", git.credentials)

    def action() -> Refs:
        done = git.run("ls-remote", "--symref", "--", remote.url, "HEAD", "refs/heads/*")
        if done.status:
            raise stumbled(done.err, asked)
        return _refs_of(done.out.decode("utf-8", "replace"))

    return patiently(action)


def _refs_of(text: str) -> Refs:
    default, branches, head = None, {}, None
    for line in text.splitlines():
        left, _, name = line.partition("\t")
        if name == "HEAD" and left.startswith("ref: refs/heads/"):
            default = left.removeprefix("ref: refs/heads/")
        elif name == "HEAD":
            head = left
        elif name.startswith("refs/heads/") and _SHA.fullmatch(left):
            branches[name.removeprefix("refs/heads/")] = left
    if default is None and head is not None:  # an old server, or a detached HEAD: the branch it is at, if one is
        default = next((name for name in ("main", "master", *branches) if branches.get(name) == head), None)
    return Refs(default if default in branches else None, branches)


class Bench:
    """Objects of one repository and its forks. All methods raise SaesyncErrors in git's stead."""

    def __init__(self, git: Git) -> None:
        self.git = git
        self._remotes: dict[str, str] = {}

    # ------------------------------------------------------------------------------------------------- running

    def ask(self, *arguments: str, stdin: bytes | None = None, extra: Mapping[str, str] | None = None) -> bytes:
        """Output of a local command that has to work; missing objects are fetched on the way."""
        asked = Asked("work on the registry", "the registry", self.git.credentials.token is not None, bool(self._remotes))

        def action() -> bytes:
            done = self.git.run(*arguments, stdin=stdin, extra=extra)
            if done.status:
                raise stumbled(done.err, asked)
            return done.out

        return patiently(action)

    def try_(self, *arguments: str, extra: Mapping[str, str] | None = None) -> Done:
        """A local command that may fail."""
        return self.git.run(*arguments, extra=extra)

    # ------------------------------------------------------------------------------------------------ fetching

    def fetch(self, remote: Remote, shas: Sequence[str], full: bool = False) -> None:
        """Commits and their trees, without the content of files: only the commits themselves, or (``full``) their whole history.

        Servers that cannot leave out content or history send more.

        Raises:
            NotVisible, Unavailable, Missing: they cannot be had.
        """
        name = self._remote(remote)
        asked = remote.asked(f"fetch from {remote.where}", self.git.credentials)
        options = [_BLOBLESS] if full else [_BLOBLESS, _SHALLOW]
        specs = [f"+{sha}:refs/saesync/{sha}" for sha in shas]

        def action() -> None:
            while True:
                done = self.git.run("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", *options, name, *specs)
                if not done.status:
                    return
                if _BLOBLESS in options and _NO_FILTER.search(done.err):
                    options[0] = "--no-filter"  # git has noted the filter for this remote by now: leaving it out is not enough
                elif _SHALLOW in options and _NO_SHALLOW.search(done.err):
                    options.remove(_SHALLOW)
                else:
                    raise stumbled(done.err, asked)

        patiently(action)

    def _remote(self, remote: Remote) -> str:
        """The remote's name in this repository. Its address holds no secret (see ``places``)."""
        if remote.url not in self._remotes:
            name = f"remote{len(self._remotes)}"
            self.ask("config", f"remote.{name}.url", remote.url)
            self._remotes[remote.url] = name
        return self._remotes[remote.url]

    # ------------------------------------------------------------------------------------------------- looking

    def entry(self, commit: str, path: str) -> tuple[str, str] | None:
        """Mode and id of a file in a commit; None when there is no plain file at that path."""
        out = self.ask("ls-tree", "-z", "--full-tree", commit, "--", path).decode("utf-8", "replace")
        found = re.fullmatch(rf"(100644|100755) blob ([0-9a-f]{{40}})\t{re.escape(path)}\0", out)
        return (found[1], found[2]) if found else None

    def blob(self, oid: str) -> bytes:
        """Content of a file by its id."""
        return self.ask("cat-file", "blob", oid)

    def read_commit(self, commit: str) -> Commit:
        """A commit as it stands, whether its parents were fetched or not."""
        header, _, message = self.ask("cat-file", "commit", commit).decode("utf-8", "replace").partition("\n\n")
        parents = re.findall(r"^parent ([0-9a-f]{40})$", header, re.MULTILINE)
        author = re.search(r"^author (.*?) <[^>\n]*> \d+ [+-]\d+$", header, re.MULTILINE)
        return Commit(commit, tuple(parents), author[1] if author else "", message)

    def changes(self, before: str, after: str) -> list[tuple[str, str]]:
        """Paths that differ between two commits, with the ids they have in the second (zeros: gone)."""
        out = self.ask("diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", before, after)
        parts = out.decode("utf-8", "surrogateescape").split("\0")
        return [(path, line.split(" ")[3]) for line, path in zip(parts[::2], parts[1::2], strict=False)]

    def since(self, branch: str, base: str) -> list[str]:
        """Commits of ``branch`` that are not in ``base``, newest first. Needs the full history of both."""
        return self.ask("rev-list", "--topo-order", branch, f"^{base}").decode().split()

    def fork_point(self, branch: str, base: str) -> str | None:
        """The newest commit both have, or None for unrelated histories. Needs the full history of both."""
        done = self.try_("merge-base", branch, base)
        return done.out.decode().strip() or None if done.status == 0 else None

    # ------------------------------------------------------------------------------------------------ building

    def store(self, data: bytes) -> str:
        """Put content into this repository; its id."""
        return self.ask("hash-object", "-w", "--no-filters", "--stdin", stdin=data).decode().strip()

    def write_file(self, name: str, data: bytes) -> None:
        """Lay content beside the repository's own files, for commands that read files."""
        try:
            Path(name).write_bytes(data)
        except OSError as error:
            raise Missing("Cache cannot be written", f"{name}: {error.strerror or error}.") from None

    def tree_with(self, commit: str, path: str, blob: str) -> str:
        """Id of the commit's tree with one file replaced, built in an index of its own."""
        index = {"GIT_INDEX_FILE": str(self.git.folder / f"index-{commit[:12]}")}
        self.ask("read-tree", commit, extra=index)
        mode, _ = self.entry(commit, path) or ("100644", "")
        return self.write_index(path, mode, blob, index)

    def write_index(self, path: str, mode: str, blob: str, index: Mapping[str, str]) -> str:
        """Put one file into an index and write it as a tree."""
        line = f"{mode} {blob} 0\t{path}\0".encode()
        self.ask("update-index", "--add", "-z", "--index-info", stdin=line, extra=index)
        return self.ask("write-tree", "--missing-ok", extra=index).decode().strip()

    def commit(self, tree: str, parents: Sequence[str], message: str, identity: Identity) -> str:
        """A new commit; its id."""
        flags = [part for parent in parents for part in ("-p", parent)]
        extra = identity.environment()
        return self.ask("commit-tree", tree, *flags, "-F", "-", stdin=message.encode(), extra=extra).decode().strip()


class LeaseLost(Exception):
    """The branch moved since it was looked at. Never leaves this package."""


_LOST = re.compile(
    r"stale info|fetch first|non-fast-forward|failed to update ref|cannot lock ref|reference already exists|incorrect old value",
    re.IGNORECASE,
)


def push(bench: Bench, remote: Remote, branch: str, new: str, expected: str | None, dry_run: bool = False) -> None:
    """Make the branch ``new``, if it is still at ``expected`` (None: not there). ``dry_run``: only ask whether it would do.

    Raises:
        LeaseLost: it is not.
        Missing, NotVisible, Unavailable, Refused: the push was refused, or did not get through.
    """
    asked = remote.asked(f"push to {remote.where}", bench.git.credentials, write=True)
    ref = f"refs/heads/{branch}"

    def action() -> None:
        lease = f"--force-with-lease={ref}:{expected or ''}"
        trial = ["--dry-run"] if dry_run else []
        done = bench.git.run("push", "--porcelain", "--no-verify", *trial, lease, "--", remote.url, f"{new}:{ref}")
        if not done.status:
            return
        rejected = "".join(f"{line}\n" for line in done.out.decode("utf-8", "replace").splitlines() if line.startswith("!"))
        if _LOST.search(rejected):
            raise LeaseLost
        raise stumbled(f"{done.err}\n{bench.git.credentials.redact(rejected)}", asked)

    patiently(action)
