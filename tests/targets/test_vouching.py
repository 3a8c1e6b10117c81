"""READMEs that are not read because records vouch for them: never one in which somebody else wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from planning import entry_of, inputs_of, release, sae

from saesync.card import blocks, make_card
from saesync.digest import FileDigest, digest_bytes
from saesync.model import CARD_FILE, Observed
from saesync.record import Record, parse_record, vouched
from saesync.targets.base import Batch, Upload
from saesync.targets.merge import merge

NAMES = ("one", "two", "three")


@dataclass
class Readme:
    """A repository with a README, the records of the releases that published there, and the blocks as they wrote them."""

    text: str | None = None
    records: dict[str, Record] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)

    def publish(self, name: str, value: float) -> None:
        """A commit of a release, whose numbers change or not."""
        asked = sae(release=name)
        entry = entry_of(inputs_of(asked), ev=value)
        files: dict[str, FileDigest] = {f"{asked.id}-{name}/{file}": digest for file, digest in entry.files.items()}
        if self.text is not None:
            files[CARD_FILE] = digest_bytes(self.text.encode())
        spec = replace(release(), name=name, saes=(asked,))
        now = Observed("huggingface", "a/b", True, "0" * 40, "public", files, dict(self.records), readme=self.text)
        batch = Batch(name, {f"{asked.id}-{name}": Upload(entry, {})}, lambda record, found: make_card(spec, record, found))
        change = merge(batch, now, now)
        if change.record_bytes is not None:
            self.records[name] = parse_record(change.record_bytes, name)
        if change.card_bytes is not None:
            self.text = change.card_bytes.decode()
            self.versions.append(self.text)
        self.written[name] = self.block(name) or ""

    def block(self, name: str) -> str | None:
        place = blocks.find(self.text or "", name)
        return None if place is None else (self.text or "")[slice(*place)]

    def by_hand(self, change: Callable[[str], str]) -> None:
        if self.text is not None:
            self.text = change(self.text)

    @property
    def vouched(self) -> bool:
        return self.text is not None and vouched(self.records, digest_bytes(self.text.encode()).blob_id)


PUBLISH = st.tuples(st.just("publish"), st.sampled_from(NAMES), st.sampled_from([0.7, 0.8, 0.9]))
EDIT = st.tuples(st.sampled_from(["outside", "numbers", "back"]), st.integers(0, 5), st.just(0.0))


def carry_out(steps: list[tuple[str, object, float]]) -> Readme:
    repo = Readme()
    for kind, which, value in steps:
        if kind == "publish":
            repo.publish(str(which), value)
        elif kind == "outside":
            repo.by_hand(lambda text: f"{text}\nBy hand.\n")
        elif kind == "numbers":
            repo.by_hand(lambda text: text.replace("0.8", "0.99").replace("0.7", "0.98"))
        elif repo.versions:
            repo.text = repo.versions[int(str(which)) % len(repo.versions)]
    return repo


@settings(deadline=None)
@given(st.lists(st.one_of(PUBLISH, PUBLISH, EDIT), max_size=12))
def test_what_is_vouched_for_stands_as_it_was_written(steps: list[tuple[str, object, float]]) -> None:
    repo = carry_out(steps)
    if repo.vouched:
        for name in repo.records:
            assert repo.block(name) == repo.written[name], name


@settings(deadline=None)
@given(st.lists(PUBLISH.filter(lambda step: step[1] != "three"), min_size=1, max_size=12))
def test_two_releases_vouch_for_their_readme_in_whatever_order_they_publish(steps: list[tuple[str, object, float]]) -> None:
    assert carry_out(list(steps)).vouched


def test_an_edit_ends_it() -> None:
    assert carry_out([("publish", "one", 0.7)]).vouched
    assert not carry_out([("publish", "one", 0.7), ("outside", 0, 0.0)]).vouched
    assert not carry_out([("publish", "one", 0.7), ("numbers", 0, 0.0), ("publish", "two", 0.9)]).vouched
    assert carry_out([("publish", "one", 0.7), ("outside", 0, 0.0), ("publish", "one", 0.9)]).vouched
    assert carry_out([("publish", "one", 0.7), ("numbers", 0, 0.0), ("back", 0, 0.0)]).vouched


def test_releases_do_not_vouch_for_each_other_in_a_circle() -> None:
    """The README was as it is recorded twice, and was edited since."""
    there_and_back = [("publish", "one", 0.7), ("publish", "two", 0.8), ("publish", "one", 0.8), ("publish", "one", 0.7)]
    assert carry_out(there_and_back).vouched
    assert not carry_out([*there_and_back, ("numbers", 0, 0.0)]).vouched
