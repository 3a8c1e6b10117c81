"""Publishes to a local folder again and again, each time killed one file operation later, and publishes again after each death.

Run as ``python local_killer.py FOLDER``; the world is the one of ``world``. Prints one JSON line: how many points there were, and
which of them left another tree than an uninterrupted publish.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from target_support import batch, native_upload, upload  # noqa: E402

from saesync.cache import Cache  # noqa: E402
from saesync.model import Observed  # noqa: E402
from saesync.record import Record  # noqa: E402
from saesync.targets.base import Batch, Upload  # noqa: E402
from saesync.targets.local import Local  # noqa: E402

OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


def tree(root: Path) -> dict[str, str]:
    """Everything below, hidden files and empty folders too."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def world(folder: Path) -> tuple[Batch, Batch]:
    """What is there already, and a batch with everything a batch can do: new, rebuilt, moved, relabelled, removed;
    and SAEs that could not be converted before, or cannot be any more."""
    (folder / "old").mkdir(parents=True)
    (folder / "old" / "sparsity.safetensors").write_bytes(b"\0sparsity")
    old, gone, moved, label = (upload(folder / name, n) for n, name in enumerate(("old", "gone", "moved", "label")))
    plain, one, two = upload(folder / "plain", 4), native_upload(folder / "one", 5), native_upload(folder / "two", 6)
    native = {"deep/plain": plain, "deep/one": one, "two": two}
    first = batch("res", {"old": old, "deep/gone": gone, "moved_from": moved, "label": label, **native})
    relabelled, renamed = upload(folder / "label2", 3, cfg="b"), upload(folder / "moved2", 2, cfg="b")
    second = batch(
        "res",
        {
            "old": upload(folder / "rebuilt", 11),
            "deep/new": upload(folder / "new", 12),
            "moved_to": Upload(renamed.record, {"cfg.json": renamed.files["cfg.json"]}, copy_from="moved_from"),
            "deep/plain": native_upload(folder / "three", 13),
            "deep/one": upload(folder / "four", 14),
            "label": Upload(relabelled.record, {"cfg.json": relabelled.files["cfg.json"]}),
        },
        removed=frozenset({"deep/gone", "moved_from", "two"}),
    )
    return first, second


def die_at(point: int, root: Path) -> None:
    """Kill this process at the ``point``-th operation that changes something under ``root``."""
    seen = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in OPERATIONS) and any(str(root) in str(arg) for arg in args):
            seen += 1
            if seen == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def attempt(root: Path, work: Batch, cache: Path, point: int) -> bool:
    """Publish in a child process that is killed at ``point``. True when it was killed."""
    child = os.fork()
    if child == 0:
        target = Local(Cache(cache))
        seen = target.observe(str(root))
        die_at(point, root)
        target.publish(str(root), work, seen)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def explained(seen: Observed, name: str) -> bool:
    """Whether a planner that looks now would know what it sees: an SAE as recorded, none, or files marked as pending."""
    record = seen.records.get("res", Record("res"))
    files = seen.folder(name)
    entry = record.saes.get(name)
    if name in record.pending:
        return record.half_placed(name, files)
    if entry is None:
        return not files
    return set(files) == set(entry.files) and all(files[file].same_bytes(digest) for file, digest in entry.files.items())


def pairs(root: Path) -> set[tuple[str, str | None]]:
    """What a reader who needs no record loads: every cfg with the weights beside it, if any."""
    found = {name: digest for name, digest in tree(root).items() if not name.startswith(".")}
    configs = [name for name in found if name.rpartition("/")[2] == "cfg.json"]
    return {(found[name], found.get(name.removesuffix("cfg.json") + "sae_weights.safetensors")) for name in configs}


def sweep(folder: Path, start: Batch | None, work: Batch, label: str) -> tuple[int, list[str]]:
    """Kill at every point; each time compare with the uninterrupted tree, and see that a second publish writes nothing."""
    cache = folder / "cache"

    def fresh(name: str) -> Path:
        root = folder / label / name
        if start is not None:
            target = Local(Cache(cache))
            target.publish(str(root), start, target.observe(str(root)))
        return root

    whole = fresh("whole")
    loadable = pairs(whole)
    target = Local(Cache(cache))
    target.publish(str(whole), work, target.observe(str(whole)))
    loadable |= pairs(whole)
    point, wrong = 0, []
    while True:
        point += 1
        root = fresh("broken")
        killed = attempt(root, work, cache, point)
        if killed:
            seen = target.observe(str(root))
            if seen.unknown is not None or seen.locked:
                wrong.append(f"{label} {point}: unreadable after the kill")
            wrong += [
                f"{label} {point}: {name} is neither whole nor pending" for name in work.uploads if not explained(seen, name)
            ]
            if pairs(root) - loadable:
                wrong.append(f"{label} {point}: a cfg without the weights it was made with")
            target.publish(str(root), work, seen)
        if tree(root) != tree(whole):
            wrong.append(f"{label} {point}: another tree")
        shutil.rmtree(root)
        if not killed:
            return point - 1, wrong


def main() -> None:
    os.fsync = lambda fd: None  # processes die here, not the machine; thousands of flushes would only cost time
    folder = Path(sys.argv[1])
    first, second = world(folder / "sources")
    counts = {}
    wrong: list[str] = []
    for label, start, work in (("first", None, first), ("second", first, second)):
        counts[label], found = sweep(folder, start, work, label)
        wrong += found
    print(json.dumps({"points": counts, "wrong": wrong}))


if __name__ == "__main__":
    main()
