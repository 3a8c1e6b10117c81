"""Which manifests a plan is of, whom they are from, and what policy they are under: options of plan and apply."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from saesync import manifest
from saesync.checkout import Changes, Checkout, changes
from saesync.errors import ManifestError, Missing
from saesync.manifest.paths import lexical
from saesync.model import Plan, Release
from saesync.policy import DEFAULT_FILE, OPEN, Policy, read_policy
from saesync.review import review_items

_NONE_THERE = ("No manifest found", "No such manifest")

policy_option = click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What manifests may ask for (an operator's file).",
)


@dataclass(frozen=True)
class Scope:
    """What of the manifests is planned.

    With ``checkout`` they are anybody's: nothing leads out of it. ``changes`` leaves out what is as it was.
    """

    checkout: Checkout | None = None
    changes: Changes | None = None

    def find(self, paths: Sequence[Path]) -> list[Path]:
        """As ``manifest.find``; where changes are asked for, there may be nothing left.

        Raises:
            ManifestError: a path names nothing.
        """
        try:
            return manifest.find(paths)
        except ManifestError as error:
            if self.changes is None or any(each.summary not in _NONE_THERE for each in error.diagnostics):
                raise
            return []

    def load(self, files: Sequence[Path], roots: Sequence[Path]) -> tuple[Release, ...]:
        """The releases of ``files``, with the reach that their author has.

        Raises:
            ManifestError: with everything that is wrong in all of them.
        """
        if self.checkout is not None:
            return manifest.load_confined(files, self.checkout.root)
        return manifest.load(files, roots=roots)

    def covers(self, file: Path) -> bool:
        """Whether a manifest is planned."""
        return self.changes is None or lexical(file) in {lexical(path) for path in self.changes.touched}

    def to_json(self, plan: Plan, named: frozenset[str]) -> dict[str, Any]:
        """What a plan says of it: ``untrusted``, and ``changed`` and ``review`` where something is compared with."""
        found: dict[str, Any] = {"untrusted": True} if self.checkout is not None else {}
        if self.changes is None:
            return found
        gone = self.changes.gone(named)
        asked = [release for release in plan.releases if release.manifest]
        review = [item.to_json() for item in review_items(self.changes.before, asked, gone)]
        listed = [{"release": name, "manifest": file} for name, file in gone]
        return {**found, "changed": {**self.changes.to_json(), "gone": listed}, "review": review}


EVERYTHING = Scope()


def scope_of(paths: Sequence[Path], *, untrusted: bool, since: str | None, base: str | None) -> Scope:
    """The scope that the options of ``saesync plan`` name.

    Raises:
        Refused, Missing: the paths are in no checkout, or it knows no such commit.
    """
    if not untrusted and since is None:
        return EVERYTHING
    named = tuple(paths) or (manifest.DEFAULT_FOLDER,)
    checkout = Checkout.of(named)
    changed = None if since is None else changes(checkout, since, named, base)
    return Scope(checkout if untrusted else None, changed)


def policy_of(file: Path | None, *, needed: bool) -> Policy:
    """The policy that was named. In CI there has to be one where manifests of others are acted on.

    Raises:
        Missing: it is needed and was not named.
        Refused: it is not a policy.
    """
    if file is not None:
        return read_policy(file)
    if needed and in_ci():
        detail = (
            "In GitHub Actions manifests come in pull requests, so what they may ask for has to be said: "
            f"add --policy {DEFAULT_FILE}, read from the default branch. See docs/github-actions.md."
        )
        raise Missing("Policy is missing", detail)
    return OPEN


def in_ci() -> bool:
    """Whether this is a run of GitHub Actions."""
    return os.environ.get("CI") == "true" and os.environ.get("GITHUB_ACTIONS") == "true"
