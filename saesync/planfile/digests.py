"""Digests of a plan in its JSON form: of all of it, and of each release, so that two plans can be compared release by release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesync.planning.basis import Part, digest_of


def plan_digest(data: Mapping[str, Any]) -> str:
    """What ``data["digest"]`` must be: the digest of its items' steps and basis."""
    return digest_of(_part(item) for item in data["items"])


def release_digests(data: Mapping[str, Any]) -> Mapping[str, str]:
    """By release, the digest of its items: equal in two plans when both would do the same there, for the same reasons."""
    parts: dict[str, list[Part]] = {}
    for item in data["items"]:
        parts.setdefault(item["release"], []).append(_part(item))
    return {release: digest_of(members) for release, members in parts.items()}


def _part(item: Mapping[str, Any]) -> Part:
    return (item["release"], item["id"] or "", item.get("section") or ""), item["steps"], item["basis"]
