"""Everything known of one SAE, as JSON: what is asked, what is observed, its proof and its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesync.digest import FileDigest
from saesync.keys import Inputs, Wanted
from saesync.model import WEIGHTS_FILE, Item, Observed, Requirement, Sae
from saesync.record import Evidence, SaeRecord
from saesync.verdict import judge, shown, unmeasured


def show_json(
    item: Item, wanted: Wanted | None, observed: Observed | None, failed_proof: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The view behind ``saesync show``: type, version, address, status, desired, observed, proof, evidence (current first).

    ``failed_proof`` is what the last proof of what is asked failed with here: summary and detail.
    """
    record = observed.records.get(item.release) if observed is not None else None
    entry = record.saes.get(item.id or "") if record is not None else None
    require = wanted.sae.validate.require if wanted is not None and wanted.sae.validate is not None else ()
    asked = wanted.inputs.measure_key if wanted is not None and wanted.inputs is not None else None
    evidence = [_evidence(found, require, entry, asked, published=True) for found in entry.evidence] if entry is not None else []
    known = wanted.evidence if wanted is not None else None
    if known is not None and all(found["measure_key"] != known.measure_key for found in evidence):
        evidence.insert(0, _evidence(known, require, entry, asked, published=False))
    return {
        "type": "saesync-sae",
        "version": 1,
        "address": item.address,
        "status": str(item.status),
        "held": item.held,
        "steps": [str(step) for step in item.steps],
        "reasons": [{"code": str(reason.code), "data": dict(reason.data)} for reason in item.reasons],
        "origin": str(item.origin) if item.origin is not None else None,
        "desired": _desired(wanted.sae, wanted.inputs) if wanted is not None else None,
        "observed": _observed(item.id or "", observed, entry),
        "native": entry.native.to_json() if entry is not None and entry.native is not None else None,
        "proof": _flat(entry.proof) if entry is not None else {},
        "failed_proof": None if failed_proof is None else _flat(failed_proof),
        "evidence": evidence,
    }


def _desired(sae: Sae, inputs: Inputs | None) -> dict[str, Any]:
    source, spec = sae.source, sae.validate
    return {
        "hook": sae.hook,
        "hook_out": sae.hook_out,
        "dtype": sae.dtype,
        "model": {"name": sae.model.label, "revision": sae.model.revision, "loader": sae.model.loader},
        "source": source and {"repo": source.repo, "revision": source.revision, "path": source.path, "format": source.format},
        "validate": spec and {"dataset": spec.dataset.label, "tokens": spec.tokens, "context": spec.context},
        "require": [_requirement(bound) for bound in spec.require] if spec is not None else [],
        "neuronpedia_id": sae.neuronpedia_id,
        "entry": _flat(sae.entry),
        "keys": inputs and {"weights": inputs.weights_key, "build": inputs.build_key, "measure": inputs.measure_key},
    }


def _requirement(bound: Requirement) -> dict[str, Any]:
    at = str(bound.origin) if bound.origin is not None else None
    return {"metric": bound.metric, "kind": bound.kind, "bound": shown(bound.bound), "at": at}


def _observed(sae_id: str, observed: Observed | None, entry: SaeRecord | None) -> dict[str, Any] | None:
    if observed is None:
        return None
    found = observed.folder(sae_id)
    recorded: Mapping[str, FileDigest] = entry.files if entry is not None else {}
    files = {
        shown(name): {**digest.to_json(), "recorded": name in recorded and recorded[name].same_bytes(digest)}
        for name, digest in sorted(found.items())
    }
    return {
        "target": observed.target,
        "location": observed.location,
        "head": observed.head,
        "visibility": observed.visibility,
        "visible": observed.unknown is None,
        "files": files,
        "missing": sorted(set(recorded) - set(found)),
        "evidence_only": entry is not None and not recorded,
        "keys": {"weights": entry.weights_key, "build": entry.build_key} if entry is not None else None,
        "adopted": entry.adopted if entry is not None else False,
        "about": _flat(entry.about) if entry is not None else {},
        "run": _flat(entry.run) if entry is not None else {},
    }


def _evidence(
    evidence: Evidence, require: tuple[Requirement, ...], entry: SaeRecord | None, asked: str | None, published: bool
) -> dict[str, Any]:
    weights = entry.files.get(WEIGHTS_FILE) if entry is not None else None
    alone = entry is not None and not entry.files  # evidence of weights that we do not publish: there are no others to compare
    missed, missing = judge(evidence, require), unmeasured(evidence, require)
    return {
        "measure_key": evidence.measure_key,
        "published": published,
        "as_asked": evidence.measure_key == asked,
        "of_these_weights": alone or (weights is not None and weights.sha256 == evidence.weights_sha256),
        "metrics": {
            name: {"value": shown(metric.value), "stderr": shown(metric.stderr)}
            for name, metric in sorted(evidence.metrics.items())
        },
        "verdict": "failing" if missed else "incomplete" if missing else "passing" if require else "measured",
        "misses": [{"code": str(reason.code), "data": dict(reason.data)} for reason in (*missed, *missing)],
        "inputs": _flat(evidence.inputs),
        "about": _flat(evidence.about),
    }


def _flat(part: Mapping[str, Any]) -> dict[str, Any]:
    return {shown(name): shown(value) for name, value in sorted(part.items())}
