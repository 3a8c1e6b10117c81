"""Digests of a plan in its JSON form: of all of it, and of each release, so that two plans can be compared release by release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesync.planning.basis import ASKED, Part, digest_of
from saesync.planning.registration import SECTION


def plan_digest(data: Mapping[str, Any]) -> str:
    """What ``data["digest"]`` must be: the digest of its items' steps and basis."""
    return digest_of(_part(item) for item in data["items"])


def release_digests(data: Mapping[str, Any]) -> Mapping[str, str]:
    """By release, the digest of its items: equal in two plans when both would do the same there, for the same reasons.

    Of an entry in a registry only what is asked counts: what stands in the registry is nothing that the manifest's review is of,
    and a plan of a stranger's manifest never looks at it.
    """
    parts: dict[str, list[Part]] = {}
    for item in data["items"]:
        key, steps, basis = _part(item)
        entry = {name: value for name, value in basis.items() if name.startswith(ASKED)}
        parts.setdefault(item["release"], []).append((key, [], entry) if key[2] == SECTION else (key, steps, basis))
    return {release: digest_of(members) for release, members in parts.items()}


def _part(item: Mapping[str, Any]) -> Part:
    return (item["release"], item["id"] or "", item.get("section") or ""), item["steps"], item["basis"]
