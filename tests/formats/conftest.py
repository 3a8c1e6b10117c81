"""Imports sae_lens once, before any test: its import warns about its own use of a deprecated module."""

from __future__ import annotations

import warnings

import pytest


@pytest.fixture(scope="session", autouse=True)
def _stock_sae_lens() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens  # noqa: F401  imported for its effect
