"""How fast a folder runs here: `gemma-run DIR --bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gemma_runtime.bench.found import CONTEXTS, Benchmark, Plan

__all__ = ["CONTEXTS", "Benchmark", "run_bench"]


def run_bench(
    directory: Path | str,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    contexts: Sequence[int] = CONTEXTS,
    prompt: int = 512,
    new: int = 64,
    rounds: int = 3,
    as_json: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> str:
    """Measures a folder and returns what `gemma-run DIR --bench` prints.

    Prompts are of random token ids, a new one each time; tokens are decoded greedily.

    Args:
        directory: an exported folder.
        provider: "cpu", "cuda", "directml" or "auto".
        threads: of onnxruntime; None for the engine's own choice.
        contexts: tokens before the first decoded one. Those that do not fit the folder's context are left out.
        prompt: a further prompt length to time.
        new: tokens to decode behind each context.
        rounds: how often each length counts.
        as_json: schemas/bench.schema.json instead of a table.
        on_progress: called with a line about what comes next.

    Raises:
        PromptError: a length or a number below 1, or no context that fits.
        GemmaRuntimeError: a folder, package or provider that cannot run.
    """
    from gemma_runtime.bench.measure import measure
    from gemma_runtime.bench.text import benchmark_json, benchmark_text

    plan = Plan(provider=provider, threads=threads, contexts=contexts, prompt=prompt, new=new, rounds=rounds)
    found = measure(Path(directory), plan, on_progress or (lambda _: None))
    return benchmark_json(found) if as_json else benchmark_text(found)
