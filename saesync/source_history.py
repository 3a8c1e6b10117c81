"""Sources at commits that stand only in a pull request: anybody can open one, and its commits are read under the repo's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from saesync.errors import NotVisible, Unavailable
from saesync.hub import Hub
from saesync.keys import Wanted
from saesync.lanes import in_lanes
from saesync.reason import Reason, ReasonCode, not_visible
from saesync.record import SaeRecord


def unreachable(
    found: Mapping[str, Wanted], entries: Mapping[str, SaeRecord | None], hub: Callable[[], Hub]
) -> Mapping[str, Wanted]:  # fmt: skip
    """Those of ``found`` whose source is at such a commit, now with the reason that blocks them.

    Looked up once per commit of a repo, and only where something is to be built: weights that the record says are made of these
    very bytes are not made again.
    """
    repos: dict[tuple[str, str], list[str]] = {}
    for address, wanted in found.items():
        entry, source = entries[address], wanted.sae.source
        made = entry is not None and wanted.inputs is not None and entry.weights_key == wanted.inputs.weights_key
        if wanted.inputs is not None and source is not None and source.repo is not None and not made:
            repos.setdefault((source.repo, source.revision or ""), []).append(address)
    if not repos:
        return {}
    client = hub()
    reasons = in_lanes("histories", lambda pair: _reason(client, *pair), repos)
    blocked = [(address, reason) for addresses, reason in zip(repos.values(), reasons, strict=True) for address in addresses]
    return {address: Wanted(found[address].sae, None, reason) for address, reason in blocked if reason is not None}


def _reason(hub: Hub, repo: str, revision: str) -> Reason | None:
    try:
        reachable = hub.reachable(repo, revision)
    except (NotVisible, Unavailable) as error:
        return not_visible(repo, error.diagnostics[0].detail, isinstance(error, Unavailable))
    return None if reachable else Reason(ReasonCode.SOURCE_UNREACHABLE, {"repo": repo, "revision": revision})
