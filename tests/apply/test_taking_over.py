"""A repository that was filled by hand: imported, then measured where it is, or taken over with its bytes as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from apply_world import Run
from hub_world import DATA, MODEL, SOURCES, HubWorld

from saesync.cache import Cache
from saesync.hub import Hub
from saesync.importing import repository
from saesync.importing.layout import UPSTREAM
from saesync.inspection import parse_reference
from saesync.inspection.folders import saelens_folders
from saesync.model import Choices, Status
from saesync.record import parse_record

Look = Callable[..., Run]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.parametrize("hub_process", ["lfs"], indirect=True),
]
RECORDS = "alice/evidence"
IDS = {"sweep/layer_0", "sweep/layer_1"}


@pytest.fixture
def imported(hub_world: HubWorld, tmp_path: Path) -> Path:
    """The manifest of what stands below ``sweep`` in the sources' repository, with the model's commit."""
    reference = parse_reference(f"hf://{SOURCES}/sweep")
    sha, folders = saelens_folders(Hub(Cache(tmp_path / "cache")), reference)
    text = repository.manifest_of(reference, sha, folders, "sweep", MODEL, UPSTREAM).text
    text = text.replace(f"  name: {MODEL}", f"  name: {MODEL}\n  revision: {hub_world.model_sha}")
    path = hub_world.folder / "manifests" / "sweep.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text[: text.index("register:")])
    return path


def add(path: Path, section: str) -> None:
    path.write_text(f"{path.read_text()}\n{section}")


def test_taken_over_with_its_bytes(hub_world: HubWorld, look: Look, imported: Path) -> None:
    server = hub_world.server
    before = {name: oid for name, oid in server.tree_of(SOURCES).items() if name.startswith("sweep/")}
    add(imported, f"publish: {{huggingface: {SOURCES}, license: mit}}\n")
    assert {item.status for item in look(imported).plan().items if item.id is not None} == {Status.FOREIGN}
    result = look(imported, choices=Choices(adopt=("sweep/*",))).apply()
    assert result.exit_code == 0, result.failures
    record = parse_record(server.file(SOURCES, "saesync/sweep.json"), "sweep")
    assert {sae_id: entry.adopted for sae_id, entry in record.saes.items()} == dict.fromkeys(IDS, True)
    assert {name: oid for name, oid in server.tree_of(SOURCES).items() if name.startswith("sweep/")} == before
    assert look(imported).plan().pending == ()


def test_measured_where_it_is(hub_world: HubWorld, look: Look, imported: Path) -> None:
    head = hub_world.server.head(SOURCES)
    dataset = f"{{repo: {DATA}, revision: {hub_world.data_sha}}}"
    add(imported, f"validate: {{dataset: {dataset}, tokens: 512, context: 32}}\nrecords: {{huggingface: {RECORDS}}}\n")
    result = look(imported).apply()
    assert result.exit_code == 0, result.failures
    record = parse_record(hub_world.server.file(RECORDS, "saesync/sweep.json"), "sweep")
    assert {sae_id for sae_id, entry in record.saes.items() if entry.evidence and entry.proof} == IDS
    assert hub_world.server.head(SOURCES) == head
    assert look(imported).plan().pending == ()
