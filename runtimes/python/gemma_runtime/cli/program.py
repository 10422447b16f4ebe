"""Runs a command to its exit code."""

from __future__ import annotations

import os
import sys

import click

from gemma_runtime.cli.failures import Program, report
from gemma_runtime.cli.output import ReaderGoneError

__all__ = ["leave_stdout", "run_program"]


def leave_stdout() -> None:
    """Nobody reads it any more: Python flushes it once more when it ends, which then is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_program(command: click.Command, program: Program) -> None:
    """Runs a command and ends the process; errors become messages and exit codes, a reader that left stdout none."""
    for stream in (sys.stdout, sys.stderr):
        # a console that cannot show a character shows a mark instead of stopping the text
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    try:
        code = command.main(prog_name=program.name, standalone_mode=False)
    except ReaderGoneError:
        leave_stdout()
        code = 0
    except SystemExit as ended:
        # a shell's completion has been answered
        code = ended.code
    except BaseException as error:  # noqa: BLE001  Ctrl-C, and a bug of ours, must still end in a message
        code = report(error, program)
    sys.exit(code or 0)
