"""Git and GitHub: what a registry repository holds, and a change to one file of it as a branch and a pull request.

Knows nothing of YAML or manifests. GitPython and PyGithub are imported on first use.
"""

from __future__ import annotations

from collections.abc import Collection

from saesync.cache import Cache
from saesync.forge.types import Branch, Proposal, Proposed, PullRequest, RegistryState

__all__ = [
    "Branch", "Proposal", "Proposed", "PullRequest", "RegistryState",
    "check_access", "observe", "propose", "read_registry", "status_of",
]  # fmt: skip


def observe(registry: str, releases: Collection[str], cache: Cache) -> RegistryState:
    """What a registry holds, and our branches and pull requests for ``releases``. Never raises for invisibility: see ``unknown``."""
    raise NotImplementedError


def read_registry(registry: str, cache: Cache) -> tuple[bytes, str]:
    """The registry file on the default branch, and a label of it for messages.

    Raises:
        NotVisible, Unavailable, Missing: it cannot be read, for the reason said.
    """
    raise NotImplementedError


def propose(registry: str, proposal: Proposal, cache: Cache) -> Proposed:
    """Make the branch hold the edited file and one open pull request ask for it; does nothing that is done already.

    Raises:
        Missing, NotVisible, Unavailable, Conflict, Refused: what stopped it; run again after mending it.
    """
    raise NotImplementedError


def check_access(registry: str) -> None:
    """Whether ``propose`` has what it needs.

    Raises:
        Missing: what is not there (token, scope, identity, right to write).
    """
    raise NotImplementedError


def status_of(registry: str, pull: PullRequest) -> tuple[str, ...]:
    """Names of checks on a pull request that fail or wait, such as a CLA's; empty where the forge has none to tell of."""
    raise NotImplementedError
