"""Runs the command and turns every error into a message and an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import re
import signal
import sys
import traceback
from types import FrameType

import click

from gemma_export import JSON_VERSION
from gemma_export.cli.commands import cli
from gemma_export.errors import GemmaExportError, ResourceExhaustedError

__all__ = ["main"]

_INTERRUPTED = 130
_OUT_OF_MEMORY = "out of memory"
_MEMORY_HINT = "`gemma-export --dry-run` says how much an export needs: close programs, or use a larger machine."


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Failure:
    """What a user, or with --json a machine, is told of an error."""

    # the error's class without "Error", in snake case: a word to branch on, see errors.py
    kind: str
    message: str
    hint: str
    exit_code: int


def main() -> None:
    """Entry point: runs the command and turns errors into messages and exit codes."""
    asked: list[int] = []

    def interrupt(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    # one that is ignored, as in the background, stays so
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        code = cli.main(prog_name="gemma-export", standalone_mode=False)
    except SystemExit:
        # outside standalone mode click ends so in two cases: a shell's completion has been answered, or the reader of
        # stdout went away, which is no failure of ours
        code = 0
    except BaseException as error:  # noqa: BLE001  Ctrl-C, and a bug of ours, must still end in a message
        # a package that is being imported may make an ImportError of an interruption
        code = _report(error, _failure(KeyboardInterrupt() if asked else error))
    sys.exit(code or 0)


def _asked(flag: str) -> bool:
    """Whether a flag was given, also where the command line could not be parsed."""
    arguments = sys.argv[1:]
    return flag in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


def _failure(error: BaseException) -> _Failure:
    if _is_out_of_memory(error):
        error = ResourceExhaustedError(_OUT_OF_MEMORY, hint=_MEMORY_HINT)
    if isinstance(error, GemmaExportError):
        name = type(error).__name__.removesuffix("Error")
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        return _Failure(kind=kind, message=error.message, hint=error.hint, exit_code=error.exit_code)
    if isinstance(error, click.ClickException):
        message = error.format_message()
        return _Failure(kind="usage", message=message, hint="See gemma-export --help.", exit_code=2)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        message = "interrupted; no output is left behind"
        hint = "Run the command again; a download goes on where it stopped."
        return _Failure(kind="interrupted", message=message, hint=hint, exit_code=_INTERRUPTED)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        # the folder's own files have errors of their own: this is what was printed
        hint = "Free some space where the output is redirected to."
        return _Failure(kind="output", message="stdout: no space left on device", hint=hint, exit_code=5)
    hint = "This is a bug of gemma-export: run again with --debug and report the traceback."
    message = f"internal error: {type(error).__name__}: {error}"
    return _Failure(kind="internal", message=message, hint=hint, exit_code=1)


def _report(error: BaseException, failure: _Failure) -> int:
    if _asked("--debug"):
        traceback.print_exception(error)
    if _asked("--json"):
        # stdout may be what failed; stderr and the exit code still tell
        with contextlib.suppress(OSError):
            click.echo(json.dumps({"schema_version": JSON_VERSION, "error": dataclasses.asdict(failure)}, indent=2))
    click.echo(f"error: {failure.message}\nhint: {failure.hint}", err=True)
    return failure.exit_code


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says so; torch has no type of its own for it."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
