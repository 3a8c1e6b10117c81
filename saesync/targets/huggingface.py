"""Target ``huggingface``: a model repository on the Hugging Face Hub. One batch is one commit: on the main branch, or in our one
pull request. A completed release can be tagged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from saesync.cache import Cache
from saesync.digest import FileDigest, digest_bytes
from saesync.errors import Conflict, Missing, NotVisible, Refused, SaesyncError, Unavailable, renamed
from saesync.hub import Add, Copy, Delete, Head, Hub, Operation, Patience, Proposal, Unsettled
from saesync.hub.trouble import Trouble
from saesync.model import CARD_FILE, HubPull, Observed
from saesync.reason import Reason, ReasonCode, not_visible
from saesync.record import MAX_RECORD_BYTES, Record, RecordNewer, parse_record, record_path, vouched
from saesync.record_json import RecordUnreadable
from saesync.tags import intact, tag_name
from saesync.targets.base import Batch, Progress, Tag
from saesync.targets.merge import Merge, merge, record_file
from saesync.targets.obstacles import obstacles_in
from saesync.targets.pulls import Pulls
from saesync.targets.reading import read_card, read_records


@dataclass(frozen=True, slots=True)
class _Tip:
    """What a batch is put on: a commit, and the branch it is the head of (None: main). ``ended`` is the pull request that was
    merged meanwhile: nothing can be added to it."""

    head: Head
    revision: str | None = None
    ended: Proposal | None = None


class HuggingFace:
    """A Hub model repo as a target. ``location`` is its id (``owner/name``)."""

    name = "huggingface"
    summary = "a model repository on the Hugging Face Hub"

    def __init__(self, cache: Cache, hub: Hub | None = None) -> None:
        self._hub = hub if hub is not None else Hub(cache)
        self._pulls = Pulls(self._hub)

    # ----------------------------------------------------------------------------------------------- looking

    def observe(self, location: str) -> Observed:
        """See ``Target.observe``. Of a public repo this is one request, of others two; then come the pages of the tree and the
        records, which are cached by content."""
        try:
            glance = self._hub.glance(location)
            if glance is not None:
                return self._with_tags(self._at(location, Head(glance.main, private=False), vouching=True), glance.tags)
            return self._with_tags(self._main(location, vouching=True), None)
        except SaesyncError as error:  # one place that cannot be read never stops the plan of the others
            return Observed(self.name, location, unknown=_unseen(location, error))

    def observe_proposed(self, location: str) -> Observed:
        """See ``Proposing.observe_proposed``. Warm: head, our pull requests, and the head of ours; who we are is asked once."""
        try:
            main = self._main(location)
            pull = self._pulls.current(location) if main.exists else None
            return main if pull is None else self._proposed(main, pull)
        except SaesyncError as error:
            return Observed(self.name, location, unknown=_unseen(location, error))

    def _main(self, location: str, vouching: bool = False) -> Observed:
        head = self._hub.head(location)
        if head is None:
            return Observed(self.name, location)
        if head.renamed_to is not None:
            reason = Reason(ReasonCode.REPO_RENAMED, {"location": location, "now": head.renamed_to})
            return Observed(self.name, location, unknown=reason)
        return self._at(location, head, vouching)

    def _at(self, location: str, head: Head, vouching: bool = False) -> Observed:
        """What stands at a commit. ``vouching``: a README that the records vouch for is not read; nothing can be written then."""
        files = self._hub.tree(location, head.sha)

        def read(path: str) -> bytes:
            return self._hub.read(location, head.sha, path, files[path], limit=MAX_RECORD_BYTES)

        records, locked = read_records(files, read)
        readme = files.get(CARD_FILE)
        stands = vouching and readme is not None and vouched(records, readme.blob_id)
        return Observed(
            self.name,
            location,
            exists=True,
            head=head.sha,
            visibility="private" if head.private else "public",
            files=files,
            records=records,
            locked=locked,
            readme=None if stands else read_card(files, read),
            card_vouched=stands,
        )

    def _with_tags(self, found: Observed, tags: Mapping[str, str] | None) -> Observed:
        """``found`` with the repo's tags, which are asked for (None) only where there is a record."""
        if not found.records:
            return found
        tags = self._hub.tags(found.location) if tags is None else tags
        moved = set()
        for record in found.records.values():
            commit = tags.get(name := tag_name(record))
            if commit is not None and not self._holds(found, commit, record):
                moved.add(name)
        return replace(found, tags=tags, moved=frozenset(moved))

    def _holds(self, found: Observed, commit: str, record: Record) -> bool:
        """Whether a commit has what the tag of ``record`` promises: a record that gives this name, and the files it names."""
        if commit == found.head:
            return intact(record, found.files)
        files = self._hub.tree(found.location, commit)
        path = record_path(record.release)
        digest = files.get(path)
        if digest is None or digest.size > MAX_RECORD_BYTES:
            return False
        known = found.files.get(path)
        if known is not None and digest.same_bytes(known):  # nothing came after the tag that changed the record
            return intact(record, files)
        try:
            there = parse_record(self._hub.read(found.location, commit, path, digest, limit=MAX_RECORD_BYTES), record.release)
        except (RecordUnreadable, RecordNewer):
            return False
        return tag_name(there) == tag_name(record) and intact(there, files)

    def _proposed(self, main: Observed, pull: Proposal) -> Observed:
        """What stands in a pull request while it is open; what is on main otherwise."""
        known = HubPull(pull.num, pull.url, pull.status)
        if pull.status == "merged":
            return replace(main, pull=known)
        try:
            tip = self._hub.head(main.location, pull.revision)
        except Missing:
            tip = None  # the branch of a closed one may be gone
        if tip is None:
            return replace(main, pull=known)
        there = self._at(main.location, replace(tip, private=main.visibility == "private"))
        if pull.open:
            return replace(there, pull=replace(known, head=tip.sha, ahead=_ahead(there, main)))
        return replace(main, pull=replace(known, head=tip.sha, records=there.records))

    # -------------------------------------------------------------------------------------------- publishing

    def publish(self, location: str, batch: Batch, expect: Observed, progress: Progress | None = None) -> Observed:
        """See ``Target.publish``.

        After a lost reply, a server error or a race the head is read again first: what landed is never sent twice, and
        commits of others are merged with, not overwritten. Waiting is bounded by the Hub's patience.
        """
        patience = self._hub.patience()
        while True:
            tip = self._tip(location, batch, expect, patience)
            now = self._at(location, tip.head)
            change = merge(batch, expect, now)
            if change.nothing:
                return self._at(location, tip.head, vouching=True)
            if tip.ended is not None:
                raise _ended(location, tip.ended)
            if found := obstacles_in(now.files.keys() - change.deletes, change.written(), location):
                raise Missing.of(found)
            operations = self._operations(change, now)
            message = batch.message or f"{batch.release}: {len(batch.uploads)} SAEs (saesync)"
            try:
                ignores = any(path.rpartition("/")[2] == ".gitignore" for path in now.files)
                sha = self._hub.commit(location, operations, message, tip.head.sha, progress, tip.revision, ignores)
            except Unsettled as unsettled:
                patience.wait(unsettled.trouble)
                continue
            with _committed(location, sha):
                after = self._at(location, Head(sha, tip.head.private), vouching=True)
            _check_landed(operations, after)
            return after

    def _tip(self, location: str, batch: Batch, expect: Observed, patience: Patience) -> _Tip:
        """Where the batch goes: the repo's head, or that of our pull request; both made if need be."""
        head = self._head(location, batch, expect)
        if not batch.pull_request:
            return _Tip(head)
        expected = expect.pull.num if expect.pull is not None and expect.pull.open else None
        pull = self._pulls.ensure(location, expected, patience)
        if pull.status == "merged":
            return _Tip(head, ended=pull)
        if not pull.open:
            raise _ended(location, pull)
        tip = self._branch(location, pull, patience)
        return _Tip(replace(tip, private=head.private), pull.revision)

    def _branch(self, location: str, pull: Proposal, patience: Patience) -> Head:
        """The branch of a pull request, which may be listed a moment before it has one."""
        while True:
            with contextlib.suppress(Missing):
                tip = self._hub.head(location, pull.revision)
                if tip is not None:
                    return tip
            detail = f"#{pull.num} on {location} has no branch yet. Run the same command again."
            patience.wait(Trouble(Unavailable("Pull request is not visible yet", detail), retry=True))

    def _head(self, location: str, batch: Batch, expect: Observed) -> Head:
        """The repo's head, created if need be."""
        head = self._hub.head(location)
        if head is None:
            if expect.exists:
                raise Conflict("Target changed meanwhile", f"{location} was deleted since the plan looked. Make a new plan.")
            if batch.pull_request:
                raise _no_repo(location)
            created = self._hub.create_repo(location, batch.private)
            head = self._hub.head(location)
            if head is None and not created:  # a token may be allowed to create what it is not shown
                detail = f"{location} is there already, but the Hub does not show it to this token."
                raise NotVisible("Repository is not visible", f"{detail} Use one that may read it, or choose another name.")
            if head is None:
                detail = f"{location} was created but is not visible yet. Run the same command again."
                raise Unavailable("Repository is not visible yet", detail)
        if head.renamed_to is not None:
            raise renamed(location, head.renamed_to)
        if batch.private and not head.private:
            detail = f"{location} is public, but the manifest asks for a private one. Make it private, or choose another name."
            raise Conflict("Repository is public", detail)
        return head

    def _operations(self, change: Merge, now: Observed) -> list[Operation]:
        found: list[Operation] = [Add(path, put.source, put.digest) for path, put in change.puts.items()]
        for path, source in change.copies.items():
            digest = now.files[source]
            if digest.sha256 is not None:  # the server can copy what its object store holds; small files are sent again
                found.append(Copy(path, source))
            else:
                data = self._hub.read(now.location, now.head or "", source, digest)
                found.append(Add(path, data, digest_bytes(data)))
        found += [Delete(path) for path in sorted(change.deletes)]
        for name, content in ((CARD_FILE, change.card_bytes), (record_file(change.record), change.record_bytes)):
            if content is not None:
                found.append(Add(name, content, digest_bytes(content)))
        return found

    def tag(self, location: str, release: str, at: Observed, replace: bool = False) -> Tag:
        """See ``Tagging.tag``. After a lost reply the tag is looked for before anything is said of it."""
        record, commit = at.records.get(release), at.head
        if record is None or commit is None:
            raise Missing("Nothing to tag", f"{location} holds no record of {release}.")
        name = tag_name(record)
        if replace and (found := self._hub.tags(location).get(name)) is not None:
            if self._holds(at, found, record):
                return Tag(name, found, made=False)
            self._hub.delete_tag(location, name)
        if self._hub.create_tag(location, name, commit):
            return Tag(name, commit, made=True)
        found = self._hub.tags(location).get(name)
        if found is None:
            detail = f"{location} has no tag {name}, and takes none. Look at its tags, and run again."
            raise Refused("Tag is refused", detail)
        if not self._holds(at, found, record):
            detail = f"{name} in {location} points at something else. `saesync apply --replace {release}` moves it back."
            raise Conflict("Tag was moved", detail)
        return Tag(name, found, made=found == commit and at.tags.get(name) != commit)  # made, and the reply was lost

    # ------------------------------------------------------------------------------------------------- rights

    def check_write(self, location: str, private: bool) -> None:
        """See ``Target.check_write``."""
        try:
            allowed = self._hub.can_write(location)
        except NotVisible as error:
            raise Missing(error.diagnostics[0].summary, error.diagnostics[0].detail) from None
        if not allowed:
            which = "private " if private else ""
            detail = (
                f"Publishing to the {which}repository {location} needs a token with write access: `hf auth login` or HF_TOKEN."
            )
            raise Missing("No write access", detail)

    def check_paths(self, location: str, paths: Iterable[str]) -> None:
        """See ``Placing.check_paths``."""
        head = self._hub.head(location)
        files = self._hub.tree(location, head.sha) if head is not None and head.renamed_to is None else {}
        if found := obstacles_in(files, paths, location):
            raise Missing.of(found)

    def check_proposing(self, location: str) -> None:
        """See ``Proposing.check_proposing``: on a public repo anybody may who is logged in, but not with a read-only token."""
        try:
            who = self._hub.whoami()
            head = self._hub.head(location)
        except NotVisible as error:
            raise Missing(error.diagnostics[0].summary, error.diagnostics[0].detail) from None
        if who is None or _read_only(who):
            what = "a token" if who is None else "a token that is not read-only"
            detail = f"Opening a pull request on {location} needs {what}, of any account: `hf auth login` or HF_TOKEN."
            raise Missing("Token may not open pull requests", detail)
        if head is None:
            raise _no_repo(location)

    def fetch(
        self, location: str, observed: Observed, path: str, into: Path, progress: Progress | None = None
    ) -> FileDigest:  # fmt: skip
        """See ``Target.fetch``."""
        expect = observed.files.get(path)
        if observed.head is None or expect is None:
            raise Missing("File is not there", f"{location} holds no {path}.")
        return self._hub.download(location, observed.head, path, expect, into, progress)


def _unseen(location: str, error: SaesyncError) -> Reason:
    found = error.diagnostics[0]
    return not_visible(location, f"{found.summary}: {found.detail}", isinstance(error, Unavailable))


def _ahead(there: Observed, main: Observed) -> frozenset[str]:
    """Releases whose record, or recorded files, are not on main as they are in the pull request, nor the same SAEs by a later
    commit of ours past it."""

    def on_main(release: str, record: Record) -> bool:
        path, known = record_path(release), main.records.get(release)
        same = path in main.files and main.files[path].same_bytes(there.files[path])
        same = same or (known is not None and known.saes_digest == record.saes_digest and _newest(known) > _newest(record))
        return same and (intact(record, main.files) or not intact(record, there.files))

    return frozenset(release for release, record in there.records.items() if not on_main(release, record))


def _newest(record: Record) -> str:
    """When the last of its SAEs was made, to the second."""
    return max((str(entry.run.get("finished", "")) for entry in record.saes.values()), default="")


def _ended(location: str, pull: Proposal) -> Conflict:
    return Conflict(
        "Pull request was ended", f"#{pull.num} on {location} was {pull.status} while it was added to. Make a new plan."
    )


def _no_repo(location: str) -> Missing:
    return Missing(
        "No repository", f"{location} does not exist, and a pull request needs a repository: create it, or remove pull_request."
    )


def _read_only(who: Mapping[str, object]) -> bool:
    auth = who.get("auth")
    token = auth.get("accessToken") if isinstance(auth, dict) else None
    return isinstance(token, dict) and token.get("role") == "read"


@contextlib.contextmanager
def _committed(location: str, sha: str) -> Iterator[None]:
    """What goes wrong inside does so after a commit: what it holds stands there all the same."""
    try:
        yield
    except SaesyncError as error:
        said = f"Commit {sha[:7]} in {location} was made, and then could not be read."
        error.diagnostics = tuple(replace(each, detail=f"{said} {each.detail}") for each in error.diagnostics)
        raise


def _check_landed(operations: list[Operation], after: Observed) -> None:
    """A .gitignore in the repo makes the client drop files from a commit without a word."""
    for operation in operations:
        there = after.files.get(operation.path)
        if isinstance(operation, Add) and not (there is not None and there.same_bytes(operation.digest)):
            detail = f"{after.location} took the commit without {operation.path}: look at its .gitignore."
            raise Refused("Hub left files out", detail)


TARGET = HuggingFace
