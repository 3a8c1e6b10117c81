"""The end of an apply against a Hub: every sentence and every number of it is true."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from release_world import REPO, Shop, asked
from servers.loopback import HubServer

from saesync.apply import Outcome, StopFlag
from saesync.model import StepKind
from saesync.render import summary_text

pytestmark = pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)


@pytest.fixture
def shop(hub_server: HubServer, tmp_path: Path) -> Shop:
    return Shop(hub_server, tmp_path, [asked()])


def test_what_a_server_said_ends_as_a_sentence_does(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.server.create_repo(REPO, private=True)
    monkeypatch.delenv("HF_TOKEN")
    result = shop.apply()
    assert set(result.outcomes.values()) == {Outcome.UNKNOWN}
    details = {found["detail"] for failure in shop.told("summary")[0]["failures"] for found in failure["diagnostics"]}
    assert details
    for detail in details:
        assert detail.startswith(f"cannot see {REPO}: ")
        assert detail.endswith("HF_TOKEN.")


def press(shop: Shop, stop: StopFlag, times: int) -> None:
    """Ctrl-C as soon as the repo has another commit."""
    before = shop.server.head(REPO)

    def run() -> None:
        while shop.server.head(REPO) == before:
            time.sleep(0.02)
        for _ in range(times):
            stop.request()

    threading.Thread(target=run, daemon=True).start()


def test_a_tag_that_was_not_come_to_is_no_sae(shop: Shop) -> None:
    """Ctrl-C while the SAEs' last commit is under way: they are published, and the release is not tagged."""
    shop.apply(only=("res/layer_0",))
    shop.server.fault(route="commit", when="after", action="delay", delay=1)
    plan, context = shop.look()
    stop = StopFlag()
    press(shop, stop, times=1)
    result = shop.carry_out(plan, context, stop)
    assert result.outcomes == {"res/layer_1": Outcome.PUBLISHED}
    assert (result.exit_code, result.tags, result.tags_left) == (130, 0, 1)
    first, then = summary_text(result.summary()).splitlines()
    assert first == "Stopped. 1 published, 1 tag not made; nothing is half-done."
    assert then.startswith("Run the same command")
    assert shop.tags() == {}
    assert shop.apply().tags == 1


def test_a_card_that_was_not_come_to_is_no_sae(shop: Shop) -> None:
    """The second Ctrl-C comes while the card of the other release is written."""
    shop.releases.append(asked("mlp", ("layer_8",)))
    shop.apply()
    for at, one in enumerate(shop.releases):
        assert one.publish is not None
        shop.releases[at] = replace(one, publish=replace(one.publish, license="apache-2.0"))
    plan, context = shop.look()
    assert [item.steps for item in plan.pending] == [(StepKind.CARD,), (StepKind.CARD,)]
    shop.server.fault(route="commit", when="after", action="delay", delay=2)
    stop = StopFlag()
    press(shop, stop, times=2)
    result = shop.carry_out(plan, context, stop)
    assert list(result.outcomes.values()) == [Outcome.UNSURE]
    assert (result.exit_code, result.cards, result.cards_left) == (130, 0, 1)
    assert summary_text(result.summary()).startswith("Stopped. 1 in doubt, 1 card not written.\n")


def test_retiring_makes_no_empty_readme(shop: Shop) -> None:
    """Nor does huggingface_hub's warning about a README without front matter reach anybody (warnings are errors here)."""
    shop.apply()
    shop.server.push(REPO, {"README.md": b"# By hand\n\nNothing else.\n"})
    shop.releases = [replace(shop.releases[0], retire=True)]
    assert shop.apply().exit_code == 0
    assert shop.card() == "# By hand\n\nNothing else.\n"
    shop.releases = [asked()]
    shop.apply()
    shop.server.push(REPO, {"README.md": None})
    shop.releases = [replace(shop.releases[0], retire=True)]
    assert shop.apply().exit_code == 0
    assert "README.md" not in shop.server.tree_of(REPO)
    assert shop.plan().pending == ()
