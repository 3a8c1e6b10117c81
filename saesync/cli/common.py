"""What plan, apply and show have in common: options, and the way from paths to a plan."""

from __future__ import annotations

import difflib
import functools
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from saesync import manifest
from saesync.cache import Cache
from saesync.cli.named import Named
from saesync.cli.scope import EVERYTHING, Scope
from saesync.errors import ManifestError
from saesync.garbage import no_garbage_collection
from saesync.hub import Hub
from saesync.keys import Wanted
from saesync.model import Choices, Observed, Plan, Release
from saesync.observe import observe
from saesync.observe_registries import observe_registries, with_writers
from saesync.planner import REGISTER, hold, select
from saesync.planner import plan as make_plan
from saesync.planning.basis import SECTION
from saesync.planning.case import matches
from saesync.planning.registration import Seen
from saesync.planning.tagging import TAG
from saesync.policy import OPEN, Policy
from saesync.resolve import Resolver

Command = TypeVar("Command", bound=Callable[..., Any])

root_option = click.option(
    "--root", "roots", multiple=True, type=Named(exists=True, file_okay=False), help="Also allow local paths in here."
)
format_option = click.option(
    "--format", "format_", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True, help="Output form."
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="One line per SAE: fold and leave out nothing.")
paths_argument = click.argument("paths", nargs=-1, metavar="[PATH]...", type=Named())
PLAN_SUFFIX = ".json"
_NEIGHBOURS = "Other manifests of the folder are read, too: what they ask for is no orphan."


def manifests_only(paths: Collection[Path]) -> None:
    """Refuse a plan file where manifests are meant.

    Raises:
        click.UsageError: one of the paths is named like a plan file.
    """
    for path in paths:
        if path.suffix == PLAN_SUFFIX:
            apply = f"saesync apply {shlex.quote(str(path))}"
            said = f"{path} is named like a plan file, and manifests are .yaml files. `{apply}` carries out a plan."
            raise click.UsageError(said, click.get_current_context(silent=True))


@dataclass(frozen=True)
class Asked:
    """What was asked on the command line: where to look and what is allowed. A plan file carries it."""

    paths: tuple[Path, ...] = ()
    roots: tuple[Path, ...] = ()
    only: tuple[str, ...] = ()
    choices: Choices = field(default_factory=Choices)

    @property
    def plan_file(self) -> Path | None:
        """The plan file, when that is what was given."""
        return self.paths[0] if len(self.paths) == 1 and self.paths[0].suffix == PLAN_SUFFIX else None

    def to_json(self) -> dict[str, list[str]]:
        """The form kept in plan files; paths relative to where the command ran."""
        choices = {"adopt": self.choices.adopt, "replace": self.choices.replace, "prune": self.choices.prune}
        named = {"paths": map(str, self.paths), "roots": map(str, self.roots), "only": self.only, **choices}
        return {name: list(values) for name, values in named.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, list[str]]) -> Asked:
        """Inverse of ``to_json``, from a plan file that was checked when it was read."""
        choices = Choices(tuple(value["adopt"]), tuple(value["replace"]), tuple(value["prune"]))
        return cls(tuple(map(Path, value["paths"])), tuple(map(Path, value["roots"])), tuple(value["only"]), choices)

    def words(self) -> tuple[str, ...]:
        """The command-line words that ask this again."""
        flags = [("--root", map(str, self.roots)), ("--only", self.only), ("--adopt", self.choices.adopt)]
        flags += [("--replace", self.choices.replace), ("--prune", self.choices.prune)]
        options = [word for flag, values in flags for value in values for word in (flag, value)]
        return (*map(str, self.paths), *options)


def asked_options(command: Command) -> Command:
    """Add PATH..., --root, --only, --adopt, --replace and --prune, and hand them over as one ``asked``.

    Raises:
        click.UsageError: a plan file together with something that it already says.
    """

    @functools.wraps(command)
    def wrapped(
        paths: tuple[Path, ...],
        roots: tuple[Path, ...],
        only: tuple[str, ...],
        adopt: tuple[str, ...],
        replace: tuple[str, ...],
        prune: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        asked = Asked(paths, roots, only, Choices(adopt, replace, prune))
        if any(path.suffix == PLAN_SUFFIX for path in paths) and asked != Asked(paths[:1]):
            said = "A plan file stands alone: it already says which manifests, and what is allowed."
            raise click.UsageError(said, click.get_current_context(silent=True))
        return command(asked=asked, **rest)

    for decorate in (
        click.option("--prune", multiple=True, metavar="RELEASE", help="Delete SAEs of RELEASE that no manifest names any more."),
        click.option(
            "--replace",
            multiple=True,
            metavar="GLOB",
            help="Overwrite SAEs that were changed outside saesync; RELEASE puts its moved tag back.",
        ),
        click.option("--adopt", multiple=True, metavar="GLOB", help="Prove and take over files saesync did not publish."),
        click.option("--only", multiple=True, metavar="GLOB", help="Only SAEs whose release/id matches."),
        root_option,
        paths_argument,
    ):
        wrapped = decorate(wrapped)
    return wrapped  # type: ignore[return-value]  # click's decorators keep what they wrap


@dataclass(frozen=True)
class World:
    """Everything a plan is made from, and the plan. ``notes`` are what the user should hear of their own words.

    ``policy`` is what manifests may ask for; whose records count as evidence is asked of it, too.
    """

    asked: Asked
    releases: tuple[Release, ...]
    wanted: Mapping[str, Wanted]
    observed: Mapping[tuple[str, str], Observed]
    plan: Plan
    resolver: Resolver
    cache: Cache
    registries: Mapping[str, Seen] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    policy: Policy = OPEN
    scope: Scope = field(default_factory=lambda: EVERYTHING)
    named: frozenset[str] = frozenset()  # releases of the manifests that were read, changed or not


def look(asked: Asked, *, again: bool = False, policy: Policy = OPEN, scope: Scope = EVERYTHING) -> World:
    """Load the manifests, look at every place they name, and plan.

    The whole folder of each manifest is loaded whatever PATH says: two manifests that claim the same folder, and SAEs that
    no manifest names any more, can be told only from all of them. ``again``: the words come from a plan file, of which
    much may be done already. What ``policy`` does not allow is held. ``scope`` narrows to what was changed.

    Raises:
        ManifestError: with everything that is wrong in all of them.
        click.UsageError: --only, --adopt, --replace or --prune names nothing that is here.
    """
    with no_garbage_collection():
        return _look(asked, again, policy, scope)


Releases = tuple[Release, ...]


def releases_of(asked: Asked, policy: Policy = OPEN, scope: Scope = EVERYTHING) -> tuple[Releases, Releases]:
    """The releases of PATH, and all in the folders of their manifests.

    Raises:
        ManifestError: with everything that is wrong in all of them, and a note why some were read that PATH does not name.
    """
    chosen = scope.find(asked.paths)
    try:
        everything = tuple(scope.load(manifest.with_neighbours(chosen), (*asked.roots, *policy.roots)))
    except ManifestError as error:
        if {diagnostic.origin.file for diagnostic in error.diagnostics if diagnostic.origin} - {str(path) for path in chosen}:
            error.add_note(_NEIGHBOURS)
        raise
    files = {str(path) for path in chosen if scope.covers(path)}
    return tuple(release for release in everything if release.manifest in files), everything


def _look(asked: Asked, again: bool, policy: Policy, scope: Scope) -> World:
    releases, everything = releases_of(asked, policy, scope)
    cache = Cache.checked()
    observed = observe(releases, cache)
    resolver = Resolver(cache)
    wanted = resolver.resolve(releases, observed)
    refused = {each.release: each.reason for each in policy.refusals(releases) if each.section == REGISTER}
    registries = observe_registries(releases, cache, refused)
    if registries and policy.file is not None:
        registries = with_writers(registries, releases, observed, policy, resolver.hub or Hub(cache))
    named = frozenset(release.name for release in everything)
    whole = make_plan(releases, wanted, observed, asked.choices, named=named, registries=registries)
    recorded = {name for seen in observed.values() for name in seen.records}
    if not again and scope.changes is None:
        _check_words(asked, whole, named | recorded)
    judge = policy if scope.checkout is None else policy.for_strangers()
    distrusted = judge.distrusted(whole.releases, resolver.sha256s)
    plan = select(hold(whole, (*policy.refusals(whole.releases), *distrusted)), asked.only)
    notes = tuple(_idle_words(asked, plan))
    return World(asked, releases, wanted, observed, plan, resolver, cache, registries, notes, policy, scope, named)


def _permissions(asked: Asked) -> list[tuple[str, str]]:
    choices = asked.choices
    flags = (("adopt", choices.adopt), ("replace", choices.replace), ("prune", choices.prune))
    return [(flag, word) for flag, words in flags for word in words]


def _check_words(asked: Asked, plan: Plan, releases: Collection[str]) -> None:
    """A mistyped name must not pass as "nothing to do"."""
    addresses = [item.address for item in plan.items if item.id is not None]
    tagged = [*addresses, *(item.address for item in plan.items if item.basis.get(SECTION) == TAG)]
    for flag, word in [*(("only", glob) for glob in asked.only), *_permissions(asked)]:
        if flag == "prune" and word not in releases:
            near = _near(word, releases) or " If no manifest names its place any more, put one back, with `retire: true`."
            said = f"--prune {word!r}: no release of that name is here. Type its whole name.{near}"
        elif flag != "prune" and not any(matches((word,), one) for one in (addresses, tagged)[flag == "replace"]):
            said = f"--{flag} {word!r} matches no SAE. It is compared with whole addresses, release/id.{_near(word, addresses)}"
        else:
            continue
        raise click.UsageError(said, click.get_current_context(silent=True))


def _near(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


def _idle_words(asked: Asked, plan: Plan) -> Iterator[str]:
    """Permissions that nothing in the plan rests on."""
    for flag, word in _permissions(asked):
        granted = (item for item in plan.items if item.basis.get("asked.choice") == flag)
        if not any(item.release == word if flag == "prune" else matches((word,), item.address) for item in granted):
            yield f"Note: nothing here needs --{flag} {word!r}."
