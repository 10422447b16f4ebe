"""What a validation is at, and how long each part of it took."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

__all__ = ["StageClock"]


@dataclasses.dataclass
class StageClock:
    """Seconds of stages, and somebody who is told of them."""

    on_stage: Callable[[str], None] | None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Tells that a part begins; its seconds are added up under its name, also where it fails."""
        if self.on_stage is not None:
            self.on_stage(f"{name} ...")
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun
