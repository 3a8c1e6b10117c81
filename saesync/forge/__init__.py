"""Git and GitHub: what a registry repository holds, and a change to one file of it as a branch and a pull request.

A registry is ``owner/name`` on GitHub, the address of any git repository, or an absolute path of a repository or of a registry
file. Knows nothing of YAML or manifests. GitPython and PyGithub are imported on first use.

Tokens come from ``SAESYNC_GITHUB_TOKEN``, ``GITHUB_TOKEN``, ``GH_TOKEN`` or `gh auth token`, and go to GitHub alone
(``GITHUB_API_URL`` and ``GITHUB_SERVER_URL``): to its API in a header, to git in ``GIT_CONFIG_*`` variables.
"""

from __future__ import annotations

from saesync.forge.access import check_access, status_of
from saesync.forge.observing import observe, read_registry
from saesync.forge.proposing import propose
from saesync.forge.types import Branch, Proposal, Proposed, PullRequest, RegistryState

__all__ = [
    "Branch", "Proposal", "Proposed", "PullRequest", "RegistryState",
    "check_access", "observe", "propose", "read_registry", "status_of",
]  # fmt: skip
