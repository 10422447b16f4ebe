"""Runs the command and turns every error into a message and an exit code."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from types import FrameType

import click

from gemma_export.cli.commands import cli
from gemma_export.errors import GemmaExportError, ResourceExhaustedError

__all__ = ["main"]

_INTERRUPTED = 130
_OUT_OF_MEMORY = "out of memory"
_MEMORY_HINT = "`gemma-export --dry-run` says how much an export needs: close programs, or use a larger machine."


def main() -> None:
    """Entry point: runs the command and turns errors into messages and exit codes."""
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in sys.argv
    try:
        code = cli.main(prog_name="gemma-export", standalone_mode=False)
    except GemmaExportError as error:
        out_of_memory = _is_out_of_memory(error)
        told = ResourceExhaustedError(_OUT_OF_MEMORY, hint=_MEMORY_HINT) if out_of_memory else error
        code = _report(error, told.message, told.hint, told.exit_code, debug=debug)
    except click.ClickException as error:
        code = _report(error, error.format_message(), "See gemma-export --help.", 2, debug=debug)
    except (KeyboardInterrupt, click.Abort) as error:
        code = _report(
            error, "interrupted; nothing is left behind", "Run the command again.", _INTERRUPTED, debug=debug
        )
    except SystemExit:
        # outside standalone mode click ends so in one case only: the reader of stdout went away, no failure of ours
        code = 0
    except Exception as error:  # noqa: BLE001  a bug of ours must still end in a message
        if _is_out_of_memory(error):
            code = _report(error, _OUT_OF_MEMORY, _MEMORY_HINT, ResourceExhaustedError.exit_code, debug=debug)
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            # the folder's own files have errors of their own: this is what was printed
            hint = "Free some space where the output is redirected to."
            code = _report(error, "stdout: no space left on device", hint, 5, debug=debug)
        else:
            hint = "This is a bug of gemma-export: run again with --debug and report the traceback."
            code = _report(error, f"internal error: {type(error).__name__}: {error}", hint, 1, debug=debug)
    sys.exit(code or 0)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says so; torch has no type of its own for it."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _report(error: BaseException, message: str, hint: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    click.echo(f"error: {message}\nhint: {hint}", err=True)
    return code
