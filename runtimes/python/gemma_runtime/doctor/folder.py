"""Whether one exported folder would run here: structure, graph, providers, memory. Loads nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path

from gemma_runtime.doctor.machine import Memory
from gemma_runtime.doctor.problem import Problem
from gemma_runtime.errors import GemmaRuntimeError, ManifestError, ProviderError
from gemma_runtime.graph_choice import PROVIDERS, graph_for, release
from gemma_runtime.manifest import Graph, Manifest, read_manifest, verify_structure

__all__ = ["Folder", "look_at_folder"]

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
# Resident memory of gemma-run on the CPU provider, as a multiple of the graph's data file. Measured after a prompt of
# 200 tokens: float32 1.3 (kernels repack projections, the tied table stays mapped beside them), float16 2.8 (widened to
# float32), 4 bits 1.5.
_WEIGHTS_FACTOR = {"float32": 1.3, "float16": 2.8}
_OTHER_FACTOR = 1.6
# interpreter, numpy, onnxruntime and a tokenizer take 50 to 100 MB, one chunk of a 7B's prompt 100 MB
_BASE_BYTES = 200 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """One exported folder, as far as it could be read. Sizes in bytes."""

    path: str
    variant: str | None
    target: str | None
    precision: str | None
    # graph that the installed onnxruntime would take
    graph: str | None
    # of the folder, and those of them that start here
    providers: tuple[str, ...]
    providers_starting: tuple[str, ...]
    weights_bytes: int | None
    # decoder state of one token, and of a full context
    state_bytes_per_token: int | None
    state_bytes_full_context: int | None
    # estimated resident memory on the CPU provider, without and with a full context
    memory_bytes: int | None
    memory_bytes_full_context: int | None


def look_at_folder(
    directory: Path, *, onnxruntime: str | None, starting: Collection[str], memory: Memory
) -> tuple[Folder, list[Problem]]:
    """Reads the manifest, holds the files against it (not the weights' hashes) and estimates the memory.

    Args:
        directory: what gemma-export wrote.
        onnxruntime: release that is installed, None where it cannot be imported.
        starting: onnxruntime's names of the providers that start.
        memory: of this machine.
    """
    folder = _empty(directory)
    try:
        manifest = read_manifest(directory)
    except ManifestError as error:
        return folder, [_problem("folder", error)]
    problems: list[Problem] = []
    try:
        verify_structure(directory, manifest)
    except ManifestError as error:
        problems.append(_problem("folder", error))
    usable = tuple(name for name in manifest.providers if PROVIDERS.get(name) in starting)
    folder = dataclasses.replace(
        folder,
        variant=manifest.variant,
        target=manifest.target,
        precision=manifest.precision.name,
        providers=manifest.providers,
        providers_starting=usable,
    )
    if onnxruntime is None:
        # the installation's own problem has been told
        return folder, problems
    try:
        graph = graph_for(manifest, release(onnxruntime), provider=(usable or manifest.providers)[0])
    except ProviderError as error:
        return folder, [*problems, _problem("release", error)]
    if not usable and starting:
        wanted = ", ".join(manifest.providers)
        hint = f"Install the onnxruntime for {wanted} (see README), or export with a precision for what starts here."
        problems.append(Problem(kind="provider", message=f"{directory} runs on {wanted}; none starts", hint=hint))
    folder = _with_memory(folder, manifest, graph)
    return folder, [*problems, *_memory_problems(folder, memory)]


def _with_memory(folder: Folder, manifest: Manifest, graph: Graph) -> Folder:
    sizes = {entry.path: entry.size for entry in manifest.files}
    weights = sum(sizes[name] for name in {*graph.data_files, graph.file})
    per_token = sum(
        len(state.past)
        * _ITEM_BYTES.get(state.dtype, 4)
        * math.prod(dim for dim in state.shape if isinstance(dim, int))
        for state in graph.state
        # as long as the window, whatever the text
        if not state.windowed
    )
    full = graph.cache_bytes
    factor = _WEIGHTS_FACTOR.get(manifest.precision.weight_dtype, _OTHER_FACTOR)
    needed = int(weights * factor) + _BASE_BYTES
    return dataclasses.replace(
        folder,
        graph=graph.file,
        weights_bytes=weights,
        state_bytes_per_token=per_token,
        state_bytes_full_context=full,
        memory_bytes=needed,
        memory_bytes_full_context=needed + full,
    )


def _memory_problems(folder: Folder, memory: Memory) -> list[Problem]:
    """More than the machine has is an error; more than is free now may only be another program's fault."""
    if "cpu" not in folder.providers_starting:
        # an accelerator has memory of its own
        return []
    needed = folder.memory_bytes or 0
    most = min((size for size in (memory.total, memory.cgroup_limit) if size is not None), default=None)
    hint = "Export a smaller precision, or use a larger machine."
    if most is not None and needed > most:
        message = f"{folder.path} needs about {needed:,} bytes of memory, this process may have {most:,}"
        return [Problem(kind="memory", message=message, hint=hint, exit_code=5)]
    if memory.available is not None and needed > memory.available:
        message = f"{folder.path} needs about {needed:,} bytes of memory, {memory.available:,} are free now"
        return [Problem(kind="memory", message=message, hint="Close programs. " + hint, exit_code=0)]
    return []


def _problem(kind: str, error: GemmaRuntimeError) -> Problem:
    return Problem(kind=kind, message=error.message, hint=error.hint, exit_code=error.exit_code)


def _empty(directory: Path) -> Folder:
    nothing = dict.fromkeys(
        field.name for field in dataclasses.fields(Folder) if field.name not in ("path", "providers")
    )
    nothing.pop("providers_starting")
    return Folder(path=str(directory), providers=(), providers_starting=(), **nothing)
