"""The export, stage by stage: the only file that knows them all.

variant or checkpoint -> config -> decoder on fake tensors -> semantic graph -> lazy weights bound
  -> target passes (fusion) -> precision -> consumer files -> folder + manifest
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_export import __version__
from gemma_export.artifact import GraphFile, WrittenFolder, check_disk, claim_output, data_file, write_folder
from gemma_export.artifact.manifest import build_manifest
from gemma_export.checkpoint import hash_files
from gemma_export.planning import ExportPlan, ExportRequest, consumer_files, plan_export
from gemma_export.progress import NullProgress, Progress
from gemma_export.targets.onnxruntime_releases import first_release

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["ExportRequest", "ExportResult", "export"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export made."""

    plan: ExportPlan
    folder: WrittenFolder
    # seconds of each stage, in order
    seconds: Mapping[str, float]


def export(request: ExportRequest, progress: Progress | None = None) -> ExportResult:
    """Exports a checkpoint to a folder; the folder appears whole or not at all.

    Args:
        request: what to export, how and where to.
        progress: told of bytes written.

    Raises:
        GemmaExportError: any subclass; nothing is left behind.
    """
    progress = progress or NullProgress()
    clock = _Clock()
    plan = plan_export(request)
    with claim_output(plan.output, force=request.force) as claim:
        check_disk(plan.output, plan.nbytes)
        clock.lap("plan")
        model = build_semantic_graph(plan)
        clock.lap("trace")
        graphs = lower_graphs(plan, model)
        clock.lap("lower")
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as background:
            # hashing reads each shard from end to end, ahead of the writer's smaller reads
            hashes = background.submit(hash_files, plan.checkpoint.files)
            folder = write_folder(
                claim,
                graphs=graphs,
                data_file=data_file(plan.precision.suffix),
                extra_files=consumer_files(plan.facts),
                manifest=lambda files: build_manifest(...),
                progress=progress,
            )
        clock.lap("write")
    return ExportResult(plan=plan, folder=folder, seconds=clock.laps)


def build_semantic_graph(plan: ExportPlan) -> ir.Model:
    """Traces the decoder and binds its lazy weights."""
    from gemma_export.tracing import bind_weights, trace_decoder

    model = trace_decoder(plan.family, plan.spec)
    bind_weights(model, plan.family, plan.spec, plan.checkpoint.source)
    return model


def lower_graphs(plan: ExportPlan, model: ir.Model) -> list[GraphFile]:
    """Target passes and precision once, then one finished twin per planned graph over the same weights."""
    plan.target.lower(model)
    plan.precision.apply(model)
    graphs = []
    for planned in plan.graphs:
        twin = model.clone()
        plan.target.finish(twin, planned.keep)
        plan.target.check(twin, plan.spec, plan.precision.activation_dtype)
        graphs.append(GraphFile(role=planned.role, file=planned.file, logits=planned.logits, model=twin))
    return graphs


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.laps[stage], self._last = now - self._last, now
