"""What is wrong, and what to do about it."""

from __future__ import annotations

import dataclasses

__all__ = ["Problem"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding. An exit code of 0 is a warning: everything still runs."""

    # conflict, broken, missing, mismatch, provider, telemetry, cache, folder, release or memory
    kind: str
    message: str
    hint: str
    exit_code: int = 8
    # what to type, in order; empty where no command mends it
    commands: tuple[str, ...] = ()
