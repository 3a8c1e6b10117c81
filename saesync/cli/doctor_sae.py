"""doctor sae: is what is declared of an SAE what its weights mean? Evidence from real activations, never a choice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from saesync import manifest
from saesync.cache import Cache
from saesync.cli.common import root_option
from saesync.cli.convert import a_worker, from_option, locate, option_option, parse_hook, progress_bar
from saesync.cli.output import as_json, put
from saesync.errors import Missing
from saesync.hub import Hub
from saesync.inert import plain
from saesync.measure.findings import Trial, meant, tolerated
from saesync.model import DatasetSpec, ModelSpec, Sae, ValidateSpec

_AT = re.compile(r"(?P<name>[^/@\s]+/[^/@\s]+)@(?P<revision>[0-9a-f]{40})")
_SHOWN = 8
_TOKENS, _CONTEXT = 4096, 128


@dataclass(frozen=True)
class _Subject:
    """What is looked at: where its weights are, and what is declared of it. ``source`` is format, options and files."""

    address: str
    source: tuple[str, Mapping[str, Any], Mapping[str, str]]
    cfg: Mapping[str, Any]
    hook: str | None
    hook_out: str | None
    model: ModelSpec | None
    text: ValidateSpec | None


@click.command()
@click.argument("subject", metavar="ADDRESS|PATH")
@click.option(
    "--manifest", "manifests", multiple=True, type=click.Path(path_type=Path), help="Where ADDRESS is; manifests/ unless given."
)
@root_option
@from_option
@option_option
@click.option("--hook", callback=parse_hook, help="The declared hook.")
@click.option("--hook-out", callback=parse_hook, help="The hook a transcoder predicts.")
@click.option("--model", help="A folder, or owner/name@COMMIT.")
@click.option("--loader", type=click.Choice(["TransformerBridge", "HookedTransformer", "AutoModelForCausalLM"]))
@click.option("--dataset", help="A text file or folder, or owner/name@COMMIT.")
@click.option("--column", help="The dataset's column of text.")
@click.option("--context", type=click.IntRange(min=3), help="Tokens per sequence, BOS included.")
@click.option("--prepend-bos/--no-prepend-bos", default=None, help="Whether rows begin with BOS, as declared.")
@click.option("--tokens", type=click.IntRange(min=64), default=_TOKENS, show_default=True, help="Tokens to look at.")
@click.option("--device", default="cpu", show_default=True, help="cpu, mps, cuda, cuda:1 ...")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output form.")
@click.pass_context
def sae(
    ctx: click.Context,
    subject: str,
    manifests: tuple[Path, ...],
    roots: tuple[Path, ...],
    from_: str | None,
    options: Mapping[str, Any],
    hook: str | None,
    hook_out: str | None,
    model: str | None,
    loader: str | None,
    dataset: str | None,
    column: str | None,
    context: int | None,
    prepend_bos: bool | None,
    tokens: int,
    device: str,
    format_: str,
) -> None:
    """Does an SAE mean what is declared of it?

    ADDRESS is release/id of a manifest; PATH a file, a folder or hf://owner/repo[/path][@revision]. A few thousand real
    activations are encoded and decoded at the declared hook and its neighbours, with and without BOS, with every normalisation,
    input bias and activation the weights allow and other k, and ranked by the variance left unexplained. Evidence only: nothing
    is changed.
    Exits 0 when nothing is clearly better than what is declared (a tenth less variance unexplained, half where many more features
    fire, and more than chance), else 1.
    """
    found = _of_path(subject, from_, options) if _is_place(subject) else _of_address(subject, manifests, roots)
    said = replace(found, hook=hook or found.hook, hook_out=hook_out or found.hook_out)
    if model is not None:
        said = replace(said, model=_model(model))
    if said.model is not None and loader is not None:
        said = replace(said, model=replace(said.model, loader=loader))
    said = replace(said, text=_text(said.text, dataset, column, context, prepend_bos, tokens))
    result = _diagnose(said, tokens, device)
    put(_json(said, result) if format_ == "json" else _shown(said, result))
    ctx.exit(1 if result["findings"] else 0)


def _is_place(subject: str) -> bool:
    return subject.startswith("hf://") or Path(subject).exists()


def _of_path(subject: str, format_: str | None, options: Mapping[str, Any]) -> _Subject:
    chosen, files = locate(subject, format_, options)
    facts = chosen.facts
    return _Subject(subject, (chosen.format, chosen.options, files), {}, facts.get("hook"), facts.get("hook_out"), None, None)


def _of_address(address: str, manifests: Sequence[Path], roots: Sequence[Path]) -> _Subject:
    """The SAE of that address, its source fetched.

    Raises:
        ManifestError: the manifests cannot be read.
        Missing: none of them has it.
    """
    from saesync.executors.fetch import source_files
    from saesync.resolve import Resolver

    if not manifests and not manifest.DEFAULT_FOLDER.exists():
        where = f"there is no folder {manifest.DEFAULT_FOLDER} here in which it could be an SAE"
        raise Missing(
            "No such SAE",
            f"{address!r} is no file or folder, and {where}. Correct the path, or say where the manifest is: --manifest FILE.",
        )
    saes = {each.address: each for release in manifest.load(manifest.find(manifests), roots=roots) for each in release.saes}
    if address not in saes:
        known = ", ".join(list(saes)[:5]) + (" ..." if len(saes) > 5 else "")
        raise Missing("No such SAE", f"{address!r} is neither a file or folder nor in a manifest here. Known: {known}.")
    found: Sae = saes[address]
    if found.source is None:
        raise Missing("SAE has no source", f"{address} has no weights to look at yet.")
    cache = Cache.checked()
    resolver = Resolver(cache)
    expected = resolver.source(found.source).digest
    with progress_bar("Fetching") as progress:
        files = source_files(found, resolver, expected, lambda: resolver.hub or Hub(cache), cache, progress)
    source = (found.source.format, found.source.options, {name: str(path) for name, path in files.items()})
    return _Subject(address, source, found.cfg, found.hook or None, found.hook_out, found.model, found.validate)


def _model(said: str) -> ModelSpec:
    at = _AT.fullmatch(said)
    return ModelSpec(at["name"], None, at["revision"]) if at else ModelSpec(None, str(Path(said).absolute()), None)


def _text(
    declared: ValidateSpec | None, dataset: str | None, column: str | None, context: int | None, bos: bool | None, tokens: int
) -> ValidateSpec | None:
    """The text as the manifest says it, with what the command line says instead."""
    if dataset is not None:
        at = _AT.fullmatch(dataset)
        where = DatasetSpec(at["name"], None, at["revision"]) if at else DatasetSpec(None, str(Path(dataset).absolute()))
        declared = replace(declared, dataset=where) if declared else ValidateSpec(where, tokens, _CONTEXT)
    if declared is None:
        return None
    if column is not None:
        declared = replace(declared, dataset=replace(declared.dataset, column=column))
    return replace(
        declared, tokens=tokens, context=context or declared.context, prepend_bos=declared.prepend_bos if bos is None else bos
    )


def _complete(said: _Subject) -> tuple[ModelSpec, ValidateSpec]:
    """Model and text.

    Raises:
        Missing: nothing says them, or the hook, with the options that do.
    """
    open_ = [
        f"{option} ({what})"
        for option, what, value in (
            ("--hook", "where it reads", said.hook),
            ("--model", "the model's folder or name@COMMIT", said.model),
            ("--dataset", "text to run the model on", said.text),
        )
        if value is None
    ]
    if open_ or said.model is None or said.text is None:
        raise Missing("Not enough is declared", f"Nothing says {', '.join(open_)}. Say it on the command line.")
    return said.model, said.text


def _diagnose(said: _Subject, tokens: int, device: str) -> Mapping[str, Any]:
    model, text = _complete(said)
    cache = Cache.checked()
    where = _fetched(model, text, cache)
    name, options, source = said.source
    # One process for both jobs: most of its time is libraries being imported.
    with cache.scratch() as scratch, a_worker(("torch", "sae_lens")) as work:
        metadata = {"hook_name": said.hook} | ({"hook_name_out": said.hook_out} if said.hook_out else {})
        job = {"address": said.address, "format": name, "options": dict(options), "files": dict(source), "dtype": "float32"}
        work("convert", {**job, "cfg": dict(said.cfg), "metadata": metadata, "out": str(scratch / "sae")}, "Reading the SAE")
        asked = {
            **_setting(model, text, where),
            "tokens": tokens,
            "device": device,
            "address": said.address,
            "folder": str(scratch / "sae"),
            "hook": said.hook,
            "hook_out": said.hook_out,
            "cache": str(cache.root),
        }
        found: Mapping[str, Any] = work("diagnose", asked, "Trying hooks and flags")
        return found


_Fetched = tuple[Path, tuple[str, ...], Path]


def _setting(model: ModelSpec, text: ValidateSpec, where: _Fetched) -> dict[str, Any]:
    """The part of the job that says what runs on what."""
    folder, files, place = where
    return {
        "model": str(folder),
        "model_name": model.name,
        "loader": model.loader,
        "dtype": model.dtype,
        "kwargs": dict(model.kwargs),
        "dataset": str(place),
        "dataset_files": list(files),
        "column": text.dataset.column,
        "split": text.dataset.split,
        "context": text.context,
        "prepend_bos": text.prepend_bos,
    }


def _fetched(model: ModelSpec, text: ValidateSpec, cache: Cache) -> _Fetched:
    """The model's folder, and the dataset's files in order with their folder."""
    from saesync.executors.fetch import bring, dataset_parcel, model_parcel

    folder, place, files = Path(str(model.path)), Path(str(text.dataset.path)), ()
    if model.name is None and text.dataset.repo is None:
        return folder, files, place
    hub = Hub(cache)
    with progress_bar("Fetching") as progress:
        if (parcel := model_parcel(model, hub)) is not None:
            folder = bring(parcel, hub, cache, progress)
        if (parcel := dataset_parcel(text.dataset, text.tokens, hub)) is not None:
            return folder, tuple(parcel.files), bring(parcel, hub, cache, progress)
    return folder, files, place


def _json(said: _Subject, result: Mapping[str, Any]) -> str:
    return as_json({"type": "saesync-doctor-sae", "version": 1, "subject": said.address, **result})


def _shown(said: _Subject, result: Mapping[str, Any]) -> str:
    trials = [Trial(**trial) for trial in result["trials"]]
    named = meant(trials)
    rows = [trial for index, trial in enumerate(trials) if index < _SHOWN or trial.declared or trial == named]
    lines = [
        f"{plain(said.address)}: {len(trials)} ways to read it, on {result['tokens']:,} tokens; unexplained variance, best first",
        "",
    ]
    lines += [_row(trial, trial == named) for trial in rows]
    lines.append("")
    for finding in result["findings"]:
        lines.append(f"x {finding['kind']}. {plain(finding['detail'], 1000)}")
    if not result["findings"]:
        lines.append(plain(tolerated(trials), 1000))
    return "\n".join(lines)


def _row(trial: Trial, named: bool) -> str:
    scale = "" if trial.scale is None else f" {trial.scale:.4g}"
    words = (
        plain(trial.hook),
        "BOS" if trial.bos else "no BOS",
        f"norm {trial.norm}{scale}",
        f"b_dec {'subtracted' if trial.subtract else 'not subtracted'}",
        trial.activation if trial.k is None else f"{trial.activation}, k {trial.k}",
    )
    mark = "   <- declared" if trial.declared else "   <- meant below" if named else ""
    return f"  {trial.fvu:8.4f}  l0 {trial.l0:<8.4g} {', '.join(words)}{mark}"
