"""What a source says of its training is not overwritten by what the manifest says of measuring."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from convert_support import HOOK, adopt_job, convert, saelens

from saesync.convert.said import noted, recalled, settled
from saesync.convert.writer import rewrite_cfg
from saesync.errors import Refused
from saesync.executors.convert import adopt
from saesync.inspection import inspect_local
from saesync.inspection.text import manifest
from saesync.manifest import load

TRAINED = {"hook_name": HOOK, "model_name": "gpt2", "sae_lens_version": "6.0.0", "prepend_bos": False, "context_size": 1024}
PROCESSED = {"center_writing_weights": True, "fold_ln": False}


def measured(context: int, **more: Any) -> dict[str, Any]:
    """What the manifest says for cfg.json."""
    kwargs: dict[str, Any] = {"model_from_pretrained_kwargs": {}}
    return {"hook_name": HOOK, "model_name": "gpt2", "prepend_bos": True, "context_size": context, **kwargs, **more}


def metadata_of(text: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)["metadata"]
    return found


def test_training_keeps_its_context_and_bos(tmp_path: Path) -> None:
    convert("saelens", saelens(tmp_path / "source", metadata=TRAINED), tmp_path / "out", metadata=measured(128))
    said = metadata_of((tmp_path / "out" / "cfg.json").read_bytes())
    assert (said["prepend_bos"], said["context_size"]) == (False, 1024)


def test_a_source_that_says_nothing_gets_what_it_was_measured_with(tmp_path: Path) -> None:
    """Without both, sae_lens.evals and dashboards do not run."""
    bare = {name: value for name, value in TRAINED.items() if name not in ("prepend_bos", "context_size")}
    convert("saelens", saelens(tmp_path / "source", metadata=bare), tmp_path / "out", metadata=measured(128))
    said = metadata_of((tmp_path / "out" / "cfg.json").read_bytes())
    assert (said["prepend_bos"], said["context_size"]) == (True, 128)


@pytest.mark.parametrize("first", [128, 1024], ids=["other than training", "as training"])
@pytest.mark.parametrize(("own", "expected"), [(True, 1024), (False, 256)])
def test_a_relabel_gives_what_a_build_would(own: bool, expected: int, first: int, tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", metadata=TRAINED if own else {**TRAINED, "context_size": None})
    proof = convert("saelens", source, tmp_path / "old", metadata=measured(first))
    convert("saelens", source, tmp_path / "new", metadata=measured(256))
    old, new = ((tmp_path / name / "cfg.json").read_bytes() for name in ("old", "new"))
    assert rewrite_cfg(old, {}, settled(recalled(proof), measured(256))) == new
    assert metadata_of(new)["context_size"] == expected


def test_what_a_source_says_is_noted_with_the_proof() -> None:
    said = {**TRAINED, "model_from_pretrained_kwargs": PROCESSED, "hf_hook_name": "x" * 201, "dataset_path": "d"}
    assert noted(said) == {
        "source.hook_name": HOOK,
        "source.prepend_bos": False,
        "source.context_size": 1024,
        "source.center_writing_weights": True,
    }
    assert recalled({**noted(said), "rows": 3}) == {
        "hook_name": HOOK,
        "prepend_bos": False,
        "context_size": 1024,
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    assert recalled(noted({})) == noted({"prepend_bos": 1, "context_size": True, "hook_name": None}) == {}


@pytest.mark.parametrize("said", [{}, {"fold_ln": True}])
def test_a_model_that_is_processed_otherwise_is_refused(said: dict[str, bool], tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", metadata={**TRAINED, "model_from_pretrained_kwargs": PROCESSED})
    with pytest.raises(Refused, match=r"kwargs: \{center_writing_weights: true\}") as caught:
        convert("saelens", source, tmp_path / "out", metadata=measured(128, model_from_pretrained_kwargs=said))
    assert caught.value.diagnostics[0].key == "model"
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:\\nThis SAE has non-empty:UserWarning")  # advice of SAELens on loading models
@pytest.mark.parametrize("flag", [True, False])
def test_what_the_manifest_says_itself_counts(flag: bool, tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", metadata={**TRAINED, "model_from_pretrained_kwargs": PROCESSED})
    kwargs = {"center_writing_weights": flag}
    convert("saelens", source, tmp_path / "out", metadata=measured(128, model_from_pretrained_kwargs=kwargs))
    assert metadata_of((tmp_path / "out" / "cfg.json").read_bytes())["model_from_pretrained_kwargs"] == kwargs


@pytest.mark.parametrize("legacy", [True, False])
def test_a_new_manifest_processes_the_model_as_the_source_says(legacy: bool, tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", metadata={**TRAINED, "model_from_pretrained_kwargs": PROCESSED})
    if legacy:
        cfg = json.loads((source / "cfg.json").read_text())
        flat = {**cfg, **cfg.pop("metadata"), "architecture": "standard", "activation_fn_str": "relu"}
        saelens(source, architecture="standard")
        (source / "cfg.json").write_text(json.dumps({name: flat[name] for name in flat if name not in ("metadata", "k")}))
    path = tmp_path / "release.yaml"
    (tmp_path / "model").mkdir()
    path.write_text(manifest(inspect_local(source), folder=tmp_path, model=str(tmp_path / "model")))
    (release,) = load([path])
    assert release.saes[0].model.kwargs == {"center_writing_weights": True}


@pytest.mark.parametrize(
    ("published", "asked", "adopted"),
    [
        ({"hook_name": HOOK}, {"hook_name": HOOK}, True),
        ({}, {"hook_name": HOOK}, True),  # nothing is said wrongly
        ({"hook_name": HOOK, "hf_hook_name": "transformer.h.0"}, {"hook_name": "transformer.h.0"}, True),
        ({"hook_name": "blocks.1.hook_resid_post"}, {"hook_name": HOOK, "hf_hook_name": "transformer.h.0"}, False),
        ({"hook_name": HOOK, "hook_name_out": HOOK}, {"hook_name": HOOK, "hook_name_out": "blocks.0.hook_mlp_out"}, False),
    ],
)
def test_what_was_published_for_another_hook_is_not_taken_over(
    published: dict[str, str], asked: dict[str, str], adopted: bool, tmp_path: Path
) -> None:
    source = saelens(tmp_path / "source", architecture="topk")
    there = saelens(tmp_path / "there", architecture="topk", metadata={**published, "sae_lens_version": "6.0.0"})
    job = replace(adopt_job("saelens", source, there), metadata=asked)
    if adopted:
        assert adopt(job).proof["rows"] > 0
    else:
        with pytest.raises(Refused, match=r"cannot be taken over: its cfg\.json says hook_name.* --replace publishes it anew\."):
            adopt(job)


@pytest.mark.parametrize("asked", [{}, {"center_writing_weights": True}, {"center_writing_weights": False}])
def test_what_was_published_for_a_processed_model_is_not_taken_over_unsaid(asked: dict[str, bool], tmp_path: Path) -> None:
    source = saelens(tmp_path / "source", architecture="topk")
    said = {"hook_name": HOOK, "model_from_pretrained_kwargs": PROCESSED, "sae_lens_version": "6.0.0"}
    there = saelens(tmp_path / "there", architecture="topk", metadata=said)
    job = replace(adopt_job("saelens", source, there), metadata={"hook_name": HOOK, "model_from_pretrained_kwargs": asked})
    if asked:
        assert adopt(job).proof["rows"] > 0
    else:
        with pytest.raises(Refused, match=r"its cfg\.json says that its activations .* --replace publishes it anew\."):
            adopt(job)


def test_init_says_nothing_of_the_model_where_files_do_not_agree(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name, more in (("one", {"model_from_pretrained_kwargs": PROCESSED}), ("two", {})):
        saelens(tmp_path / "set" / name, metadata={**TRAINED, **more})
    path = tmp_path / "release.yaml"
    path.write_text(manifest(inspect_local(tmp_path / "set"), folder=tmp_path, model=str(tmp_path / "model")))
    assert "do not agree on how the model's weights are processed" in path.read_text()
    (release,) = load([path])
    assert [dict(sae.model.kwargs) for sae in release.saes] == [{}, {}]
