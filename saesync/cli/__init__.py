"""The command line: the only place that prints, prompts or exits. stdout carries data, stderr the rest.

Commands are loaded when they are called, so that ``saesync --help`` and completion stay quick.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import keyword
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import click

from saesync import __version__, carets
from saesync.cli.output import lost, may_color, say
from saesync.errors import Interrupted, ManifestError, Missing, SaesyncError, lacking
from saesync.streams import flush_or_forget, occupy_standard_descriptors, spell_what_is_missing, spelling
from saesync.system import os_trouble

_COMMANDS = {
    "init": "inspect",
    "inspect": "inspect",
    "convert": "convert",
    "check": "check",
    "plan": "plan",
    "apply": "apply",
    "show": "show",
    "pin": "pin",
    "import": "importing",
    "registry": "registry",
    "formats": "catalog",
    "targets": "catalog",
    "schema": "catalog",
    "demo": "demo",
    "doctor": "doctor",
    "ci": "ci",
}


_LEFT_UNDONE: Mapping[str, str] = {"plan": " Nothing was planned.", "apply": " Nothing was done."}


def _remember(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    """Options of the whole program may stand before or after the command."""
    if value:
        ctx.ensure_object(dict)[option.name] = True


_COMMON = (
    click.Option(
        ["--no-color"],
        is_flag=True,
        expose_value=False,
        callback=_remember,
        help="No colors. NO_COLOR in the environment does the same.",
    ),
    click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=_remember, help="Show tracebacks, for reporting a bug."
    ),
)  # fmt: skip


def _add_common(command: click.Command) -> None:
    """Give a command, and every command of a group, the options of the whole program."""
    command.params += [option for option in _COMMON if option not in command.params]
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _add_common(below)


class _Commands(click.Group):
    """Commands by name, imported on use, listed in the order in which a newcomer meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"saesync.cli.{_COMMANDS[cmd_name]}")
        # A command may be a word of Python's own, such as `import`.
        command: click.Command = getattr(module, f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name)
        _add_common(command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a suggestion for a mistyped command."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.command(
    cls=_Commands, params=list(_COMMON), context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, "-V", "--version", prog_name="saesync", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Publish sparse autoencoders like infrastructure: write a manifest, read the plan, apply.

    Start with `saesync demo ./demo`: a small real world, offline, in a few minutes.
    """
    ctx.ensure_object(dict)


def main(args: list[str] | None = None) -> None:
    """Run the program and exit with the code the design gives each end."""
    occupy_standard_descriptors()
    spell_what_is_missing(sys.stdout, sys.stderr)
    code = _code_of(sys.argv[1:] if args is None else args)
    flush_or_forget(sys.stdout, sys.stderr)
    sys.exit(code)


def _code_of(words: list[str]) -> int:
    """Run the program, tell what went wrong, and return the exit code."""
    debug = "--debug" in words
    try:
        with _terminable():
            code = cli.main(words, prog_name="saesync", standalone_mode=False)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("Interrupted.")
        code = Interrupted.exit_code
    except _Terminated as end:
        say("Terminated.")
        code = end.code
    except (SaesyncError, OSError) as error:
        if debug:
            say(traceback.format_exc())
        known = _in_words(error) if isinstance(error, OSError) else error
        _tell(known, words)
        code = known.exit_code
    except Exception as error:  # noqa: BLE001 - the one place where a bug of ours becomes a message
        if debug:
            say(traceback.format_exc())
        if (lacked := lacking(error)) is not None:
            _tell(lacked, words)
        else:
            say(f"error: This is a bug in saesync ({type(error).__name__}).\n  Please report it with the output of --debug.")
        code = 1
    return code if isinstance(code, int) else 0


class _Terminated(SystemExit):
    """Somebody ended the process with a signal; any other SystemExit, as of shell completion, is an end like others."""


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that what is half made is cleared away."""

    def on_signal(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would cut the clearing short
        raise _Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_words(error: OSError) -> SaesyncError:
    """What the system refused. Without a working folder it refuses what has nothing to do with it."""
    if error.filename is None and _printed_by_click(error):
        return lost(error)
    if isinstance(error, FileNotFoundError) and error.filename is None:
        try:
            os.getcwd()  # noqa: PTH109 - Path.cwd is the same call
        except FileNotFoundError:
            return Missing("Working folder is gone", "The folder this runs in was removed. `cd` to one that is there.")
    return os_trouble(error)


def _printed_by_click(error: OSError) -> bool:
    """Whether it came of help or of a version, which click prints itself."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") == click.echo.__module__


def _tell(error: SaesyncError, words: Sequence[str]) -> None:
    """Every diagnostic, and under those of manifests how many there are."""
    said = carets.show(error.diagnostics, color=may_color(sys.stderr, "--no-color" in words), spelt=spelling(sys.stderr))
    files = {diagnostic.origin.file for diagnostic in error.diagnostics if diagnostic.origin is not None}
    if isinstance(error, ManifestError) and files:
        command = next((word for word in words if not word.startswith("-")), "")
        many = (len(error.diagnostics), "error"), (len(files), "manifest")
        errors, manifests = (f"{number} {word}{'s' * (number != 1)}" for number, word in many)
        said += f"\n\n{errors} in {manifests}.{_LEFT_UNDONE.get(command, '')}"
        said += "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    say(said)
