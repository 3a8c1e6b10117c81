"""One release's entry in the registry: what it holds, its YAML form, when two entries say the same, and the one made from a
manifest and its evidence."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saesync.digest import canonical, key_of
from saesync.errors import Refused
from saesync.inert import plain
from saesync.model import WEIGHTS_FILE, Json, Release, Sae
from saesync.nothing import nothing
from saesync.record import Evidence, Record, SaeRecord

NUMBERS = ("l0", "variance_explained", "norm_scaling_factor")
"""Fields of an SAE that hold a number."""

SCALED = "expected_average_only_in"
_HUB = "huggingface"
_NAMED = 3  # repositories listed in a message


@dataclass(frozen=True, slots=True)
class SaeEntry:
    """One SAE of an entry. ``path`` is where it is in the repo: a folder or a file, as the release's loader expects it.

    ``l0`` is the expected number of active features per token, ``variance_explained`` at most 1, ``neuronpedia`` is
    ``model/source``, and ``norm_scaling_factor`` is folded when the SAE's cfg still wants scaled activations.
    """

    id: str
    path: str
    l0: int | float | None = None
    variance_explained: float | None = None
    neuronpedia: str | None = None
    norm_scaling_factor: float | None = None

    def to_yaml(self) -> dict[str, Json]:
        """Fields that are there, in the order of the file's newest entries."""
        names = ("id", "path", "l0", "neuronpedia", "norm_scaling_factor", "variance_explained")
        pairs = ((name, getattr(self, name)) for name in names)
        return {name: value for name, value in pairs if value is not None}


@dataclass(frozen=True, slots=True)
class Entry:
    """One release. ``conversion_func`` names the loader of foreign files; None is SAELens's own format."""

    release: str
    repo_id: str
    model: str
    conversion_func: str | None
    saes: tuple[SaeEntry, ...]
    links: Mapping[str, str] = field(default_factory=nothing)
    config_overrides: Mapping[str, Json] = field(default_factory=nothing)

    def to_yaml(self) -> dict[str, Json]:
        """The mapping under the release's name, keys in the order of the file's newest entries."""
        found: dict[str, Json] = {"conversion_func": self.conversion_func}
        if self.links:
            found["links"] = dict(self.links)
        found |= {"model": self.model, "repo_id": self.repo_id}
        if self.config_overrides:
            found["config_overrides"] = dict(self.config_overrides)
        return {**found, "saes": [sae.to_yaml() for sae in self.saes]}

    @classmethod
    def from_yaml(cls, release: str, mapping: Any) -> Entry:
        """See the function of this name."""
        return from_yaml(release, mapping)


def from_yaml(release: str, mapping: Any) -> Entry:
    """A registry's own entry. What SAELens ignores (unknown keys) is left out; a path that is a bare int becomes text.

    Raises:
        Refused: ``mapping`` is not an entry; the detail says what of it is wrong.
    """
    reader = _Reader(release)
    top = reader.mapping(mapping, "the entry")
    saes = top.get("saes")
    if not isinstance(saes, list):
        raise reader.wrong("it has no list `saes`")
    overrides = reader.mapping(top.get("config_overrides") or {}, "config_overrides")
    try:
        canonical(overrides)
    except (ValueError, TypeError, RecursionError) as error:
        raise reader.wrong("config_overrides hold something that JSON cannot say") from error
    links = reader.mapping(top.get("links") or {}, "links")
    return Entry(
        release,
        reader.text(top.get("repo_id"), "repo_id"),
        reader.text(top.get("model"), "model"),
        None if top.get("conversion_func") is None else reader.text(top["conversion_func"], "conversion_func"),
        tuple(reader.sae(number, sae) for number, sae in enumerate(saes, 1)),
        {reader.text(name, "a link's name"): reader.text(link, "a link") for name, link in links.items()},
        overrides,
    )


class _Reader:
    """Reads values of one entry, and words what is wrong with them."""

    def __init__(self, release: str) -> None:
        self.release = release

    def sae(self, number: int, value: Any) -> SaeEntry:
        fields = self.mapping(value, f"SAE {number}")
        sae_id = self.text(fields.get("id"), f"the id of SAE {number}")
        path = fields.get("path")
        whole = isinstance(path, int) and not isinstance(path, bool)
        numbers = {name: self.number(fields.get(name), f"{name} of {plain(sae_id)}") for name in NUMBERS}
        neuronpedia = fields.get("neuronpedia")
        return SaeEntry(
            sae_id,
            str(path) if whole else self.text(path, f"the path of {plain(sae_id)}"),
            neuronpedia=None if neuronpedia is None else self.text(neuronpedia, f"neuronpedia of {plain(sae_id)}"),
            **numbers,
        )

    def mapping(self, value: Any, what: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise self.wrong(f"{what} is not a mapping of names")
        return value

    def text(self, value: Any, what: str) -> str:
        if not isinstance(value, str) or not value:
            raise self.wrong(f"{what} is {'missing' if value is None else 'not a text'}")
        return value

    def number(self, value: Any, what: str) -> Any:
        if value is not None and not is_number(value):
            raise self.wrong(f"{what} is not a number")
        return value

    def wrong(self, what: str) -> Refused:
        return Refused("Not a registry entry", f"{plain(self.release)}: {what}. Run `saesync registry lint` on the file.")


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite int or float; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def same_meaning(one: Entry, other: Entry) -> bool:
    """Whether SAELens would read the same from both: order does not count, and 71 is 71.0."""
    return _meaning(one) == _meaning(other)


def same_sae(one: SaeEntry, other: SaeEntry) -> bool:
    """The same for one SAE."""
    return _of_sae(one) == _of_sae(other)


def same_saes(one: Entry, other: Entry) -> bool:
    """The same for all SAEs of two entries."""
    return _of_saes(one) == _of_saes(other)


def digest_of(entry: Entry) -> str:
    """sha256 of what ``entry`` means: equal exactly for entries with ``same_meaning``."""
    return key_of(_meaning(entry))


def _meaning(entry: Entry) -> dict[str, Any]:
    top = {"release": entry.release, "repo_id": entry.repo_id, "model": entry.model, "conversion_func": entry.conversion_func}
    overrides = canonical(dict(entry.config_overrides)).decode()  # as JSON, for True equals 1 in Python
    return {**top, "links": dict(entry.links), "config_overrides": overrides, "saes": _of_saes(entry)}


def _of_saes(entry: Entry) -> list[dict[str, Any]]:
    return sorted((_of_sae(sae) for sae in entry.saes), key=lambda sae: json.dumps(sae, sort_keys=True))


def _of_sae(sae: SaeEntry) -> dict[str, Any]:
    return {name: _whole(value) if name in NUMBERS else value for name, value in sae.to_yaml().items()}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def entry_of(
    release: Release, record: Record | None, only: Collection[str] | None = None, conversion_func: str | None = None
) -> Entry:
    """What the registry should say of ``release``: numbers that were measured, else those that the manifest declares.

    ``record`` is the release's, from its target or from ``records:``. ``only`` are the ids to enter (None: all).
    ``conversion_func`` is the SAELens loader of the source's format, for weights of somebody else; what the manifest
    itself says comes first.

    Raises:
        Refused: there is nothing to enter, the weights are not on the Hub, they stand in several repos, or an SAE that needs a
            norm_scaling_factor has none.
    """
    saes = [sae for sae in release.saes if only is None or sae.id in only]
    if not saes:
        raise Refused("Nothing to register", f"{plain(release.name)} has no SAE that could be entered.", release.origin)
    asked, ours = release.register, release.publish is not None
    records = {} if record is None else record.saes
    return Entry(
        release.name,
        _published_in(release) if ours else _only_repo(release, saes),
        (asked.model if asked is not None else None) or saes[0].model.label,
        None if ours else (asked.conversion_func if asked is not None else None) or conversion_func,
        tuple(_sae_entry(sae, records.get(sae.id), ours=ours) for sae in saes),
        asked.links if asked is not None else {},
        asked.config_overrides if asked is not None else {},
    )


def current_evidence(known: SaeRecord | None) -> Evidence | None:
    """The current measurement, if it belongs to the weights that the record lists; where it lists none, as it is."""
    if known is None or not known.evidence:
        return None
    weights, newest = known.files.get(WEIGHTS_FILE), known.evidence[0]
    return newest if weights is None or weights.sha256 == newest.weights_sha256 else None


def rounded_l0(value: float) -> int | float:
    """A measured mean as the newest entries give it: a whole number from 10 on, one decimal below."""
    near = rounded(value, 1, unknown=0.0)
    return round(value) if near >= 10 else near


def rounded(value: float, digits: int, unknown: float) -> float:
    """With more digits where these would make it the number that SAELens takes where its list says none."""
    near = (round(value, more) for more in range(digits, sys.float_info.dig))
    return next((each for each in near if each != unknown), value)


def _published_in(release: Release) -> str:
    spec = release.publish
    assert spec is not None
    if spec.target != _HUB:
        detail = f"{plain(release.name)} is published to a folder; SAELens's list can only name repositories on the Hub."
        raise Refused("Not on the Hub", detail, release.origin)
    return spec.location


def _only_repo(release: Release, saes: Sequence[Sae]) -> str:
    """The one repo that somebody else's weights stand in."""
    repos: dict[str, Sae] = {}
    for sae in saes:
        if sae.source is None or sae.source.repo is None:
            said = f"{plain(sae.address)} has no source on the Hub and the release no `publish:`. Publish it, or name a repo."
            raise Refused("Not on the Hub", said, sae.origins.get("source", sae.origin))
        repos.setdefault(sae.source.repo, sae)
    if len(repos) > 1:
        named, second = sorted(repos), list(repos.values())[1]
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        detail = (
            f"An entry of SAELens's list has one repo_id; the SAEs of {plain(release.name)} stand in "
            f"{', '.join(map(plain, named[:_NAMED]))}{more}. Write one manifest for each repository."
        )
        raise Refused("Several repositories", detail, second.origins.get("source.repo", second.origin))
    return next(iter(repos))


def _sae_entry(sae: Sae, known: SaeRecord | None, *, ours: bool) -> SaeEntry:
    path = sae.id if ours or sae.source is None else sae.source.path or "."  # SAELens takes "." for a repo's root, not ""
    measured = current_evidence(known)
    l0 = None if measured is None else measured.metrics.get("l0")
    variance = None if measured is None else measured.metrics.get("explained_variance")
    return SaeEntry(
        sae.id,
        path,
        sae.entry.get("l0") if l0 is None else rounded_l0(l0.value),
        sae.entry.get("variance_explained") if variance is None else rounded(variance.value, 3, unknown=1.0),
        sae.neuronpedia_id or sae.entry.get("neuronpedia"),
        _factor(sae, ours=ours),
    )


def _factor(sae: Sae, *, ours: bool) -> Any:
    """The factor that SAELens folds on loading. What we convert has it folded already, unless the manifest asks otherwise."""
    if not ours:
        option = sae.source.options.get("norm_scaling_factor") if sae.source is not None else None
        return sae.entry.get("norm_scaling_factor", option)
    if sae.cfg.get("normalize_activations") != SCALED:
        return None
    if (factor := sae.entry.get("norm_scaling_factor")) is None:
        detail = (
            f"{plain(sae.address)} keeps normalize_activations: {SCALED}, which SAELens only honours with a norm_scaling_factor "
            "in its list; without one it computes wrong features. Declare norm_scaling_factor, or remove the cfg field."
        )
        raise Refused("Needs a declared factor", detail, sae.origins.get("cfg.normalize_activations", sae.origin))
    return factor
