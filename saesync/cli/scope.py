"""Which manifests a plan is of, whom they are from, and what policy they are under: options of plan and apply."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from saesync import manifest
from saesync.checkout import Changes, Checkout, Read, changes
from saesync.errors import Missing
from saesync.manifest.paths import lexical
from saesync.model import Plan, Release
from saesync.policy import DEFAULT_FILE, OPEN, Policy, read_policy
from saesync.review import review_items

Command = TypeVar("Command", bound=Callable[..., Any])

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
        """As ``manifest.find``; where changes are asked for, what was there before may be gone.

        Raises:
            ManifestError: a path names nothing, now or before.
        """
        if self.changes is None:
            return manifest.find(paths)
        left = [path for path in paths or (manifest.DEFAULT_FOLDER,) if lexical(path) not in self.changes.emptied]
        return manifest.find(left) if left else []

    def load(self, files: Sequence[Path], roots: Sequence[Path]) -> tuple[Release, ...]:
        """The releases of ``files``, with the reach that their author has.

        Raises:
            ManifestError: with everything that is wrong in all of them.
        """
        return _load(self.checkout, files, roots=roots)

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


@dataclass(frozen=True)
class Whose:
    """What `saesync plan` was told of the manifests' author: the options that ``scope_options`` adds."""

    policy_file: Path | None
    untrusted: bool
    since: str | None
    base: str | None

    def words(self) -> tuple[str, ...]:
        """The command-line words that ask this again."""
        options = (("--changed-since", self.since), ("--base", self.base))
        return (*(word for flag, value in options if value is not None for word in (flag, value)), *self.approval())

    def approval(self) -> tuple[str, ...]:
        """The command-line words that ``saesync apply`` needs beside a plan file."""
        return () if self.policy_file is None else ("--policy", str(self.policy_file))

    def check(self, roots: Sequence[Path]) -> None:
        """Refuse words that do not go together.

        Raises:
            click.UsageError: they do not.
        """
        said = None
        if self.untrusted and roots:
            said = "--untrusted keeps every path inside the manifests' checkout; --root would lead out of it."
        elif self.base is not None and self.since is None:
            said = "--base says what changed manifests are compared with; it needs --changed-since."
        if said is not None:
            raise click.UsageError(said, click.get_current_context(silent=True))

    def scope(self, paths: Sequence[Path], roots: Sequence[Path]) -> Scope:
        """What is planned of the manifests that ``paths`` name.

        Raises:
            Refused, Missing: the paths are in no checkout, or it knows no such commit.
        """
        if not self.untrusted and self.since is None:
            return EVERYTHING
        named = tuple(paths) or (manifest.DEFAULT_FOLDER,)
        checkout = Checkout.of(named)
        confined = checkout if self.untrusted else None
        if self.since is None:
            return Scope(confined)
        return Scope(confined, changes(checkout, self.since, named, partial(_load, confined, roots=roots), self.base))


def _load(
    confined: Checkout | None, files: Sequence[Path], read: Read | None = None, *, roots: Sequence[Path]
) -> tuple[Release, ...]:
    if confined is not None:
        return manifest.load_confined(files, confined.root, read)
    return manifest.load(files, roots=roots, read=read)


def scope_options(command: Command) -> Command:
    """Add --policy, --untrusted, --changed-since and --base, and hand them over as one ``whose``."""

    @functools.wraps(command)
    def wrapped(policy_file: Path | None, untrusted: bool, since: str | None, base: str | None, **rest: Any) -> Any:
        return command(whose=Whose(policy_file, untrusted, since, base), **rest)

    for decorate in (
        click.option("--base", metavar="REF|DIR", help="What to compare with for review, when it is not --changed-since."),
        click.option(
            "--changed-since", "since", metavar="REF", help="Only manifests that differ from this commit of their checkout."
        ),
        click.option(
            "--untrusted", is_flag=True, help="The manifests are anybody's: no token, no plugin, no path out of their checkout."
        ),
        policy_option,
    ):
        wrapped = decorate(wrapped)
    return wrapped  # type: ignore[return-value]  # click's decorators keep what they wrap


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
