"""Small SAEs, batches and places for the tests of targets."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from servers.loopback import HubServer

from saesync.digest import digest_file, key_of
from saesync.model import Observed
from saesync.record import Evidence, Metric, Native, Record, SaeRecord
from saesync.targets.base import Batch, Target, Upload

BEGIN, END = "<!-- saesync:begin -->", "<!-- saesync:end -->"


def card(record: Record, found: str | None) -> tuple[str, str]:
    """A card that keeps text outside its block: one line per SAE with its l0."""
    lines = [
        f"- {name} {sae.evidence[0].metrics['l0'].value if sae.evidence else '?'}" for name, sae in sorted(record.saes.items())
    ]
    block = "\n".join([BEGIN, *lines, END])
    text = found or f"---\nlibrary_name: saelens\n---\n{BEGIN}{END}\n"
    if BEGIN not in text:
        text += f"\n{BEGIN}{END}\n"
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return before + block + after, key_of(lines)


def upload(folder: Path, seed: int, size: int = 20_000, l0: float = 10.0, cfg: str = "a") -> Upload:
    """A small SAE in ``folder``: random weights by ``seed``, a cfg, evidence."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sae_weights.safetensors").write_bytes(b"\0\1" + random.Random(seed).randbytes(size))
    (folder / "cfg.json").write_text(json.dumps({"seed": seed, "label": cfg}))
    files = {path.name: path for path in folder.iterdir()}
    digests = {name: digest_file(path) for name, path in files.items()}
    weights = digests["sae_weights.safetensors"].sha256 or ""
    evidence = Evidence(key_of(["measure", seed]), weights, {"l0": Metric(l0, 0.5)})
    record = SaeRecord(key_of(seed), key_of([seed, cfg]), digests, evidence=(evidence,), run={"seconds": 1.5})
    return Upload(record, files)


def native_upload(folder: Path, seed: int) -> Upload:
    """An SAE that could not be converted: a checkpoint in a folder of its own, a config, and the refusal."""
    contents = {
        "native/checkpoints/final.safetensors": b"\0\2" + random.Random(seed).randbytes(20_000),
        "native/hyperparams.json": json.dumps({"seed": seed}).encode(),
        "native/refusal.json": b"{}",
    }
    files = {name: folder / name for name in contents}
    for name, data in contents.items():
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_bytes(data)
    digests = {name: digest_file(path) for name, path in files.items()}
    why = Native("Cannot be expressed in SAELens", "hyperparams.json: use_glu_encoder is true.", "use_glu_encoder")
    return Upload(SaeRecord(key_of(seed), key_of([seed, "native"]), digests, native=why), files)


def batch(release: str, uploads: Mapping[str, Upload], **more: object) -> Batch:
    return replace(Batch(release, uploads, card, message=f"{release}: test"), **more)  # type: ignore[arg-type]


@dataclass
class Place:
    """A target with a location, and what somebody else can do to it."""

    target: Target
    location: str
    server: HubServer | None

    def observe(self) -> Observed:
        return self.target.observe(self.location)

    def publish(self, work: Batch, expect: Observed | None = None) -> Observed:
        return self.target.publish(self.location, work, expect if expect is not None else self.observe())

    def somebody_else(self, files: Mapping[str, bytes | None]) -> None:
        if self.server is not None:
            self.server.push(self.location, files)
            return
        for name, data in files.items():
            path = Path(self.location) / name
            if data is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def exists(self) -> None:
        """The empty place exists."""
        if self.server is not None:
            self.server.create_repo(self.location)
        else:
            Path(self.location).mkdir(parents=True)

    def writes(self) -> object:
        """Changes whenever anything is written."""
        if self.server is not None:
            return self.server.commits(self.location), self.server.uploaded_bytes()
        root = Path(self.location)
        return {str(path): path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}

    def text(self, name: str) -> str:
        if self.server is not None:
            return self.server.file(self.location, name).decode()
        return (Path(self.location) / name).read_bytes().decode()
