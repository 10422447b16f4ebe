"""Lines that a user types, with line editing and a history where Python has `readline`.

The history is the one file that gemma-run writes outside the folders it is given: `history` in the platform's place for
state (https://specifications.freedesktop.org/basedir-spec/latest/ on Linux). `--no-history` leaves it alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

from gemma_runtime.cli.output import notice
from gemma_runtime.errors import PromptError

__all__ = ["LineInput", "history_file"]

_HISTORY_LINES = 1000


class LineInput:
    """Use as a context: the history is read on entering and written on leaving.

    Args:
        history: None keeps none.
    """

    def __init__(self, history: Path | None) -> None:
        self._history = history
        self._readline = _readline()

    def __enter__(self) -> LineInput:
        if self._readline is not None and self._history is not None:
            try:
                # to look for the file is already refused in a directory that this user may not enter
                if self._history.is_file():
                    self._readline.read_history_file(self._history)
            except OSError as error:
                self._give_up(f"cannot be read: {error.strerror}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._readline is None or self._history is None:
            return
        try:
            self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._readline.set_history_length(_HISTORY_LINES)
            self._readline.write_history_file(self._history)
        except OSError as error:
            self._give_up(f"cannot be written: {error.strerror}")

    def read(self, prompt: str) -> str | None:
        r"""One message: a line, and the lines after it for as long as they end in \; None at the end of input."""
        line = self._line(prompt)
        while line is not None and line.endswith("\\"):
            more = self._line("... ")
            line = line[:-1] + "\n" + ("" if more is None else more)
        return line

    def read_block(self, end: str) -> str | None:
        """Lines up to one that is `end` alone; None at the end of input."""
        lines: list[str] = []
        while (line := self._line("... ")) != end:
            if line is None:
                return None
            lines.append(line)
        return "\n".join(lines)

    def _line(self, prompt: str) -> str | None:
        try:
            if sys.stdout.isatty():
                return input(prompt)
            # input() would write the prompt into what is redirected
            sys.stderr.write(prompt)
            sys.stderr.flush()
            return input()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise PromptError(
                f"the line is not valid {error.encoding} at byte {error.start}", hint="Check the terminal's encoding."
            ) from error

    def _give_up(self, reason: str) -> None:
        notice(f"warning: the history {self._history} {reason}")
        self._history = None


def history_file() -> Path | None:
    """Where the history lies; None where there is no home directory."""
    try:
        return _state_directory() / "gemma-run" / "history"
    except RuntimeError:
        return None


def _state_directory() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    given = os.environ.get("XDG_STATE_HOME", "")
    # the specification: a relative path is to be ignored
    return Path(given) if os.path.isabs(given) else Path.home() / ".local" / "state"


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:
        # Windows' console edits lines itself
        return None
    return readline
