"""What apply tells the world while it runs: flat, versioned JSON events. Progress bars and logs are drawn from them.

Every event is a dict with "type". Types:

=================  ====================================================================================
version            saesync, format (1)
plan               digest, steps (number), releases (names)
step_started       address, step
progress           address, step, done, total, unit ("B", "tokens"); others (number of SAEs that the same pass is of)
step_finished      address, step, seconds, cached (bool), and step-specific numbers (max_diff, metrics)
step_failed        address, step, diagnostics (list)
committed          release, location, commit, saes (ids), bytes
tagged             release, location, commit, tag, made (bool; false: the tag stood already, on that commit)
registered         release, registry, changed (bool), and where the entry is: branch, compare, number, url
sae_finished       address, outcome ("published", "native", "deleted", "failed", "failing", "skipped", "stopped"), seconds,
                   metrics, proof; stays (bool: what was published before this run stays when it fails); of a native one why it
                   is not converted (native: title, detail, said_by)
note               text
summary            outcomes (name -> count), failures, exit_code, seconds, commits, bytes, and what is done to whole
                   releases: cards (written by themselves), tags (made or put back), and what was not come to before all was
                   stopped: cards_left, tags_left, entries_left (of registries); unsure (addresses): was being written when all
                   was stopped, and may have landed
ended              exit_code, diagnostics (list: summary, detail, origin as file, line, column, width): instead of a summary, when
                   nothing could be started
=================  ====================================================================================

An address is that of an SAE (release/id), a release, or what several SAEs share, in words ("model google/gemma-2-2b").

The last one is "summary" or "ended".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from saesync import __version__
from saesync.errors import Diagnostic

Event = Mapping[str, Any]
Emit = Callable[[Event], None]

EVENT_FORMAT = 1


def version() -> Event:
    """The first event."""
    return {"type": "version", "saesync": __version__, "format": EVENT_FORMAT}


def ended(exit_code: int, diagnostics: Iterable[Diagnostic]) -> Event:
    """The last event where there is no summary."""
    return {"type": "ended", "exit_code": exit_code, "diagnostics": [diagnostic.to_json() for diagnostic in diagnostics]}
