"""`saesync convert`: one SAE to another layout, whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import PROGRAM, Done
from safetensors.torch import load_file, save_file
from servers.loopback import ALICE, HubServer

from saesync import formats
from saesync.cli.becoming import sweep
from saesync.formats._saelens_reference import write_example


def run(folder: Path, *words: str, **variables: str) -> Done:
    done = subprocess.run(
        [PROGRAM, *words], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_goodfire_to_sae_lens_and_on(tmp_path: Path) -> None:
    formats.get("goodfire").example(tmp_path / "source", 0)
    done = run(tmp_path, "convert", "source", "sae", "--hook", "blocks.1.hook_resid_post", "--model", "gpt2")
    assert done.code == 0, done.said
    assert "goodfire to saelens" in done.out
    assert "Proved on" in done.out
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text(encoding="utf-8"))
    assert (cfg["architecture"], cfg["metadata"]["hook_name"], cfg["metadata"]["model_name"]) == (
        "standard", "blocks.1.hook_resid_post", "gpt2",
    )  # fmt: skip
    done = run(tmp_path, "convert", "sae", "deep/er", "--to", "interpretability-workbench", "--format", "json")
    assert done.code == 0, done.said
    said = json.loads(done.out)
    assert (said["from"], said["to"], said["version"]) == ("saelens", "interpretability-workbench", 1)
    assert (
        set(said["files"]) == {"sae_layer_1.safetensors", "sae_layer_1_metadata.json"} == set(left_in(tmp_path / "deep" / "er"))
    )
    before = torch.load(tmp_path / "source" / "Tiny-SAE-l1.pth", weights_only=True)
    after = load_file(tmp_path / "deep" / "er" / "sae_layer_1.safetensors")
    assert torch.equal(after["encoder.weight"], before["encoder_linear.weight"])
    assert left_in(tmp_path) == ["deep", "sae", "source"]


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_a_source_on_the_hub(hub_server: HubServer, tmp_path: Path) -> None:
    write_example(tmp_path / "source", 0, architecture="topk")
    hub_server.create_repo("sae-org/saes")
    files = {f"a/{path.name}": path.read_bytes() for path in (tmp_path / "source").iterdir()}
    hub_server.push("sae-org/saes", files)
    done = run(tmp_path, "convert", "hf://sae-org/saes/a", "out", "--to", "sparsify", **hub_server.environment(ALICE))
    assert done.code == 0, done.said
    assert left_in(tmp_path / "out") == ["cfg.json", "sae.safetensors"]


def refused(folder: Path, summary: str, *words: str) -> Done:
    """The command must fail with this message, and leave nothing behind."""
    before = left_in(folder)
    done = run(folder, "convert", *words)
    assert (done.code, done.out) == (1, "")
    assert summary in done.err
    assert left_in(folder) == before
    return done


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    write_example(tmp_path / "source", 0, architecture="gated")
    (tmp_path / "there").mkdir()
    refused(tmp_path, "Cannot be expressed in miStudio", "source", "out", "--to", "mistudio")
    refused(tmp_path, "Destination exists", "source", "there")
    (tmp_path / "link").symlink_to("nowhere")
    assert "is a link to nowhere, which is not there" in refused(tmp_path, "Destination exists", "source", "link").err
    refused(tmp_path, "not an option of format saelens", "source", "out", "--option", "k=3")
    refused(tmp_path, "goodfire", "source", "out", "--from", "no_such_format")
    write_example(tmp_path / "two" / "a", 0)
    write_example(tmp_path / "two" / "b", 1)
    assert "a, b" in refused(tmp_path, "More than one SAE", "two", "out").err
    weights = load_file(tmp_path / "source" / "sae_weights.safetensors")
    weights["W_dec"][3, 1] = float("nan")
    save_file(weights, tmp_path / "source" / "sae_weights.safetensors")
    refused(tmp_path, "W_dec[3, 1] is nan", "source", "out")
    assert run(tmp_path, "convert", "source", "out", "--option", "k").code == 2


def test_hooks_on_the_command_line(tmp_path: Path) -> None:
    """They go by the rule of manifests; what is missing is asked for by its option, and what is there is not."""
    hook = "blocks.1.hook_resid_post"
    formats.get("goodfire").example(tmp_path / "plain", 0)
    assert "--hook NAME" in run(tmp_path, "convert", "plain", "a").err
    assert run(tmp_path, "convert", "plain", "b", "--hook", hook).err == ""
    for option in ("--hook", "--hook-out"):
        done = run(tmp_path, "convert", "plain", "c", option, "nonsense hook{}")
        assert (done.code, left_in(tmp_path)) == (2, ["a", "b", "plain"])
        assert "a hook's name begins with a letter" in done.err
    formats.get("sparsify").example(tmp_path / "skip", 0, "skip")  # type: ignore[call-arg]  # has variants
    said = refused(tmp_path, "Needs hook_out", "skip", "c", "--hook", hook).err
    assert "`--hook-out`" in said
    assert "both are the same hook" in said
    assert run(tmp_path, "convert", "skip", "c", "--hook", hook, "--hook-out", hook).code == 0


def test_what_the_files_do_not_say_is_asked_for(tmp_path: Path) -> None:
    formats.get("dictionary_learning").example(tmp_path / "source", 0, "undeclared")  # type: ignore[call-arg]  # has variants
    state = torch.load(tmp_path / "source" / "ae.pt", weights_only=True)
    torch.save({name: value for name, value in state.items() if name != "k"}, tmp_path / "source" / "ae.pt")
    assert "--option" in refused(tmp_path, "declar", "source", "out").err
    done = run(tmp_path, "convert", "source", "out", "--option", "dict_class=AutoEncoderTopK", "--option", "k=6")
    assert done.code == 0, done.said
    assert json.loads((tmp_path / "out" / "cfg.json").read_text(encoding="utf-8"))["k"] == 6


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle_nothing_is_left(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Stopped while the worker has files beside DST: they are gone when the command is over."""
    write_example(tmp_path / "source", 0, architecture="topk", d_in=64, d_sae=4096)
    process = subprocess.Popen(
        [PROGRAM, "convert", "source", "out", "--to", "sparsify"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not any(tmp_path.glob(".out.*/made/*")):
        time.sleep(0.01)
    os.kill(process.pid, number)
    said = process.communicate()[1]
    assert process.returncode == code, said
    assert left_in(tmp_path) == ["source"]


@pytest.mark.parametrize(
    ("format_", "variant", "option", "words"),
    [
        ("sparsify", "no encoder bias", "zero_biases=False", "zero_biases is False; it must be true or false, in lower case."),
        ("sparsify", "no encoder bias", "zero_biases=abc", "zero_biases is abc; it must be true or false, in lower case."),
        ("gemma_scope", "", "kind=3", "kind is 3; it must be sae, attention, embedding or transcoder."),
        (
            "crosscoder",
            "",
            "input_scales=0.5",
            "input_scales is 0.5; it must be a list such as [..., ...], of which each is a number.",
        ),
        ("dictionary_learning", "AutoEncoder", "k=abc", "k is abc; it must be a whole number."),
        ("goodfire_tied", "", "threshold=NaN", "threshold is NaN; it must be a number."),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused_before_any_work(
    format_: str, variant: str, option: str, words: str, tmp_path: Path
) -> None:
    example: Callable[..., Any] = formats.get(format_).example
    example(*((tmp_path / "source", 0, variant) if variant else (tmp_path / "source", 0)))
    done = refused(tmp_path, "Option does not fit", "source", "out", "--from", format_, "--option", option)
    assert words in done.err


def test_what_can_be_said_is_named(tmp_path: Path) -> None:
    nanochat: Callable[..., Any] = formats.get("nanochat").example
    nanochat(tmp_path / "source", 0, "undeclared")
    done = refused(tmp_path, "Needs a declaration", "source", "out")
    assert "activation is topk or relu. k is a whole number, needed only where activation is topk." in done.err
    assert "do not say k." in refused(tmp_path, "Needs a declaration", "source", "out", "--option", "activation=topk").err
    done = run(tmp_path, "convert", "source", "out", "--option", "activation=relu")  # as in a manifest, without k
    assert done.code == 0, done.said
    formats.get("transcoder_circuits").example(tmp_path / "pickled", 0)
    assert "--option trust=pickle." in refused(tmp_path, "Needs a declaration", "pickled", "out2").err


def test_what_storing_rounds_is_told(tmp_path: Path) -> None:
    write_example(tmp_path / "source", 0, architecture="topk")
    weights = load_file(tmp_path / "source" / "sae_weights.safetensors")
    done = run(tmp_path, "convert", "source", "same")
    assert "Rounded" not in done.out
    save_file(weights | {"W_dec": weights["W_dec"].bfloat16()}, tmp_path / "source" / "sae_weights.safetensors")
    done = run(tmp_path, "convert", "source", "mixed")  # one narrow tensor does not make the others narrow
    assert "Rounded" not in done.out
    assert torch.equal(load_file(tmp_path / "mixed" / "sae_weights.safetensors")["W_enc"], weights["W_enc"])
    for to in ("saelens", "interpretability-workbench"):
        write_example(tmp_path / to, 0, architecture="standard")
        done = run(tmp_path, "convert", to, f"{to}-narrow", "--to", to, "--dtype", "bfloat16")
        assert done.code == 0, done.said
        told = re.search(r"Rounded to bfloat16, features differ by at most (\S+) and outputs by (\S+) of their size", done.out)
        assert told is not None, done.out
        assert all(float(number) > 1e-4 for number in told.groups())


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Linux allows any bytes; safetensors opens only names that are text."""
    bad = os.fsdecode(b"bad\xff")
    write_example(tmp_path / "good", 0)
    write_example(tmp_path / bad / "sae", 0)
    for words in ((bad, "out"), (f"{bad}/sae", "out"), ("good", bad + "2"), ("good", f"{bad}2/out")):
        assert "bad\\xff" in refused(tmp_path, "Name is not UTF-8", *words).err
    done = run(tmp_path / bad, "convert", "sae", "out")  # nobody typed it
    assert done.code == 1
    assert "Name is not UTF-8" in done.err


def test_killed_in_the_middle_there_is_no_half_result(tmp_path: Path) -> None:
    """Killed as soon as anything is written beside DST: DST is not there, and the same command then succeeds."""
    write_example(tmp_path / "source", 0, architecture="topk", d_in=64, d_sae=4096)
    process = subprocess.Popen(
        [PROGRAM, "convert", "source", "out"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not any(name.startswith(".out.") for name in left_in(tmp_path)):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out").exists()
    (left,) = (name for name in left_in(tmp_path) if name.startswith(".out."))
    done = run(tmp_path, "convert", "source", "out")
    assert done.code == 0, done.said
    assert f"removed {left}, which a run that was killed had left" in done.err
    assert set(left_in(tmp_path / "out")) == {"cfg.json", "sae_weights.safetensors"}
    assert left_in(tmp_path) == ["out", "source"]


def test_only_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """Not what is being filled, holds anything else, is a link or a file, or belongs to another DST."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, alive = gone.pid, os.getpid()
    for name in (f"{dead}-aaaaaaaa", f"{dead}-locked", f"{dead}-more", f"{alive}-bbbbbbbb"):
        (tmp_path / f".out.saesync-{name}" / "made").mkdir(parents=True)
    (tmp_path / f".out.saesync-{dead}-more" / "mine.txt").write_text("mine")
    (tmp_path / f".out.saesync-{dead}-file").write_text("mine")
    (tmp_path / f".out.saesync-{dead}-link").symlink_to(tmp_path)
    for name in (f".out.saesync-{'9' * 40}-x", ".out.saesync-x-y", f".other.saesync-{dead}-x", ".out.abcdefgh"):
        (tmp_path / name / "made").mkdir(parents=True)
    handle = os.open(tmp_path / f".out.saesync-{dead}-locked", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    before = left_in(tmp_path)
    try:
        assert [path.name for path in sweep(tmp_path / "out")] == [f".out.saesync-{dead}-aaaaaaaa"]
    finally:
        os.close(handle)
    assert left_in(tmp_path) == [name for name in before if not name.endswith("aaaaaaaa")]
    assert sweep(tmp_path / "nowhere" / "out") == []
