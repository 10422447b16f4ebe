"""The measurement: load, first token, prefill and decode over lengths, memory, and where a step's time goes."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gemma_runtime.bench.engine import Engine
from gemma_runtime.bench.found import Benchmark, Decode, Folder, Load, Memory, Plan, Prefill
from gemma_runtime.bench.memory import resident_memory
from gemma_runtime.bench.operators import OperatorProfile, read_profile
from gemma_runtime.bench.spread import spread_of
from gemma_runtime.bench.weight_bytes import weight_bytes
from gemma_runtime.doctor.installed import owners_of, versions
from gemma_runtime.doctor.machine import look_at_machine
from gemma_runtime.errors import PromptError
from gemma_runtime.graph_choice import told_provider

__all__ = ["measure"]

# prompt of the first token's time
_FIRST_PROMPT = 128
_PROFILED_STEPS = 16

_Say = Callable[[str], None]


def measure(directory: Path, plan: Plan, say: _Say) -> Benchmark:
    """Runs prompts of random token ids, a new one each time, and decodes greedily.

    Args:
        directory: an exported folder.
        plan: what to measure; lengths that do not fit the folder's context are left out.
        say: called with a line about what comes next.

    Raises:
        PromptError: no context fits.
        GemmaRuntimeError: a folder, package or provider that cannot run.
    """
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    timed = _timed(directory, plan, say)
    contexts = [decode.context for decode in timed.decode]
    profiles = []
    for context in sorted({contexts[0], contexts[-1]}):
        say(f"profiling steps behind {context} tokens")
        profiles.append(_profile(directory, plan, context))
    return Benchmark(
        folder=timed.folder,
        versions=versions() | {owner.name: owner.version for owner in owners_of("onnxruntime")},
        machine=look_at_machine(),
        load_average=load_average,
        rounds=plan.rounds,
        new_tokens=plan.new,
        left_out=tuple(sorted({*plan.contexts, plan.prompt} - {*contexts, *(p.tokens for p in timed.prefill)})),
        load=timed.load,
        prefill=timed.prefill,
        decode=timed.decode,
        memory=timed.memory,
        profiles=tuple(profiles),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Timed:
    """What one loaded folder gave."""

    folder: Folder
    load: Load
    prefill: tuple[Prefill, ...]
    decode: tuple[Decode, ...]
    memory: Memory


def _timed(directory: Path, plan: Plan, say: _Say) -> _Timed:
    """Loads and measures everything but the profile, whose session must not be counted as memory."""
    before = resident_memory()
    say(f"loading {directory}")
    began = time.perf_counter()
    engine = Engine(directory, provider=plan.provider, threads=plan.threads)
    loaded = time.perf_counter() - began
    if plan.provider == "auto":
        say(told_provider(engine.provider, engine.provider_reason))
    after_load = resident_memory()
    contexts = _fitting(plan, engine.manifest.context_length)
    random = np.random.default_rng(0)
    first = min(_FIRST_PROMPT, engine.manifest.context_length - 1)
    ids = _prompt(random, first, engine)
    began = time.perf_counter()
    token = engine.start(ids, first + 1)
    load = Load(seconds=loaded, first_token_seconds=loaded + time.perf_counter() - began, prompt=first)
    # whatever a first single step sets up
    engine.step(token)
    prefill, decode = _rounds(engine, plan, contexts, random, say)
    after = resident_memory()
    memory = Memory(before_load=before.now, after_load=after_load.now, after_runs=after.now, peak=after.peak)
    return _Timed(folder=_folder(directory, plan, engine), load=load, prefill=prefill, decode=decode, memory=memory)


def _rounds(
    engine: Engine, plan: Plan, contexts: Sequence[int], random: np.random.Generator, say: _Say
) -> tuple[tuple[Prefill, ...], tuple[Decode, ...]]:
    """Every length once, then again: a slow minute of the machine hits all of them."""
    limit = engine.manifest.context_length
    lengths = sorted({*contexts, *(n for n in (_FIRST_PROMPT, plan.prompt) if n <= limit)})
    prefill: dict[int, list[float]] = {length: [] for length in lengths}
    decode: dict[int, list[float]] = {context: [] for context in contexts}
    for number in range(1, plan.rounds + 1):
        for length in lengths:
            new = plan.new if length in decode else 0
            say(f"round {number} of {plan.rounds}: {length} tokens" + (f", then {new} new ones" if new else ""))
            ids = _prompt(random, length, engine)
            began = time.perf_counter()
            token = engine.start(ids, length + new)
            prefilled = time.perf_counter()
            prefill[length].append(length / (prefilled - began))
            for _ in range(new):
                token = engine.step(token)
            if new:
                decode[length].append(new / (time.perf_counter() - prefilled))
    return (
        tuple(Prefill(tokens=tokens, tokens_per_second=spread_of(rates)) for tokens, rates in prefill.items()),
        tuple(Decode(context=context, tokens_per_second=spread_of(rates)) for context, rates in decode.items()),
    )


def _profile(directory: Path, plan: Plan, context: int) -> OperatorProfile:
    """A session of its own, since a profile covers a session's whole life and costs time in every node."""
    with tempfile.TemporaryDirectory(prefix="gemma-profile-") as folder:
        engine = Engine(directory, provider=plan.provider, threads=plan.threads, profile=Path(folder) / "steps")
        token = engine.start(_prompt(np.random.default_rng(1), context, engine), context + plan.new)
        steps = min(_PROFILED_STEPS, plan.new)
        for _ in range(steps):
            token = engine.step(token)
        weights = weight_bytes(directory / engine.graph.file)
        return read_profile(engine.end_profile(), steps=steps, context=context, weights=weights)


def _fitting(plan: Plan, limit: int) -> list[int]:
    contexts = sorted({context for context in plan.contexts if context + plan.new <= limit})
    if not contexts:
        raise PromptError(
            f"no context of {', '.join(map(str, plan.contexts))} tokens leaves room for {plan.new} new ones: this "
            f"folder's context has {limit}",
            hint="Choose shorter contexts or fewer new tokens.",
        )
    return contexts


def _prompt(random: np.random.Generator, length: int, engine: Engine) -> list[int]:
    ids: list[int] = random.integers(0, engine.manifest.vocab_size, length).tolist()
    return ids


def _folder(directory: Path, plan: Plan, engine: Engine) -> Folder:
    files = {engine.graph.file, *engine.graph.data_files}
    return Folder(
        directory=str(directory),
        graph=engine.graph.file,
        target=engine.manifest.target,
        precision=engine.manifest.precision.name,
        provider=engine.provider,
        threads=plan.threads,
        file_bytes=sum(entry.size for entry in engine.manifest.files if entry.path in files),
    )
