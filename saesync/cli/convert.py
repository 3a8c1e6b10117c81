"""convert: one SAE from one layout to another, with the proof that it is the same function."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from saesync.cache import Cache
from saesync.cli.becoming import becoming, sweep
from saesync.cli.named import Named
from saesync.cli.output import as_json, is_terminal, put, say
from saesync.errors import Refused
from saesync.hub import Hub
from saesync.inert import plain
from saesync.inspection import Inspection, inspect_source
from saesync.inspection.choosing import Chosen, choose
from saesync.inspection.places import require_text
from saesync.writers import writers

Progress = Callable[[int, int], None]
SAELENS = "saelens"
LAYOUTS = (SAELENS, *writers())


def parse_options(_ctx: click.Context, _option: click.Parameter, words: tuple[str, ...]) -> dict[str, Any]:
    """``name=value`` as a manifest would read it: numbers and booleans are what they look like."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{word!r} is not NAME=VALUE.")
        try:
            found[name] = json.loads(value, parse_constant=_no_number)
        except ValueError:
            found[name] = value
    return found


def parse_hook(_ctx: click.Context, _option: click.Parameter, word: str | None) -> str | None:
    """A hook's name by the rule that manifests go by."""
    from saesync.schema.saes import HOOK_NAME

    if word is not None and (len(word) > HOOK_NAME["maxLength"] or not re.search(HOOK_NAME["pattern"], word)):
        rule = HOOK_NAME["patternErrorMessage"]
        raise click.BadParameter(f"{word[:100]!r}: {rule}, and at most {HOOK_NAME['maxLength']} characters.")
    return word


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number in a manifest")


def _complete_format(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Formats for the shell's completion."""
    from saesync.formats import formats

    return [name for name in sorted(formats()) if name.startswith(incomplete)]


from_option = click.option(
    "--from",
    "from_",
    metavar="FORMAT",
    shell_complete=_complete_format,
    help="The format of SRC, when its files fit more than one.",
)
option_option = click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=parse_options,
    help="What the files do not say; repeatable.",
)


@click.command()
@click.argument("src")
@click.argument("dst", type=Named())
@click.option(
    "--to", type=click.Choice(LAYOUTS), metavar="LAYOUT", default=SAELENS, show_default=True, help=f"One of {', '.join(LAYOUTS)}."
)
@from_option
@option_option
@click.option(
    "--dtype", type=click.Choice(["float64", "float32", "float16", "bfloat16"]), help="Stored type; SRC's unless given."
)
@click.option("--hook", callback=parse_hook, help="Where the SAE reads, when the files do not say it.")
@click.option("--hook-out", callback=parse_hook, help="What a transcoder predicts.")
@click.option("--model", help="The language model's name, when the files do not say it.")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output form.")
def convert(
    src: str,
    dst: Path,
    to: str,
    from_: str | None,
    options: Mapping[str, Any],
    dtype: str | None,
    hook: str | None,
    hook_out: str | None,
    model: str | None,
    format_: str,
) -> None:
    """Convert SRC to the new folder DST, and prove it.

    SRC is one SAE: a file, a folder, or hf://owner/repo[/path][@revision]. The result is compared with its authors' forward pass
    on adversarial inputs before it gets its name; what a layout cannot express is refused with the reason. DST appears whole or
    not at all.
    """
    require_text(dst)
    for left in sweep(dst):
        say(f"Note: removed {plain(str(left))}, which a run that was killed had left.")
    if os.path.lexists(dst):
        what = "is there already" if dst.exists() else f"is a link to {dst.readlink()}, which is not there,"
        raise Refused("Destination exists", f"{dst} {what} and is not overwritten. Name a new folder.")
    chosen, files = locate(src, from_, options)
    said = {"hook_name": hook or chosen.facts.get("hook"), "hook_name_out": hook_out or chosen.facts.get("hook_out")}
    said["model_name"] = model or chosen.facts.get("model")
    job: dict[str, Any] = {
        "format": chosen.format,
        "options": dict(chosen.options),
        "files": dict(files),
        "dtype": dtype or chosen.facts.get("dtype") or "float32",
        "metadata": {name: value for name, value in said.items() if value is not None},
    }
    job |= {"address": str(dst), "cfg": {}} if to == SAELENS else {"to": to}
    with becoming(dst) as folder:
        result = in_worker("convert" if to == SAELENS else "export", {**job, "out": str(folder)}, "Converting")
    _tell(dst, to, chosen.format, result, format_)
    if format_ == "text" and to == SAELENS and "hook_name" not in job["metadata"]:
        say("Note: the files do not say where the SAE reads; --hook NAME writes it into cfg.json unless it is there.")


def locate(src: str, format_: str | None, options: Mapping[str, Any]) -> tuple[Chosen, Mapping[str, str]]:
    """The one SAE at SRC, and its files on this disk (fetched when they are on the Hub)."""
    from saesync.executors.fetch import Parcel, bring
    from saesync.resolve import SourceFile

    cache = Cache.checked()
    hub: Hub | None = None

    def opened() -> Hub:
        nonlocal hub
        hub = hub or Hub(cache)
        return hub

    inspection = inspect_source(src, opened)
    chosen = choose(inspection, format_, options, hub)
    if inspection.reference.repo is None or hub is None:
        return chosen, chosen.files
    repo, sha = inspection.reference.repo, inspection.revision or ""
    _check_commit(hub, inspection, sha)
    tree = hub.tree(repo, sha)
    parcel = Parcel(repo, sha, "model", {name: SourceFile(listed, tree[listed]) for name, listed in chosen.files.items()})
    with progress_bar("Fetching") as progress:
        folder = bring(parcel, hub, cache, progress)
    return chosen, {name: str(folder / name) for name in parcel.files}


def _check_commit(hub: Hub, inspection: Inspection, sha: str) -> None:
    repo = inspection.reference.repo or ""
    if not hub.reachable(repo, sha, "model"):
        detail = f"{sha[:8]} is in no branch or tag of {repo}, and anyone can open a pull request. Name another revision."
        raise Refused("Commit is only in a pull request", detail)


def in_worker(job: str, data: Any, label: str) -> Any:
    """One job in a process without network and secrets; its result as plain JSON."""
    with a_worker(("torch",)) as run:
        return run(job, data, label)


@contextmanager
def a_worker(preload: Sequence[str]) -> Iterator[Callable[[str, Any, str], Any]]:
    """A process without network and secrets for some jobs in turn. What is yielded does one (its name, data and label on the
    terminal) and returns its result as plain JSON. ``preload`` names libraries that the first job needs at once."""
    from saesync.workers import Worker, spawn

    worker = Worker(Cache.checked().root / "worker-home", spawn, preload)

    def run(job: str, data: Any, label: str) -> Any:
        with progress_bar(label) as progress:
            return worker.run(job, data, progress)

    try:
        yield run
    except BaseException:
        worker.kill()
        raise
    finally:
        worker.close()


@contextmanager
def progress_bar(label: str) -> Iterator[Progress | None]:
    """A bar on stderr when somebody sits there, else nothing."""
    if not is_terminal(sys.stderr):
        yield None
        return
    with click.progressbar(length=1000, label=label, file=sys.stderr) as bar:
        yield lambda done, total: bar.update(max(0, 1000 * done // max(1, total) - bar.pos))


def _tell(dst: Path, to: str, source: str, result: Mapping[str, Any], format_: str) -> None:
    proof = result["proof"]
    if format_ == "json":
        head = {"type": "saesync-convert", "version": 1, "destination": str(dst), "from": source, "to": to}
        put(as_json({**head, "files": result["digests"], "proof": proof}))
        return
    size = sum(digest["size"] for digest in result["digests"].values())
    put(f"Wrote {dst}: {source} to {to}, {len(result['digests'])} files, {size:,} bytes.")
    worst = max(proof["max_feature_diff"], proof["max_reconstruction_diff"])
    put(f"Proved on {proof['rows']} rows in float64: features and outputs differ by at most {worst:.1e} of their size.")
    if cast := _cast(proof):
        put(cast)


def _cast(proof: Mapping[str, Any]) -> str | None:
    """What rounding to the stored type costs: the proof above it is of the function, which is compared unrounded."""
    if proof["exact_storage"]:
        return None
    feature, output = proof["cast_max_feature_diff"], proof["cast_max_reconstruction_diff"]
    switched = proof["cast_support_changes"]
    if not (feature or output or switched):
        return None
    more = f"; {switched:,} features switch on or off in {proof['cast_rows']:,} rows" if switched else ""
    return (
        f"Rounded to {proof['dtype']}, features differ by at most {feature:.1e} and outputs by {output:.1e} of their size{more}."
    )
