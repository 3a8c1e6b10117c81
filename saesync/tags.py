"""The tag of a completed release: what it is called, and when there is one. Pure.

The name holds a digest of what the record says of the SAEs: their keys, files and evidence. Not of the card, which shows the tag
and whose own digest stands in the record, and not of times.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from saesync.digest import FileDigest, short
from saesync.folders import path_of
from saesync.keys import Wanted
from saesync.model import WEIGHTS_FILE, Release, Sae
from saesync.record import Record, SaeRecord
from saesync.verdict import judge, unmeasured

_PREFIX = "saesync"
_DOTS = re.compile(r"\.(?=\.)")  # git refuses two dots in a row


def takes_tags(release: Release) -> bool:
    """Whether commits of this release can be named: on the Hub, by those who may write. A pull request needs no such right."""
    publish = release.publish
    return publish is not None and publish.target == "huggingface" and not publish.pull_request


def tag_name(record: Record) -> str:
    """``saesync-<release>-<short digest>``."""
    return f"{_PREFIX}-{_DOTS.sub('-', record.release)}-{short(record.saes_digest)}"


def complete(release: Release, wanted: Mapping[str, Wanted], record: Record | None) -> bool:
    """Whether every SAE asked for stands in the record under the key asked for, with evidence that holds where it is measured."""
    if record is None or not release.saes or release.retire:
        return False
    return all(_stands(wanted.get(sae.address), sae, record.saes.get(sae.id), release.native) for sae in release.saes)


def _stands(wanted: Wanted | None, sae: Sae, entry: SaeRecord | None, native: bool) -> bool:
    if wanted is None or wanted.inputs is None or entry is None or entry.build_key != wanted.inputs.build_key:
        return False
    if entry.native is not None:
        return native and not (sae.validate is not None and sae.validate.require)
    if sae.validate is None:
        return True
    weights = entry.files.get(WEIGHTS_FILE)
    evidence = entry.evidence_for(wanted.inputs.measure_key, None if weights is None else weights.sha256)
    if evidence is None:
        return False
    return not judge(evidence, sae.validate.require) and not unmeasured(evidence, sae.validate.require)


def intact(record: Record, files: Mapping[str, FileDigest]) -> bool:
    """Whether every file that a record names is there with the bytes it names. ``files`` are by path in the place."""
    recorded = ((path_of(sae_id, name), digest) for sae_id, entry in record.saes.items() for name, digest in entry.files.items())
    return all((found := files.get(path)) is not None and found.same_bytes(digest) for path, digest in recorded)


def shown_tag(
    release: Release, record: Record | None, done: bool, tags: Collection[str] = (), moved: Collection[str] = ()
) -> str | None:
    """The tag that the card names: one that is there, or that is made as soon as the card is.

    ``done``: everything asked for is published with this record. ``tags`` are those of the place, ``moved`` those of them that
    point at something else than their name says.
    """
    if record is None or not record.saes or not takes_tags(release):
        return None
    name = tag_name(record)
    return name if done or (name in tags and name not in moved) else None
