"""The planner's table: an example per row, per SAE and per release."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planning import (
    BOUND,
    HUB,
    SPEC,
    World,
    entry_of,
    evidence_of,
    files_of,
    inputs_of,
    pending_of,
    published,
    release,
    sae,
    wanted_of,
)

from saesync.apply.result import gate_diagnostics
from saesync.digest import digest_bytes
from saesync.errors import Origin
from saesync.keys import Wanted
from saesync.model import CFG_FILE, WEIGHTS_FILE, Choices, Observed, PublishSpec, Requirement, Status, StepKind
from saesync.planner import plan, select
from saesync.reason import Reason, ReasonCode
from saesync.record import Evidence, Metric, Pending, Record
from saesync.render import reason_text
from saesync.verdict import judge, unmeasured

ALL = (StepKind.FETCH, StepKind.CONVERT, StepKind.VALIDATE, StepKind.PUBLISH)
A = "res/layer_0"
AWAY = Reason(ReasonCode.SOURCE_NOT_HERE, {"what": "source", "path": "/data/ae.pt"})
FOREIGN = {f"layer_0/{WEIGHTS_FILE}": digest_bytes(b"theirs"), f"layer_0/{CFG_FILE}": digest_bytes(b"{}")}


def codes(item: object) -> list[ReasonCode]:
    return [reason.code for reason in item.reasons]  # type: ignore[attr-defined]


def drift(world: World) -> None:
    files = dict(world.at().files)
    files[f"layer_0/{WEIGHTS_FILE}"] = digest_bytes(b"changed")
    world.put(files=files)


def reask(world: World, **changes: object) -> None:
    """The manifest's one SAE asks for something else from now on."""
    asked = sae(**changes)  # type: ignore[arg-type]
    world.releases = [replace(world.releases[0], saes=(asked,))]
    world.wanted = {A: wanted_of(asked)}


# ------------------------------------------------------------------------------------------------------ per SAE


def test_not_visible_is_unknown_and_never_absent() -> None:
    world = World([release()])
    world.put(unknown=Reason(ReasonCode.NOT_VISIBLE, {"location": HUB, "detail": "needs a token"}))
    item = world.item(A)
    assert (item.status, item.held, item.steps) == (Status.UNKNOWN, True, ())
    assert codes(item) == [ReasonCode.NOT_VISIBLE]
    assert world.item("res").status is Status.UNKNOWN
    assert not world.plan().pending


def test_a_record_that_cannot_be_read_locks_its_release_only() -> None:
    world = published(release("res"), release("mlp", ["layer_1"]))
    reason = Reason(ReasonCode.RECORD_NEWER, {"found": 3, "known": 1})
    world.put(locked={"res": reason}, records={"mlp": world.at().records["mlp"]})
    assert (world.item(A).status, world.item(A).held, world.item(A).reasons) == (Status.LOCKED, True, (reason,))
    assert world.item("res").status is Status.LOCKED
    assert world.item("mlp/layer_1").status is Status.CURRENT


def _versions(world: World, converter: int, metrics: str, weights_format: str = "goodfire") -> None:
    """Let this saesync be one that converts and measures by these versions."""
    inputs = inputs_of(sae(), {"source.format": weights_format, "source.converter": converter})
    measure = {**(inputs.measure or {}), "metrics": metrics}
    world.wanted[A] = replace(world.wanted[A], inputs=replace(inputs, measure=measure))


@pytest.mark.parametrize(
    ("made", "ours", "held"),
    [
        ((2, "l0:1,rows:1"), (1, "l0:1,rows:1"), {"name": "source.converter", "found": 2, "known": 1}),
        ((1, "l0:1,rows:2"), (1, "l0:1,rows:1"), {"name": "metrics.rows", "found": "2", "known": "1"}),
        ((1, "l0:1,rows:1"), (1, "l0:1"), {"name": "metrics.rows", "found": "1", "known": None}),
        ((1, "l0:1,rows:9"), (1, "l0:1,rows:10"), None),
        ((1, "l0:1"), (2, "l0:1,rows:1"), None),
        ((2, "l0:1", "saelens"), (1, "l0:1", "goodfire"), None),
        ((1, "l0:1,rows:" + "9" * 50), (1, "l0:1,rows:1"), None),
    ],
)
def test_what_a_newer_saesync_made_is_not_put_back(made: Any, ours: Any, held: Any) -> None:
    world = World([release()])
    _versions(world, *made)
    world.apply()
    assert world.item(A).status is Status.CURRENT
    _versions(world, *ours)
    item = world.item(A)
    assert (item.held, bool(item.steps)) == (held is not None, held is None)
    if held is not None:
        assert item.reasons == (Reason(ReasonCode.MADE_NEWER, held),)


def test_a_metric_whose_definition_changed_is_named_alone() -> None:
    world = World([release()])
    _versions(world, 1, "cossim:1,l0:1,rows:1")
    world.apply()
    _versions(world, 1, "cossim:1,errors:2,l0:2,rows:1")
    assert [dict(reason.data) for reason in world.item(A).reasons] == [
        {"name": "metrics.errors", "before": None, "after": "2"},
        {"name": "metrics.l0", "before": "1", "after": "2"},
    ]


@pytest.mark.parametrize("theirs", ["layer_0", "Layer_0", "layer_0/width_16k"])
def test_a_folder_of_another_release_is_taken(theirs: str) -> None:
    world = World([release()])
    other = Record("other", {theirs: entry_of(inputs_of(sae("other", theirs)))})
    world.put(exists=True, visibility="public", records={"other": other})
    item = world.item(A, adopt=("*",), replace=("*",))
    assert (item.status, item.held) == (Status.TAKEN, True)
    assert item.reasons == (Reason(ReasonCode.TAKEN_BY, {"release": "other", "asked": True}),)
    freed = world.item(A, prune=("other",))
    assert freed.reasons == (Reason(ReasonCode.TAKEN_BY, {"release": "other", "asked": True, "pruned": True}),)
    assert freed.held, "what is deleted in this run is free in the next one"


def test_a_folder_inside_another_releases_folder_is_taken() -> None:
    world = World([release(ids=["layer_0/width_16k"])])
    world.put(exists=True, visibility="public", records={"other": Record("other", {"layer_0": entry_of(inputs_of(sae()))})})
    assert world.item("res/layer_0/width_16k").status is Status.TAKEN


@pytest.mark.parametrize(
    ("code", "status"), [(ReasonCode.SOURCE_UNREACHABLE, Status.HELD), (ReasonCode.NOT_VISIBLE, Status.UNKNOWN)]
)
def test_what_cannot_be_known_is_held(code: ReasonCode, status: Status) -> None:
    world = World([release()])
    world.wanted[A] = replace(world.wanted[A], inputs=None, blocked=Reason(code, {"repo": "x"}))
    item = world.item(A)
    assert (item.status, item.held, item.steps) == (status, True, ())


def test_failing_evidence_for_unpublished_weights_stops_them() -> None:
    world = World([release()])
    inputs = inputs_of(sae())
    world.wanted[A] = wanted_of(sae(), evidence=evidence_of(inputs, files_of(inputs), 0.61))
    item = world.item(A)
    assert (item.status, item.held, item.steps) == (Status.FAILING, False, ())
    assert item.reasons[0].data == {
        "metric": "explained_variance",
        "value": 0.61,
        "bound": 0.7,
        "stderr": 0.003,
        "at": "manifests/gemma.yaml:25:25",
    }
    assert not world.plan().pending  # nor is a repo made for it


def test_evidence_that_may_stand_where_we_cannot_look() -> None:
    """Only what would be made and measured has to wait; what is published already does not."""
    spec = PublishSpec("huggingface", "acme/records")
    world = World([release(records=spec)])
    reason = Reason(ReasonCode.NOT_VISIBLE, {"location": "acme/records"})
    world.observed["huggingface", "acme/records"] = Observed("huggingface", "acme/records", unknown=reason)
    assert (world.item(A).status, world.item(A).held, world.item(A).reasons) == (Status.UNKNOWN, True, (reason,))
    locked = Observed("huggingface", "acme/records", exists=True, locked={"res": reason})
    world.observed["huggingface", "acme/records"] = locked
    assert (world.item(A).status, world.item(A).held) == (Status.LOCKED, True)
    world.observed["huggingface", "acme/records"] = replace(locked, locked={"other": reason})
    assert world.item(A).steps == ALL
    seen = published(release(records=spec))
    seen.observed["huggingface", "acme/records"] = locked
    assert seen.item(A).status is Status.CURRENT


def test_passing_or_incomplete_evidence_does_not_stop() -> None:
    inputs = inputs_of(sae())
    passing = evidence_of(inputs, files_of(inputs), 0.9)
    for evidence in (passing, replace(passing, metrics={})):
        world = World([release()])
        world.wanted[A] = wanted_of(sae(), evidence=evidence)
        assert world.item(A).steps == ALL


def test_absent_is_published_and_its_repo_made() -> None:
    world = World([release()])
    item = world.item(A)
    assert (item.status, item.steps) == (Status.ABSENT, ALL)
    assert item.reasons == (Reason(ReasonCode.NOT_PUBLISHED, {"location": HUB}),)
    repo = world.item("res")
    assert (repo.status, repo.steps, codes(repo)) == (Status.ABSENT, (StepKind.CREATE,), [ReasonCode.REPO_MISSING])


def test_without_validate_nothing_is_measured_and_it_says_so() -> None:
    asked = sae(validate=None)
    world = World([release(saes=(asked,))])
    item = world.item(A)
    assert item.steps == (StepKind.FETCH, StepKind.CONVERT, StepKind.PUBLISH)
    assert Reason(ReasonCode.NOT_MEASURED, {"asked": False}) in item.reasons
    world.apply()
    assert world.item(A).status is Status.CURRENT


def test_foreign_files_are_held_adopted_or_replaced() -> None:
    world = World([release()])
    world.put(exists=True, visibility="public", files=FOREIGN)
    held = world.item(A)
    assert (held.status, held.held, held.reasons) == (Status.FOREIGN, True, (Reason(ReasonCode.FOREIGN_FILES, {"files": 2}),))
    adopted = world.item(A, adopt=("res/*",))
    assert adopted.steps == (StepKind.FETCH, StepKind.CONVERT, StepKind.ADOPT, StepKind.VALIDATE, StepKind.PUBLISH)
    assert codes(adopted) == [ReasonCode.ADOPT]
    replaced = world.item(A, replace=("res/layer_0",))
    assert (replaced.status, replaced.steps) == (Status.FOREIGN, ALL)
    lost = {"files": 2, "file": CFG_FILE, "stay": 0}
    assert replaced.reasons == (Reason(ReasonCode.REPLACE, lost),), "what would be lost is named"
    assert world.item(A, adopt=("other/*",)).held


@pytest.mark.parametrize("missing", [CFG_FILE, WEIGHTS_FILE])
def test_files_that_are_no_sae_cannot_be_adopted(missing: str) -> None:
    world = World([release()])
    world.put(exists=True, visibility="public", files={p: d for p, d in FOREIGN.items() if not p.endswith(missing)})
    why = (Reason(ReasonCode.FOREIGN_FILES, {"files": 1, "missing": missing}),)
    for choices in ({}, {"adopt": ("res/*",)}):
        item = world.item(A, **choices)
        assert (item.status, item.held, item.steps, item.reasons) == (Status.FOREIGN, True, (), why)
    both = world.item(A, adopt=("res/*",), replace=("res/*",))
    assert (both.steps, codes(both)) == (ALL, [ReasonCode.REPLACE])
    world.put(exists=True, visibility="public", files={"layer_0/notes.txt": digest_bytes(b"mine")})
    assert dict(world.item(A, replace=("res/*",)).reasons[0].data) == {"files": 0, "file": None, "stay": 1}


def test_weights_that_were_measured_here_are_foreign_without_a_record() -> None:
    """Their cfg.json may be somebody's, and another machine's cache must not give another plan."""
    inputs = inputs_of(sae())
    files = files_of(inputs)
    world = World([release()])
    world.put(exists=True, visibility="public", files={f"layer_0/{name}": digest for name, digest in files.items()})
    assert world.item(A).status is Status.FOREIGN
    world.wanted[A] = wanted_of(sae(), evidence=evidence_of(inputs, files))
    assert (world.item(A).status, world.item(A).steps) == (Status.FOREIGN, ())


def test_changed_files_are_held_and_replaced_on_request() -> None:
    world = published()
    drift(world)
    item = world.item(A)
    assert (item.status, item.held, codes(item)) == (Status.DRIFTED, True, [ReasonCode.FILES_CHANGED])
    assert item.reasons[0].data["file"] == WEIGHTS_FILE
    restored = world.item(A, replace=("res/*",))
    assert (restored.steps, codes(restored)) == (ALL, [ReasonCode.REPLACE, ReasonCode.FILES_CHANGED])
    assert world.item(A, adopt=("*",)).held
    world.apply(replace=("*",))
    assert world.item(A).status is Status.CURRENT


def test_missing_files_are_drift_and_a_record_without_files_is_not_current() -> None:
    world = published()
    world.put(files={})
    assert codes(world.item(A)) == [ReasonCode.FILES_MISSING]
    record = world.at().records["res"]
    world.put(records={"res": replace(record, saes={"layer_0": replace(record.saes["layer_0"], files={})})})
    assert world.item(A).status is Status.DRIFTED


def test_other_files_in_the_folder_are_no_drift() -> None:
    world = published()
    world.put(files={**world.at().files, "layer_0/notes.txt": digest_bytes(b"mine"), "other.txt": digest_bytes(b"x")})
    assert world.item(A).status is Status.CURRENT


def test_other_weights_are_rebuilt_and_the_difference_named() -> None:
    world = published()
    reask(world, dtype="bfloat16")
    item = world.item(A)
    assert (item.status, item.steps) == (Status.OUTDATED, ALL)
    assert item.reasons == (Reason(ReasonCode.CHANGED, {"name": "dtype", "before": "float32", "after": "bfloat16"}),)


def test_outdated_with_known_failure_is_failing() -> None:
    world = published()
    reask(world, dtype="bfloat16")
    inputs = inputs_of(sae(dtype="bfloat16"))
    world.wanted[A] = replace(world.wanted[A], evidence=evidence_of(inputs, files_of(inputs), 0.2))
    assert (world.item(A).status, world.item(A).steps) == (Status.FAILING, ())


def test_an_unnamed_difference_still_has_a_reason() -> None:
    world = published()
    record = world.at().records["res"]
    world.put(records={"res": replace(record, saes={"layer_0": replace(record.saes["layer_0"], inputs={})})})
    reask(world, dtype="bfloat16")
    assert codes(world.item(A)) == [ReasonCode.CHANGED]


def test_relabel_keeps_weights_and_evidence() -> None:
    world = published()
    world.wanted[A] = replace(world.wanted[A], inputs=inputs_of(sae(), **{"metadata.neuronpedia_id": "0-res-acme"}))
    item = world.item(A)
    assert (item.status, item.steps) == (Status.RELABEL, (StepKind.RELABEL, StepKind.PUBLISH))
    assert item.reasons[0].data == {"name": "metadata.neuronpedia_id", "before": None, "after": "0-res-acme"}


def test_relabel_that_also_changes_the_measurement_measures_at_once() -> None:
    world = published()
    reask(world, hook="blocks.0.hook_mlp_out")
    item = world.item(A)
    assert item.status is Status.RELABEL
    assert item.steps == (StepKind.FETCH, StepKind.RELABEL, StepKind.VALIDATE, StepKind.PUBLISH)
    assert [reason.data["name"] for reason in item.reasons] == ["metadata.hook_name", "hook"]


def test_a_renamed_sae_is_moved() -> None:
    world = published(release(ids=["layer_3"]))
    old = world.wanted["res/layer_3"].inputs
    asked = sae(sae_id="layer_0", hook="blocks.3.hook_resid_post")
    world.releases = [release(saes=(asked,))]
    world.wanted = {A: wanted_of(asked, inputs=old)}
    item = world.item(A)
    assert (item.status, item.move_from) == (Status.MOVED, "layer_3")
    assert item.steps == (StepKind.MOVE, StepKind.PUBLISH)
    orphan = world.item("res/layer_3")
    assert (orphan.status, orphan.steps, orphan.held) == (Status.ORPHANED, (), False)
    files = {**world.at().files, f"layer_3/{WEIGHTS_FILE}": digest_bytes(b"changed")}
    world.put(files=files)
    assert world.item(A).status is Status.ABSENT  # a changed orphan is nothing to copy


def test_an_sae_renamed_to_a_folder_above_it_is_moved_and_not_foreign() -> None:
    world = published(release(ids=["layer_0/topk"]))
    old = world.wanted["res/layer_0/topk"].inputs
    world.releases = [release()]
    world.wanted = {A: wanted_of(sae(), inputs=old)}
    item = world.item(A)
    assert (item.status, item.move_from, item.held) == (Status.MOVED, "layer_0/topk", False)
    world.put(files={**world.at().files, f"layer_0/{CFG_FILE}": digest_bytes(b"theirs")})
    assert world.item(A).status is Status.FOREIGN


def test_moved_without_the_numbers_is_measured_and_moved_with_bad_ones_fails() -> None:
    world = published(release(ids=["layer_3"]))
    old = world.wanted["res/layer_3"].inputs
    assert old is not None
    asked = sae(sae_id="layer_0", hook="blocks.3.hook_resid_post")
    world.releases = [release(saes=(asked,))]
    world.wanted = {A: wanted_of(asked, inputs=replace(old, measure={**(old.measure or {}), "validate.tokens": 1}))}
    assert world.item(A).steps == (StepKind.FETCH, StepKind.MOVE, StepKind.VALIDATE, StepKind.PUBLISH)
    strict = replace(asked, validate=replace(SPEC, require=(replace(BOUND, bound=0.99),)))
    world.wanted = {A: wanted_of(strict, inputs=old)}
    world.releases = [release(saes=(strict,))]
    assert (world.item(A).status, world.item(A).steps) == (Status.FAILING, ())
    # What it would be copied from is the only copy: pruning waits until it is moved, or no longer asked for.
    orphan = world.item("res/layer_3", prune=("res",))
    assert (orphan.status, orphan.steps, orphan.held) == (Status.RETIRED, (), True)
    assert orphan.reasons[0] == Reason(ReasonCode.NEEDED_BY, {"id": "layer_0"})
    world.wanted, world.releases = {}, [release(saes=())]
    assert world.item("res/layer_3", prune=("res",)).steps == (StepKind.DELETE,)


def test_unproven_names_what_is_measured_otherwise() -> None:
    world = published()
    reask(world, validate=replace(SPEC, tokens=409600))
    item = world.item(A)
    assert (item.status, item.steps) == (Status.UNPROVEN, (StepKind.FETCH, StepKind.VALIDATE, StepKind.PUBLISH))
    assert item.reasons == (Reason(ReasonCode.CHANGED, {"name": "validate.tokens", "before": 204800, "after": 409600}),)


def test_earlier_evidence_is_not_what_the_card_says() -> None:
    """Measured otherwise, and then asked for as before: the numbers are there, but not as the current ones."""
    world = published()
    record = world.at().records["res"]
    entry = record.saes["layer_0"]
    other = replace(entry.evidence[0], measure_key="f" * 64)
    world.put(records={"res": replace(record, saes={"layer_0": entry.with_evidence(other)})})
    assert (world.item(A).status, world.item(A).steps[-1]) == (Status.UNPROVEN, StepKind.PUBLISH)


def test_unproven_without_any_evidence_and_with_a_metric_missing() -> None:
    world = published()
    record = world.at().records["res"]
    bare = replace(record, saes={"layer_0": replace(record.saes["layer_0"], evidence=())})
    world.put(records={"res": bare})
    assert world.item(A).reasons == (Reason(ReasonCode.NOT_MEASURED, {"asked": True}),)
    world = published()
    reask(world, validate=replace(SPEC, require=(BOUND, replace(BOUND, metric="ce_loss_score"))))
    assert world.item(A).reasons == (Reason(ReasonCode.METRIC_MISSING, {"metric": "ce_loss_score"}),)


def test_evidence_counts_for_its_bytes_only() -> None:
    world = published()
    entry = world.at().records["res"].saes["layer_0"]
    other = replace(entry.evidence[0], weights_sha256="0" * 64)
    world.put(records={"res": replace(world.at().records["res"], saes={"layer_0": replace(entry, evidence=(other,))})})
    assert world.item(A).status is Status.UNPROVEN


@pytest.mark.parametrize(("kind", "bound"), [("min", 0.95), ("max", 20.0)])
def test_a_score_meets_no_bound_where_the_model_is_better_off_without_the_hook(kind: str, bound: float) -> None:
    """An SAE that makes the model worse than setting the hook to zero does has a score of 11 here."""
    losses = {"ce_loss_without_sae": 5.0, "ce_loss_with_sae": 6.0, "ce_loss_with_ablation": 4.9, "ce_loss_score": 11.0}
    evidence = Evidence("k", "0" * 64, {name: Metric(value) for name, value in losses.items()}, {}, {})
    require = (Requirement("ce_loss_score", kind, bound),)
    reasons = judge(evidence, require)
    assert [reason.code for reason in reasons] == [ReasonCode.NO_BASELINE]
    assert gate_diagnostics(reasons, require)[0].detail == (
        "ce_loss_score says nothing: the loss is 4.9 with the hook set to zero, and 5 without the SAE. Put the bound on another"
        " metric."
    )
    sound = {**evidence.metrics, "ce_loss_with_ablation": Metric(5.1)}
    assert judge(replace(evidence, metrics=sound), require) == ()


def test_published_and_short_of_a_requirement_is_failing_without_a_gpu() -> None:
    world = published()
    reask(world, validate=replace(SPEC, require=(replace(BOUND, bound=0.9),)))
    item = world.item(A)
    assert (item.status, item.steps, codes(item)) == (Status.FAILING, (), [ReasonCode.BELOW_MIN])
    reask(world, validate=replace(SPEC, require=(replace(BOUND, metric="l0", kind="max", bound=60.0),)))
    assert codes(world.item(A)) == [ReasonCode.ABOVE_MAX]


def test_all_as_asked_is_current() -> None:
    world = published()
    assert (world.item(A).status, world.item(A).reasons) == (Status.CURRENT, ())
    assert not world.plan().pending


def test_a_source_that_is_not_here() -> None:
    world = published()
    world.wanted[A] = replace(world.wanted[A], not_here=AWAY)
    item = world.item(A)
    assert (item.status, item.held, codes(item)) == (Status.CURRENT, False, [ReasonCode.SOURCE_NOT_HERE])
    reask(world, dtype="bfloat16")
    world.wanted[A] = replace(world.wanted[A], not_here=AWAY)
    item = world.item(A)
    assert (item.status, item.held, item.steps) == (Status.HELD, True, ())
    assert codes(item) == [ReasonCode.SOURCE_NOT_HERE, ReasonCode.CHANGED]


def test_training_is_held_not_ignored() -> None:
    asked = sae(source=None, train={"architecture": "topk"})
    world = World([release(saes=(asked,))])
    item = world.item(A)
    assert (item.held, item.reasons) == (True, (Reason(ReasonCode.NOT_IN_THIS_VERSION, {"section": "train"}),))


# ----------------------------------------------------------------------------------------- an interrupted local run


@pytest.mark.parametrize("state", ["missing", "half", "new", "old"])
def test_pending_means_resume(state: str) -> None:
    world = published()
    reask(world, dtype="bfloat16")
    inputs = world.wanted[A].inputs
    assert inputs is not None
    old = world.at()
    new = {f"layer_0/{name}": digest for name, digest in files_of(inputs).items()}
    half = {name: digest for name, digest in new.items() if name.endswith(WEIGHTS_FILE)}
    files = {"missing": {}, "half": half, "new": new, "old": old.files}[state]
    record = replace(old.records["res"], pending={"layer_0": pending_of(inputs)})
    world.put(files=files, records={"res": record})
    item = world.item(A)
    assert (item.status, item.held, item.steps) == (Status.OUTDATED, False, ALL)
    if state != "old":
        world.put(files=files, records={"res": replace(record, saes={})})
        assert world.item(A).status is Status.ABSENT
        assert not world.item(A).held


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CFG_FILE])
def test_what_somebody_else_wrote_after_a_crash_is_drift(name: str) -> None:
    world = published()
    reask(world, dtype="bfloat16")
    inputs = world.wanted[A].inputs
    assert inputs is not None
    files = {**world.at().files, f"layer_0/{name}": digest_bytes(b"theirs")}
    record = replace(world.at().records["res"], pending={"layer_0": pending_of(inputs)})
    world.put(files=files, records={"res": record})
    item = world.item(A)
    assert (item.status, item.held, item.reasons[0].data["file"]) == (Status.DRIFTED, True, name)
    world.put(files=files, records={"res": replace(record, saes={})})
    assert (world.item(A).status, world.item(A).held) == (Status.FOREIGN, True)


def test_what_an_interrupted_run_left_of_an_sae_nobody_asks_for() -> None:
    world = published()
    gone = inputs_of(sae(sae_id="layer_9"))
    record = replace(world.at().records["res"], pending={"layer_9": pending_of(gone), "never": pending_of(gone)})
    weights = {f"layer_9/{WEIGHTS_FILE}": files_of(gone)[WEIGHTS_FILE], "layer_9/notes.txt": digest_bytes(b"by hand")}
    world.put(files={**world.at().files, **weights}, records={"res": record})
    assert [item.address for item in world.plan().items if item.status is Status.ORPHANED] == ["res/layer_9"]
    assert world.item("res/layer_9", prune=("res",)).steps == (StepKind.DELETE,)
    world.put(files={**world.at().files, f"layer_9/{WEIGHTS_FILE}": digest_bytes(b"theirs")})
    item = world.item("res/layer_9", prune=("res",))
    assert (item.held, item.reasons[0].code) == (True, ReasonCode.FILES_CHANGED)


def test_a_release_in_no_manifest_keeps_its_card() -> None:
    """Another project may publish to the same repo: its card is not written by us without what its manifest says."""
    world = published(release("res"), release("other", ["layer_1"]))
    world.releases = world.releases[:1]
    assert world.item("other/layer_1").status is Status.ORPHANED
    assert not world.plan().pending
    assert [item.address for item in world.plan(prune=("other",)).pending] == ["other/layer_1"]


@pytest.mark.parametrize("adopted", [True, False])
def test_an_interrupted_relabel_goes_on_as_one(adopted: bool) -> None:
    """The weights stay: those of an adopted SAE are not the bytes that converting would give."""
    world = published()
    entry = replace(world.at().records["res"].saes["layer_0"], adopted=adopted)
    reask(world, hook="blocks.7.hook_resid_post", validate=None)
    inputs = world.wanted[A].inputs
    assert inputs is not None
    half = Pending(
        inputs.build_key, {name: (entry.files[name],) for name in entry.files} | {CFG_FILE: (files_of(inputs)[CFG_FILE],)}
    )
    files = {**world.at().files, f"layer_0/{CFG_FILE}": files_of(inputs)[CFG_FILE]}
    world.put(files=files, records={"res": Record("res", {"layer_0": entry}, pending={"layer_0": half})})
    item = world.item(A)
    assert (item.status, item.steps, item.held) == (Status.RELABEL, (StepKind.RELABEL, StepKind.PUBLISH), False)
    assert codes(item)[0] is ReasonCode.RESUMED


def test_adopted_weights_are_not_built_over_unasked() -> None:
    """A run that was to replace them died after cfg.json was taken away, and the manifest asks for them again."""
    world = published()
    entry = replace(world.at().records["res"].saes["layer_0"], adopted=True)
    half = pending_of(inputs_of(sae(), weights={"dtype": "bfloat16"}))
    files = {name: digest for name, digest in world.at().files.items() if not name.endswith(CFG_FILE)}
    world.put(files=files, records={"res": Record("res", {"layer_0": entry}, pending={"layer_0": half})})
    assert (world.item(A).status, world.item(A).held) == (Status.DRIFTED, True)
    assert world.item(A, replace=("*",)).steps == ALL


def test_an_interrupted_move_goes_on_as_one() -> None:
    world = published(release("res", ["layer_1"]))
    inputs = world.wanted["res/layer_1"].inputs
    world.releases = [release()]
    world.wanted = {A: wanted_of(sae(), inputs=inputs)}
    assert inputs is not None
    record = replace(world.at().records["res"], pending={"layer_0": pending_of(inputs)})
    weights = {f"layer_0/{WEIGHTS_FILE}": files_of(inputs)[WEIGHTS_FILE]}
    world.put(files={**world.at().files, **weights}, records={"res": record})
    item = world.item(A)
    assert (item.status, item.move_from, item.held) == (Status.MOVED, "layer_1", False)


# -------------------------------------------------------------------------------------------------- per release


def test_visibility_differs() -> None:
    private = release(publish=PublishSpec("huggingface", HUB, "mit", private=True))
    world = World([private])
    world.put(exists=True, visibility="public")
    reason = Reason(ReasonCode.VISIBILITY, {"asked": "private", "found": "public"})
    for address in ("res", A):  # a public repo is never used for `private: true`
        item = world.item(address)
        assert (item.status, item.held, item.reasons) == (Status.HELD, True, (reason,))
    world = World([release()])
    world.put(exists=True, visibility="private")
    assert world.item("res").held
    assert world.item(A).steps == ALL


def test_card_is_written_again_only_when_nothing_else_does() -> None:
    world = published(release(ids=["layer_0", "layer_1"]))
    world.releases = [replace(world.releases[0], publish=PublishSpec("huggingface", HUB, "apache-2.0"))]
    item = world.item("res")
    assert (item.status, item.steps, codes(item)) == (Status.OUTDATED, (StepKind.CARD,), [ReasonCode.CARD_CHANGED])
    tokens = sae(sae_id="layer_1", validate=replace(SPEC, tokens=1))
    world.releases = [replace(world.releases[0], saes=(world.releases[0].saes[0], tokens))]
    world.wanted["res/layer_1"] = wanted_of(tokens)
    assert world.item("res").steps == ()
    world.apply()
    assert not world.plan().pending


def test_card_is_written_when_the_other_work_may_fail() -> None:
    world = published(release(ids=["layer_0"]))
    more = release(ids=["layer_0", "layer_1"], publish=PublishSpec("huggingface", HUB, "apache-2.0"))
    world.releases = [more]
    world.wanted["res/layer_1"] = wanted_of(more.saes[1])
    world.ev["res/layer_1"] = 0.1
    assert world.item("res").steps == (StepKind.CARD,)
    world.apply()
    assert world.item("res/layer_1").status is Status.FAILING
    assert not world.plan().pending


def test_orphans_are_listed_and_go_only_on_request() -> None:
    world = published(release(ids=["layer_0", "layer_1"]))
    world.releases = [release(ids=["layer_0"])]
    orphan = world.item("res/layer_1")
    assert (orphan.status, orphan.steps) == (Status.ORPHANED, ())
    assert world.item("res/layer_1", prune=("mlp",)).steps == ()
    gone = world.item("res/layer_1", prune=("res",))
    assert (gone.status, gone.steps, codes(gone)) == (Status.RETIRED, (StepKind.DELETE,), [ReasonCode.PRUNE])
    assert world.item(A, prune=("res",)).status is Status.CURRENT


def test_only_files_as_recorded_are_deleted() -> None:
    world = published(release(ids=["layer_0", "layer_1"]))
    world.releases = [release(ids=["layer_0"])]
    world.put(files={**world.at().files, f"layer_1/{CFG_FILE}": digest_bytes(b"edited")})
    item = world.item("res/layer_1", prune=("res",))
    assert (item.steps, item.held, codes(item)) == ((), True, [ReasonCode.FILES_CHANGED, ReasonCode.PRUNE])
    assert reason_text({"code": item.reasons[0].code, "data": item.reasons[0].data}).endswith("delete it by hand, or restore it")
    world.put(files={name: found for name, found in world.at().files.items() if name != f"layer_1/{CFG_FILE}"})
    assert world.item("res/layer_1", prune=("res",)).steps == (StepKind.DELETE,), "as was said"


def test_retire_deletes_all_and_ends() -> None:
    world = published(release(ids=["layer_0", "layer_1"]))
    world.releases = [replace(world.releases[0], retire=True)]
    made = world.apply()
    assert [item.steps for item in made.items if item.id] == [(StepKind.DELETE,)] * 2
    assert world.at().files == {}
    assert not world.plan().pending
    assert [item.address for item in world.plan().items] == ["res"]


def test_releases_in_no_manifest_are_listed_and_pruned_by_name() -> None:
    world = published(release("res"), release("gone", ["layer_9"]))
    world.releases = world.releases[:1]
    assert world.item("gone/layer_9").status is Status.ORPHANED
    assert world.item("gone/layer_9", prune=("gone",)).steps == (StepKind.DELETE,)
    known = plan(world.releases, world.wanted, world.observed, Choices(prune=("gone",)), named=("gone",))
    assert all(item.release != "gone" for item in known.items)  # another manifest of the folder names it
    world.apply(prune=("gone",))
    assert {item.release for item in world.plan().items} == {"res"}


def test_later_sections_are_held_one_by_one() -> None:
    world = published(release(later=(("neuronpedia.export", Origin("m.yaml", 30, 1)), ("dashboards", Origin("m.yaml", 33, 1)))))
    held = [item for item in world.plan().items if item.held]
    assert [(item.id, item.reasons[0].data["section"], item.origin.line if item.origin else 0) for item in held] == [
        (None, "neuronpedia.export", 30),
        (None, "dashboards", 33),
    ]
    only = World([release(publish=None, later=(("neuronpedia.export", Origin("m.yaml", 30, 1)),))])
    assert [item.status for item in only.plan().items] == [Status.HELD]
    nowhere = World([release(publish=None)])
    assert nowhere.plan().items[0].reasons[0].data == {"section": "publish"}


def test_only_selects_saes_with_their_release() -> None:
    world = World([release("res", ["layer_0", "layer_1"]), release("mlp", location="acme/other")])
    part = select(world.plan(), ("res/*_1",))
    assert [item.address for item in part.items] == ["res/layer_1", "res", "res"]
    assert [one.name for one in part.releases] == ["res"]
    assert part.digest != world.plan().digest
    assert select(world.plan(), ()) == world.plan()
    inputs = inputs_of(sae())
    world.wanted[A] = wanted_of(sae(), evidence=evidence_of(inputs, files_of(inputs), 0.1))
    idle = select(world.plan(), (A,))
    assert not idle.pending  # nothing of what is selected needs the repo


def test_a_place_that_was_not_observed_is_an_error() -> None:
    with pytest.raises(KeyError):
        plan([release()], {}, {}, Choices())


def test_items_stand_in_manifest_order_releases_after_their_saes() -> None:
    world = World([release("b", ["layer_1", "layer_0"]), release("a", ["x"])])
    assert [item.address for item in world.plan().items] == [
        "b/layer_1",
        "b/layer_0",
        "b",
        "b",
        "a/x",
        "a",
        "a",
    ]  # fmt: skip  (each release: itself, then its tag)


def test_observed_of_another_target_does_not_mix() -> None:
    world = published()
    place = PublishSpec("local", "/somewhere")
    world.releases = [replace(world.releases[0], publish=place)]
    world.observed["local", "/somewhere"] = Observed("local", "/somewhere")
    assert world.item(A).status is Status.ABSENT


def test_a_move_that_has_to_be_measured_does_not_promise_the_card() -> None:
    """A gate stands before it, so the card's own step stays in the plan; where nothing can fail, it goes with the move."""
    world = published(release(ids=["layer_3"]))
    old = world.wanted["res/layer_3"].inputs
    assert old is not None
    asked = sae(sae_id="layer_0", hook="blocks.3.hook_resid_post")
    world.releases = [release(saes=(asked,))]
    world.wanted = {A: wanted_of(asked, inputs=old)}
    assert world.item("res").steps == ()
    world.wanted = {A: wanted_of(asked, inputs=replace(old, measure={**(old.measure or {}), "validate.tokens": 1}))}
    assert world.item("res").steps == (StepKind.CARD,)
    world.ev = {A: 0.1}
    world.apply()
    assert world.item(A).status is Status.FAILING
    assert not world.plan().pending


def test_a_record_of_nothing_has_no_card_to_keep_up() -> None:
    world = World([release()])
    world.put(exists=True, visibility="public", records={"res": Record("res")})
    world.wanted[A] = replace(world.wanted[A], inputs=None, blocked=Reason(ReasonCode.SOURCE_MISSING, {"path": "x"}))
    assert world.item("res").status is Status.CURRENT


def test_a_folder_that_another_release_records_too_is_not_deleted() -> None:
    world = published(release(ids=["layer_0", "layer_1"]))
    world.releases = [release(ids=["layer_0"])]
    record = world.at().records["res"]
    world.put(records={"res": record, "other": Record("other", {"layer_1": record.saes["layer_1"]})})
    item = world.item("res/layer_1", prune=("res",))
    assert (item.held, item.steps, codes(item)) == (True, (), [ReasonCode.TAKEN_BY, ReasonCode.PRUNE])


def test_a_number_that_is_none_is_not_judged_but_missing() -> None:
    inputs = inputs_of(sae())
    evidence = evidence_of(inputs, files_of(inputs), l0=float("inf"))
    bound = replace(BOUND, metric="l0", kind="max", bound=100.0)
    assert judge(evidence, (bound,)) == ()
    assert unmeasured(evidence, (bound,)) == (Reason(ReasonCode.METRIC_MISSING, {"metric": "l0"}),)


def native_world(*, validated: bool = False) -> World:
    """A release that allows original files, and an SAE that cannot be converted."""
    one = release(saes=(sae(validate=SPEC if validated else None),))
    assert one.publish is not None
    world = World([replace(one, publish=replace(one.publish, native=True))], inexpressible={"res/layer_0"})
    world.apply()
    return world


def test_original_files_are_as_asked_and_say_why_they_are_not_converted() -> None:
    item = native_world().item("res/layer_0")
    assert (item.status, item.steps, item.held) == (Status.NATIVE, (), False)
    assert [reason.code for reason in item.reasons] == [ReasonCode.NOT_CONVERTIBLE]
    assert item.reasons[0].data["said_by"] == "k"


def test_original_files_meet_no_requirement() -> None:
    item = native_world(validated=True).item("res/layer_0")
    assert (item.status, item.steps) == (Status.FAILING, ())
    assert [reason.code for reason in item.reasons] == [ReasonCode.NOT_CONVERTIBLE, ReasonCode.METRIC_MISSING]


def test_original_files_whose_source_is_not_here_are_compared_by_record() -> None:
    world = native_world()
    away = Reason(ReasonCode.SOURCE_NOT_HERE, {"path": "/data/ae.pt"})
    world.wanted["res/layer_0"] = replace(world.wanted["res/layer_0"], not_here=away)
    item = world.item("res/layer_0")
    assert (item.status, item.reasons[-1]) == (Status.NATIVE, away)


def test_a_converter_that_learned_more_is_asked_again() -> None:
    world = native_world()
    asked = world.wanted["res/layer_0"].sae
    world.wanted["res/layer_0"] = Wanted(asked, inputs_of(asked, {"converter": 2}))
    item = world.item("res/layer_0")
    assert (item.status, StepKind.CONVERT in item.steps) == (Status.OUTDATED, True)
    world.inexpressible.clear()
    world.apply()
    assert world.item("res/layer_0").status is Status.CURRENT
    assert not [path for path in world.at().files if path.startswith("native/")]


def test_what_somebody_put_where_a_converted_sae_would_stand_is_not_written_over() -> None:
    world = native_world()
    asked = world.wanted["res/layer_0"].sae
    theirs = {"layer_0/sae_weights.safetensors": digest_bytes(b"theirs")}
    world.put(files={**world.at().files, **theirs})
    assert world.item("res/layer_0").status is Status.NATIVE, "nothing would be written"
    world.wanted["res/layer_0"] = Wanted(asked, inputs_of(asked, {"converter": 2}))
    item = world.item("res/layer_0")
    assert (item.status, item.steps, item.held) == (Status.DRIFTED, (), True)
    assert item.reasons[0].data["file"] == "sae_weights.safetensors"
    assert StepKind.CONVERT in world.item("res/layer_0", replace=("res/*",)).steps


def test_a_tag_names_a_release_with_original_files_unless_something_is_required_of_them() -> None:
    assert not native_world().plan().pending
    assert native_world().at().tags
    assert not native_world(validated=True).at().tags
