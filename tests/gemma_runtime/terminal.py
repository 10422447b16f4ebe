"""A program on a pseudo-terminal, as a user at a keyboard meets it."""

from __future__ import annotations

import codecs
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

__all__ = ["Terminal"]

# gives the program the terminal as its own, so that Ctrl-C reaches it; then it runs in this process's place
_LAUNCHER = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "gemma_runtime", *sys.argv[1:]])
"""
_PATIENCE_SECONDS = 60


class Terminal:
    """A gemma-run that somebody types at. Use as a context.

    Args:
        arguments: of the command.
        home: its home directory.
        stdout: a file that its stdout goes to instead of the terminal.
    """

    def __init__(self, *arguments: object, home: Path, stdout: IO[bytes] | None = None) -> None:
        self._master, slave = os.openpty()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
        environment |= {"HOME": str(home), "TERM": "dumb", "PYTHONIOENCODING": "utf-8", "INPUTRC": os.devnull}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, *map(str, arguments)],
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            env=environment,
        )
        os.close(slave)
        # all that the terminal has shown
        self.shown = ""
        self._seen = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str | bytes) -> None:
        """Presses keys; "\\x03" is Ctrl-C, "\\x04" is Ctrl-D; bytes are what a terminal of any encoding sends."""
        os.write(self._master, text if isinstance(text, bytes) else text.encode())

    def wait_for(self, text: str) -> str:
        """Reads on until `text` is shown, and returns what came up to it."""
        ends = time.monotonic() + _PATIENCE_SECONDS
        while text not in self.shown[self._seen :]:
            if not self._read(ends):
                raise AssertionError(f"{text!r} is not in {self.shown[self._seen :]!r}")
        end = self.shown.index(text, self._seen) + len(text)
        found, self._seen = self.shown[self._seen : end], end
        return found

    def wait_for_more(self, count: int) -> None:
        """Reads on until that many more characters are shown."""
        ends, wanted = time.monotonic() + _PATIENCE_SECONDS, len(self.shown) + count
        while len(self.shown) < wanted:
            assert self._read(ends), self.shown

    def ask(self, line: str) -> str:
        """Types a line and returns what is shown until the next prompt, without the line's echo."""
        self.type(line + "\n")
        return self.wait_for("\n> ").partition("\n")[2].removesuffix("> ")

    def end(self) -> int:
        """Reads to the end; the exit code."""
        ends = time.monotonic() + _PATIENCE_SECONDS
        while self._read(ends):
            pass
        return self.process.wait(_PATIENCE_SECONDS)

    def _read(self, ends: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, ends - time.monotonic()))
        if not ready:
            return False
        try:
            content = os.read(self._master, 65536)
        except OSError:
            # Linux: the other side is closed
            return False
        self.shown += self._decoder.decode(content).replace("\r\n", "\n")
        return bool(content)
