"""Progress of long reads and writes: a bar on a terminal, a line now and then when piped, nothing for machines.

All output goes to the given stream, normally stderr, so that results on stdout stay clean.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["LineProgress", "NullProgress", "Progress", "TerminalProgress", "format_bytes", "make_progress"]


class Progress(Protocol):
    """What a stage that moves bytes reports to. `advance` may be called from another thread."""

    def start(self, total_bytes: int, label: str) -> None:
        """Begins a stage of `total_bytes` bytes; a stage still open is finished first."""

    def advance(self, n: int) -> None:
        """Another `n` bytes are done."""

    def finish(self) -> None:
        """Ends the stage, complete or not; harmless when none is open."""

    def tell(self, text: str) -> None:
        """A line between: why nothing moves."""


class NullProgress:
    """Reports nothing."""

    def start(self, total_bytes: int, label: str) -> None:
        """Ignored."""

    def advance(self, n: int) -> None:
        """Ignored."""

    def finish(self) -> None:
        """Ignored."""

    def tell(self, text: str) -> None:
        """Ignored."""


class LineProgress:
    """Plain lines for logs and pipes: one at the start, at most one every `interval` seconds, one at the end."""

    def __init__(self, stream: TextIO, *, interval: float = 5.0) -> None:
        self._stream = stream
        self._interval = interval
        self._lock = threading.Lock()
        self._label: str | None = None
        self._total = self._done = 0
        self._began = self._said = 0.0

    def start(self, total_bytes: int, label: str) -> None:
        """See Progress."""
        self.finish()
        with self._lock:
            self._label, self._total, self._done = label, total_bytes, 0
            self._began = self._said = time.monotonic()
            self._line(f"{label}: {format_bytes(total_bytes)}")

    def advance(self, n: int) -> None:
        """See Progress."""
        with self._lock:
            self._done += n
            now = time.monotonic()
            if self._label is None or now - self._said < self._interval:
                return
            self._said = now
            rate = self._done / max(now - self._began, 1e-9)
            left = max(self._total - self._done, 0) / max(rate, 1.0)
            percent = 100 * self._done // max(self._total, 1)
            self._line(f"{self._label}: {percent} % at {format_bytes(rate)}/s, {_format_seconds(left)} left")

    def finish(self) -> None:
        """See Progress."""
        with self._lock:
            if self._label is None:
                return
            seconds = time.monotonic() - self._began
            rate = self._done / max(seconds, 1e-9)
            moved = f"{format_bytes(self._done)} in {seconds:.1f} s, {format_bytes(rate)}/s"
            self._line(f"{self._label}: {moved}" if self._done >= self._total else f"{self._label}: stopped at {moved}")
            self._label = None

    def tell(self, text: str) -> None:
        """See Progress."""
        with self._lock:
            self._line(text)

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class TerminalProgress:
    """A bar with bytes, rate and time left, redrawn in place by rich."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def start(self, total_bytes: int, label: str) -> None:
        """See Progress."""
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        self.finish()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
        )
        self._task = self._bar.add_task(label, total=total_bytes)
        self._bar.start()

    def advance(self, n: int) -> None:
        """See Progress."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, n)

    def finish(self) -> None:
        """See Progress."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def tell(self, text: str) -> None:
        """See Progress."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()


def make_progress(stream: TextIO | None = None, *, quiet: bool = False) -> Progress:
    """The progress that fits a stream: a bar on a terminal, lines otherwise, nothing when quiet.

    Args:
        stream: where to report, stderr if not given.
        quiet: for `--json` and tests.
    """
    if quiet:
        return NullProgress()
    stream = stream if stream is not None else sys.stderr
    return TerminalProgress(stream) if stream.isatty() else LineProgress(stream)


def format_bytes(count: float) -> str:
    """A size for people, in decimal units as disks and network links are sold: 1.34 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def _format_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
