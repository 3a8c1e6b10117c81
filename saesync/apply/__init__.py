"""Running a plan.

::

    apply(plan: Plan, context: Context, emit: Emit, stop: StopFlag) -> Result

    Context(
        cache: Cache,
        resolver: Resolver,                       # the one that made ``wanted``
        wanted: Mapping[str, Wanted],             # by address
        observed: Mapping[Place, Observed],       # by (target, location)
        open_target: Callable[[str], Target],     # e.g. lambda name: targets.open_target(name, cache)
        choices=Choices(), devices=(), converters=1, proof_rows=512, debug=False,   # debug: tell what failing workers said
    )
    StopFlag()            .request() from the SIGINT handler: once = finish what runs, twice = stop now
    Result                .exit_code (0, 1, 130), .outcomes {address: Outcome}, .failures, .seconds, .interrupted

    preflight.check(plan, context) -> tuple[Diagnostic, ...]     # empty: nothing is missing
    progress.reporter(kind, stream, Look()) -> context manager giving an Emit   # kind "terminal" | "lines" | "json"

``apply`` never raises for one SAE's failure: it is in ``Result.failures`` and was emitted as ``step_failed``. It writes nothing
outside the cache and the targets, keeps no journal and no lock: run it again after any interruption.
"""

from saesync.apply.context import Context, StopFlag
from saesync.apply.result import Outcome, Result
from saesync.apply.run import apply

__all__ = ["Context", "Outcome", "Result", "StopFlag", "apply"]
