"""The token, and keeping it out of everything that is shown."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from saesync.errors import Missing
from saesync.forge.places import Server

TOKEN_VARIABLES = ("SAESYNC_GITHUB_TOKEN", "GITHUB_TOKEN", "GH_TOKEN")
"""Where a token is looked for, in this order; after them `gh auth token`."""

_GH_SECONDS = 10
HOW = "Set SAESYNC_GITHUB_TOKEN (or GITHUB_TOKEN, GH_TOKEN), or log in with `gh auth login`."


@dataclass(frozen=True, slots=True)
class Credentials:
    """A token for one GitHub server, or none. Shows nothing of it."""

    server: Server
    token: str | None = field(default=None, repr=False)

    @property
    def basic(self) -> str | None:
        """The token as git sends it over HTTP."""
        if self.token is None:
            return None
        return base64.b64encode(f"x-access-token:{self.token}".encode()).decode()

    def git_config(self) -> Mapping[str, str]:
        """git settings that send the token to this server and to no other. For the environment, never for arguments or files."""
        if self.basic is None:
            return {}
        return {f"http.{self.server.web}/.extraHeader": f"Authorization: Basic {self.basic}"}

    def redact(self, text: str) -> str:
        """``text`` without the token, plain or encoded, and without user names or passwords in addresses."""
        token, basic = self.token, self.basic
        if token is not None and basic is not None:
            alone = base64.b64encode(token.encode()).decode()
            for secret in (basic, basic.rstrip("="), alone, alone.rstrip("="), token):
                text = text.replace(secret, "***")
        return re.sub(r"(\w+://)[^\s/@]+@", r"\1", text)


def find_credentials(server: Server) -> Credentials:
    """The token this environment has for GitHub; without one ``token`` is None.

    Raises:
        Missing: there is one, but it cannot be put into a header.
    """
    for name in TOKEN_VARIABLES:
        if token := os.environ.get(name, "").strip():
            return Credentials(server, _usable(token, name))
    from_gh = _from_gh(server)
    return Credentials(server, _usable(from_gh, "gh auth token") if from_gh else None)


def no_credentials(server: Server) -> Credentials:
    """For repositories the token is not for."""
    return Credentials(server)


def _usable(token: str, source: str) -> str:
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise Missing("Token is not usable", f"What {source} holds has characters no GitHub token has. Set it again.")
    return token


def _from_gh(server: Server) -> str | None:
    program = shutil.which("gh")
    if program is None:
        return None
    command = [program, "auth", "token", "--hostname", server.host]
    try:
        done = subprocess.run(  # noqa: S603 (fixed arguments; the host is our own setting)
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_GH_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
