"""A loopback Hub that looks as if 170 releases with 14,000 SAEs had been published by saesync: SAELens's registry in size.

The weights are one small file that all SAEs share: a plan never reads weights, only listings, records and cards.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from saesync import card, manifest
from saesync.cache import Cache
from saesync.digest import digest_bytes
from saesync.keys import Wanted
from saesync.measure.metrics import METRICS
from saesync.model import CFG_FILE, WEIGHTS_FILE, Release
from saesync.record import CardFile, Evidence, Metric, Record, SaeRecord, record_path
from saesync.resolve import Resolver
from saesync.tags import tag_name

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from servers.loopback import HubServer

RELEASES, REPOS, LAYERS = 170, 90, 41
WIDTHS = ("16k", "65k")
WEIGHTS = b"weights" * 64
HEX = "0123456789abcdef" * 2 + "01234567"

MANIFEST = """\
apiVersion: saesync/v1
release: release-{number:03d}
model:
  name: acme/model
  revision: {hex}
saes:
  for_each:
    layer: {{first: 0, last: {last}}}
    width: [{widths}]
  id: r{number:03d}/layer_{{layer}}/width_{{width}}
  hook: blocks.{{layer}}.hook_resid_post
  source:
    repo: sae-org/source-{repo:02d}
    revision: {revision}
    path: r{number:03d}/layer_{{layer}}_{{width}}.pth
    format: goodfire
validate:
  dataset:
    repo: acme/text
    revision: {hex}
  tokens: 204800
  context: 1024
  require:
    explained_variance: {{min: 0.5}}
publish:
  huggingface: sae-org/published-{repo:02d}
  license: mit
"""


def build(server: HubServer, folder: Path) -> Path:
    """Fill the server and write the manifests; returns their folder."""
    manifests = folder / "manifests"
    manifests.mkdir(parents=True)
    for repo in range(REPOS):
        _publish_source(server, repo, manifests)
    releases = manifest.load(manifest.find((manifests,)))
    wanted = Resolver(Cache(folder / "cache-of-the-builder")).resolve(releases, {})
    by_repo: dict[str, list[Release]] = defaultdict(list)
    for release in releases:
        assert release.publish is not None
        by_repo[release.publish.location].append(release)
    for repo_id, members in by_repo.items():
        _publish(server, repo_id, members, dict(wanted))
    return manifests


def _publish_source(server: HubServer, repo: int, manifests: Path) -> None:
    numbers = range(repo, RELEASES, REPOS)
    server.create_repo(f"sae-org/source-{repo:02d}")
    names = [f"r{n:03d}/layer_{layer}_{width}.pth" for n in numbers for layer in range(LAYERS) for width in WIDTHS]
    revision = server.push(f"sae-org/source-{repo:02d}", {name: name.encode() for name in names})
    for number in numbers:
        text = MANIFEST.format(number=number, repo=repo, revision=revision, hex=HEX, last=LAYERS - 1, widths=", ".join(WIDTHS))
        (manifests / f"release-{number:03d}.yaml").write_text(text)


def _publish(server: HubServer, repo_id: str, members: list[Release], wanted: dict[str, Wanted]) -> None:
    server.create_repo(repo_id)
    files: dict[str, bytes | None] = {}
    readme: str | None = None
    tags: list[str] = []
    for release in members:
        record = Record(release.name, {sae.id: _entry(wanted[sae.address]) for sae in release.saes})
        tags.append(tag_name(record))
        found = readme
        readme, digest = card.make_card(release, record, readme, tags[-1])
        note = CardFile(
            None if found is None else digest_bytes(found.encode()).blob_id, digest_bytes(readme.encode()).blob_id or ""
        )
        files[record_path(release.name)] = Record(release.name, record.saes, digest, card_file=note).to_bytes()
        for sae in release.saes:
            files |= {f"{sae.id}/{CFG_FILE}": _cfg(wanted[sae.address]), f"{sae.id}/{WEIGHTS_FILE}": WEIGHTS}
    assert readme is not None
    files["README.md"] = readme.encode()
    server.push(repo_id, files, lfs=tuple(name for name in files if name.endswith(WEIGHTS_FILE)))
    for tag in tags:
        server.call("POST", f"/api/models/{repo_id}/tag/main", json.dumps({"tag": tag}).encode())


def _cfg(wanted: Wanted) -> bytes:
    return f'{{"id": "{wanted.sae.id}"}}\n'.encode()


def _entry(wanted: Wanted) -> SaeRecord:
    inputs = wanted.inputs
    assert inputs is not None
    assert inputs.measure_key is not None
    assert inputs.measure is not None
    files = {CFG_FILE: digest_bytes(_cfg(wanted)), WEIGHTS_FILE: digest_bytes(WEIGHTS)}
    metrics = {name: Metric(0.9, 0.01) for name in METRICS}
    evidence = Evidence(inputs.measure_key, files[WEIGHTS_FILE].sha256 or "", metrics, inputs.measure, {"device": "cpu"})
    parts = {"weights": inputs.weights, "build": inputs.build}
    return SaeRecord(inputs.weights_key, inputs.build_key, files, parts, {"rows": 512}, (evidence,))
