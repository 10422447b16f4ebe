"""What the benchmark measures, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from gemma_runtime.bench.operators import OperatorProfile
from gemma_runtime.bench.spread import Spread
from gemma_runtime.doctor.machine import Machine
from gemma_runtime.errors import PromptError

__all__ = ["CONTEXTS", "Benchmark", "Decode", "Folder", "Load", "Memory", "Plan", "Prefill"]

CONTEXTS = (128, 1024, 4096)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    Raises:
        PromptError: a length or a number below 1, or no context.
    """

    provider: str
    # of onnxruntime; None for the engine's own choice
    threads: int | None
    # tokens before the first decoded one
    contexts: Sequence[int]
    # a further prompt length to time
    prompt: int
    # tokens to decode behind each context
    new: int
    # how often each length counts
    rounds: int

    def __post_init__(self) -> None:
        numbers = {"prompt": (self.prompt,), "new": (self.new,), "rounds": (self.rounds,), "contexts": self.contexts}
        if self.threads is not None:
            numbers["threads"] = (self.threads,)
        for name, values in numbers.items():
            if not values or min(values) < 1:
                told = ", ".join(map(str, values)) or "none"
                raise PromptError(f"{name} of a benchmark must be 1 or above, found {told}", hint="Give other numbers.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """The folder that was measured, and what ran it."""

    directory: str
    graph: str
    target: str
    precision: str
    provider: str
    # None: the engine's own choice
    threads: int | None
    # of the graph and its data files
    file_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """From nothing to a session that can run and to its first token; a process has one such time, so no spread."""

    # onnxruntime's import included
    seconds: float
    # that, and a prompt of `prompt` tokens
    first_token_seconds: float
    prompt: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefill:
    """A prompt of this many tokens, read from nothing."""

    tokens: int
    tokens_per_second: Spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decode:
    """Tokens one at a time, the first one behind a context of this many."""

    context: int
    tokens_per_second: Spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Resident memory of the process in bytes; None where the operating system does not tell."""

    before_load: int | None
    after_load: int | None
    after_runs: int | None
    # until the last run; the profile loads the folder once more and does not count
    peak: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """How fast a folder runs on this machine."""

    folder: Folder
    versions: Mapping[str, str | None]
    machine: Machine
    # processes that wanted to run, averaged over the minute before; None where the operating system does not tell
    load_average: float | None
    rounds: int
    new_tokens: int
    # lengths that do not fit the folder's context
    left_out: tuple[int, ...]
    load: Load
    prefill: tuple[Prefill, ...]
    decode: tuple[Decode, ...]
    memory: Memory
    # of the shortest and of the longest context
    profiles: tuple[OperatorProfile, ...]
