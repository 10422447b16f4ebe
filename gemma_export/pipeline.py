"""The export, stage by stage: the only file that knows them all.

variant or checkpoint -> config -> decoder on fake tensors -> semantic graph -> lazy weights bound
  -> target passes (fusion) -> precision -> consumer files -> folder + manifest
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gemma_export.artifact import GraphFile, WrittenFolder, check_disk, claim_output, data_file, write_folder
from gemma_export.artifact.manifest import build_manifest, hashed_source
from gemma_export.checkpoint import GENERATOR_VERSION, HashedFile, hash_files
from gemma_export.planning import ExportPlan, consumer_files, plan_export
from gemma_export.progress import NullProgress, Progress
from gemma_export.request import ExportRequest
from gemma_export.targets.onnxruntime_releases import first_release

if TYPE_CHECKING:
    import onnx_ir as ir

    from gemma_runtime.manifest import FileEntry, Manifest, Source

__all__ = ["ExportRequest", "ExportResult", "build_semantic_graph", "export", "lower_graphs"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export made."""

    plan: ExportPlan
    folder: WrittenFolder
    # what an earlier, interrupted export had left, a line each
    recovered: tuple[str, ...]
    # seconds of each stage, in order
    seconds: Mapping[str, float]


def export(
    request: ExportRequest,
    progress: Progress | None = None,
    *,
    on_plan: Callable[[ExportPlan], None] | None = None,
) -> ExportResult:
    """Exports a checkpoint to a folder; the folder appears whole or not at all.

    Args:
        request: what to export, how and where to.
        progress: told of bytes written.
        on_plan: told the plan before anything slow begins.

    Raises:
        GemmaExportError: any subclass; nothing is left behind.
    """
    clock = _Clock()
    plan = plan_export(request)
    if on_plan is not None:
        on_plan(plan)
    with claim_output(plan.output, force=request.force) as claim:
        check_disk(plan.output, plan.nbytes)
        clock.lap("plan")
        with _hashing(plan) as hashed:
            model = build_semantic_graph(plan)
            clock.lap("trace")
            graphs = lower_graphs(plan, model)
            clock.lap("lower")
            folder = write_folder(
                plan.output,
                graphs=graphs,
                data_file=data_file(plan.precision.suffix),
                extra_files=consumer_files(plan.facts),
                manifest=lambda files: _manifest(plan, graphs, files, hashed.result()),
                force=request.force,
                progress=progress or NullProgress(),
            )
            clock.lap("write")
    return ExportResult(plan=plan, folder=folder, recovered=claim.recovered, seconds=clock.laps)


def build_semantic_graph(plan: ExportPlan) -> ir.Model:
    """Traces the decoder and binds its lazy weights."""
    from gemma_export.tracing import bind_weights, trace_decoder

    assert plan.checkpoint.source is not None
    model = trace_decoder(plan.family, plan.spec)
    bind_weights(model, plan.family, plan.spec, plan.checkpoint.source)
    return model


def lower_graphs(plan: ExportPlan, model: ir.Model) -> list[GraphFile]:
    """Target passes and precision once, then one finished twin per planned graph over the same weights."""
    plan.target.lower(model)
    if plan.precision.scheme is not None:
        from gemma_export.precision.blockwise import block_quantiser

        assert plan.target.quantise is not None
        plan.target.quantise(model, block_quantiser(plan.precision), plan.precision.activation_dtype)
    plan.precision.apply(model)
    graphs = []
    for planned in plan.graphs:
        twin = model.clone()
        plan.target.finish(twin, planned.keep)
        if planned.compat:
            plan.target.compat(twin)
        plan.target.check(twin, plan.spec, plan.precision.activation_dtype)
        graphs.append(GraphFile(role=planned.role, file=planned.file, logits=planned.logits, model=twin))
    return graphs


@contextmanager
def _hashing(plan: ExportPlan) -> Iterator[concurrent.futures.Future[tuple[HashedFile, ...]]]:
    """Hashes the source files on a thread while one core traces; the writer then finds their pages cached."""
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as background:
        try:
            yield background.submit(hash_files, plan.checkpoint.files, stop)
        except BaseException:
            stop.set()
            raise


def _manifest(
    plan: ExportPlan, graphs: Sequence[GraphFile], files: Sequence[FileEntry], hashed: Sequence[HashedFile]
) -> Manifest:
    return build_manifest(
        graphs=graphs,
        files=files,
        data_file=data_file(plan.precision.suffix),
        spec=plan.spec,
        states=plan.family.cache_states(plan.spec),
        variant=plan.variant.name if plan.variant is not None else None,
        source=_source(plan, hashed),
        target=plan.target.name,
        opset=plan.target.opset,
        cache_layout=plan.target.cache_layout,
        providers=plan.facts.providers,
        min_onnxruntime={graph.role: first_release(graph.model) for graph in graphs},
        precision=plan.precision.name,
        activation_dtype=plan.precision.activation_dtype,
        weight_dtype=plan.precision.weight_dtype,
        options={} if plan.precision.scheme is None else plan.precision.scheme.options(),
    )


def _source(plan: ExportPlan, hashed: Sequence[HashedFile]) -> Source:
    checkpoint = plan.checkpoint
    return hashed_source(
        kind=checkpoint.kind,
        repository=plan.facts.repository,
        revision=None,
        name=None if checkpoint.builtin else checkpoint.name,
        seed=checkpoint.seed,
        generator_version=GENERATOR_VERSION if checkpoint.kind == "synthetic" else None,
        files=[(file.name, file.size, file.sha256) for file in hashed],
    )


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.laps[stage], self._last = now - self._last, now
