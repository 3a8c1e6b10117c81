"""One SAE for the terminal: what is asked, what is there, its proof and its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesync.digest import short
from saesync.inert import measured, pad, plain, width
from saesync.render.reasons import reason_text
from saesync.render.style import Style

_LONG = 2000
_ROLES = {"passing": "good", "failing": "fail", "incomplete": "held"}
Pairs = list[tuple[str, str]]


def show_text(view: Mapping[str, Any], color: bool = False) -> str:
    """The view of ``planfile.show_json`` as text."""
    style = Style(color)
    head = f"{plain(view['address'])}   {view['status']}{' (held)' if view['held'] else ''}"
    rows = [style.paint(head, "bold"), *(f"  {reason_text(reason)}" for reason in view["reasons"])]
    if view["origin"] and view["desired"] is not None:
        rows.append(f"  asked for at {plain(view['origin'])}")
    if view["steps"]:
        rows.append(f"  apply would {', '.join(view['steps'])}")
    sections = [("asked", _desired(view["desired"])), ("published", _observed(view["observed"]))]
    if view.get("native"):
        sections.append(("not converted", _native(view["native"])))
    if view["proof"]:
        sections.append(("proof", _pairs(view["proof"])))
    if view.get("failed_proof"):
        sections.append(("failed proof", _failed_proof(view["failed_proof"])))
    for number, evidence in enumerate(view["evidence"]):
        name = "evidence" if number == 0 else "earlier evidence"
        sections.append((name, _evidence(evidence, asked=view["desired"] is not None)))
    if not view["evidence"]:
        sections.append(("evidence", [("never measured", "")]))
    for name, pairs in sections:
        rows += ["", style.paint(name, "bold"), *_aligned(pairs, style)]
    return "\n".join(rows)


def _aligned(pairs: Pairs, style: Style) -> list[str]:
    left = max((width(name) for name, _ in pairs), default=0)
    rows = []
    for name, value in pairs:
        text = style.paint(value, _ROLES[value]) if name == "verdict" and value in _ROLES else value
        rows.append(f"  {pad(name, left)}  {text}".rstrip())
    return rows


def _pairs(flat: Mapping[str, Any]) -> Pairs:
    return [(plain(name, 60), _value(value)) for name, value in flat.items() if value not in (None, "")]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return plain(value)


def _exact(value: Any) -> str:
    """A number as the manifest says it: nothing was measured, so that nothing is rounded."""
    return str(value) if isinstance(value, float) else plain(value)


def _desired(desired: Mapping[str, Any] | None) -> Pairs:
    if desired is None:
        return [("nothing", "no manifest asks for it")]
    source, validate, model = desired["source"], desired["validate"], desired["model"]
    hooks = " to ".join(plain(desired[name]) for name in ("hook", "hook_out") if desired.get(name))
    pairs = [
        ("hook", hooks or "not said"),
        ("dtype", plain(desired["dtype"])),
        ("model", _versioned(model["name"], model)),
    ]
    if source:
        place = f"{_versioned(source['repo'], source)} {plain(source['path'])}" if source["repo"] else plain(source["path"])
        pairs.append(("source", f"{place.strip()} ({plain(source['format'])})" if source["format"] else place.strip()))
    if validate:
        spec = f"{plain(validate['dataset'])}, {validate['tokens']:,} tokens, context {validate['context']:,}"
        pairs.append(("validate", spec))
    pairs += [(f"entry {plain(name, 60)}", _exact(value)) for name, value in desired["entry"].items()]
    for bound in desired["require"]:
        at = f"   ({plain(bound['at'])})" if bound["at"] else ""
        pairs.append(("require", f"{plain(bound['metric'])} {bound['kind']} {_value(bound['bound'])}{at}"))
    return pairs + _keys(desired["keys"])


def _versioned(name: Any, pinned: Mapping[str, Any]) -> str:
    revision = pinned.get("revision")
    return plain(name) + (f"@{short(plain(revision))}" if revision else "")


def _keys(keys: Mapping[str, Any] | None) -> Pairs:
    return [(f"{name} key", short(key)) for name, key in (keys or {}).items() if key]


def _observed(observed: Mapping[str, Any] | None) -> Pairs:
    if observed is None:
        return [("nothing", "the release publishes nowhere")]
    if not observed["visible"]:
        return [("at", f"{plain(observed['location'])} (not visible)")]
    head = f"@{short(plain(observed['head']))}" if observed["head"] else ""
    pairs = [("at", f"{plain(observed['location'])}{head}" + (f" ({observed['visibility']})" if observed["visibility"] else ""))]
    for name, digest in observed["files"].items():
        known = "as recorded" if digest["recorded"] else "not as recorded"
        found = short(str(digest.get("sha256") or digest.get("blob_id")))
        pairs.append((plain(name), f"{digest['size']:,} bytes  {found}  {known}"))
    pairs += [(plain(name), "missing") for name in observed["missing"]]
    if observed.get("evidence_only"):
        pairs.append(("files", "none: only evidence stands here, the weights stay at their source"))
    elif not observed["files"] and not observed["missing"]:
        pairs.append(("files", "none"))
    if observed["adopted"]:
        pairs.append(("adopted", "yes: these bytes were found here and proved"))
    return pairs + _keys(observed["keys"]) + _pairs(observed["about"]) + _pairs(observed["run"])


def _native(native: Mapping[str, Any]) -> Pairs:
    pairs = [("why", native["title"]), ("said by", native["said_by"]), ("detail", native["detail"])]
    return [*((name, plain(value, _LONG)) for name, value in pairs), ("published", "its authors' own files, as they are")]


def _failed_proof(failed: Mapping[str, Any]) -> Pairs:
    return [("verdict", "failing"), ("", plain(failed["detail"], _LONG)), ("kept", "in the cache, not published")]


def _evidence(evidence: Mapping[str, Any], asked: bool) -> Pairs:
    pairs: Pairs = []
    for name, metric in evidence["metrics"].items():
        value, stderr = metric["value"], metric["stderr"]
        text = measured(value, stderr if isinstance(stderr, float) else None) if isinstance(value, float) else plain(value)
        pairs.append((plain(name, 60), text))
    pairs.append(("verdict", evidence["verdict"]))
    pairs += [("", reason_text(reason)) for reason in evidence["misses"]]
    if not evidence["published"]:
        pairs.append(("kept", "in the cache or in records, not published"))
    elif not evidence["of_these_weights"]:
        pairs.append(("note", "measured on other weights than the ones published"))
    if asked and not evidence["as_asked"]:
        pairs.append(("note", "measured otherwise than the manifest asks now"))
    return [*pairs, ("measure key", short(evidence["measure_key"])), *_pairs(evidence["inputs"]), *_pairs(evidence["about"])]
