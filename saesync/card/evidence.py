"""What a record proves, as Markdown: the table of numbers, how they were measured, the proofs. Pure; foreign text is inert."""

from __future__ import annotations

from saesync.card.how import how_measured
from saesync.folders import roots_of
from saesync.inert import code, exact, measured
from saesync.measure.metrics import METRICS, NOT_COUNTED
from saesync.model import Release, Sae
from saesync.reason import Reason, ReasonCode
from saesync.record import Record, SaeRecord, record_path
from saesync.registry.entry import current_evidence
from saesync.verdict import judge, unmeasured

_COLUMNS = ("explained_variance", "ce_loss_score", "l0", "dead_features", "mse", "cossim")
_ROWS = 2000
_ABOUT = 12
_DETAIL = 500  # characters of a refusal
_LEGEND = 2000  # characters kept for what stands below the table


def table(release: Release, record: Record, room: int | None = None) -> str:
    """One row per SAE with its numbers; columns are the metrics that any of them has. At most ``room`` characters."""
    current = [evidence for entry in record.saes.values() if (evidence := current_evidence(entry)) is not None]
    columns = [name for name in _COLUMNS if any(name in evidence.metrics for evidence in current)]
    asked = {sae.id: sae for sae in release.saes}
    head = ["SAE", "hook", *columns, "verdict"]
    lines = [_row(head), _row(["---"] * len(head))]
    left = None if room is None else room - _LEGEND
    for sae_id in sorted(record.saes)[:_ROWS]:
        entry, sae = record.saes[sae_id], asked.get(sae_id)
        row = _row([code(sae_id), _hook(sae, entry), *_numbers(entry, columns), _verdict(sae, entry)])
        if left is not None:
            left -= len(row) + 1
            if left < 0:
                break
        lines.append(row)
    shown = len(lines) - 2
    if shown < len(record.saes):
        lines.append(f"\n… and {len(record.saes) - shown:,} more, in {code(record_path(release.name))}.")
    legend = "; ".join(f"`{name}`: {METRICS[name].summary.replace('|', '&#124;')}" for name in columns)
    return "\n".join(lines) + (
        f"\n\n<sub>{legend}. {NOT_COUNTED} ± is one standard error over documents.</sub>" if columns else ""
    )


def native_table(record: Record) -> str:
    """SAEs that SAELens cannot express: where their authors' own files stand, and why they are not converted."""
    native = [(sae_id, entry.native) for sae_id, entry in sorted(record.saes.items()) if entry.native is not None]
    if not native:
        return ""
    rows = [_row([code(sae_id), code(roots_of(sae_id)[1]), code(why.detail, _DETAIL)]) for sae_id, why in native[:_ROWS]]
    if len(native) > _ROWS:
        rows.append(f"\n… and {len(native) - _ROWS:,} more, in {code(record_path(record.release))}.")
    said = (
        "SAELens cannot express these. What their authors published stands here untouched, and nothing was measured; each "
        "folder's `refusal.json` says the reason for machines."
    )
    head = ["### Not convertible: original files", "", said, "", _row(["SAE", "files", "why"]), _row(["---"] * 3)]
    return "\n".join([*head, *rows])


def counted(saes: int) -> str:
    """``1 sparse autoencoder``, ``26 sparse autoencoders``."""
    return f"{saes:,} sparse autoencoder{'s' if saes != 1 else ''}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _hook(sae: Sae | None, entry: SaeRecord) -> str:
    if sae is not None:
        return code(sae.hook) + (f" to {code(sae.hook_out)}" if sae.hook_out is not None else "")
    found = entry.evidence[0].inputs.get("hook") if entry.evidence else None
    return code(found) if isinstance(found, str) else ""


def _numbers(entry: SaeRecord, columns: list[str]) -> list[str]:
    evidence = current_evidence(entry)
    metrics = evidence.metrics if evidence is not None else {}
    return [measured(metrics[name].value, metrics[name].stderr) if name in metrics else "" for name in columns]


def _verdict(sae: Sae | None, entry: SaeRecord) -> str:
    evidence = current_evidence(entry)
    if evidence is None:
        return "not measured"
    if sae is None:
        return "no longer in the manifest"
    require = sae.validate.require if sae.validate is not None else ()
    missed = judge(evidence, require)
    if missed:
        return "; ".join(f"fails: {reason.data['metric']} {_missed(reason)}" for reason in missed)
    if unmeasured(evidence, require):
        return "not measured"
    return "passes" if require else "measured"


def _missed(reason: Reason) -> str:
    if reason.code is ReasonCode.NO_BASELINE:
        return "says nothing where the loss is no worse with the hook set to zero"
    return f"asks for {exact(reason.data['bound'])}"


def how(release: Release, record: Record) -> str:
    """What the numbers were measured with, each distinct way once, most frequent first."""
    asked = {sae.id: sae for sae in release.saes}
    ways: dict[str, int] = {}
    for sae_id, entry in record.saes.items():
        evidence = current_evidence(entry)
        if evidence is not None:
            way = how_measured(evidence.inputs, evidence.about, asked.get(sae_id))
            ways[way] = ways.get(way, 0) + 1
    if not ways:
        return "Nothing was measured: the manifest has no `validate` section."
    ranked = sorted(ways.items(), key=lambda pair: (-pair[1], pair[0]))
    lines = [f"- {counted(count)}: {way}" for way, count in ranked[:_ABOUT]]
    more = [f"- … and {len(ranked) - _ABOUT} other ways"] if len(ranked) > _ABOUT else []
    return "\n".join(["### How they were measured", "", *lines, *more])


def proofs(record: Record) -> str:
    """What was proved, and the largest differences seen."""
    proved = [entry for entry in record.saes.values() if entry.proof]
    if not proved:
        return ""
    worst: dict[str, float] = {}
    for entry in proved:
        for name, value in entry.proof.items():
            if isinstance(value, float) and "max" in name:
                worst[name] = max(worst.get(name, value), value)
    said = ", ".join(f"{code(name, 60)} at most {worst[name]:.2g}" for name in sorted(worst)[:_ABOUT])
    were, adopted = "was" if len(proved) == 1 else "were", sum(entry.adopted for entry in proved)
    lines = [
        "### Proof of conversion",
        "",
        f"{len(proved):,} of {counted(len(record.saes))} {were} compared with the original authors' forward pass"
        f"{f' ({said})' if said else ''}. The numbers of each stand in the record beside this file.",
    ]
    if adopted:
        them = "keeps the bytes it was found with" if adopted == 1 else "keep the bytes they were found with"
        lines.append(f"{adopted:,} {them}, proved to be the same function.")
    return "\n".join(lines)
