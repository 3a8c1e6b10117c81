"""Register: a release's entry in SAELens's list, as one commit on a branch of ours and one pull request."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from saesync.card.request import request_body
from saesync.errors import Missing, Refused
from saesync.model import Release
from saesync.record import Record
from saesync.registry.document import edited, parse
from saesync.registry.entry import Entry, entry_of
from saesync.registry.rules import check, title_of

if TYPE_CHECKING:
    from saesync.cache import Cache
    from saesync.forge import Proposed

_NAMED = 3
# Loaders that put a file's name together from an entry's path: what stands in the repo is not the path itself.
_PATTERNS = {"mntss_clt_layer_transcoder": "W_enc_{path}.safetensors"}


def desired_entry(release: Release, record: Record | None, fit: Collection[str]) -> Entry | None:
    """The entry to be made of the SAEs ``fit``; None when the release retires.

    Raises:
        SaesyncError: no entry can say what the manifest asks for.
    """
    if release.register is None or release.retire:
        return None
    return entry_of(release, record, only=fit, conversion_func=release.register.conversion_func)


def register(release: Release, record: Record | None, entry: Entry | None, known: bool, cache: Cache) -> Proposed:
    """Bring one release's entry to its registry. ``known``: the registry has an entry of it already.

    The rules of the list are checked on the very file that is proposed.

    Raises:
        Refused: the file would break a rule of the list, or is not one.
        SaesyncError: as git or GitHub says.
    """
    from saesync.forge import Proposal, propose

    spec = release.register
    if spec is None:
        raise ValueError(f"{release.name} does not register")

    def edit(data: bytes) -> bytes:
        after = edited(parse(data, spec.registry), release.name, entry)
        wrong = check(parse(after, spec.registry), release.name, entry) if entry is not None else ()
        if wrong:
            raise Refused.of(wrong)
        return after

    verb = "remove" if entry is None else "update" if known else "add"
    body = request_body(release, record, entry)
    return propose(spec.registry, Proposal(release.name, edit, title_of(release.name, verb), body), cache)


def check_paths(entry: Entry, files: Collection[str]) -> None:
    """Every path of an entry is in the repo it names, among ``files``.

    Raises:
        Missing: with those that are not.
    """
    folders = {path[:end] for path in files for end, sign in enumerate(path) if sign == "/"}
    absent = [sae.path for sae in entry.saes if not _there(entry, sae.path, files, folders)]
    if absent:
        more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
        detail = f"{entry.repo_id} holds no {', '.join(absent[:_NAMED])}{more}. Correct the paths, or publish first."
        raise Missing("Path is not in the repository", detail)


def _there(entry: Entry, path: str, files: Collection[str], folders: Collection[str]) -> bool:
    if entry.conversion_func is None:
        return ("cfg.json" if path in (".", "") else f"{path}/cfg.json") in files
    pattern = _PATTERNS.get(entry.conversion_func)
    if pattern is not None:
        return pattern.format(path=path) in files
    return (
        path in (".", "") or path in files or path in folders or any(f"{path}{end}" in files for end in (".safetensors", ".pt"))
    )
