"""What is known of a registry repository, and what may be proposed to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from saesync.reason import Reason

REGISTRY_PATHS = ("sae_lens/pretrained_saes.yaml", "pretrained_saes.yaml")
"""Where a registry's file is in its repository: the first that is there."""


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A pull request as the forge shows it. ``state`` is "open", "closed" (unmerged) or "merged"; ``head_sha`` is None when the
    branch's repository is gone. ``title`` and ``body`` are text somebody else may have edited."""

    number: int
    url: str
    state: str
    head_sha: str | None
    title: str
    body: str
    author: str


@dataclass(frozen=True, slots=True)
class Branch:
    """Our branch of a release: ``data`` is the registry file on it (None: it is not there any more).

    ``foreign`` names the commits since it left the default branch that are not ours, newest first ("1a2b3c4d Ann Author"); empty
    when all are.
    """

    name: str
    sha: str
    data: bytes | None
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistryState:
    """A registry as observed. ``kind`` is "github", "git" or "file".

    ``head`` and ``data`` are the default branch's newest commit and the registry file on it; ``data`` None with a ``head`` means
    that the repository holds no registry file, ``head`` None that it is empty. ``branches`` and ``pulls`` go by release name and
    hold what is there. ``unknown``: nothing could be seen, and everything else means nothing. ``pulls_unknown``: the repository
    could be seen, its pull requests could not; ``pulls`` (and ``branches`` on forks) say nothing then.
    """

    registry: str
    kind: str
    default_branch: str | None = None
    head: str | None = None
    path: str = REGISTRY_PATHS[0]
    data: bytes | None = None
    branches: Mapping[str, Branch] = field(default_factory=_nothing)
    pulls: Mapping[str, PullRequest] = field(default_factory=_nothing)
    unknown: Reason | None = None
    pulls_unknown: Reason | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change to the registry file. ``edit`` maps the file's bytes to the wanted ones: pure, idempotent, may be called several
    times on different versions of the file. ``title`` is the commit's and the pull request's."""

    release: str
    edit: Callable[[bytes], bytes]
    title: str
    body: str
    draft: bool = False


@dataclass(frozen=True, slots=True)
class Proposed:
    """What came of a proposal. ``sha`` is the branch's newest commit (None: nothing to propose, no branch, or a plain file).

    ``compare`` is an address or a command to look at the branch, or to open the pull request by hand. ``changed``: something was
    pushed, written, opened or edited.
    """

    branch: str
    sha: str | None
    pull: PullRequest | None
    compare: str | None
    changed: bool
