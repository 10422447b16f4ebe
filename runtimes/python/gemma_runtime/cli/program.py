"""Runs a command to its exit code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import click

from gemma_runtime.cli.failures import Program, report
from gemma_runtime.cli.output import ReaderGoneError

__all__ = ["leave_stdout", "run_program"]


def leave_stdout() -> None:
    """Nobody reads it any more: Python flushes it once more when it ends, which then is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Interruption:
    """Ctrl-C as a KeyboardInterrupt, and noted: a package that is being imported may make an ImportError of it."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        self.asked = True
        raise KeyboardInterrupt

    def behind(self, error: BaseException) -> BaseException:
        """What to report of an error."""
        if not self.asked or isinstance(error, KeyboardInterrupt):
            return error
        interrupted = KeyboardInterrupt()
        interrupted.__cause__ = error
        return interrupted


def run_program(command: click.Command, program: Program) -> None:
    """Runs a command and ends the process; errors become messages and exit codes, a reader that left stdout none."""
    interruption = Interruption()
    # one that is ignored, as in the background, stays so
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interruption)
    if program.ends_cleanly:
        signal.signal(signal.SIGTERM, interruption)
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
        code = report(interruption.behind(error), program)
    sys.exit(code or 0)
