"""A new commit on top of a branch that holds commits of other people: theirs stay, and ours comes after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from saesync.errors import Conflict
from saesync.forge.bench import Bench
from saesync.forge.history import message_of
from saesync.forge.identity import Identity
from saesync.forge.types import Proposal
from saesync.inert import plain


@dataclass(frozen=True, slots=True)
class Stack:
    """What is put on what: the registry file at ``path``, the branch's ``tip``, and the ``base`` it is to be merged into."""

    path: str
    tip: str
    base: str
    label: str  # registry and branch, for messages


def on_top(bench: Bench, stack: Stack, proposal: Proposal, identity: Callable[[], Identity]) -> str:
    """The branch's next commit (``stack.tip`` if it holds everything already). ``bench`` has the full history of both.

    Where the base's file changed since the branch left it, the base is merged first.

    Raises:
        Conflict: the merge needs a person.
    """
    fork = bench.fork_point(stack.tip, stack.base)
    before = None if fork is None else bench.entry(fork, stack.path)
    now, theirs = bench.entry(stack.base, stack.path), bench.entry(stack.tip, stack.path)
    if fork is None or before is None or now is None or theirs is None:
        raise _by_hand(stack, "the branch does not hold the registry file any more, or did not start at the default branch")
    tip, data = stack.tip, bench.blob(theirs[1])
    if now[1] != before[1]:
        data = _merged_file(bench, stack, proposal, bench.blob(before[1]), bench.blob(now[1]), data)
        tip = _merge(bench, stack, proposal, fork, data, identity())
    wanted = proposal.edit(data)
    if wanted == data:
        return tip
    return commit_file(bench, tip, stack.path, wanted, proposal, identity())


def commit_file(bench: Bench, parent: str, path: str, data: bytes, proposal: Proposal, identity: Identity) -> str:
    """A commit of ours on ``parent`` that changes the registry file only."""
    blob = bench.store(data)
    message = message_of(proposal.title, proposal.release, blob, identity)
    return bench.commit(bench.tree_with(parent, path, blob), [parent], message, identity)


def _merged_file(bench: Bench, stack: Stack, proposal: Proposal, before: bytes, base: bytes, theirs: bytes) -> bytes:
    """The registry file with what the base and what other people changed since the branch left it.

    Our entry is put into all three first: otherwise two entries added at the end of the file would always collide.
    """
    folder = bench.git.folder
    names = [str(folder / f"merge-{which}") for which in ("base", "before", "theirs")]
    for name, data in zip(names, (proposal.edit(base), proposal.edit(before), theirs), strict=True):
        bench.write_file(name, data)
    done = bench.try_("merge-file", "-p", "-q", *names)
    if done.status:
        raise _by_hand(stack, f"both changed the same lines of {stack.path}")
    return done.out


def _merge(bench: Bench, stack: Stack, proposal: Proposal, fork: str, data: bytes, identity: Identity) -> str:
    """A merge commit of the base into the branch, with this registry file."""
    index: Mapping[str, str] = {"GIT_INDEX_FILE": str(bench.git.folder / "index-merge")}
    bench.ask("read-tree", "-i", "-m", "--aggressive", fork, stack.tip, stack.base, extra=index)
    listed = bench.ask("ls-files", "-u", "-z", extra=index).decode("utf-8", "replace")
    conflicts = {line.partition("\t")[2] for line in listed.split("\0") if line} - {stack.path}
    if conflicts:
        raise _by_hand(stack, f"both changed {plain(', '.join(sorted(conflicts)))}")
    mode = (bench.entry(stack.tip, stack.path) or ("100644", ""))[0]
    blob = bench.store(data)
    tree = bench.write_index(stack.path, mode, blob, index)
    message = message_of("Merge the default branch", proposal.release, blob, identity)
    return bench.commit(tree, [stack.tip, stack.base], message, identity)


def _by_hand(stack: Stack, why: str) -> Conflict:
    detail = (
        f"{stack.label} holds commits of other people, which are kept, but {why}. "
        "Merge the default branch into it by hand and push; then run again."
    )
    return Conflict("Branch needs a merge by hand", detail)
