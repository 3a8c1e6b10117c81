"""Who a commit is by: the user's own git identity, or in CI the token's user."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from saesync.errors import Missing
from saesync.forge.runner import check_git

_IDENT = re.compile(r"(?P<name>[^<>\n]+) <(?P<email>[^<>\s]+)> \d+ [+-]\d{4}\n?")


@dataclass(frozen=True, slots=True)
class Identity:
    """A name and an address, as they stand in a commit."""

    name: str
    email: str

    def __str__(self) -> str:
        return f"{self.name} <{self.email}>"

    def environment(self) -> Mapping[str, str]:
        """What makes git commit as this person."""
        people = ("AUTHOR", "COMMITTER")
        return {f"GIT_{who}_{what}": value for who in people for what, value in (("NAME", self.name), ("EMAIL", self.email))}


def own_identity() -> Identity | None:
    """The author git would name here (``GIT_AUTHOR_*``, then ``user.*`` of the user's settings); None when nobody said."""
    check_git()
    # Plain git with the user's settings: this is the one place where they count. git guesses nothing with useConfigOnly.
    command = ["git", "-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_TRACE", "GIT_COMMITTER"))}
    done = subprocess.run(  # noqa: S603 (fixed arguments)
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=environment | {"LC_ALL": "C.UTF-8"}
    )
    match = _IDENT.fullmatch(done.stdout.decode("utf-8", "replace"))
    return Identity(match["name"].strip(), match["email"]) if done.returncode == 0 and match else None


def no_identity() -> Missing:
    """Nobody to name as the author."""
    return Missing(
        "git does not know who you are",
        "Commits to a registry carry a real author: `git config --global user.name NAME` and `user.email ADDRESS`, "
        "or set GIT_AUTHOR_NAME and GIT_AUTHOR_EMAIL.",
    )
