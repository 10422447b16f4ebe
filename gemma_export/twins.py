"""Which graphs a folder gets: twins over one data file that differ in what they offer. Torch-free and onnx-free."""

from __future__ import annotations

import dataclasses
from typing import Literal

from gemma_export.artifact import graph_file
from gemma_export.config import DecoderSpec
from gemma_export.precision import Precision
from gemma_export.targets import Target

__all__ = ["PlannedGraph", "chunks_of", "plan_graphs"]

# positions that the speculative-verification twin returns
_LAST_FEW = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedGraph:
    """One graph over the shared weights."""

    # path inside the folder
    file: str
    # "main", "all", "last8", "batched", "static", "windowed", "windowed_last8": what tells twins apart
    role: str
    # positions with logits; 0 means all
    keep: int
    # with what only the newest onnxruntime releases know: chunks of several rows
    batched: bool = False
    # a decode step over a cache of full capacity: what a CUDA graph is captured from
    static: bool = False
    # layers with a window keep no more than it
    windowed: bool = False

    @property
    def logits(self) -> Literal["last", "all"] | int:
        """The manifest's word for `keep`."""
        words: dict[int, Literal["last", "all"]] = {0: "all", 1: "last"}
        return words.get(self.keep, self.keep)


def plan_graphs(precision: Precision, keep: int, target: Target, spec: DecoderSpec) -> tuple[PlannedGraph, ...]:
    """Every graph of a folder, the main one first.

    Args:
        precision: number format; it names the files.
        keep: positions with logits of the main graph; 0 means all.
        target: says which twins it can make.
        spec: the architecture, with the exported context length.
    """
    suffix, last_few = precision.suffix, f"last{_LAST_FEW}"
    captured = target.static is not None and "cuda" in target.providers[precision.activation_dtype]
    static = PlannedGraph(file=graph_file(suffix, "static"), role="static", keep=1, static=True)
    batched = PlannedGraph(file=graph_file(suffix, "batched"), role="batched", keep=keep, batched=True)
    return (
        PlannedGraph(file=graph_file(suffix), role="main", keep=keep),
        PlannedGraph(file=graph_file(suffix, "all"), role="all", keep=0),
        PlannedGraph(file=graph_file(suffix, last_few), role=last_few, keep=_LAST_FEW),
        *((batched,) if target.compat is not None else ()),
        *((static,) if captured else ()),
        *(_windowed(suffix, keep) if _forgets(target, spec) else ()),
    )


def chunks_of(target: Target, graph: PlannedGraph) -> str:
    """What a graph takes of several tokens with a cache: without its newest input, a single row; a static one, none."""
    if graph.static:
        return "none"
    return "single" if target.compat is not None and not graph.batched else target.chunks


def _windowed(suffix: str, keep: int) -> tuple[PlannedGraph, ...]:
    """One for every release and for CUDA, where a cache as long as the window leaves no room for guesses; and one that
    checks guesses and takes padded prompts: the kernel refuses those in a window-sized cache without its newest input.
    """
    role, last_few = "windowed", f"windowed_last{_LAST_FEW}"
    return (
        PlannedGraph(file=graph_file(suffix, role), role=role, keep=keep, windowed=True),
        PlannedGraph(file=graph_file(suffix, last_few), role=last_few, keep=_LAST_FEW, windowed=True, batched=True),
    )


def _forgets(target: Target, spec: DecoderSpec) -> bool:
    """Whether some layers see less than the context, and the target's kernel can drop the rest."""
    return target.windowed is not None and any(0 < window < spec.max_position_embeddings for window in spec.windows)
