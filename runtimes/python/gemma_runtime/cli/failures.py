"""Errors become a message, a hint and an exit code here and nowhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import re
import sys
import traceback
from typing import Any

import click

from gemma_runtime.cli.output import JSON_VERSION, notice
from gemma_runtime.errors import GemmaRuntimeError

__all__ = ["GEMMA_RUN", "Program", "report"]

_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Failure:
    """What a user, or with --json a machine, is told of an error."""

    # the error's class without "Error", in snake case: a word to branch on, see errors.py
    kind: str
    message: str
    hint: str
    exit_code: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Whose errors these are."""

    name: str
    # bases of the errors that carry a message, a hint and an exit code of their own
    errors: tuple[type[Exception], ...]
    # what helps where memory does not suffice
    memory_hint: str
    # whether SIGTERM ends it as Ctrl-C does: what it has begun to write is taken away
    ends_cleanly: bool = False


GEMMA_RUN = Program(
    name="gemma-run",
    errors=(GemmaRuntimeError,),
    memory_hint="Close programs, or export a smaller precision.",
)


def report(error: BaseException, program: Program) -> int:
    """Tells of an error on stderr, and with --json on stdout too; returns the exit code."""
    failure = _failure(error, program)
    if isinstance(error, KeyboardInterrupt):
        # the terminal has just shown ^C
        notice("")
    if _asked("--debug"):
        traceback.print_exception(error)
    if _asked("--json"):
        # stdout may be what failed; stderr and the exit code still tell
        with contextlib.suppress(OSError):
            click.echo(json.dumps({"schema_version": JSON_VERSION, "error": dataclasses.asdict(failure)}, indent=2))
    notice(f"error: {failure.message}\nhint: {failure.hint}")
    return failure.exit_code


def _asked(flag: str) -> bool:
    """Whether a flag was given, also where the command line could not be parsed."""
    arguments = sys.argv[1:]
    return flag in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


def _failure(error: BaseException, program: Program) -> _Failure:
    if isinstance(error, program.errors):
        known: Any = error
        name = type(error).__name__.removesuffix("Error")
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        return _Failure(kind=kind, message=known.message, hint=known.hint, exit_code=known.exit_code)
    if isinstance(error, click.ClickException):
        message = error.format_message()
        return _Failure(kind="usage", message=message, hint=f"See {program.name} --help.", exit_code=2)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return _Failure(
            kind="interrupted", message="interrupted", hint="Run the command again.", exit_code=_INTERRUPTED
        )
    if isinstance(error, MemoryError):
        message = "out of memory"
        return _Failure(kind="resource_exhausted", message=message, hint=program.memory_hint, exit_code=5)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        hint = "Free some space where the output is redirected to."
        return _Failure(kind="output", message="stdout: no space left on device", hint=hint, exit_code=5)
    hint = f"This is a bug of {program.name}: run again with --debug and report the traceback."
    message = f"internal error: {type(error).__name__}: {error}"
    return _Failure(kind="internal", message=message, hint=hint, exit_code=1)
