"""An inspection as text: what was found, a ready ``source:`` stanza, a whole commented manifest."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saesync.errors import Missing, Refused
from saesync.formats.base import Candidate
from saesync.inert import plain
from saesync.inspection import LIMIT, Found, Inspection
from saesync.inspection.sets import incomplete_sets

_PLAIN = re.compile(r"(?:\.{0,2}/)*[A-Za-z_][A-Za-z0-9_./+-]*")
_WORDS = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n", "~"))
_BREAKING = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")  # JSON allows them raw, YAML does not
_UNSAFE = re.compile(r"[^A-Za-z0-9._/-]+")
RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_LOADER = "  loader: TransformerBridge"
_SHOWN_TENSORS = 12
_SHOWN_NAMES = 5
_ASKED = ("hook", "model")  # what a manifest says of every SAE, whatever its format
_UNSAID = "?"  # in a row whose file does not say it: refused by `check`, at its place, until it is filled in


def describe(inspection: Inspection) -> str:
    """What was found, for people: one block per SAE."""
    lines = [plain(str(inspection.reference)) + (f" at {inspection.revision}" if inspection.revision else "")]
    for found in inspection.saes:
        lines += ["", *_block(found)]
    incomplete = [f"! {plain(line, 1000)}" for line in incomplete_sets(inspection)]
    lines += ["", *incomplete] if incomplete else []
    if inspection.unread:
        lines += ["", f"{len(inspection.unread):,} more, not looked at; the next is {plain(inspection.unread[0])}"]
    return "\n".join(lines)


def stanza(inspection: Inspection, found: Found | None = None, folder: Path | None = None) -> str:
    """A ready ``source:`` stanza for ``found``; unless given, for the only convertible SAE, or ``saes:`` with a row for each.

    ``folder`` is where the manifest will lie; a local path is then written relative to it.

    Raises:
        Refused: nothing here can be converted, with the first reason.
    """
    if found is None and len(inspection.convertible) > 1:
        return "\n".join(["saes:", *_many(inspection, inspection.convertible, folder)]) + "\n"
    chosen = found or _first(inspection)
    candidate = _best(chosen)
    place = _location(inspection, _text(_join(inspection, chosen.path, folder)))
    said = f"  format: {yaml(candidate.format)}{_rivals([chosen])}"
    return "\n".join(["source:", *place, said, *_options(candidate)]) + "\n"


def manifest(inspection: Inspection, release: str | None = None, model: str | None = None, folder: Path | None = None) -> str:
    """A whole commented manifest over every SAE that can be converted; what the files do not say is left to fill in.

    ``folder`` is where the manifest will lie; local paths are then written relative to it.

    Raises:
        Refused: nothing here can be converted, with the first reason, or ``model`` can be none.
        Missing: ``model`` is a folder that is not there.
    """
    found = inspection.convertible or (_first(inspection),)
    left = left_out(inspection)
    candidates = [_best(one) for one in found]
    name = release_name(inspection, release)
    said = _only(str(one.facts["model"]) for one in candidates if "model" in one.facts)
    ways = {str(one.facts.get("model_kwargs") or "") for one in candidates}
    return "\n".join(
        [
            "# Completion in editors: run `saesync schema > saesync.schema.json` beside this file.",
            "# yaml-language-server: $schema=saesync.schema.json",
            "apiVersion: saesync/v1",
            f"release: {yaml(name)}",
            "",
            "model:",
            *(_model(said) if model is None else _declared(model, folder)),
            *_processing(ways),
            "",
            *(["# Left out:", *(f"#   {line}" for line in left)] if left else []),
            "saes:",
            *(_one(inspection, found[0], folder) if len(found) == 1 else _many(inspection, found, folder)),
            "",
            *_rest(folder),
        ]
    )


def _processing(ways: set[str]) -> list[str]:
    """How the model's weights are processed, when all files say the same."""
    if len(ways) > 1:
        return ["  # kwargs: the files do not agree on how the model's weights are processed; write a manifest for each way"]
    return [f"  kwargs: {way}" for way in ways if way]


def _rest(folder: Path | None) -> list[str]:
    """The sections that no source says anything about."""
    return [
        "# Measured before anything is published; without this section nothing is, and plan and card say so.",
        "# validate:",
        f"#   dataset: monology/pile-uncopyrighted   # or {{path: {yaml(_beside(folder, 'held_out.jsonl'))}}}",
        "#   tokens: 204800",
        "#   context: 1024",
        "#   require:",
        "#     explained_variance: {min: 0.70}",
        "",
        "publish:",
        f"  local: {yaml(_beside(folder, 'published')):<35} # or, instead,  huggingface: OWNER/REPO",
        "  # license: mit",
        "",
    ]


def ambiguous(inspection: Inspection) -> list[str]:
    """Whose format has to be chosen before ``manifest`` is of use, by name."""
    open_ = [found for found in inspection.convertible if len(found.rivals) > 1]
    lines = [f"{plain(found.path) or '(root)'} can be {_either(found)}" for found in open_[:_SHOWN_NAMES]]
    return lines + ([f"{len(open_) - _SHOWN_NAMES:,} more"] if len(open_) > _SHOWN_NAMES else [])


def left_out(inspection: Inspection) -> list[str]:
    """What ``manifest`` has no row for, by name and with the reason: a line each, the last one for all that was not looked at."""
    refused = [found for found in inspection.saes if found not in inspection.convertible]
    lines = [f"{plain(found.path) or '(root)'}: {plain(_reason(found), 1000)}" for found in refused[:_SHOWN_NAMES]]
    if len(refused) > _SHOWN_NAMES:
        lines.append(f"{len(refused) - _SHOWN_NAMES:,} more that cannot be converted; `saesync inspect` shows them all")
    if inspection.unread:
        advice = "Name a folder with fewer as SOURCE, or add rows by hand"
        lines.append(f"{_listed(inspection.unread)}: not looked at, as only the first {LIMIT} are. {advice}")
    return lines


def _reason(found: Found) -> str:
    """Why it cannot be converted."""
    return found.problem or (found.best.refusal if found.best else None) or "no known format fits"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(plain(name) for name in names[:_SHOWN_NAMES])
    return shown + (f" and {len(names) - _SHOWN_NAMES:,} more" if len(names) > _SHOWN_NAMES else "")


def _beside(folder: Path | None, name: str) -> str:
    """Beside the manifest, or beside the folder of manifests."""
    return f"../{name}" if folder is not None and folder.name == "manifests" else f"./{name}"


def release_name(inspection: Inspection, said: str | None = None) -> str:
    """What the user said, else a name made of the source's.

    Raises:
        Refused: what was said cannot be a release's name, which is a file's name, too.
    """
    if said is not None and not RELEASE.fullmatch(said):
        detail = (
            f"{plain(said)!r}: a release's name has only letters, digits, `.`, `_` and `-`, and begins with a letter or digit."
        )
        raise Refused("Not a release name", detail)
    return said or slug(_title(inspection), slashes=False) or "my-saes"


def yaml(value: Any) -> str:
    """A YAML scalar: plain where that is safe, JSON (which is YAML) elsewhere."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return _BREAKING.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def _text(value: Any) -> str:
    """A YAML scalar that stands under ``saes``, where a brace begins a placeholder unless it is written twice."""
    return yaml(value.replace("{", "{{").replace("}", "}}") if isinstance(value, str) else value)


def _block(found: Found) -> list[str]:
    lines = [f"{plain(found.path) or '(root)'}"]
    if found.problem is not None:
        return [*lines, f"  ! {plain(found.problem, 1000)}"]
    if not found.candidates:
        lines.append("  ? no known format fits")
    for candidate in found.candidates:
        facts = ", ".join(f"{name} {plain(value)}" for name, value in candidate.facts.items())
        lines.append(f"  {candidate.format}" + (f": {facts}" if facts else ""))
        unsaid = () if candidate.refusal is not None else [name for name in _ASKED if name not in candidate.facts]
        lines += [f"  needs {name}: the files do not say it" for name in (*candidate.needs, *unsaid)]
        if candidate.refusal is not None:
            lines.append(f"  ! {plain(candidate.refusal, 1000)}")
    if found.able and len(found.rivals) > 1:
        lines.append(f"  ! ambiguous: {_either(found)} fit equally well; say which as `format` (of `saesync convert`: --from)")
    for file, tensors in found.headers.tensors.items():
        lines.append(f"    {plain(file)}")
        shown = list(tensors.items())[:_SHOWN_TENSORS]
        lines += [f"      {plain(name)}  {list(info.shape)}  {info.dtype}" for name, info in shown]
        if len(tensors) > len(shown):
            lines.append(f"      and {len(tensors) - len(shown)} more")
    return lines


def _first(inspection: Inspection) -> Found:
    """The first convertible SAE, or a refusal that says why there is none."""
    if inspection.convertible:
        return inspection.convertible[0]
    reasons = [found.problem or (found.best.refusal if found.best else None) for found in inspection.saes]
    said = next((reason for reason in reasons if reason), "No known format fits; `saesync formats` lists them.")
    raise Refused("Nothing here can be converted", said)


def _best(found: Found) -> Candidate:
    """The likeliest candidate. Where several are, its format is left open, and it says what all of them say."""
    if not found.able:
        raise Refused("Nothing here can be converted", _reason(found))
    first, *others = found.rivals
    if not others:
        return first
    options = _agreed([one.options for one in found.rivals])
    open_ = {name for one in found.rivals for name in (*one.needs, *one.options)} - set(options)
    return Candidate(_UNSAID, first.score, _agreed([one.facts for one in found.rivals]), options, tuple(sorted(open_)))


def _agreed(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in said[0].items() if all(name in one and one[name] == value for one in said)}


def _location(inspection: Inspection, path: str, indent: str = "  ") -> list[str]:
    repo = inspection.reference.repo
    lines = [] if repo is None else [f"{indent}repo: {yaml(repo)}", f"{indent}revision: {yaml(inspection.revision)}"]
    return lines if path == '""' else [*lines, f"{indent}path: {path}"]


def _join(inspection: Inspection, path: str, folder: Path | None) -> str:
    """``source.path``: Hub paths already begin at the repo's root; local ones continue what was typed."""
    reference = inspection.reference
    if reference.repo is not None:
        return path
    typed = Path(reference.path)
    chosen = typed if typed.is_file() or not path else typed / path
    return _relative(chosen, folder)


def _relative(path: Path, folder: Path | None) -> str:
    """A local path as a manifest in ``folder`` names it."""
    return path.as_posix() if folder is None else Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _rivals(saes: Iterable[Found]) -> str:
    """A comment where ``_best`` has left the format open."""
    open_ = sorted({_either(found) for found in saes if len(found.rivals) > 1})
    return f"    # say which: {'; '.join(open_)} fit the files equally well" if open_ else ""


def _either(found: Found) -> str:
    return " or ".join(one.format for one in found.rivals)


def _options(candidate: Candidate, indent: str = "  ") -> list[str]:
    lines = [f"{indent}{name}: {_text(value)}" for name, value in candidate.options.items()]
    return lines + [f"{indent}# {name}:    needed, and not in the files" for name in candidate.needs]


def _model(said: str | None) -> list[str]:
    if said is None:
        return ["  # name: OWNER/MODEL    the model the SAEs were trained on; the files do not say it", *_pin()]
    return [f"  name: {yaml(said)}    # as the files say; it must be a Hub id (or use path: for a local folder)", *_pin()]


def _declared(model: str, folder: Path | None) -> list[str]:
    """What the user said: a folder on this disk, as other local paths are written, else a Hub id.

    Raises:
        Missing: it can only be a folder, and there is none.
        Refused: it is neither.
    """
    if Path(model).is_dir():
        return [f"  path: {yaml(_relative(Path(model), folder))}", _LOADER]
    if model.startswith((".", "/", "~")):
        raise Missing("Model not found", f"There is no folder {plain(model)}. Name the model's folder, or its Hub id.")
    if not _HUB_ID.fullmatch(model):
        raise Refused("Not a model", f"{plain(model)!r} is neither a folder nor a Hub id, which looks like owner/name.")
    return [f"  name: {yaml(model)}", *_pin()]


def _pin() -> list[str]:
    return ["  # revision:            `saesync pin` fills in the commit", _LOADER]


def _one(inspection: Inspection, found: Found, folder: Path | None) -> list[str]:
    candidate = _best(found)
    source = stanza(inspection, found, folder).splitlines()
    return [
        f"  id: {yaml(_id(found, candidate))}",
        *_hook(candidate.facts.get("hook"), "  "),
        *([f"  hook_out: {_text(candidate.facts['hook_out'])}"] if "hook_out" in candidate.facts else []),
        *(f"  {line}" for line in source),
        f"  dtype: {_dtype(candidate)}{_widened([candidate])}",
    ]


def _many(inspection: Inspection, saes: Sequence[Found], folder: Path | None) -> list[str]:
    """One row per SAE: what differs stands in the rows, the rest below."""
    rows: list[dict[str, Any]] = []
    chosen = [_best(found) for found in saes]
    for found, candidate in zip(saes, chosen, strict=True):
        row: dict[str, Any] = {
            "id": _id(found, candidate),
            "path": _join(inspection, found.path, folder),
            "format": candidate.format,
        }
        if any("hook" in one.facts for one in chosen):
            row["hook"] = candidate.facts.get("hook", _UNSAID)
        if any("hook_out" in one.facts for one in chosen):
            row["hook_out"] = candidate.facts.get("hook_out")  # null, of what predicts what it reads
        rows.append({**row, **_options_in_row(candidate, chosen), "dtype": _dtype(candidate)})
    common = {key: value for key, value in rows[0].items() if all(row.get(key) == value for row in rows[1:])}
    common = {key: value for key, value in common.items() if key not in ("id", "path")}
    shared = set.intersection(*(set(row) for row in rows))
    lines = ["  for_each:"]
    lines += [f"    - {{{', '.join(f'{key}: {yaml(row[key])}' for key in row if key in shared - set(common))}}}" for row in rows]

    def value(key: str) -> str:
        return _text(common[key]) if key in common else f'"{{{key}}}"'

    needs = sorted({name for one in chosen for name in one.needs} - shared)
    options = sorted(shared - {"id", "path", "format", "hook", "hook_out", "dtype"})
    return [
        *lines,
        '  id: "{id}"',
        *([f"  hook: {value('hook')}"] if "hook" in shared else _hook(None, "  ")),
        *([f"  hook_out: {value('hook_out')}"] if "hook_out" in shared else []),
        "  source:",
        *_location(inspection, '"{path}"', "    "),
        f"    format: {value('format')}{_rivals(saes)}",
        *(f"    {name}: {value(name)}" for name in options),
        *(f"    # {name}:    some of these need it, and their files do not say it" for name in needs),
        f"  dtype: {value('dtype')}{_widened(chosen)}",
    ]


def _options_in_row(candidate: Candidate, all_: Sequence[Candidate]) -> dict[str, Any]:
    """What some of the SAEs have to declare: null where another one's files need it not."""
    needed = {name for one in all_ for name in one.needs if not all(name in other.needs for other in all_)}
    names = sorted(needed | {name for one in all_ for name in one.options})
    return {name: candidate.options.get(name, _UNSAID if name in candidate.needs else None) for name in names}


def _dtype(candidate: Candidate) -> str:
    """What is stored where it can be published, else float32."""
    said = candidate.facts.get("dtype")
    return str(said) if said in _storable() else "float32"


def _storable() -> Sequence[str]:
    from saesync.schema.parts import DTYPES  # costs more time than to inspect a file, and only manifests need it

    return DTYPES


def _widened(candidates: Iterable[Candidate]) -> str:
    """A comment where ``_dtype`` is not what is stored."""
    known = _storable()
    others = sorted({plain(one.facts["dtype"]) for one in candidates if one.facts.get("dtype", "float32") not in known})
    if not others:
        return ""
    return f"    # {' and '.join(others)} in the files; weights are published as {', '.join(known[:-1])} or {known[-1]}"


def _hook(hook: Any, indent: str) -> list[str]:
    if hook is None:
        return [f"{indent}# hook: blocks.0.hook_resid_post    where the SAE reads; the files do not say it"]
    return [f"{indent}hook: {_text(hook)}"]


def _id(found: Found, candidate: Candidate) -> str:
    stem = re.sub(r"\.(safetensors|pth|pt|bin|npz)$", "", found.path)
    return slug(stem) or slug(str(candidate.facts.get("hook") or "")) or "sae"


def slug(text: str, slashes: bool = True) -> str:
    """A name made of ``text`` that can be an SAE's id (with ``slashes``) or a release's; "" when nothing of it can stay."""
    text = _UNSAFE.sub("-", text if slashes else text.rsplit("/", 1)[-1])
    return "/".join(part for piece in text.split("/") if (part := piece.strip(".-")))


def _title(inspection: Inspection) -> str:
    reference = inspection.reference
    text = reference.repo or reference.path.rstrip("/")
    return re.sub(r"\.(safetensors|pth|pt|bin|npz)$", "", text.rsplit("/", 1)[-1]).lower()


def _only(values: Iterable[str]) -> str | None:
    """The value all agree on."""
    found = set(values)
    return found.pop() if len(found) == 1 else None
