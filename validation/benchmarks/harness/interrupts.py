"""Ctrl-C as a question that loops ask, so that what is finished can still be written."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["Interrupts", "catch_interrupts"]


@dataclasses.dataclass
class Interrupts:
    """How often the user or the system asked to end; the second time is less patient."""

    count: int = 0


@contextlib.contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """SIGINT and SIGTERM count up instead of raising; the former handlers come back afterwards."""
    interrupts = Interrupts()

    def note(signum: int, frame: FrameType | None) -> None:
        interrupts.count += 1

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
