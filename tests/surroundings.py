"""What a machine happens to say in its environment, which neither tests nor benchmarks may depend on.

Imported before anything that reads the environment when it is imported, above all the Hub client.
"""

from __future__ import annotations

import os

_PREFIXES = (
    *("HF_", "HUGGING", "TRANSFORMERS_", "WANDB_", "AWS_", "SAESYNC_"),
    *("GIT_", "GH_", "GITHUB_", "ACTIONS_", "RUNNER_"),  # git sets its own for hooks: a test run may be one
)
_PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
_NAMES = {"ci", "email", "columns", "lines", "force_color", "clicolor_force", "pythonwarnings", "pythonutf8", "pythonioencoding"}
_KEPT = {"GIT_EXEC_PATH"}  # where git is

PROXIES = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES}
"""The way to a package index, for pip alone: all other servers of tests are loopback ones."""

GIT_ALONE = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
"""For git in tests: hooks, signatures and line ends that a user's settings name are not the test's."""


def forget() -> None:
    """Take it out of this process's environment."""
    for name in list(os.environ):
        if name not in _KEPT and (name.startswith(_PREFIXES) or name.lower() in _PROXIES | _NAMES):
            del os.environ[name]
