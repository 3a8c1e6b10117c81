"""Converting dense float32 checkpoints of growing size, many of them, and side by side with SAELens; inspecting 2 GB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench_convert import GIB, MAKE, copy_and_hash, measured
from benchmarks.table import Row, run
from saesync.apply.crew import cores

TITLE = "Converting and inspecting dense float32 SAEs, random weights"
WIDTHS = {"1 GB": 32768, "2 GB": 65536, "4 GB": 131072}  # d_sae of a Goodfire checkpoint with d_in 4096
MANY, MANY_WIDTH = 26, 18310  # of 300 MB each, with d_in 2048, written by one process and by two

# Writes SAEs without proof, one after another; a process is started for each share.
WRITE_MANY = """
import sys
from pathlib import Path
from saesync import formats
from saesync.convert.writer import write_sae
from saesync.formats.base import SourceFiles
chosen = formats.get("goodfire")
for source in sys.argv[2:]:
    weights = chosen.read(SourceFiles({"sae.pth": Path(source)}), formats.make_options(chosen, {}))
    write_sae(weights, Path(sys.argv[1]) / Path(source).stem, "float32", {}, {"hook_name": "blocks.19.hook_resid_post"})
"""

# SAELens's own loader, its downloads answered from this disk, then its own save_model.
SAE_LENS = """
import json, sys, warnings
warnings.simplefilter("ignore")
import sae_lens.loading.pretrained_sae_loaders as loaders
from sae_lens import SAE
name, repo, folder, root, out, overrides = sys.argv[1:]
def here(repo_id=None, filename=None, subfolder=None, **_):
    return "/".join(part for part in (root, subfolder, filename) if part)
loaders.hf_hub_download = here
cfg, state, _ = getattr(loaders, name)(repo, folder, device="cpu", cfg_overrides=json.loads(overrides))
sae = SAE.load_from_disk(root, device="cpu", converter=lambda *_, **__: (cfg, state))
for parameter in sae.parameters():
    parameter.data = parameter.data.contiguous()  # save_model refuses what the loader only transposed
sae.save_model(out)
"""

# saesync's reading and writing without its proof: what SAELens's load and save_model do.
UNPROVED = """
import sys
from pathlib import Path
from saesync import formats
from saesync.convert.writer import write_sae
from saesync.inspection import inspect_local
from saesync.inspection.choosing import choose
chosen = choose(inspect_local(Path(sys.argv[1])))
format_ = formats.get(chosen.format)
files = formats.base.SourceFiles({name: Path(path) for name, path in chosen.files.items()})
weights = format_.read(files, formats.make_options(format_, chosen.options))
write_sae(weights, Path(sys.argv[2]), "float32", {}, {"hook_name": "blocks.12.hook_resid_post"})
"""

MAKE_PEER = """
import json, sys, numpy as np, torch
from pathlib import Path
kind, root = sys.argv[1], Path(sys.argv[2])
torch.manual_seed(0)
def linear(d_in, d_sae, e, d):
    shapes = {f"{e}.weight": (d_sae, d_in), f"{e}.bias": (d_sae,), f"{d}.weight": (d_in, d_sae)}
    return {name: torch.randn(shape) / 64 for name, shape in shapes.items()}
if kind == "gemma_scope":
    folder = root / "gemma-scope-2b-pt-res" / "layer_12/width_16k/average_l0_82"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    t = {"W_enc": (2304, 16384), "W_dec": (16384, 2304), "b_enc": (16384,), "b_dec": (2304,), "threshold": (16384,)}
    np.savez(folder / "params.npz", **{name: np.abs(rng.standard_normal(shape, np.float32)) / 64 for name, shape in t.items()})
elif kind == "goodfire":
    torch.save(linear(2048, 32768, "encoder_linear", "decoder_linear") | {"decoder_linear.bias": torch.randn(2048)},
               root / "Llama-3.1-8B-Instruct-SAE-l19.pth")
else:
    (root / "a").mkdir()
    torch.save(linear(2048, 32768, "encoder", "decoder") | {"bias": torch.randn(2048)}, root / "a" / "ae.pt")
    trainer = {"dict_class": "AutoEncoder", "activation_dim": 2048, "dict_size": 32768, "layer": 3, "lm_name": "gpt2",
               "submodule_name": "resid_post_layer_3"}
    (root / "a" / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
"""
PEERS = {
    "gemma_scope": (
        "gemma_2_sae_huggingface_loader", "google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82",
        "gemma-scope-2b-pt-res", "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", {},
    ),
    "dictionary_learning": ("dictionary_learning_sae_huggingface_loader_1", "x/y", "a", "", "a", {}),
    "goodfire": (
        "get_goodfire_huggingface_loader", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "Llama-3.1-8B-Instruct-SAE-l19.pth", "",
        "Llama-3.1-8B-Instruct-SAE-l19.pth", {"d_in": 2048, "d_sae": 32768},
    ),
}  # fmt: skip


def rows() -> list[Row]:
    """All tables of this file as one; everything large is made in a temporary folder and removed again."""
    found: list[Row] = []
    for part in (sizes, many, inspecting, side_by_side):
        with tempfile.TemporaryDirectory() as name:
            found += part(Path(name))
    return found


def sizes(folder: Path) -> list[Row]:
    """Peak anonymous memory must not grow with the file; time is that of copying and hashing it, times two."""
    found = []
    for label, width in WIDTHS.items():
        source = folder / "sae.pth"
        python(MAKE, "4096", str(width), str(source))
        pair = min(copy_and_hash(source, folder / "copy") for _ in range(2))
        tries = []
        for _ in range(2):
            tries.append(measured("write", source, folder / "out"))
            remove(folder / "out")
        wall, peak = min(wall for wall, _ in tries), max(peak for _, peak in tries)
        found.append(
            Row(f"{label} without proof, over cp + sha256sum", wall / pair, "x", f"{wall:.1f} s over {pair:.1f} s", "<= 2")
        )
        found.append(Row(f"{label} without proof: peak anonymous memory", peak / GIB, "GiB", "", "<= 1"))
        if width == min(WIDTHS.values()):
            limit, size = "limit 1 GiB + 2.2 x file", source.stat().st_size
            _, peak = measured("prove", source, folder / "out")
            remove(folder / "out")
            what = f"{label} with proof: peak anonymous memory"
            found.append(Row(what, peak / GIB, "GiB", limit, f"<= {1 + 2.2 * size / GIB:.2f}"))
        source.unlink()
    return found


def many(folder: Path) -> list[Row]:
    """Several SAEs by one process and by two at once, over copying and hashing all of them."""
    sources = [folder / f"{index}.pth" for index in range(MANY)]
    python(MAKE, "2048", str(MANY_WIDTH), str(sources[0]))
    for source in sources[1:]:  # other names of one file: what is written is 26 files all the same
        os.link(sources[0], source)
    pair = sum(copy_and_hash(source, folder / "copy") for source in sources)
    one = timed(lambda: written(folder / "one", [sources]))
    remove(folder / "one")
    two = timed(lambda: written(folder / "two", [sources[::2], sources[1::2]]))
    size = sum(source.stat().st_size for source in sources) / 1e9
    return [
        Row(f"{MANY} SAEs, {size:.1f} GB in all, by two processes, over cp + sha256sum of all", two / pair, "x",
            f"{two:.1f} s over {pair:.1f} s", "<= 2"),
        Row("the same, over one after another", two / one, "x", f"{two:.1f} s over {one:.1f} s", "<= 1"),
    ]  # fmt: skip


def written(out: Path, shares: list[list[Path]]) -> None:
    """Write each share in a process of its own, all at once, with its share of the cores, as apply's workers have."""
    threads = max(1, cores() // len(shares))
    words = [[sys.executable, "-W", "ignore", "-c", WRITE_MANY, str(out), *map(str, share)] for share in shares]
    processes = [subprocess.Popen(each, env={**os.environ, "OMP_NUM_THREADS": str(threads)}) for each in words]
    for process in processes:
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, process.args)


def inspecting(folder: Path) -> list[Row]:
    """`saesync inspect` of 2 GB: what it takes, and that it does so without torch."""
    program = "import sys, numpy as np; z = lambda *s: np.zeros(s, np.float32); np.savez(sys.argv[1], W_enc=z(4096, 65536), " \
        "W_dec=z(65536, 4096), b_enc=z(65536), b_dec=z(4096), threshold=z(65536))"  # fmt: skip
    python(program, str(folder / "params.npz"))
    shapes = {"encoder_linear.weight": (65536, 4096), "encoder_linear.bias": (65536,),
              "decoder_linear.weight": (4096, 65536), "decoder_linear.bias": (4096,)}  # fmt: skip
    sparse(folder / "sae.safetensors", shapes)
    found = []
    for name in ("sae.safetensors", "params.npz"):
        saesync = [str(Path(sys.executable).with_name("saesync")), "inspect", str(folder / name)]
        done = min((run(saesync) for _ in range(5)), key=lambda each: each.wall)
        watched = (
            "import sys; sys.argv[0] = 'saesync'; from saesync.cli import cli; "
            "cli.main(sys.argv[1:], standalone_mode=False); sys.exit('torch' in sys.modules)"
        )
        light = run([sys.executable, "-c", watched, *saesync[1:]])
        if done.code or light.code:
            raise RuntimeError(done.output + light.output)
        against = f"the whole command, best of 5; {done.cpu:.2f} s of CPU"
        found.append(Row(f"inspect of {name}, 2 GB, without torch", done.wall, "s", against, "<= 0.3"))
    return found


def sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros that takes no room on disk."""
    entries, at = {}, 0
    for name, shape in shapes.items():
        length = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + length]}
        at += length
    header = json.dumps(entries).encode()
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + at)


def side_by_side(folder: Path) -> list[Row]:
    """SAELens's loader and save_model, against the same without proof, and `saesync convert`, which proves."""
    found = []
    for kind, (loader, repo, inside, root, path, overrides) in PEERS.items():
        place = folder / kind
        place.mkdir()
        python(MAKE_PEER, kind, str(place))
        interpreter = [sys.executable, "-W", "ignore", "-c"]
        theirs = [*interpreter, SAE_LENS, loader, repo, inside, str(place / root), str(folder / "theirs"), json.dumps(overrides)]
        ours = [*interpreter, UNPROVED, str(place / path), str(folder / "ours")]
        options = [str(Path(sys.executable).with_name("saesync")), "convert", str(place / path), str(folder / "proved")]
        for label, words, out in (
            ("SAELens, load and save_model", theirs, "theirs"),
            ("saesync, without proof", ours, "ours"),
            ("saesync convert, with proof", [*options, "--hook", "blocks.12.hook_resid_post"], "proved"),
        ):
            done = run(words)
            if done.code:
                raise RuntimeError(done.output)
            found.append(Row(f"{kind}: {label}", done.wall, "s", f"peak RSS {done.peak / GIB:.2f} GiB"))
            remove(folder / out)
        remove(place)
    return found


def python(program: str, *words: str) -> None:
    """Run a program in a process of its own."""
    subprocess.run([sys.executable, "-c", program, *words], check=True)


def timed(work: Callable[[], None]) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def remove(path: Path) -> None:
    """A folder with all in it."""
    subprocess.run(["rm", "-rf", str(path)], check=True)
