"""What is said of a pull request's plan: the comment's text and the check's conclusion. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesync import planfile, render
from saesync.ci.check import Conclusion, Digests, Verdict
from saesync.ci.event import Run
from saesync.ci.pulls import MOST_FILES, Changes
from saesync.digest import short
from saesync.inert import code
from saesync.render.fold import LAST, counted, totals_said
from saesync.render.markdown import MARKER

_LISTED = 20
_NOT_DONE = (*LAST, "failing")
_UNVERIFIED = "plan not verified: workflows or code changed"
_UNAVAILABLE = "plan not available"
_FAILED = "the plan could not be made"


def unverified(run: Run, changes: Changes) -> Verdict:
    """For a pull request that may have changed what planned it: nothing of the run's result is shown."""
    lines, manifests = [], code(changes.manifests)
    if changes.outside:
        files = counted(len(changes.outside), "file")
        lines = [f"This pull request changes {files} outside {manifests}:", ""]
        lines += [f"- {code(path)}" for path in changes.outside[:_LISTED]]
        lines += [f"- and {len(changes.outside) - _LISTED:,} more"] if len(changes.outside) > _LISTED else []
    if not changes.whole:
        cut = f"GitHub's list of changed files is cut short ({MOST_FILES} is the most it holds) or disagrees with its own count."
        lines += ["", cut] if lines else [cut]
    why = "What is changed may have changed how the plan was made, so nothing of the run's result is shown."
    todo = f"Review these changes by hand, and put manifests into a pull request that changes only {manifests}."
    return Verdict(Conclusion.ACTION_REQUIRED, _UNVERIFIED, _page(run, _UNVERIFIED, [*lines, "", f"{why} {todo}"]))


def unavailable(run: Run, why: str) -> Verdict:
    """For a run that left no plan that may be shown. ``why`` is a sentence of ours."""
    if run.conclusion == "failure":
        said = "The run failed, as it does when a manifest is refused. Its log names each error by file and line."
        return Verdict(Conclusion.FAILURE, _FAILED, _page(run, _FAILED, [said]))
    ended = "" if run.conclusion == "success" else f" The run ended as {code(run.conclusion)}."
    return Verdict(Conclusion.NEUTRAL, _UNAVAILABLE, _page(run, _UNAVAILABLE, [f"{why}{ended}"]))


def planned(run: Run, data: Mapping[str, Any]) -> Verdict:
    """For a run's plan that was checked (``form.wrong``), of a pull request that changes manifests alone."""
    about = render.About(run.head_sha, run.page)
    digests = Digests(run.head_sha, data["digest"], planfile.digests(data).releases)
    title = ", ".join(totals_said(data["totals"])) or "nothing to do"
    conclusion = _conclusion(run, data, about)
    if conclusion is Conclusion.ACTION_REQUIRED:
        title = f"more needs review than a comment can hold: {title}"
    elif run.conclusion != "success":
        title = f"the run ended as {run.conclusion.replace('_', ' ')}: {title}"
    return Verdict(conclusion, title, render.markdown(data, about), digests)


def _conclusion(run: Run, data: Mapping[str, Any], about: render.About) -> Conclusion:
    if not render.review_fits(data, about):
        return Conclusion.ACTION_REQUIRED
    if run.conclusion == "failure":
        return Conclusion.FAILURE
    undone = not data.get("complete", True) or any(item["held"] or item["verb"] in _NOT_DONE for item in data["items"])
    return Conclusion.NEUTRAL if undone or run.conclusion != "success" else Conclusion.SUCCESS


def _page(run: Run, title: str, lines: list[str]) -> str:
    about = render.About(run.head_sha, run.page)
    end = f"<sub>Of commit {code(short(run.head_sha))}, by {about.whole('this run')}.</sub>"
    return "\n".join([MARKER, f"### saesync · {title}", "", *lines, "", end, ""])
