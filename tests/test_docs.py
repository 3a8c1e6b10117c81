"""Generated pages are not stale, and links between pages lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "manifests" / "README.md"]


def test_generated_pages_are_what_the_program_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "docs.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    for link in links:
        if "://" not in link and link != "#":
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def used_in(text: str) -> list[str]:
    """What stands after ``saesync`` in lines of code and between backticks."""
    lines = "\n".join(FENCED.findall(text))
    inline = re.findall(r"`saesync ([^`#]+)", FENCED.sub("", text))
    return [*inline, *re.findall(r"^(?:\$ |.*&& )?saesync ([^#&|\n]+)", lines, re.MULTILINE)]


def commands_in(text: str) -> list[tuple[click.Command, list[str]]]:
    """The commands that a page uses, each with its options. A group that is only named is a command, too."""
    from saesync.cli import cli

    found: list[tuple[click.Command, list[str]]] = []
    for used in used_in(text):
        words, command = used.split(), cli
        while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z]+", words[0]):
            inner = command.get_command(click.Context(command), words.pop(0))
            assert inner is not None, used
            command = inner
        options = [word.partition("=")[0] for word in words if re.fullmatch(r"--[a-z][a-z-]*(=.*)?", word)]
        found.append((command, options[: words.index("--")] if "--" in words else options))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_of_a_page_exist(page: Path) -> None:
    for command, options in commands_in(page.read_text(encoding="utf-8")):
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert set(options) <= known | {"--help"}, command.name


def test_pages_that_use_commands_are_read() -> None:
    names = {
        str(page.relative_to(ROOT)): {command.name for command, _ in commands_in(page.read_text(encoding="utf-8"))}
        for page in PAGES
    }
    assert {"plan", "apply", "inspect", "overlay"} <= names["README.md"]
    assert {"init", "show", "pin", "import"} <= names["docs/getting-started.md"]
    with pytest.raises(AssertionError):
        commands_in("Try `saesync plann`.")
    assert commands_in("`saesync plan --nowhere x`")[0][1] == ["--nowhere"]
