"""Running git through GitPython: nothing of the user's settings acts, and the token travels in the environment."""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from saesync.errors import Missing
from saesync.forge.credentials import TOKEN_VARIABLES, Credentials
from saesync.hub.trouble import patience_seconds

_OLDEST = (2, 32)  # the first that reads GIT_CONFIG_GLOBAL; GIT_CONFIG_COUNT is from 2.31
_LONGEST = 1_800.0  # seconds any git command may take
_SILENCE = 30  # seconds a server may send nothing
_KEPT = re.compile(r"GIT_(?:SSH(?:_COMMAND|_VARIANT)?|SSL_(?:CAINFO|CAPATH|CERT|KEY)|EXEC_PATH|PYTHON_\w+|PROXY_COMMAND)")
_FOREIGN_SECRETS = (*TOKEN_VARIABLES, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")
_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.autocrlf": "false",
    "core.askPass": "",
    "credential.helper": "",  # an empty one clears the list
    "protocol.ext.allow": "never",
    "http.followRedirects": "false",
    "http.lowSpeedLimit": "1",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
    "push.gpgSign": "false",
}


@dataclass(frozen=True, slots=True)
class Done:
    """A finished command. ``err`` is redacted."""

    status: int
    out: bytes
    err: str


class Git:
    """git on one repository. ``folder`` is its git directory; commands that need none work without it."""

    def __init__(self, folder: Path, credentials: Credentials) -> None:
        self.folder = folder
        self.credentials = credentials

    def run(self, *arguments: str, stdin: bytes | None = None, extra: Mapping[str, str] | None = None) -> Done:
        """One git command, whatever its exit status. ``extra`` goes into its environment.

        Raises:
            Missing: git is not there, or too old.
        """
        check_git()
        import git

        environment = self._environment() | dict(extra or {})
        command = [*without_foreign(environment), git.Git.GIT_PYTHON_GIT_EXECUTABLE or "git", *arguments]
        with tempfile.TemporaryFile() as stream:
            stream.write(stdin or b"")
            stream.seek(0)
            status, out, err = git.Git(self.folder).execute(
                command,
                istream=stream,
                with_extended_output=True,
                with_exceptions=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
                kill_after_timeout=_LONGEST,
                shell=False,
                env=environment,
            )
        text = err if isinstance(err, str) else err.decode("utf-8", "replace")
        return Done(status, out if isinstance(out, bytes) else b"", self.credentials.redact(text))

    def _environment(self) -> dict[str, str]:
        quiet = max(1, min(_SILENCE, int(patience_seconds())))
        settings = {**_SETTINGS, "http.lowSpeedTime": str(quiet), **self.credentials.git_config()}
        found = {
            "GIT_DIR": str(self.folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "",
            "SSH_ASKPASS": "",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_ALLOW_PROTOCOL": "file:http:https:ssh",
            "GIT_CONFIG_COUNT": str(len(settings)),
        }
        if not {"GIT_SSH", "GIT_SSH_COMMAND"} & os.environ.keys():
            found["GIT_SSH_COMMAND"] = f"ssh -oBatchMode=yes -oConnectTimeout={quiet}"
        for number, (key, value) in enumerate(settings.items()):
            found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        return found


def without_foreign(ours: Mapping[str, str]) -> Iterable[str]:
    """A prefix that takes away what would steer git (a GIT_DIR), write headers down (a trace), or is another's secret."""
    names = [
        name
        for name in os.environ
        if name not in ours and ((name.startswith("GIT_") and not _KEPT.fullmatch(name)) or name in _FOREIGN_SECRETS)
    ]
    return ["env", *(part for name in sorted(names) for part in ("-u", name))] if names else []


@functools.cache
def check_git() -> None:
    """Whether git is there and new enough to be told everything by its environment.

    Raises:
        Missing: it is not.
    """
    try:
        import git

        found = git.Git().version_info
    except (ImportError, OSError) as error:
        detail = "Registering needs the program git; it is not on PATH, or does not run. Install it."
        raise Missing("git is not here", detail) from error
    if found[:2] < _OLDEST:
        have, need = ".".join(map(str, found[:2])), ".".join(map(str, _OLDEST))
        raise Missing("git is too old", f"git {have} is installed, {need} or newer is needed. Install it.")
