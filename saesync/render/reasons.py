"""One wording per reason code. Words are ours; what comes from manifests, records and servers is marked as ``Quoted``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from saesync.digest import short
from saesync.inert import apart, code, number, plain
from saesync.reason import ReasonCode

Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Quoted:
    """Foreign text inside a sentence: shown so that it cannot act."""

    value: Any


_INPUTS = {"model": "model", "dataset": "dataset"}
Part = str | Quoted
Parts = tuple[Part, ...]


def _fixed(text: str) -> Callable[[Data], Parts]:
    return lambda data: (text,)


def _changed(data: Data) -> Parts:
    name, before, after = data.get("name"), data.get("before"), data.get("after")
    if _is_digest(before) and _is_digest(after):
        return (Quoted(name), " changed ", f"({short(str(before))} → {short(str(after))})")
    return (Quoted(name), " ", Quoted(_value(before)), " → ", Quoted(_value(after)))


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return short(value) if _is_digest(value) else plain(value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) in (40, 64) and set(value) <= set("0123456789abcdef")


def _bound(sign: str, kind: str) -> Callable[[Data], Parts]:
    def parts(data: Data) -> Parts:
        value, bound, stderr = _float(data.get("value")), _float(data.get("bound")), data.get("stderr")
        shown, limit = apart(value, bound)
        spread = f" ± {stderr:.2g}" if isinstance(stderr, float) else ""
        close = isinstance(stderr, float) and abs(value - bound) < 2 * stderr
        return (
            Quoted(data.get("metric")),
            f" {shown}{spread} {sign} {kind} {limit}{' (within 2 standard errors)' if close else ''}",
        )

    return parts


def _no_baseline(data: Data) -> Parts:
    ablated, without = _float(data.get("ablated")), _float(data.get("without"))
    why = f"the loss is {ablated:.6g} with the hook set to zero, and {without:.6g} without the SAE"
    return Quoted(data.get("metric")), f" says nothing: {why}"


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _not_measured(data: Data) -> Parts:
    return ("not measured yet",) if data.get("asked", True) else ("will not be measured: no validate section",)


def _not_visible(data: Data) -> Parts:
    detail = data.get("detail")
    return ("cannot see ", Quoted(data.get("location")), *((": ", Quoted(detail)) if detail else ()))


def _files_changed(data: Data) -> Parts:
    if data.get("recorded") is None:
        there = " was put there outside saesync, where this SAE may have to stand: --replace overwrites it"
        return (Quoted(data.get("file")), there)
    recorded, found = Quoted(short(str(data.get("recorded")))), Quoted(short(str(data.get("found"))))
    remedy = ": delete it by hand, or restore it" if data.get("asked") is False else ": --replace restores"
    return (Quoted(data.get("file")), " was changed outside saesync (recorded ", recorded, ", found ", found, ")" + remedy)


def _foreign(data: Data) -> Parts:
    count = _float(data.get("files"))
    said = f"{number(count)} file{'s' if count != 1 else ''} here that saesync did not publish"
    missing = data.get("missing")
    if missing is None:
        return (f"{said}: --adopt proves and takes over",)
    return (f"{said}, without ", Quoted(missing), ": nothing to adopt until it is put there; --replace overwrites")


def _replace(data: Data) -> Parts:
    """What of ours was changed is said by a reason of its own."""
    if "files" not in data:
        return ("--replace",)
    count, stay = _float(data["files"]), _float(data.get("stay", 0))
    if not count:
        return (f"--replace publishes beside {number(stay)} file{'s' if stay != 1 else ''} that saesync did not publish",)
    others = f" and {number(count - 1)} more" if count > 1 else ""
    rest = f"; {number(stay)} other{'s stay' if stay != 1 else ' stays'}" if stay else ""
    return ("--replace overwrites files that saesync did not publish: ", Quoted(data["file"]), others + rest)


def _record_unreadable(data: Data) -> Parts:
    detail = Quoted(str(data.get("detail")).rstrip("."))
    return ("record is unreadable (", detail, "): restore it from its history, or delete it and run with --adopt")


def _source_missing(data: Data) -> Parts:
    detail = data.get("detail")
    return ("source ", Quoted(data.get("path")), " is not usable", *((": ", Quoted(detail)) if detail else ()))


def _unreachable(data: Data) -> Parts:
    revision = Quoted(short(str(data.get("revision"))))
    return (
        "commit ",
        revision,
        " of ",
        Quoted(data.get("repo")),
        " is in no branch, only in a pull request that anyone can open",
    )


def _visibility(data: Data) -> Parts:
    remedy = ": change it on the Hub, or publish.private in the manifest"
    return ("the repo is ", Quoted(data.get("found")), ", the manifest asks for ", Quoted(data.get("asked")), remedy)


def _taken(data: Data) -> Parts:
    """An SAE that is asked for here is asked for by no manifest of the other release: two that do are refused."""
    other = Quoted(data.get("release"))
    remedy: Parts = (": --prune ", other, " deletes it there, if nobody needs it under that name") if data.get("asked") else ()
    if data.get("pruned"):
        remedy = (", which --prune deletes there: the next apply publishes here",)
    return ("the folder belongs to release ", other, *remedy)


def _count(data: Data, name: str) -> str:
    return number(_float(data.get(name)))


def _whole(data: Data) -> str:
    """A pull request's number: never grouped."""
    value = data.get("number", data.get("num"))
    return str(value) if isinstance(value, int) else "?"


def _review(data: Data) -> Parts:
    said = f"waiting for review of #{_whole(data)}"
    return (said, "; not green there: ", Quoted(data["checks"])) if data.get("checks") else (said,)


def _after_saes(data: Data) -> Parts:
    return ("after the SAEs that pass",) if data.get("partial") else (f"after all {_count(data, 'count')} pass",)


def _moved_tag(data: Data) -> Parts:
    found = Quoted(short(str(data.get("found"))))
    return (Quoted(data.get("tag")), " was moved to ", found, ": --replace ", Quoted(data.get("release")), " puts it back")


def _not_tagged(data: Data) -> Parts:
    tag = data.get("tag")
    return ("once all of it is published",) if tag is None else ("the completed release is to be named ", Quoted(tag))


def _waiting(data: Data) -> Parts:
    draft = ", a draft" if data.get("status") == "draft" else ""
    return (f"waiting for merge of #{_whole(data)}{draft} (", Quoted(data.get("url")), ")")


def _closed(data: Data) -> Parts:
    return (f"#{_whole(data)} was closed without merging: reopen it, or remove pull_request",)


def _not_allowed(data: Data) -> Parts:
    """The place in the manifest stands in the words: the plan's line shows none."""
    at = data.get("at")
    where = (" (", Quoted(at), ")") if at else ()
    return (Quoted(data.get("file")), " does not allow ", Quoted(data.get("key")), " ", Quoted(data.get("value")), *where)


def _not_convertible(data: Data) -> Parts:
    """Not the whole detail: it names files, and layers that say the same stand in one line."""
    said_by = data.get("said_by")
    return ("not converted: ", Quoted(data.get("title")), *((" (says ", Quoted(said_by), ")") if said_by else ()))


def _native_saes(data: Data) -> Parts:
    count = _count(data, "count")
    return (f"{count} of {_count(data, 'of')} SAEs cannot be loaded with SAELens: partial: true registers what can",)


def _no_repo(data: Data) -> Parts:
    return (Quoted(data.get("location")), " does not exist, and a pull request needs a repo: create it, or remove pull_request")


_WORDS: Mapping[ReasonCode, Callable[[Data], Parts]] = MappingProxyType(
    {
        ReasonCode.NOT_PUBLISHED: lambda data: ("not in ", Quoted(data.get("location")), " yet"),
        ReasonCode.CHANGED: _changed,
        ReasonCode.NOT_VISIBLE: _not_visible,
        ReasonCode.RECORD_NEWER: lambda data: (
            f"record version {number(_float(data.get('found')))}, this saesync reads {number(_float(data.get('known')))}",
        ),
        ReasonCode.MADE_NEWER: lambda data: (
            *(Quoted(data.get("name")), " ", Quoted(_value(data.get("found"))), " is newer than this saesync's "),
            *(Quoted(_value(data.get("known"))), ": upgrade saesync"),
        ),
        ReasonCode.RECORD_UNREADABLE: _record_unreadable,
        ReasonCode.TAKEN_BY: _taken,
        ReasonCode.FOREIGN_FILES: _foreign,
        ReasonCode.FILES_CHANGED: _files_changed,
        ReasonCode.FILES_MISSING: lambda data: (Quoted(data.get("file")), " is missing: --replace restores"),
        ReasonCode.MOVED_FROM: lambda data: ("from ", Quoted(data.get("id"))),
        ReasonCode.NOT_MEASURED: _not_measured,
        ReasonCode.METRIC_MISSING: lambda data: (Quoted(data.get("metric")), " was not measured"),
        ReasonCode.NOT_CONVERTIBLE: _not_convertible,
        ReasonCode.BELOW_MIN: _bound("<", "min"),
        ReasonCode.ABOVE_MAX: _bound(">", "max"),
        ReasonCode.NO_BASELINE: _no_baseline,
        ReasonCode.SOURCE_NOT_HERE: lambda data: (
            f"{_INPUTS.get(str(data.get('what')), 'source')} not here: ",
            Quoted(data.get("path")),
        ),
        ReasonCode.SOURCE_UNREACHABLE: _unreachable,
        ReasonCode.SOURCE_MISSING: _source_missing,
        ReasonCode.VISIBILITY: _visibility,
        ReasonCode.REPO_MISSING: lambda data: (Quoted(data.get("location")), " does not exist yet"),
        ReasonCode.REPO_RENAMED: lambda data: (
            Quoted(data.get("location")),
            " is now called ",
            Quoted(data.get("now")),
            ": name it so in the manifest",
        ),
        ReasonCode.CARD_CHANGED: _fixed("what the card says has changed"),
        ReasonCode.CARD_EDITED: _fixed("its part of the README is missing or was edited"),
        ReasonCode.ORPHAN: _fixed("published, but in no manifest; --prune deletes"),
        ReasonCode.RETIRE: _fixed("the manifest says retire: true"),
        ReasonCode.PRUNE: _fixed("--prune"),
        ReasonCode.ADOPT: _fixed("--adopt: keeps these files if they are the same function"),
        ReasonCode.REPLACE: _replace,
        ReasonCode.NEEDED_BY: lambda data: ("kept: ", Quoted(data.get("id")), " would be copied from it, but misses its gate"),
        ReasonCode.RESUMED: _fixed("an interrupted run is completed"),
        ReasonCode.NOT_REGISTERED: lambda data: ("not in ", Quoted(data.get("registry")), " yet"),
        ReasonCode.NOT_ON_HUB: _fixed("SAELens loads from the Hub only, and this release is published to a folder"),
        ReasonCode.AFTER_SAES: _after_saes,
        ReasonCode.AFTER_MERGE: _fixed("once the pull request on the Hub is merged"),
        ReasonCode.WAITS_FOR: lambda data: (f"waits for {_count(data, 'count')} of {_count(data, 'of')} SAEs",),
        ReasonCode.WAITS_FOR_REVIEW: _review,
        ReasonCode.BRANCH_PUSHED: lambda data: ("pushed to ", Quoted(data.get("branch")), ", waiting for it to be merged"),
        ReasonCode.DECLINED: lambda data: (f"#{_whole(data)} was closed without merging: reopen it, or change the manifest",),
        ReasonCode.RECORD_BY: lambda data: (
            "the record was last written by ",
            Quoted(data.get("account") or "somebody unknown"),
            ", whom the policy's publishers do not name",
        ),
        ReasonCode.NATIVE_SAES: _native_saes,
        ReasonCode.ENTRY_REFUSED: lambda data: (Quoted(data.get("detail")),),
        ReasonCode.NEURONPEDIA_TAKEN: lambda data: (
            "Neuronpedia id ",
            Quoted(data.get("id")),
            " belongs to release ",
            Quoted(data.get("release")),
        ),
        ReasonCode.NOT_TAGGED: _not_tagged,
        ReasonCode.TAG_MOVED: _moved_tag,
        ReasonCode.WAITING_FOR_MERGE: _waiting,
        ReasonCode.PULL_CLOSED: _closed,
        ReasonCode.PULL_NEEDS_REPO: _no_repo,
        ReasonCode.NOT_IN_THIS_VERSION: lambda data: ("this version of saesync cannot carry out ", Quoted(data.get("section"))),
        ReasonCode.NOT_ALLOWED: _not_allowed,
    }
)


def parts_of(reason: Mapping[str, Any]) -> Parts:
    """A reason in its JSON form as words; a code from a newer saesync is quoted."""
    try:
        words = _WORDS[ReasonCode(reason["code"])]
    except ValueError:
        return (Quoted(reason["code"]),)
    return words(reason["data"])


def reason_text(reason: Mapping[str, Any]) -> str:
    """For terminals and plain files."""
    return "".join(part if isinstance(part, str) else plain(part.value) for part in parts_of(reason))


def reason_markdown(reason: Mapping[str, Any]) -> str:
    """For comments and cards: foreign text stands in code elements."""
    return "".join(part if isinstance(part, str) else code(part.value) for part in parts_of(reason))


def reasons_joined(reasons: list[Mapping[str, Any]], render: Callable[[Mapping[str, Any]], str], most: int) -> str:
    """Up to ``most`` reasons in one line, and how many more there are. What stands in two keys (the model, in that of the build
    and in that of the measurement) is said once."""
    told = list(dict.fromkeys(map(render, reasons)))
    more = [f"and {len(told) - most} more"] if len(told) > most else []
    return "; ".join([*told[:most], *more])
