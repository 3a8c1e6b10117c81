"""The model card: README.md with front matter, one block per release, and whatever people wrote around it. Pure.

Everything from records and manifests is untrusted and written so that it cannot act (``inert``).
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from saesync.card import blocks, evidence, frontmatter
from saesync.digest import canonical
from saesync.inert import code
from saesync.model import Release, Sae
from saesync.record import Record, SaeRecord

CARD_VERSION = 1
"""Part of the digest: bumped when the card's text should be written anew everywhere."""

TAGS = ("sparse-autoencoder", "saelens", "saesync")
_ENCODER = msgspec.json.Encoder(order="sorted", enc_hook=dict)  # a mapping that cannot be changed is written as one that can
_LISTS = ("base_model", "datasets", "tags")


def card_digest(release: Release, record: Record, tag: str | None = None) -> str:
    """Identity of what the card of ``release`` is made of: what the manifest says of it, what the record holds, and the tag.

    Never raises, whatever a record holds.
    """
    asked = {sae.id: sae for sae in release.saes}
    saes = [[sae_id, *_asked_of(asked.get(sae_id)), *_held_of(record.saes[sae_id])] for sae_id in sorted(record.saes)]
    head = [CARD_VERSION, release.name, _home(release), release.publish and release.publish.license, tag]
    parts = [head, _front(release, record), saes]
    try:  # not ``key_of``: a release's numbers are many, and should they be spelt otherwise one day, cards are written anew
        text = _ENCODER.encode(parts)
    except (ValueError, RecursionError):  # a record may hold depths that JSON's writer refuses
        text = canonical([head, sorted(record.saes)])
    return hashlib.sha256(text).hexdigest()


def _home(release: Release) -> str | None:
    """The Hub id that the load snippet names; a folder may be moved without its card being stale."""
    spec = release.publish
    return spec.location if spec is not None and spec.target == "huggingface" else None


def card_found(release: Release, record: Record, readme: str | None) -> str | None:
    """Digest of the card that stands in a README: what the record says, or None where its block is missing or was edited."""
    return record.card if readme is not None and blocks.stands(readme, release.name) else None


def make_card(
    release: Release,
    record: Record,
    existing_readme: str | None,
    tag: str | None = None,
    unedited: Callable[[], None] | None = None,
) -> tuple[str, str]:
    """README.md for a target that holds ``record``, and the digest of what it was made of.

    ``tag`` names the commit that holds this very record (``tags.shown_tag``), for those who want these bytes and no others.

    ``existing_readme`` is what stands there now: other releases' blocks and everything written by hand are kept byte for
    byte. An empty record takes the release's block out. In the front matter the manifest wins where it says something (its
    license, above all); where it does not, what people wrote stays, and what an earlier manifest said goes. ``unedited`` is
    called where it cannot be edited, and so stays as it is.
    """
    front, body = frontmatter.split(existing_readme or "")
    merged, noted = _edited(release, record, front, body)
    if merged is None and unedited is not None:
        unedited()
    body = blocks.put(body, release.name, _block(release, record, noted, tag) if record.saes else None)
    head = front if merged is None else merged
    text = body if head is None or (front is None and not head.strip()) else frontmatter.joined(head, body)
    return text, card_digest(release, record, tag)


def _edited(release: Release, record: Record, front: str | None, body: str) -> tuple[str | None, dict[str, list[str]]]:
    """The front matter with what this release says in it (None: it cannot be edited), and what its block notes of that."""
    place = blocks.find(body, release.name)
    earlier = blocks.noted_front(body[slice(*place)]) if place is not None else {}
    ours = _front(release, record) if record.saes else {}
    elsewhere = blocks.noted_elsewhere(body, release.name)
    license_ = release.publish.license if release.publish is not None else None
    library = {"library_name": "saelens"} if _loadable(record) else {}
    scalars = {"license": license_} if license_ and record.saes else {}
    gone = {name: [value for value in held if value not in elsewhere.get(name, ())] for name, held in earlier.items()}
    drop = {name: gone[name] for name in (*_LISTS, "license") if gone.get(name) and name not in scalars}
    merged = frontmatter.merge(front, scalars, {name: ours.get(name, []) for name in _LISTS}, drop, default=library)
    by_hand = "license" not in {**earlier, **elsewhere} and frontmatter.says(front, "license")  # is changed, but never taken out
    return merged, ours if by_hand else {**ours, **{name: [value] for name, value in scalars.items()}}


def _front(release: Release, record: Record) -> dict[str, list[str]]:
    """What this release contributes to the front matter's lists; only names that the Hub knows."""
    saes = [sae for sae in release.saes if sae.id in record.saes]
    models = {sae.model.name for sae in saes if sae.model.name is not None}
    datasets = {sae.validate.dataset.repo for sae in saes if sae.validate is not None}
    tags = TAGS if _loadable(record) else tuple(tag for tag in TAGS if tag != "saelens")
    return {"base_model": sorted(models), "datasets": sorted(name for name in datasets if name), "tags": list(tags)}


def _loadable(record: Record) -> list[str]:
    """SAEs that SAELens loads, sorted: all but those that are published as their authors' own files."""
    return sorted(sae_id for sae_id, entry in record.saes.items() if entry.native is None)


def _asked_of(sae: Sae | None) -> list[Any]:
    """What the card says of an SAE that comes from the manifest."""
    if sae is None:
        return [None]
    bounds = [[bound.metric, bound.kind, bound.bound] for bound in sae.validate.require] if sae.validate else None
    hooks = [sae.hook] if sae.hook_out is None else [sae.hook, sae.hook_out]
    return [*hooks, sae.model.label, bounds]


def _held_of(entry: SaeRecord) -> list[Any]:
    """What the card says of an SAE that comes from the record: not times, not earlier evidence."""
    return [entry.build_key, entry.adopted, entry.proof, entry.evidence[:1], entry.native]


# ---------------------------------------------------------------------------------------------------- the block


def _block(release: Release, record: Record, front: Mapping[str, list[str]], tag: str | None) -> str:
    """One release's part of the README."""
    made = replace(record, saes={sae_id: record.saes[sae_id] for sae_id in _loadable(record)})
    converted = _converted(release, made, tag) if made.saes else []
    parts = [f"## {code(release.name)}", *converted, evidence.native_table(record)]
    return blocks.noted(front, "\n\n".join(part for part in parts if part))


def _converted(release: Release, record: Record, tag: str | None) -> list[str]:
    """What is said of SAEs that SAELens loads: ``record`` holds no others."""
    return [
        f"{evidence.counted(len(record.saes))}, published by saesync.",
        _snippet(release, record),
        _pinned(release, record, tag),
        evidence.table(release, record),
        evidence.how(release, record),
        evidence.proofs(record),
    ]


def _snippet(release: Release, record: Record) -> str:
    """How to load the first SAE. JSON strings are Python strings here: printable, no line breaks."""
    first = json.dumps(sorted(record.saes)[0])
    if release.publish is not None and release.publish.target == "huggingface":
        call = f"SAE.from_pretrained({json.dumps(release.publish.location)}, {first})"
    else:
        call = f"SAE.load_from_disk({first})  # in this folder"
    return f"```python\nfrom sae_lens import SAE\n\nsae = {call}\n```"


def _pinned(release: Release, record: Record, tag: str | None) -> str:
    """The same for exactly this release, whatever the repo holds later: ``from_pretrained`` takes no revision."""
    if tag is None or release.publish is None:
        return ""
    first = sorted(record.saes)[0]
    repo, revision = json.dumps(release.publish.location), json.dumps(tag)
    fetch = f"snapshot_download({repo}, revision={revision}, allow_patterns={json.dumps(glob.escape(first) + '/*')})"
    load = f"SAE.load_from_disk(folder + {json.dumps('/' + first)})"
    lines = [
        "from huggingface_hub import snapshot_download",
        "from sae_lens import SAE",
        "",
        f"folder = {fetch}",
        f"sae = {load}",
    ]
    return "\n".join([f"The release as it stands here is tagged {code(tag)}:", "", "```python", *lines, "```"])
