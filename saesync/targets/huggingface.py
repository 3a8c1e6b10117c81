"""Target ``huggingface``: a model repository on the Hugging Face Hub. One batch is one commit."""

from __future__ import annotations

from pathlib import Path

from saesync.cache import Cache
from saesync.digest import FileDigest, digest_bytes
from saesync.errors import Conflict, Missing, NotVisible, Refused, SaesyncError, Unavailable
from saesync.hub import Add, Copy, Delete, Head, Hub, Operation, Unsettled
from saesync.model import CARD_FILE, Observed, Reason, ReasonCode
from saesync.record import MAX_RECORD_BYTES
from saesync.targets.base import Batch, Progress
from saesync.targets.merge import Merge, merge, record_file
from saesync.targets.reading import read_card, read_records


class HuggingFace:
    """A Hub model repo as a target. ``location`` is its id (``owner/name``)."""

    name = "huggingface"
    summary = "a model repository on the Hugging Face Hub"

    def __init__(self, cache: Cache, hub: Hub | None = None) -> None:
        self._hub = hub if hub is not None else Hub(cache)

    def observe(self, location: str) -> Observed:
        """See ``Target.observe``. Warm (tree and records cached by content), this is one request."""
        try:
            head = self._hub.head(location)
            if head is None:
                return Observed(self.name, location)
            if head.renamed_to is not None:
                reason = Reason(ReasonCode.REPO_RENAMED, {"location": location, "now": head.renamed_to})
                return Observed(self.name, location, unknown=reason)
            return self._at(location, head)
        except SaesyncError as error:  # one place that cannot be read never stops the plan of the others
            return Observed(self.name, location, unknown=_unseen(location, error))

    def _at(self, location: str, head: Head) -> Observed:
        files = self._hub.tree(location, head.sha)

        def read(path: str) -> bytes:
            return self._hub.read(location, head.sha, path, files[path], limit=MAX_RECORD_BYTES)

        records, locked = read_records(files, read)
        return Observed(
            self.name,
            location,
            exists=True,
            head=head.sha,
            visibility="private" if head.private else "public",
            files=files,
            records=records,
            locked=locked,
            readme=read_card(files, read),
        )

    def publish(self, location: str, batch: Batch, expect: Observed, progress: Progress | None = None) -> Observed:
        """See ``Target.publish``.

        After a lost reply, a server error or a race the head is read again first: what landed is never sent twice, and
        commits of others are merged with, not overwritten. Waiting is bounded by the Hub's patience.
        """
        patience = self._hub.patience()
        while True:
            head = self._head(location, batch.private, expect)
            now = self._at(location, head)
            change = merge(batch, expect, now)
            if change.nothing:
                return now
            operations = self._operations(change, now)
            message = batch.message or f"{batch.release}: {len(batch.uploads)} SAEs (saesync)"
            try:
                sha = self._hub.commit(location, operations, message, head.sha, progress)
            except Unsettled as unsettled:
                patience.wait(unsettled.trouble)
                continue
            after = self._at(location, Head(sha, head.private))
            _check_landed(operations, after)
            return after

    def _head(self, location: str, private: bool, expect: Observed) -> Head:
        """The repo's head, created if need be."""
        head = self._hub.head(location)
        if head is None:
            if expect.exists:
                raise Conflict("Target changed meanwhile", f"{location} was deleted since the plan looked. Make a new plan.")
            self._hub.create_repo(location, private)
            head = self._hub.head(location)
            if head is None:
                detail = f"{location} was created but is not visible yet. Run the same command again."
                raise Unavailable("Repository is not visible yet", detail)
        if head.renamed_to is not None:
            detail = f"{location} is called {head.renamed_to} now. Write the new name; old names are not followed."
            raise NotVisible("Repository was renamed", detail)
        if private and not head.private:
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
                found.append(Add(path, data, digest))
        found += [Delete(path) for path in sorted(change.deletes)]
        for name, content in ((CARD_FILE, change.card_bytes), (record_file(change.record), change.record_bytes)):
            if content is not None:
                found.append(Add(name, content, digest_bytes(content)))
        return found

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
    return Reason(ReasonCode.NOT_VISIBLE, {"location": location, "detail": f"{found.summary}: {found.detail}"})


def _check_landed(operations: list[Operation], after: Observed) -> None:
    """A .gitignore in the repo makes the client drop files from a commit without a word."""
    for operation in operations:
        there = after.files.get(operation.path)
        if isinstance(operation, Add) and not (there is not None and there.same_bytes(operation.digest)):
            detail = f"{after.location} took the commit without {operation.path}: look at its .gitignore."
            raise Refused("Hub left files out", detail)


TARGET = HuggingFace
