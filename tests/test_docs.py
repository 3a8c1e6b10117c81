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


def test_the_commands_of_the_readme_exist() -> None:
    from saesync.cli import cli

    text = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    used = set(re.findall(r"(?:^|`|\$ )saesync ([a-z]+)\b", text, re.MULTILINE))
    assert {"plan", "apply", "inspect"} <= used
    assert used <= set(cli.list_commands(click.Context(cli)))
