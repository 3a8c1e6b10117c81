"""Converting a 2 GB Goodfire checkpoint (d_in 4096, d_sae 65536, float32), against copying and hashing the same file."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.table import Row

TITLE = "Convert of a Goodfire .pth, d_in 4096, d_sae 65536, float32, random weights"
GIB = 1 << 30

MAKE = """
import sys, torch
d_in, d_sae, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.manual_seed(0)
shapes = {"encoder_linear.weight": (d_sae, d_in), "encoder_linear.bias": (d_sae,),
          "decoder_linear.weight": (d_in, d_sae), "decoder_linear.bias": (d_in,)}
torch.save({name: torch.randn(shape) / d_in ** 0.5 for name, shape in shapes.items()}, path)
"""

# Runs in a process of its own; prints the peak of RssAnon, sampled every 5 ms, and the seconds of the work itself.
MEASURE = """
import sys, threading, time
from pathlib import Path
peak, over = 0, threading.Event()
def sample():
    global peak
    while not over.wait(0.005):
        text = Path("/proc/self/status").read_text()
        peak = max(peak, int(text.split("RssAnon:")[1].split()[0]) * 1024)
thread = threading.Thread(target=sample)
thread.start()
mode, source, out = sys.argv[1:]
begun = time.perf_counter()
from saesync import formats
from saesync.convert.writer import write_sae
from saesync.formats.base import SourceFiles
if mode == "write":
    chosen = formats.get("goodfire")
    weights = chosen.read(SourceFiles({"sae.pth": Path(source)}), formats.make_options(chosen, {}))
    write_sae(weights, Path(out), "float32", {}, {"hook_name": "blocks.19.hook_resid_post"})
else:
    from saesync.executors.convert import run
    from saesync.jobs import ConvertJob
    metadata = {"hook_name": "blocks.19.hook_resid_post", "model_name": "random"}
    run(ConvertJob("bench/sae", "goodfire", {}, {"sae.pth": source}, "float32", {}, metadata, out))
seconds = time.perf_counter() - begun
over.set()
thread.join()
print(peak, seconds)
"""


def rows(d_in: int = 4096, d_sae: int = 65536) -> list[Row]:
    """Wall time of the conversion without proof over cp + sha256sum, and peak anonymous memory without and with proof."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "sae.pth"
        subprocess.run([sys.executable, "-c", MAKE, str(d_in), str(d_sae), str(source)], check=True)
        size = source.stat().st_size
        pair = min(copy_and_hash(source, folder / "copy") for _ in range(2))
        (wall, peak), (wall_again, peak_again) = (measured("write", source, folder / f"written{n}") for n in range(2))
        proof_wall, proof_peak = measured("prove", source, folder / "proved")
    wall, peak = min(wall, wall_again), max(peak, peak_again)
    return [
        Row(
            "without proof, over cp + sha256sum", wall / pair, "x", f"{wall:.1f} s over {pair:.1f} s, {size / 1e9:.2f} GB", "<= 2"
        ),
        Row("without proof: peak anonymous memory", peak / GIB, "GiB", "", "<= 1"),
        Row("with proof", proof_wall, "s", "two passes through the authors' function and SAELens's in float64"),
        Row(
            "with proof: peak anonymous memory",
            proof_peak / GIB,
            "GiB",
            "limit 1 GiB + 2.2 x file",
            f"<= {1 + 2.2 * size / GIB:.2f}",
        ),
    ]


def copy_and_hash(source: Path, copy: Path) -> float:
    """Seconds of ``cp`` followed by ``sha256sum`` of the copy."""
    begun = time.perf_counter()
    subprocess.run(["cp", source, copy], check=True)
    subprocess.run(["sha256sum", copy], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begun
    copy.unlink()
    return seconds


def measured(mode: str, source: Path, out: Path) -> tuple[float, int]:
    """Wall seconds of a whole process, start and imports included, and its peak RssAnon in bytes."""
    begun = time.perf_counter()
    words = [sys.executable, "-W", "ignore", "-c", MEASURE, mode, str(source), str(out)]
    printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - begun, int(printed.split()[-2])
