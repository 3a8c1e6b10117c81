"""Why, as data: the reasons a plan gives. ``render.reasons`` words them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from saesync.nothing import nothing


class ReasonCode(StrEnum):
    """Why, as data. Every code has one rendering in ``render`` and a test."""

    NOT_PUBLISHED = "not_published"  # location
    CHANGED = "changed"  # name, before, after: one differing input
    NOT_VISIBLE = "not_visible"  # location, detail; later (True: nothing is denied, the Hub cannot be asked now)
    RECORD_NEWER = "record_newer"  # found, known
    MADE_NEWER = "made_newer"  # name, found, known: what stands was made or measured as only a newer saesync does it
    RECORD_UNREADABLE = "record_unreadable"  # detail
    TAKEN_BY = "taken_by"  # release; asked (True: a manifest asks for the SAE under another release); pruned
    FOREIGN_FILES = "foreign_files"  # files; missing (a file without which they cannot be taken over)
    FILES_CHANGED = "files_changed"  # file, recorded, found; asked (False: no manifest names the SAE any more)
    FILES_MISSING = "files_missing"  # file
    MOVED_FROM = "moved_from"  # id
    NOT_MEASURED = "not_measured"
    METRIC_MISSING = "metric_missing"  # metric
    NOT_CONVERTIBLE = "not_convertible"  # title, said_by, detail: published as its authors' own files
    BELOW_MIN = "below_min"  # metric, value, bound, stderr
    ABOVE_MAX = "above_max"  # metric, value, bound, stderr
    NO_BASELINE = "no_baseline"  # metric, bound, ablated, without: the loss that the metric compares with is no worse
    SOURCE_NOT_HERE = "source_not_here"  # what (source, model or dataset), path
    SOURCE_UNREACHABLE = "source_unreachable"  # repo, revision: reachable only from a pull request
    SOURCE_MISSING = "source_missing"  # path, detail
    VISIBILITY = "visibility"  # asked, found
    REPO_MISSING = "repo_missing"  # location
    REPO_RENAMED = "repo_renamed"  # location, now
    CARD_CHANGED = "card_changed"
    CARD_EDITED = "card_edited"
    ORPHAN = "orphan"  # in the record, in no manifest
    RETIRE = "retire"
    PRUNE = "prune"
    ADOPT = "adopt"
    REPLACE = "replace"  # of files that saesync did not publish: files, file (those written over), stay (how many are not)
    NEEDED_BY = "needed_by"  # id: an SAE that misses its gate now would be copied from this orphan
    RESUMED = "resumed"  # an interrupted run left this folder half in place (local target)
    NOT_IN_THIS_VERSION = "not_in_this_version"  # section
    NOT_REGISTERED = "not_registered"  # registry
    NOT_ON_HUB = "not_on_hub"  # location: SAELens loads from the Hub only
    AFTER_SAES = "after_saes"  # count, partial: registered once these are published
    AFTER_MERGE = "after_merge"  # what is published goes by pull request on the Hub
    WAITS_FOR = "waits_for"  # count, of: SAEs that keep the entry waiting
    WAITS_FOR_REVIEW = "waits_for_review"  # number, url, checks: names of those that fail or wait
    BRANCH_PUSHED = "branch_pushed"  # branch
    DECLINED = "declined"  # number, url: closed without merging
    RECORD_BY = "record_by"  # account: not one whose records count as evidence
    ENTRY_REFUSED = "entry_refused"  # detail
    NATIVE_SAES = "native_saes"  # count, of: SAEs that SAELens cannot load
    NEURONPEDIA_TAKEN = "neuronpedia_taken"  # id, release
    NOT_TAGGED = "not_tagged"  # tag (None: the name is known once all is published)
    TAG_MOVED = "tag_moved"  # tag, found, release
    WAITING_FOR_MERGE = "waiting_for_merge"  # num, url, status
    PULL_CLOSED = "pull_closed"  # num, url
    PULL_NEEDS_REPO = "pull_needs_repo"  # location
    NOT_ALLOWED = "not_allowed"  # key, value, file: the policy that does not name it


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason with the data its rendering needs. ``data`` is flat JSON."""

    code: ReasonCode
    data: Mapping[str, Any] = field(default_factory=nothing)


def not_visible(location: str, detail: str, later: bool = False) -> Reason:
    """A place that cannot be seen. ``later``: nothing is denied, it cannot be asked now."""
    return Reason(ReasonCode.NOT_VISIBLE, {"location": location, "detail": detail, **({"later": True} if later else {})})
