"""Every path of an entry has to be in the repository that it names, as the loader of the list will look for it."""

from __future__ import annotations

import pytest

from saesync.errors import Missing
from saesync.executors.register import check_paths
from saesync.registry.entry import Entry, SaeEntry

FILES = (
    "README.md",
    "layer_0/cfg.json",
    "layer_0/sae_weights.safetensors",
    "layer_1/ae.pt",
    "gemma/layer_0/width_16k/params.npz",
    "clt/layer_3.safetensors",
    "W_enc_7.safetensors",
)


def entry(path: str, loader: str | None) -> Entry:
    return Entry("res", "acme/saes", "gpt2", loader, (SaeEntry("one", path),))


@pytest.mark.parametrize(
    ("path", "loader"),
    [
        ("layer_0", None),
        ("layer_1", "dictionary_learning_1"),
        ("layer_1/ae.pt", "deepseek_r1"),
        ("gemma/layer_0/width_16k", "gemma_2"),
        ("clt/layer_3", "gemma_3"),
        ("7", "mntss_clt_layer_transcoder"),
        (".", "sparsify"),
    ],
)
def test_what_is_there_is_found(path: str, loader: str | None) -> None:
    check_paths(entry(path, loader), FILES)


@pytest.mark.parametrize(
    ("path", "loader"),
    [
        ("layer_1", None),
        (".", None),
        ("layer_2", "dictionary_learning_1"),
        ("8", "mntss_clt_layer_transcoder"),
        ("gem", "gemma_2"),
    ],
)
def test_what_is_not_there_is_named(path: str, loader: str | None) -> None:
    with pytest.raises(Missing) as error:
        check_paths(entry(path, loader), FILES)
    assert f"acme/saes holds no {path}" in error.value.diagnostics[0].detail


def test_many_are_counted() -> None:
    saes = tuple(SaeEntry(str(number), f"layer_{number}") for number in range(2, 8))
    with pytest.raises(Missing, match="layer_2, layer_3, layer_4 and 3 more"):
        check_paths(Entry("res", "acme/saes", "gpt2", None, saes), FILES)
