"""The demo on its smallest recipe: what it makes is real, is found again, survives being killed, spares what is not its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import TINY, TinyWorld

from saesync.demo import build
from saesync.demo.corpus import read_texts, write_corpus
from saesync.demo.recipe import DEMO, Layout, recipe_from_json
from saesync.errors import Missing, SaesyncError
from saesync.manifest import load
from saesync.workers import Child

WALK = Path(__file__).parent.parent / "tools" / "demo.py"
# What third parties warn of when models and SAEs are loaded; nothing of it is about what is tested here.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


def silent(label: str, done: int, total: int, unit: str) -> None:
    """A listener that does not listen."""


def no_worker(home: Path) -> Child:
    raise AssertionError(f"nothing was to be trained, but a worker was started in {home}")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------- what is made


def test_corpus_is_split_by_file_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        sizes = write_corpus(tmp_path / name, TINY)
        assert sizes["train_bytes"] >= TINY.train_bytes / 2
    assert snapshot(tmp_path / "first") == snapshot(tmp_path / "second")
    train, held_out = (set(read_texts(tmp_path / "first" / name)) for name in ("train.jsonl", "held_out.jsonl"))
    assert train
    assert held_out
    assert not train & held_out


def test_a_python_without_library_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "only.py").write_text("x = 1\n" * 200)
    with pytest.raises(Missing, match="holds only"):
        write_corpus(tmp_path, TINY, tmp_path)


def test_recipes_survive_the_pipe() -> None:
    for recipe in (DEMO, TINY):
        assert recipe_from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_recipe_of_the_demo_covers_what_people_find() -> None:
    good = DEMO.of("good")
    assert {entry.layout for entry in good} == set(Layout)
    assert {entry.architecture for entry in good} == {"topk", "standard", "batchtopk"}
    for architecture in ("topk", "standard", "batchtopk"):
        assert len({entry.layer for entry in good if entry.architecture == architecture}) == 2
    assert any("/" not in entry.path and entry.layout is Layout.SAELENS for entry in good), "a root-level repo"


def test_manifests_are_valid_and_name_real_sources(tiny_world: TinyWorld) -> None:
    good, failing = load([tiny_world.good, tiny_world.failing])
    for release, name in ((good, "good"), (failing, "failing")):
        entries = TINY.of(name)
        assert [(sae.id, sae.hook) for sae in release.saes] == [(entry.id, entry.hook) for entry in entries]
        for sae, entry in zip(release.saes, entries, strict=True):
            assert sae.source is not None
            assert sae.source.format == entry.format
            assert Path(sae.source.path).exists()
            assert sae.model.path == str(tiny_world.model)
            assert sae.validate is not None
            assert sae.validate.require
        assert release.publish is not None
        assert (release.publish.target, release.publish.location) == ("local", str(tiny_world.published))


def test_manifests_of_the_demo_are_valid(tmp_path: Path) -> None:
    from saesync.demo.manifests import LOCAL, write_manifests

    for name in ("model", "data", "sources", "manifests"):
        (tmp_path / name).mkdir()
    write_manifests(tmp_path / "manifests", DEMO, LOCAL)
    good, failing = load([tmp_path / "manifests" / "good.yaml", tmp_path / "manifests" / "failing.yaml"])
    assert len(good.saes) + len(failing.saes) == len(DEMO.dictionaries)


def test_manifests_for_another_target(own_tiny_world: TinyWorld) -> None:
    own_tiny_world.publish_to({"huggingface": "acme/tiny", "private": "true"})
    for release in load([own_tiny_world.good, own_tiny_world.failing]):
        assert release.publish is not None
        assert (release.publish.target, release.publish.location, release.publish.private) == ("huggingface", "acme/tiny", True)


def test_transformers_and_transformer_lens_load_the_same_model(tiny_world: TinyWorld) -> None:
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_world.model)
    text = "def main(argv=None):\n    return 0\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert (tiny_world.model / "model.safetensors").is_file()

    tokens = torch.tensor([[0, *tokenizer(text)["input_ids"][: TINY.context - 1]]])
    plain = AutoModelForCausalLM.from_pretrained(tiny_world.model).eval()
    bridge = TransformerBridge.boot_transformers(str(tiny_world.model), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(bridge(tokens, prepend_bos=False), plain(tokens).logits, atol=1e-4, rtol=1e-4)


def test_every_layout_holds_the_function_that_was_trained(tiny_world: TinyWorld) -> None:
    """Stock SAELens reads the native ones; the training form is recognised by what only it has; Goodfire's by its names."""
    import torch
    from sae_lens import SAE, TrainingSAE

    for entry in TINY.dictionaries:
        place = tiny_world.sources / entry.path
        if entry.layout is Layout.GOODFIRE:
            state = torch.load(place, weights_only=True)
            shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
            assert shapes == {
                "encoder_linear.weight": (entry.d_sae, TINY.d_model),
                "encoder_linear.bias": (entry.d_sae,),
                "decoder_linear.weight": (TINY.d_model, entry.d_sae),
                "decoder_linear.bias": (TINY.d_model,),
            }
        elif entry.layout is Layout.CHECKPOINT:
            sae = TrainingSAE.load_from_disk(place)
            assert sae.cfg.architecture() == "batchtopk"
            assert float(sae.topk_threshold) > 0
            assert (place / "trainer_state.pt").is_file()
        else:
            loaded = SAE.load_from_disk(place)
            assert loaded.cfg.architecture() == "topk"
            assert loaded.cfg.k == entry.sparsity
            assert loaded.cfg.metadata.hook_name == entry.hook
            # Why the legacy form may leave out that topk was trained on activations scaled by decoder norms: they are all 1.
            torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(entry.d_sae))
            assert ("metadata" in json.loads((place / "cfg.json").read_bytes())) == (entry.layout is not Layout.LEGACY)


def test_goodfire_layout_folds_the_decoder_bias(tmp_path: Path) -> None:
    """Goodfire does not subtract b_dec: with the folded bias both forward passes are one function."""
    import torch
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig

    from saesync.demo.layouts import save_goodfire

    torch.manual_seed(0)
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=6, d_sae=10))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    save_goodfire(tmp_path / "sae.pth", sae)
    state = torch.load(tmp_path / "sae.pth", weights_only=True)
    x = torch.randn(50, 6)
    features = torch.relu(x @ state["encoder_linear.weight"].T + state["encoder_linear.bias"])
    assert (features > 0).any()
    with torch.no_grad():
        torch.testing.assert_close(features, sae.encode(x), atol=1e-5, rtol=1e-5)
        back = features @ state["decoder_linear.weight"].T + state["decoder_linear.bias"]
        torch.testing.assert_close(back, sae(x), atol=1e-5, rtol=1e-5)


# ----------------------------------------------------------------------------------------------- found again


def test_a_finished_demo_is_only_looked_at(own_tiny_world: TinyWorld) -> None:
    own_tiny_world.good.write_text(own_tiny_world.good.read_text() + "# mine\n")
    before = snapshot(own_tiny_world.folder)
    world = build(own_tiny_world.folder, silent, TINY, no_worker)
    assert world.cached
    assert world.loss < world.unigram_entropy - TINY.margin
    assert world.saes == len(TINY.dictionaries)
    assert snapshot(own_tiny_world.folder) == before
    text = "\n".join(world.lines())
    assert f"{world.loss:.2f}" in text
    assert f"{world.unigram_entropy:.2f}" in text


def test_only_the_missing_stage_is_made_again(own_tiny_world: TinyWorld) -> None:
    own_tiny_world.good.unlink()
    before = snapshot(own_tiny_world.sources)
    world = build(own_tiny_world.folder, silent, TINY, no_worker)
    assert not world.cached
    assert own_tiny_world.good.is_file()
    assert snapshot(own_tiny_world.sources) == before


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("years")
    with pytest.raises(SaesyncError, match="only made in a new or empty folder"):
        build(tmp_path, silent, TINY, no_worker)
    assert snapshot(tmp_path) == {"model/thesis.txt": b"years"}
    with pytest.raises(SaesyncError, match="is a file"):
        build(tmp_path / "model" / "thesis.txt", silent, TINY, no_worker)


def test_what_to_do_next_can_be_copied(tiny_world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = tiny_world.copy(tmp_path / "my demo")
    monkeypatch.chdir(tmp_path)
    lines = build(world.folder, silent, TINY, no_worker).lines()
    (plan,) = [line for line in lines if line.startswith("Next:")]
    assert shlex.split(plan)[1:] == ["saesync", "plan", "my demo/manifests/good.yaml"]


def test_a_demo_of_another_recipe_is_left_alone(own_tiny_world: TinyWorld) -> None:
    before = snapshot(own_tiny_world.folder)
    with pytest.raises(SaesyncError, match="another version"):
        build(own_tiny_world.folder, silent, replace(TINY, seed=1), no_worker)
    assert snapshot(own_tiny_world.folder) == before


def test_a_model_that_did_not_learn_is_refused_and_nothing_is_left_half_made(tmp_path: Path) -> None:
    lazy = replace(TINY, model_steps=1)
    with pytest.raises(SaesyncError, match="unigram entropy"):
        build(tmp_path / "world", silent, lazy)
    assert {path.name for path in (tmp_path / "world").iterdir()} == {".demo", "data"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["model", "sources"])
def test_a_killed_run_is_continued(tmp_path: Path, stage: str) -> None:
    """SIGKILL while a stage is trained: the worker dies too, stages before it stay, the same call ends in the same world."""
    folder = tmp_path / "world"
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from saesync.demo import build; from tiny import TINY\n"
        "build(Path(sys.argv[1]), lambda label, done, total, unit: print(label, done, flush=True), TINY)\n"
    )
    command = [sys.executable, "-c", program, str(folder), str(Path(__file__).parent)]
    label = {"model": "language model", "sources": "SAEs"}[stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if label in line and not line.rstrip().endswith(" 0"):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert not (folder / stage).exists()
    kept = snapshot(folder / "data")
    world = build(folder, silent, TINY)
    assert not world.cached
    assert snapshot(folder / "data") == kept
    assert build(folder, silent, TINY, no_worker).cached
    assert not (folder / ".demo" / "tmp").exists()


def test_a_folder_that_is_a_link_in_a_circle_is_the_systems_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="symbolic links"):
        build(tmp_path / "circle", silent, TINY, no_worker)


def test_two_at_once_do_not_mix(own_tiny_world: TinyWorld) -> None:
    import fcntl

    own_tiny_world.good.unlink()
    with (own_tiny_world.folder / ".demo" / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(SaesyncError, match="Another process is making"):
            build(own_tiny_world.folder, silent, TINY, no_worker)


def test_looking_at_a_demo_imports_nothing_heavy(tiny_world: TinyWorld) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from saesync.demo import build; from tiny import TINY\n"
        "build(Path(sys.argv[1]), print, TINY)\n"
        "print(sorted({'torch', 'sae_lens', 'transformers', 'datasets'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program, str(tiny_world.folder), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_newcomers_walk(tmp_path: Path) -> None:
    """What `make demo` runs, on an empty folder and an empty cache: the demo itself, and every exit code on the way."""
    done = subprocess.run(
        [sys.executable, str(WALK), "demo"], cwd=tmp_path, env={**os.environ, "SAESYNC_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "unigram entropy" in done.stdout
    assert "Done in" in done.stderr
    assert "7 published" in done.stderr
    assert done.stdout.count("(exit code 1, as it should be)") == 2
    assert "Nothing to do: 1 failing, 8 up to date." in done.stdout
    assert re.search(r"^jumprelu 128 512 blocks\.1\.hook_resid_post$", done.stdout, re.MULTILINE)


def step_of_the_walk(call: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One step by itself, in a process in ``folder``: what it prints, and how it ends."""
    code = f"import runpy; from pathlib import Path; walk = runpy.run_path({str(WALK)!r}); walk[{call}"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_the_walk_loads_by_the_very_command_it_shows(tiny_world: TinyWorld) -> None:
    """What a newcomer copies from the transcript says what the transcript says."""
    done = step_of_the_walk("'load_one'](Path('.'))", tiny_world.sources)
    assert done.returncode == 0, done.stderr
    command, answer = done.stdout.strip().splitlines()
    words = [sys.executable, *shlex.split(command.removeprefix("$ python"))]
    copied = subprocess.run(words, cwd=tiny_world.sources, capture_output=True, text=True, check=True)
    assert copied.stdout.strip() == answer
    assert answer.endswith(" blocks.0.hook_resid_post")


@pytest.mark.parametrize(
    ("words", "expect", "said"),
    [("'formats'", 1, "expected exit code 1, got 0"), ("'plan', 'nowhere'", 0, "expected exit code 0, got 1")],
)
def test_the_walk_ends_at_an_exit_code_that_should_not_be(tmp_path: Path, words: str, expect: int, said: str) -> None:
    done = step_of_the_walk(f"'saesync']({words}, expect={expect})", tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(said)


@pytest.mark.parametrize("lost", ["cfg.json", "sae_weights.safetensors"])
def test_the_walk_ends_where_nothing_can_be_loaded(own_tiny_world: TinyWorld, lost: str) -> None:
    for file in own_tiny_world.sources.rglob(lost):
        file.unlink()
    assert step_of_the_walk("'load_one'](Path('.'))", own_tiny_world.sources).returncode != 0
