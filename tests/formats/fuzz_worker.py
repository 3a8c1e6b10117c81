"""Mutated files of every format, read one after another in this process. Arguments: how many, seed, a scratch folder.

Prints one JSON object: what was read, what was refused, what went wrong, the slowest file and by how much peak memory grew.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import random
import resource
import signal
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from convert_support import METADATA, Case, cases

from saesync import formats
from saesync.convert.writer import write_sae
from saesync.errors import SaesyncError
from saesync.formats import _quarantine_child
from saesync.formats.base import SourceFiles
from saesync.inspection import inspect_local

SECONDS = 5
# What a file could make a reader do, as Python's own audit events.
_FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class")
_NUMBERS = (0, 1, 2, 12, 40, -1, 255, 1 << 31, (1 << 63) - 1, 1 << 64)
_executed: list[str] = []


class Hung(BaseException):
    """A file took more than SECONDS."""


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 6)):
        data[chance.randrange(len(data))] = chance.randrange(256)


def drop(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.randint(1, 64)]


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def repeat(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    piece = bytes(data[start : start + chance.randint(1, 64)])
    data[start:start] = piece * chance.randint(1, 3)


def splice(data: bytearray, chance: random.Random) -> None:
    first, second = chance.randrange(len(data)), chance.randrange(len(data))
    length = chance.randint(1, 200)
    data[first : first + length] = bytes(data[second : second + length])


def integer(data: bytearray, chance: random.Random) -> None:
    """A length or an offset: little-endian, of some width."""
    width = chance.choice((1, 2, 4, 8))
    at = chance.randrange(max(1, min(len(data) - width, 4000)))
    data[at : at + width] = (chance.choice(_NUMBERS) & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def digits(data: bytearray, chance: random.Random) -> None:
    """A number or a word in a JSON header or config."""
    places = [at for at, byte in enumerate(data[:4000]) if 48 <= byte < 58]
    if places:
        at = chance.choice(places)
        data[at : at + 1] = chance.choice((b"9", b"-1", b"1e9", b"null", b'"x"', b"[[]]", b"true", b"99999999999", b"0.5"))


def opcode(data: bytearray, chance: random.Random) -> None:
    """Opcodes that name and call things, dropped into what may be a pickle."""
    call = chance.choice(
        (b"cos\nsystem\nX\x02\x00\x00\x00idq\x00\x85R0", b"cbuiltins\neval\n0", b"(i", b"b", b"R", b"\x81", b"\x93", b".")
    )
    at = chance.randrange(len(data))
    data[at:at] = call


MUTATORS: Sequence[Callable[[bytearray, random.Random], None]] = (
    flip, drop, cut, repeat, splice, integer, integer, digits, digits, opcode,
)  # fmt: skip


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Changed bytes; of an archive as often what is inside of it, packed again so that its checksums are right."""
    if data[:2] == b"PK" and chance.random() < 0.7:
        return _inside_zip(data, chance)
    if data[:2] == b"\x1f\x8b" and chance.random() < 0.8:
        return gzip.compress(_changed(gzip.decompress(data), chance), 1)
    return _changed(data, chance)


def _inside_zip(data: bytes, chance: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in members if name.endswith("data.pkl")]
    chosen = chance.choice(pickles if pickles and chance.random() < 0.8 else sorted(members))
    members[chosen] = _changed(members[chosen], chance)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED if chance.random() < 0.95 else zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _changed(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if changed:
            chance.choice(MUTATORS)(changed, chance)
    return bytes(changed)


def read(case: Case, folder: Path, paths: Mapping[str, Path], options: Mapping[str, Any], out: Path) -> None:
    """What a user's file meets: inspection, the format's own reader, and the writer that goes through every number."""
    inspect_local(folder)
    if options.get("trust"):
        (path,) = paths.values()
        _quarantine_child._rewrite(path, path.name, out)
        options = {**options, "trust": None}
    weights = case.format.read(SourceFiles(paths), formats.make_options(case.format, options))
    more = {"hook_name_out": "blocks.0.hook_mlp_out"} if "d_out" in weights.cfg else {}
    write_sae(weights, out / "written", "float32", {}, {**METADATA, **more})


def attempt(action: Callable[[], None]) -> tuple[str, str]:
    """How it ended: "read", "refused", or what went wrong, with its traceback."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        action()
    except (SaesyncError, *(_quarantine_child.DAMAGE)) as error:
        return "refused", str(error)[:200]
    except Hung:
        return "hung", traceback.format_exc()
    except BaseException as error:  # noqa: BLE001  the whole point: nothing else may come out
        return type(error).__name__, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read", ""


def sources_of(case: Case, folder: Path) -> Mapping[str, str]:
    """The example's files by relative name, listed as a repository's folder would be."""
    listed = [f"sae/{found.relative_to(folder)}" for found in sorted(folder.rglob("*")) if found.is_file()]
    return {name: place.removeprefix("sae/") for name, place in case.format.files(listed, "sae").items()}


def main(count: int, seed: int, scratch: Path) -> dict[str, Any]:
    def hung(*_: Any) -> None:
        raise Hung

    def audit(event: str, arguments: Any) -> None:
        if event in _FORBIDDEN:
            _executed.append(event)

    signal.signal(signal.SIGALRM, hung)
    chance, ends, wrong, slowest = random.Random(seed), {}, [], 0.0
    prepared = []
    for number, case in enumerate(cases()):
        folder = scratch / f"{number}"
        options = dataclasses.asdict(case.example(folder, number))
        paths = {name: folder / listed for name, listed in sources_of(case, folder).items()}
        prepared.append((case, folder, paths, options, {path: path.read_bytes() for path in paths.values()}))
    sys.addaudithook(audit)
    before = peak_mib()
    for number in range(count):
        case, folder, paths, options, whole = prepared[number % len(prepared)]
        path = chance.choice(sorted(whole))
        path.write_bytes(mutated(whole[path], chance))
        begun = time.perf_counter()
        end, detail = attempt(lambda: read(case, folder, paths, options, scratch / "out"))  # noqa: B023  called at once
        slowest = max(slowest, time.perf_counter() - begun)
        ends[end] = ends.get(end, 0) + 1
        if end not in ("read", "refused"):
            wrong.append(f"{case.name} {case.variant} file {number}: {detail}")
            (scratch / f"wrong-{number}-{path.name}").write_bytes(path.read_bytes())
        path.write_bytes(whole[path])
    grown = peak_mib() - before
    return {"ends": ends, "wrong": wrong[:5], "executed": _executed[:5], "slowest_s": slowest, "grown_mib": grown}


def peak_mib() -> int:
    """The most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    scratch = Path(sys.argv[3])
    (scratch / "out").mkdir(parents=True)
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), scratch)))
