"""Whether what is about to be applied is what was reviewed: a plan against the check of the merged pull request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saesync import planfile
from saesync.ci import check, pulls
from saesync.ci.api import GitHub
from saesync.ci.event import Push
from saesync.digest import short
from saesync.inert import code
from saesync.render.fold import counted


@dataclass(frozen=True, slots=True)
class Comparison:
    """``reviewed`` says against what was compared, or why there is nothing to compare with (``found`` is then False).

    ``differing`` maps releases to both digests (reviewed, now); ``new`` are releases with steps that no check has seen;
    ``gone`` were planned in the pull request and are not now; ``same`` are as they were.
    """

    reviewed: str
    found: bool
    differing: Mapping[str, tuple[str, str]]
    new: tuple[str, ...]
    gone: tuple[str, ...]
    same: tuple[str, ...]

    @property
    def as_reviewed(self) -> bool:
        """Whether everything that would be done was seen in review."""
        return not (self.differing or self.new or self.gone)


def compare(github: GitHub, push: Push, plan: Mapping[str, Any]) -> Comparison:
    """Compare a plan (its JSON form) with what was shown in the pull request whose merge was pushed.

    Raises:
        NotVisible: the token needs ``checks: read`` and ``pull-requests: read``.
    """
    number = pulls.merged_by(github, push.repository, push.after, push.default_branch)
    if number is None or push.branch != push.default_branch:
        what = f"Commit {code(short(push.after))} is not the merge of a pull request into {code(push.default_branch)}"
        return _against(f"{what}: nobody has seen this plan in review.", None, plan)
    head = pulls.read(github, push.repository, number).head_sha
    found = check.find(github, push.repository, head)
    where = f"pull request #{number} at commit {code(short(head))}"
    if found is None:
        return _against(f"No check found of {where}.", None, plan)
    if found.digests is None:
        return _against(f"The check of {where} concluded {code(found.conclusion)} and holds no plan.", None, plan)
    return _against(f"Compared with {where}, whose check concluded {code(found.conclusion)}.", found.digests.releases, plan)


def _against(reviewed: str, before: Mapping[str, str] | None, plan: Mapping[str, Any]) -> Comparison:
    now, pending = planfile.digests(plan).releases, {item["release"] for item in plan["items"] if item["steps"]}
    known = before or {}
    common = [name for name in now if name in known]
    return Comparison(
        reviewed,
        before is not None,
        {name: (known[name], now[name]) for name in common if known[name] != now[name]},
        tuple(name for name in now if name not in known and name in pending),
        tuple(name for name in known if name not in now),
        tuple(name for name in common if known[name] == now[name]),
    )


def markdown(found: Comparison) -> str:
    """For a job's summary: differences first and by name."""
    rows = [f"| **differs** | {code(name)} | {_digests(pair)} |" for name, pair in found.differing.items()]
    rows += [f"| **not reviewed** | {code(name)} | in no plan that the check holds |" for name in found.new]
    rows += [f"| **gone** | {code(name)} | was planned in the pull request, is not now |" for name in found.gone]
    rows += [f"| same | {code(name)} | |" for name in found.same]
    title = "as reviewed" if found.as_reviewed and found.found else _title(found)
    table = ["| | release | |", "|---|---|---|", *rows, ""] if rows else []
    return "\n".join([f"### saesync · {title}", "", found.reviewed, "", *table])


def _title(found: Comparison) -> str:
    if not found.found:
        return "no check found"
    said = [counted(len(found.differing), "release") + (" differs" if len(found.differing) == 1 else " differ")]
    said += [f"{len(found.new):,} not reviewed"] if found.new else []
    said += [f"{len(found.gone):,} gone"] if found.gone else []
    return ", ".join(said if found.differing else said[1:])


def _digests(pair: tuple[str, str]) -> str:
    before, now = pair
    return f"{code(short(before))} in review, {code(short(now))} now"
