"""The registry file of the installed sae-lens, found without importing it (which takes seconds)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from saesync.errors import Missing

NAME = "pretrained_saes.yaml"


def shipped() -> Path:
    """Where the installed package keeps the file.

    Raises:
        Missing: sae-lens is not installed here, or has no such file.
    """
    spec = importlib.util.find_spec("sae_lens")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder, NAME)).is_file():
            return path
    raise Missing("sae-lens is not installed", f"No sae_lens with a {NAME} is installed here. Install it, or name such a file.")
