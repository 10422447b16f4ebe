"""Where the time of a decode step goes, from onnxruntime's own profile."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Operator", "OperatorProfile", "read_profile"]

# what onnxruntime adds to a node's name in the profile
_SUFFIX = "_kernel_time"

_Event = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    """All nodes of one operator type in one decode step."""

    operator: str
    calls: int
    # median over the steps
    seconds: float
    # of the whole step, 0 to 1
    share: float
    # of the matrix products among them; None for operators that do not read all of their weights
    weight_bytes: int | None
    # bandwidth reached: weight_bytes / seconds
    weight_bytes_per_second: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatorProfile:
    """One decode step, the median of the profiled ones; the profiler itself adds a little to every node."""

    context: int
    steps: int
    # the whole step inside onnxruntime
    step_seconds: float
    # of a step between its nodes, 0 to 1; median over the steps, so that the shares need not add up to 1 exactly
    outside_share: float
    matmul_share: float
    matmul_weight_bytes: int
    matmul_weight_bytes_per_second: float | None
    # most time first
    operators: tuple[Operator, ...]


def read_profile(events: Path, *, steps: int, context: int, weights: Mapping[str, int]) -> OperatorProfile:
    """Aggregates the last `steps` runs of a profile.

    Args:
        events: the JSON file that onnxruntime wrote.
        steps: decode steps at its end.
        context: tokens in the cache when they began.
        weights: node name -> bytes of its weights (weight_bytes).

    Raises:
        ValueError: the profile holds fewer runs, or is no profile.
    """
    content: list[_Event] = json.loads(events.read_text(encoding="utf-8"))
    runs = sorted((event for event in content if event.get("name") == "model_run"), key=lambda event: event["ts"])
    if len(runs) < steps or steps < 1:
        raise ValueError(f"{steps} profiled steps expected, found {len(runs)}")
    runs = runs[-steps:]
    nodes = [event for event in content if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX)]
    # the profile counts in microseconds
    whole = statistics.median(run["dur"] for run in runs) / 1e6
    operators = _operators(nodes, [run["ts"] for run in runs], whole, weights)
    matmuls = [operator for operator in operators if operator.weight_bytes is not None]
    seconds, read = sum(o.seconds for o in matmuls), sum(o.weight_bytes or 0 for o in matmuls)
    return OperatorProfile(
        context=context,
        steps=steps,
        step_seconds=whole,
        outside_share=_outside_share(runs, nodes),
        matmul_share=sum(operator.share for operator in matmuls),
        matmul_weight_bytes=read,
        matmul_weight_bytes_per_second=read / seconds if seconds else None,
        operators=tuple(operators),
    )


def _outside_share(runs: Sequence[_Event], nodes: Sequence[_Event]) -> float:
    """Median over the steps of what each step's nodes leave of it; not of medians, whose sum is no step."""
    starts = [run["ts"] for run in runs]
    left = [run["dur"] for run in runs]
    for node in nodes:
        step = bisect.bisect_right(starts, node["ts"]) - 1
        if step >= 0:
            left[step] -= node["dur"]
    share: float = statistics.median(rest / run["dur"] for rest, run in zip(left, runs, strict=True))
    return max(0.0, share)


def _operators(
    nodes: Sequence[_Event], starts: Sequence[float], whole: float, weights: Mapping[str, int]
) -> list[Operator]:
    """Every operator type of the steps that began at `starts`, most time first."""
    # operator -> one list of nodes for each step; what ran before the first step does not count
    kinds: dict[str, list[list[_Event]]] = collections.defaultdict(lambda: [[] for _ in starts])
    for node in nodes:
        step = bisect.bisect_right(starts, node["ts"]) - 1
        if step >= 0:
            kinds[node["args"]["op_name"]][step].append(node)
    found = [_operator(kind, by_step, whole, weights) for kind, by_step in kinds.items()]
    return sorted(found, key=lambda operator: -operator.seconds)


def _operator(kind: str, by_step: Sequence[Sequence[_Event]], whole: float, weights: Mapping[str, int]) -> Operator:
    # the median: a step that another program interrupts would weigh as much as all others
    seconds = statistics.median(sum(node["dur"] for node in step) for step in by_step) / 1e6
    read = sum(weights.get(node["name"].removesuffix(_SUFFIX), 0) for node in by_step[-1])
    # a Gather has the whole table as its input and reads a row; a norm's gain is no matrix
    matmul = read > 0 and ("MatMul" in kind or kind == "Gemm")
    return Operator(
        operator=kind,
        calls=len(by_step[-1]),
        seconds=seconds,
        share=seconds / whole,
        weight_bytes=read if matmul else None,
        weight_bytes_per_second=read / seconds if matmul and seconds else None,
    )
