"""``apply`` itself: tasks from the plan, lanes to run them, and one account of what came of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from saesync.apply.context import Context, StopFlag
from saesync.apply.crew import Crew
from saesync.apply.graph import CONVERT, DEVICE, Duty, Graph
from saesync.apply.registration import Registration
from saesync.apply.result import Outcome, Result, gate_diagnostics, planned_failures, planned_outcomes
from saesync.apply.scheduler import Outcome as Settled
from saesync.apply.scheduler import Scheduler, State, Task
from saesync.apply.steps import Steps
from saesync.apply.work import Work
from saesync.errors import Diagnostic, Interrupted, SaesyncError
from saesync.events import Emit, Event, ended, version
from saesync.model import Failure, Plan, StepKind
from saesync.nothing import nothing
from saesync.system import os_trouble

_NAMED = 3
_WHOLE = frozenset({StepKind.CARD, StepKind.TAG, StepKind.REGISTER})  # steps of a release, not of an SAE
_ENDS = {StepKind.DELETE: Outcome.DELETED, StepKind.REGISTER: Outcome.REGISTERED}


def _entry_of(duty: Duty) -> str:
    """What an outcome is counted under: a release's entry in a registry is apart from the release itself."""
    return f"{duty.address} {duty.registration.seen.registry}" if duty.registration is not None else duty.address


def apply(plan: Plan, context: Context, emit: Emit, stop: StopFlag) -> Result:
    """Carry out a plan: everything it asks for that can be done is done, whatever else fails.

    Raises:
        SaesyncError: nothing could be started at all (no device, or interrupted before anything was).
    """
    began = context.clock()
    voice = _Voice(emit)
    voice(version())
    crew = Crew(context.cache, context.start, context.converters, context.devices)
    stop.at_once(crew.kill)
    graph = Graph(plan, context, Steps(context, crew, voice))
    account = _Account(plan, graph, voice, context)
    try:
        graph.build()
        releases = list(dict.fromkeys(item.release for item in plan.pending))
        steps = sum(len(item.steps) for item in plan.pending)
        voice({"type": "plan", "digest": plan.digest, "steps": steps, "releases": releases})
        if graph.tasks:
            if graph.uses(DEVICE):
                crew.find_devices(graph.steps.note)
            crew.warm(graph.uses(CONVERT), graph.uses(DEVICE))
            scheduler = Scheduler(graph.resources(), account.settled, account.stopping)
            scheduler.run(graph.tasks.values(), stop)
            account.left_behind(scheduler.left())
        if not stop.now:
            account.keep_evidence()
    except SaesyncError as error:
        voice.close(ended(error.exit_code, error.diagnostics))
        raise
    finally:
        if stop.now:
            crew.kill()
            crew.bury()
        else:
            crew.close()
    result = account.result(stop.stopping, context.clock() - began)
    voice.close(result.summary())
    return result


class _Voice:
    """``emit`` for many threads; silent once the end was told, or nobody listens any more."""

    def __init__(self, emit: Emit) -> None:
        self._emit, self._lock, self._muted = emit, threading.RLock(), False

    def __call__(self, event: Event) -> None:
        with self._lock:
            if self._muted:
                return
            try:
                self._emit(event)
            except OSError:  # nobody reads any more (a closed pipe): no reason to leave work half done
                self._muted = True

    def close(self, event: Event) -> None:
        """The last event; what threads that were left behind still say is not told."""
        with self._lock:
            self(event)
            self._muted = True


@dataclass
class _Account:
    """What came of every task, told as events and kept for the result."""

    plan: Plan
    graph: Graph
    emit: Emit
    context: Context
    failures: list[Failure] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    interrupted: set[str] = field(default_factory=set)
    reached: set[tuple[str, StepKind]] = field(default_factory=set)  # steps of whole releases that were not stopped before

    def __post_init__(self) -> None:
        self.failures += planned_failures(self.plan)
        self.outcomes |= planned_outcomes(self.plan)

    def settled(self, task: Task, settled: Settled) -> None:
        """Told by the scheduler."""
        duty = self.graph.duties[task.key]
        error = settled.error
        if isinstance(error, Interrupted):
            self.interrupted.add(task.key)
        elif error is not None:
            places = duty.work.sae.origins if duty.work is not None else nothing()
            diagnostics = tuple(diagnostic.at(duty.origin, places) for diagnostic in error.diagnostics)
            self._fail(duty, diagnostics)
        if duty.final:
            self._finish(duty, settled)

    def stopping(self, running: Sequence[Task]) -> None:
        """Told by the scheduler after the first request to stop."""
        names = list(dict.fromkeys(self.graph.duties[task.key].address for task in running))
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        what = f"Finishing {', '.join(names[:_NAMED])}{more}, then stopping" if names else "Stopping"
        self.emit({"type": "note", "text": f"{what}. Press Ctrl-C again to stop now."})

    def left_behind(self, running: Iterable[Task]) -> None:
        """Told after a second request to stop. What was being written then may have landed all the same."""
        for duty in (self.graph.duties[task.key] for task in running):
            if duty.final:
                self.reached.add((duty.address, duty.step))
                self.outcomes[_entry_of(duty)] = Outcome.UNSURE

    def _fail(self, duty: Duty, diagnostics: Iterable[Diagnostic]) -> None:
        found = tuple(diagnostics)
        self.failures.append(Failure(duty.address, duty.step, found))
        told = [diagnostic.to_json() for diagnostic in found]
        self.emit({"type": "step_failed", "address": duty.address, "step": str(duty.step), "diagnostics": told})

    def _finish(self, duty: Duty, settled: Settled) -> None:
        outcome = self._outcome(duty, settled)
        if duty.step in _WHOLE:
            if outcome is Outcome.STOPPED:
                return  # counted apart from SAEs
            self.reached.add((duty.address, duty.step))
            if duty.registration is not None:
                self._entered(duty, duty.registration, outcome)
                return
            follows = duty.step is StepKind.TAG and settled.state is State.SKIPPED  # of a failure that is told already
            if outcome is not Outcome.PUBLISHED and not follows:
                self.outcomes[duty.address] = outcome
            return
        self.outcomes[duty.address] = outcome
        work = duty.work
        if outcome is Outcome.FAILING and work is not None and work.sae.validate is not None:
            self._fail(replace(duty, step=StepKind.VALIDATE), gate_diagnostics(work.misses, work.sae.validate.require))
        self.emit({"type": "sae_finished", "address": duty.address, "outcome": str(outcome), **self._about(duty)})

    def _entered(self, duty: Duty, registration: Registration, outcome: Outcome) -> None:
        self.outcomes[_entry_of(duty)] = outcome
        if registration.said is not None:
            self.emit({"type": "registered", "release": duty.address, **registration.said})

    def _outcome(self, duty: Duty, settled: Settled) -> Outcome:
        if settled.state is State.DONE:
            if duty.step in _ENDS:
                return _ENDS[duty.step]
            if duty.work is not None and duty.work.misses:
                return Outcome.FAILING
            return Outcome.NATIVE if duty.work is not None and duty.work.native is not None else Outcome.PUBLISHED
        if settled.state is State.STOPPED or isinstance(settled.error, Interrupted):
            return Outcome.STOPPED
        if settled.state is State.FAILED:
            return Outcome.FAILED
        if settled.cause in self.interrupted:
            return Outcome.STOPPED
        cause = self.graph.duties[settled.cause] if settled.cause is not None else duty
        return Outcome.FAILED if cause.address == duty.address else Outcome.SKIPPED

    def _about(self, duty: Duty) -> dict[str, Any]:
        work = duty.work
        if work is None:
            return {"stays": duty.step is StepKind.DELETE}
        began = self.context.clock() if work.began is None else work.began
        metrics = {name: metric.value for name, metric in sorted(work.evidence.metrics.items())} if work.evidence else {}
        proof = dict(work.build.proof) if work.build is not None else {}
        native = {} if work.native is None else {"native": work.native.to_json()}
        seconds = round(self.context.clock() - began, 3)
        return {"seconds": seconds, "metrics": metrics, "proof": proof, "stays": work.stays, **native}

    def keep_evidence(self) -> None:
        """Publish the evidence of SAEs that missed a gate to their release's ``records:``; the cache has it already."""
        missed: dict[str, list[Work]] = {}
        for duty in self.graph.duties.values():
            if duty.final and duty.work is not None and duty.work.misses and not duty.work.stands:
                missed.setdefault(duty.work.release.name, []).append(duty.work)
        for works in missed.values():
            release = works[0].release
            if release.records is None:
                continue
            try:
                self.graph.steps.keep_evidence(release.records, works)
            except (SaesyncError, OSError) as error:  # the summary of what was done is told all the same
                known = os_trouble(error) if isinstance(error, OSError) else error
                self._fail(Duty(release.name, StepKind.PUBLISH, release.origin), known.diagnostics)

    def result(self, interrupted: bool, seconds: float) -> Result:
        """The account, closed: what was not settled is stopped."""
        for duty in self.graph.duties.values():
            if duty.final and duty.step not in _WHOLE:
                self.outcomes.setdefault(_entry_of(duty), Outcome.STOPPED)
        whole = [(duty.address, duty.step) for duty in self.graph.duties.values() if duty.final and duty.step in _WHOLE]
        left = Counter(step for address, step in whole if (address, step) not in self.reached)
        lanes = self.graph.lanes.values()
        return Result(
            dict(self.outcomes),
            tuple(self.failures),
            interrupted,
            commits=sum(lane.commits for lane in lanes),
            uploaded=sum(lane.uploaded for lane in lanes),
            cards=sum(lane.cards for lane in lanes),
            tags=sum(lane.tagged for lane in lanes),
            cards_left=left[StepKind.CARD],
            tags_left=left[StepKind.TAG],
            entries_left=left[StepKind.REGISTER],
            seconds=seconds,
        )
