"""Links in a local source: none leads out of its folder, except in the Hub's own cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from saesync import formats
from saesync.cache import Cache
from saesync.errors import Refused
from saesync.model import SourceSpec
from saesync.resolve import Resolver


def digest_of(source: Path) -> str:
    return Resolver(Cache()).source(SourceSpec(None, None, str(source), "nanochat")).digest


def example(folder: Path) -> Path:
    formats.get("nanochat").example(folder, 0)
    return folder


@pytest.mark.parametrize("name", ["best_model.pt", "config.json"])
def test_a_link_out_of_the_source_is_refused(name: str, tmp_path: Path) -> None:
    source, elsewhere = example(tmp_path / "source"), tmp_path / "elsewhere"
    (source / name).rename(elsewhere)
    (source / name).symlink_to(elsewhere)
    with pytest.raises(Refused, match="outside of the source"):
        digest_of(source)
    with pytest.raises(Refused, match="outside of the source"):
        digest_of(source / "best_model.pt")


def test_a_link_inside_the_source_is_followed(tmp_path: Path) -> None:
    source = example(tmp_path / "source")
    before = digest_of(source)
    (source / "best_model.pt").rename(source / "kept")
    (source / "best_model.pt").symlink_to("kept")
    assert digest_of(source) == before


def test_the_hubs_cache_is_a_source(tmp_path: Path) -> None:
    repo = tmp_path / "models--acme--saes"
    source = example(repo / "snapshots" / ("c" * 40))
    (repo / "blobs").mkdir()
    for path in list(source.iterdir()):
        path.rename(repo / "blobs" / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    assert digest_of(source)
