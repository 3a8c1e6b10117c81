"""A large release under the hosted Hub's quota: few commits, and little time beside them per SAE."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from apply_world import Run
from servers.loopback import HubServer

from saesync.cache import Cache
from saesync.formats.goodfire import FORMAT
from saesync.record import parse_record
from saesync.workers import fork

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]
COUNT = 300
MANIFEST = f"""
apiVersion: saesync/v1
release: many
model: {{path: ../model}}
saes:
  for_each:
    n: {{first: 0, last: {COUNT - 1}}}
  id: sae_{{n}}
  hook: blocks.0.hook_resid_post
  source:
    path: ../sources/{{n}}.pth
    format: goodfire
publish:
  huggingface: alice/many
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(COUNT):
        FORMAT.example(tmp_path / "sources", n)
        (tmp_path / "sources" / "Tiny-SAE-l1.pth").rename(tmp_path / "sources" / f"{n}.pth")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "many.yaml").write_text(MANIFEST)
    return tmp_path


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_three_hundred_saes_under_a_quota_of_sixty_commits_an_hour(
    hub_server: HubServer, folder: Path, heavy_imports: None, clean_environ: dict[str, str]
) -> None:
    hub_server.ration(commit={"quota": 60, "window": 3600})
    run = Run((folder / "manifests" / "many.yaml",), Cache(folder / "cache"), (folder,), start=fork)
    result = run.apply()
    assert result.exit_code == 0, result.failures[:3]
    landed = hub_server.commits_landed()
    assert landed == result.commits <= 30
    assert hub_server.count("commit") == landed, "no commit was refused"
    record = parse_record(hub_server.file("alice/many", "saesync/many.json"), "many")
    assert set(record.saes) == {f"sae_{n}" for n in range(COUNT)}
    load_all({**clean_environ, **hub_server.environment(), "HF_HOME": str(folder / "home")})


LOAD_ALL = f"""
from sae_lens import SAE
for n in range({COUNT}):
    sae = SAE.from_pretrained("alice/many", f"sae_{{n}}")
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (12, 40)
    assert sae.cfg.metadata.hook_name == "blocks.0.hook_resid_post"
"""


def load_all(environment: dict[str, str]) -> None:
    """Every one of them, from the Hub, by stock SAELens in a process of its own."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD_ALL], env=environment, check=True, timeout=300)
