"""An inspection as data, for programs."""

from __future__ import annotations

from typing import Any

from saesync.inspection import Inspection
from saesync.inspection.sets import incomplete_sets


def to_json(inspection: Inspection) -> dict[str, Any]:
    """Everything that was found. ``ambiguous`` names the formats that fit equally well: somebody has to say which."""
    return {
        "type": "saesync-inspection",
        "version": 1,
        "source": str(inspection.reference),
        "revision": inspection.revision,
        "saes": [
            {
                "path": found.path,
                "problem": found.problem,
                "ambiguous": [one.format for one in found.rivals] if found.able and len(found.rivals) > 1 else [],
                "candidates": [
                    {
                        "format": one.format,
                        "score": one.score,
                        "facts": dict(one.facts),
                        "options": dict(one.options),
                        "needs": list(one.needs),
                        "refusal": one.refusal,
                    }
                    for one in found.candidates
                ],
                "tensors": {
                    file: {name: {"shape": list(info.shape), "dtype": info.dtype} for name, info in tensors.items()}
                    for file, tensors in found.headers.tensors.items()
                },
            }
            for found in inspection.saes
        ],
        "incomplete": incomplete_sets(inspection),
        "unread": list(inspection.unread),
    }
