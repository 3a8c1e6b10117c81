"""What the events of an apply look like: bars and lines on a terminal, one line per finished SAE elsewhere, or JSON lines.

Foreign text (addresses, messages of servers) is made inert before it is shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from saesync.digest import short
from saesync.errors import Diagnostic
from saesync.events import Emit, Event
from saesync.inert import pad, plain, width
from saesync.nothing import nothing
from saesync.render import summary_text
from saesync.render.style import Style
from saesync.render.summary import duration
from saesync.streams import json_text, write_line, write_message

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SHOWN = (("explained_variance", "EV", "6.3f"), ("ce_loss_score", "CE", "6.3f"), ("l0", "L0", "6.1f"))
_LONGEST = 40  # columns of an SAE id that others are lined up with
_BRIEF = 100  # characters of a reason that stands behind an SAE
_GOOD, _BAD = ("✓", "good"), ("✗", "fail")
_SIGNS = {"published": _GOOD, "native": _GOOD, "deleted": _GOOD, "failed": _BAD, "failing": _BAD}
_WORDS = {
    "native": "published",
    "failed": "not published",
    "failing": "stays published, marked as failing",
    "skipped": "skipped",
}
_DOING = {
    "fetch": "downloading",
    "convert": "converting",
    "validate": "validating",
    "publish": "publishing",
    "tag": "tagging",
    "adopt": "comparing",
    "register": "registering",
}


@dataclass(frozen=True)
class Look:
    """What lines need besides the events: ``command`` is what the user typed, ``asked`` the same in its JSON form;
    ``addresses`` are the SAEs to come, so that columns line up from the first line on."""

    color: bool = False
    command: Sequence[str] = ()
    asked: Mapping[str, Sequence[str]] = field(default_factory=nothing)
    addresses: Sequence[str] = ()


@contextlib.contextmanager
def reporter(kind: str, stream: TextIO | None, look: Look) -> Iterator[Emit]:
    """An ``Emit`` that draws on ``stream``: ``kind`` is "terminal", "lines" or "json".

    Raises:
        ValueError: there is no such kind.
    """
    if kind == "json":
        yield _json_lines(stream)
    elif kind == "lines":
        yield Lines(lambda line: write_message(stream, line), look)
    elif kind == "terminal":
        with _bars(stream, look.color) as (bars, write):
            yield Lines(write, look, bars)
    else:
        raise ValueError(f"no reporter {kind!r}")


def _json_lines(stream: TextIO | None) -> Emit:
    def emit(event: Event) -> None:
        write_line(stream, json_text(event, stream))

    return emit


class Lines:
    """One line per finished SAE, and bars for what runs where there are any."""

    def __init__(self, write: Callable[[str], None], look: Look, bars: Bars | None = None) -> None:
        self._put, self._look, self._bars = write, look, bars
        self._said = False
        self._style = Style(look.color)
        self._widths = _widths(look.addresses)
        self._release = ""
        self._failed: dict[str, str] = {}

    def _write(self, line: str) -> None:
        self._said = True
        self._put(line)

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        handler = getattr(self, f"_on_{event['type']}", None)
        if handler is not None:
            handler(event)

    def _on_plan(self, event: Event) -> None:
        if event["steps"]:
            self._write(f"Plan {short(event['digest'])}: {_count(event['steps'], 'step')} for {_names(event['releases'])}.")

    def _on_note(self, event: Event) -> None:
        for line in str(event["text"]).splitlines():
            self._write(plain(line, 500))

    def _on_step_started(self, event: Event) -> None:
        if self._bars is not None:
            self._bars.begin(event)

    def _on_progress(self, event: Event) -> None:
        if self._bars is not None:
            self._bars.advance(event)

    def _on_step_finished(self, event: Event) -> None:
        if self._bars is not None:
            self._bars.end(event["address"], event["step"])

    def _on_step_failed(self, event: Event) -> None:
        self._on_step_finished(event)
        first = Diagnostic.from_json(event["diagnostics"][0])
        # What takes a line of its own is said in the summary.
        self._failed[event["address"]] = (first.detail if len(first.detail) <= _BRIEF else first.summary).rstrip(".")
        if "/" not in event["address"]:  # shared by several SAEs, or a whole release: nobody else says it
            self._write(f"  {self._style.paint('✗', 'fail')} {plain(event['address'])}: {plain(first.detail, 1000)}")

    def _on_committed(self, event: Event) -> None:
        if not event["saes"]:  # others are said by their SAEs
            self._write(f"  {self._style.paint('✓', 'good')} {plain(event['release'])}: card written")

    def _on_tagged(self, event: Event) -> None:
        said = "tagged {}" if event["made"] else "tag {} stands already"
        self._write(f"  {self._style.paint('✓', 'good')} {plain(event['release'])}: {said.format(plain(event['tag']))}")

    def _on_sae_finished(self, event: Event) -> None:
        if event["outcome"] == "stopped":
            return  # the summary counts them
        release, _, name = event["address"].partition("/")
        if release != self._release:
            self._release = release
            self._write(self._style.paint(plain(release), "bold"))
        sign, role = _SIGNS.get(event["outcome"], ("·", "dim"))
        parts = [
            pad(plain(name), self._widths.get(release, 0)),
            *_proof(event.get("proof") or {}),
            *_metrics(event.get("metrics") or {}),
        ]
        stays = event["outcome"] == "failed" and event.get("stays")
        parts.append("stays as it was published" if stays else _WORDS.get(event["outcome"], str(event["outcome"])))
        if event.get("native") is not None and event["address"] not in self._failed:  # a failure says the same
            parts.append(f"original files: {plain(event['native']['detail'], 300).rstrip('.')}")
        if event.get("seconds") is not None and event["outcome"] != "skipped":
            parts.append(duration(event["seconds"]))
        if event["address"] in self._failed:
            parts.append(plain(self._failed[event["address"]], 300))
        self._write(f"  {self._style.paint(sign, role)} {'  '.join(parts)}")

    def _on_registered(self, event: Event) -> None:
        self._write(f"  {self._style.paint('✓', 'good')} {plain(event['release'])}: {_entered(event)}")

    def _on_summary(self, event: Event) -> None:
        if self._bars is not None:
            self._bars.clear()
        if self._said:
            self._write("")
        self._write(summary_text(event, self._look.command, self._look.asked, self._look.color))


def _entered(event: Event) -> str:
    """What became of a registry's entry, and where to look at it."""
    registry = plain(event["registry"])
    if event.get("number") is not None:
        verb = "pull request" if event["changed"] else "nothing to add to pull request"
        return f"{verb} #{event['number']} to {registry}  {plain(event.get('url') or '', 500)}"
    if event.get("compare"):
        return f"pushed {plain(event['branch'])} to {registry}. To see it: {plain(event['compare'], 1000)}"
    return f"entry in {registry} {'written' if event['changed'] else 'is as asked already'}"


def _widths(addresses: Sequence[str]) -> dict[str, int]:
    """Columns of the longest SAE id of each release; very long ones stand out instead of pushing all others aside."""
    widths: dict[str, int] = {}
    for address in addresses:
        release, _, name = address.partition("/")
        widths[release] = max(widths.get(release, 0), min(width(plain(name)), _LONGEST))
    return widths


def _proof(proof: Mapping[str, Any]) -> list[str]:
    found = [float(value) for name, value in proof.items() if name.startswith("max_") and isinstance(value, int | float)]
    if not found:
        return []
    largest = f"{max(found):.1e}" if max(found) else "0"
    return [f"converted  max|Δ| {largest:>7}"]


def _metrics(metrics: Mapping[str, float]) -> list[str]:
    return [f"{label} {metrics[name]:{form}}" for name, label, form in _SHOWN if name in metrics]


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(plain(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _doing(event: Event) -> str:
    others = f" +{event['others']}" if event.get("others") else ""
    return f"{_DOING.get(event['step'], event['step'])} {plain(event['address'], 60)}{others}"


class Bars:
    """One bar per running step, with its rate."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def begin(self, event: Event) -> None:
        """Draw that a step runs of which there is no news yet: a worker starts, say. One bar for each kind of step is enough."""
        if all(step != event["step"] for _, step in self._tasks):
            self._add(event, None)

    def advance(self, event: Event) -> None:
        """Draw how far a step is."""
        key = (event["address"], event["step"])
        if key not in self._tasks:
            self._add(event, event["total"])
        known = {"completed": event["done"], "total": event["total"], "unit": event["unit"]}
        self._progress.update(self._tasks[key], description=_doing(event), **known)

    def _add(self, event: Event, total: float | None) -> None:
        self._progress.start()  # nothing is drawn for an apply that has nothing to do
        self._tasks[event["address"], event["step"]] = self._progress.add_task(_doing(event), total=total, unit="")

    def end(self, address: str, step: str) -> None:
        """Take a step's bar away."""
        task = self._tasks.pop((address, step), None)
        if task is not None:
            self._progress.remove_task(task)

    def clear(self) -> None:
        """Take all bars away, for good."""
        for address, step in list(self._tasks):
            self.end(address, step)
        self._progress.stop()


@contextlib.contextmanager
def _bars(stream: TextIO | None, color: bool) -> Iterator[tuple[Bars, Callable[[str], None]]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            known = task.total is not None
            return Text(amount(task.completed, task.total or 0, task.fields["unit"], task.speed) if known else "")

    console = Console(file=stream, no_color=not color, highlight=False, markup=False)
    progress = Progress(
        TextColumn("  ▸ {task.description}", markup=False),
        BarColumn(24),  # the only one that gives way on a narrow terminal: a task stays on one line
        Amount(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
    )

    def write(line: str) -> None:
        console.print(Text.from_ansi(line), soft_wrap=True)

    try:
        yield Bars(progress), write
    finally:
        progress.stop()


def amount(done: float, total: float, unit: str, speed: float | None) -> str:
    """``143,360 / 204,800 tokens  12,300 tokens/s`` or ``212 / 302 MB  48 MB/s``."""
    if unit != "B":
        rate = f"  {speed:,.0f} {unit}/s" if speed else ""
        return f"{done:,.0f} / {total:,.0f} {unit}{rate}"
    scale, name = _scale(total)
    rate = f"  {speed / _scale(speed)[0]:.3g} {_scale(speed)[1]}/s" if speed else ""
    return f"{done / scale:.3g} / {total / scale:.3g} {name}{rate}"


def _scale(size: float) -> tuple[float, str]:
    for scale, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= scale:
            return scale, name
    return 1.0, "B"
