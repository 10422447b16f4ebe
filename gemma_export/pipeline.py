"""The export, stage by stage: the only file that knows them all.

variant or checkpoint -> config -> residual stream measured, where asked for
  -> decoder on fake tensors -> semantic graph -> lazy weights bound -> channels scaled, where calibrated
  -> mixed precision chosen, where asked for -> residual stream rescaled
  -> target passes (fusion) -> precision -> consumer files -> folder + manifest
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gemma_export.artifact import GraphFile, WrittenFolder, check_disk, claim_output, data_file, write_folder
from gemma_export.artifact.disk import nearest_existing
from gemma_export.artifact.manifest import build_manifest, hashed_adapter, hashed_source
from gemma_export.checkpoint import (
    GENERATOR_VERSION,
    HashedFile,
    HubWeights,
    check_cached,
    check_levels,
    check_tensors,
    download_weights,
    hash_files,
)
from gemma_export.measurements import (
    Measurements,
    choice_files,
    format_options,
    measurement_notes,
    rounded_scales,
    scale_warnings,
    written_scales,
)
from gemma_export.mixed_precision import MixedPrecision
from gemma_export.planning import ExportPlan, consumer_files, plan_export
from gemma_export.progress import NullProgress, Progress
from gemma_export.request import ExportRequest
from gemma_export.settling import (
    cache_scales_of,
    calibrates,
    calibration_of,
    settle_channel_scales,
    settle_precision,
    settle_residual_scale,
)
from gemma_export.targets.onnxruntime_releases import first_release
from gemma_export.twins import PlannedGraph, chunks_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from gemma_export.precision.block_weight import BlockWeight
    from gemma_runtime.manifest import FileEntry, Manifest, Source

__all__ = [
    "ExportRequest",
    "ExportResult",
    "build_semantic_graph",
    "export",
    "lower_graphs",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export made."""

    plan: ExportPlan
    folder: WrittenFolder
    # what an earlier, interrupted export had left, a line each
    recovered: tuple[str, ...]
    # seconds of each stage, in order
    seconds: Mapping[str, float]
    # of the number format, as the manifest states them
    options: Mapping[str, Any]
    # how the precision of each tensor was chosen, where that was asked for
    mixed: MixedPrecision | None
    # what the user should know, a line each: how the residual stream was scaled; hazards that were measured
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def export(
    request: ExportRequest,
    progress: Progress | None = None,
    *,
    on_plan: Callable[[ExportPlan], None] | None = None,
) -> ExportResult:
    """Exports a checkpoint to a folder; the folder appears whole or not at all.

    Args:
        request: what to export, how and where to.
        progress: told of bytes downloaded and written, and of weights run through while headroom is measured.
        on_plan: told the plan before anything slow begins.

    Raises:
        GemmaExportError: any subclass; nothing is left behind.
    """
    clock = _Clock()
    plan = plan_export(request, progress)
    if on_plan is not None:
        on_plan(plan)
    with claim_output(plan.output, force=request.force) as claim:
        check_disk(plan.output, plan.nbytes + plan.scratch_bytes + _downloaded_beside(plan))
        clock.lap("plan")
        if isinstance(plan.checkpoint.source, HubWeights):
            plan = _with_weights(plan, progress)
            clock.lap("download")
        check_levels(plan.checkpoint.view(plan.stored))
        with _hashing(plan) as hashed:
            plan, headroom = settle_residual_scale(plan, progress)
            if headroom is not None:
                clock.lap("measure")
            model = build_semantic_graph(plan)
            clock.lap("trace")
            scales = settle_channel_scales(plan, model, progress)
            if scales is not None:
                clock.lap("calibrate")
            plan, mixed = settle_precision(plan, model, progress)
            if mixed is not None:
                clock.lap("choose")
            graphs = lower_graphs(plan, model, progress)
            rounded = rounded_scales(plan, graphs[0].model)
            found = Measurements(headroom=headroom, scales=scales, mixed=mixed, rounded=rounded)
            options = format_options(plan, [graph.model for graph in graphs], found)
            clock.lap("calibrate" if calibrates(plan) else "lower")

            def manifest(files: Sequence[FileEntry]) -> Manifest:
                # once the weights are written: their scales are chosen on the way
                counts = written_scales(plan, graphs[0].model)
                if counts is not None:
                    options["float16_scales"] = dataclasses.asdict(counts)
                return _manifest(plan, graphs, files, hashed.result(), options)

            folder = write_folder(
                plan.output,
                graphs=graphs,
                data_file=data_file(plan.precision.suffix),
                extra_files=consumer_files(plan.facts) | choice_files(mixed),
                manifest=manifest,
                force=request.force,
                progress=progress or NullProgress(),
            )
            clock.lap("write")
    return ExportResult(
        plan=plan,
        folder=folder,
        recovered=claim.recovered,
        seconds=clock.laps,
        options=options,
        mixed=mixed,
        notes=measurement_notes(plan, found),
        warnings=(
            *(headroom.warnings() if headroom is not None else ()),
            *scale_warnings(plan, written_scales(plan, graphs[0].model)),
        ),
    )


def _with_weights(plan: ExportPlan, progress: Progress | None) -> ExportPlan:
    """The plan once its weights have been downloaded; what the headers promised is checked again on the files."""
    checkpoint = download_weights(plan.checkpoint, progress)
    check_tensors(checkpoint.view(plan.stored), plan.stored)
    return dataclasses.replace(plan, checkpoint=checkpoint, download_bytes=0)


def _downloaded_beside(plan: ExportPlan) -> int:
    """Bytes that the download takes from the output's own file system."""
    source = plan.checkpoint.source
    if not isinstance(source, HubWeights):
        return 0
    same = os.stat(nearest_existing(plan.output)).st_dev == source.device
    return plan.download_bytes if same else 0


def build_semantic_graph(plan: ExportPlan) -> ir.Model:
    """Traces the decoder and binds its lazy weights."""
    from gemma_export.tracing import bind_weights, trace_decoder

    model = trace_decoder(plan.family, plan.spec)
    bind_weights(model, plan.family, plan.spec, plan.checkpoint.view(plan.stored), plan.merge)
    return model


def lower_graphs(plan: ExportPlan, model: ir.Model, progress: Progress | None = None) -> list[GraphFile]:
    """Target passes and precision once, then one finished twin per planned graph over the same weights.

    Where a quantiser or the cache's scales need calibration this runs it: minutes, and for a quantiser a nameless file
    that goes with the graphs.
    """
    calibrated = calibration_of(plan, model, progress)
    cache_scales = cache_scales_of(plan, model, progress)
    if plan.precision.scheme is not None and plan.precision.scheme.ordered:
        from gemma_export.passes import FoldInputOrder

        FoldInputOrder()(model)
    if plan.residual_scale.shift:
        # at module level this would make --dry-run wait for onnx
        from gemma_export.passes import RescaleResidual

        RescaleResidual(plan.residual_scale.shift)(model)
    plan.target.lower(model)
    if plan.precision.scheme is not None:
        _quantise(plan, model, calibrated(model))
    plan.precision.apply(model)
    if cache_scales is not None:
        assert plan.target.quantise_cache is not None
        plan.target.quantise_cache(model, cache_scales)
    plan.target.settle(model, plan.spec)
    return [_finished(plan, model, planned) for planned in plan.graphs]


def _finished(plan: ExportPlan, model: ir.Model, planned: PlannedGraph) -> GraphFile:
    """One twin of a lowered graph, checked."""
    target, twin = plan.target, model.clone()
    if planned.static:
        assert target.static is not None
        target.static(twin)
    target.finish(twin, planned.keep)
    if target.compat is not None and not planned.batched:
        target.compat(twin)
    if planned.windowed:
        assert target.windowed is not None
        target.windowed(twin)
    target.check(twin, plan.spec, plan.precision.activation_dtype)
    return GraphFile(role=planned.role, file=planned.file, logits=planned.logits, model=twin)


def _quantise(plan: ExportPlan, model: ir.Model, calibrated: Callable[[str], BlockWeight | None]) -> None:
    from gemma_export.precision.blockwise import block_quantiser, row_quantiser

    assert plan.target.quantise is not None
    plan.target.quantise(model, block_quantiser(plan.precision, calibrated), plan.precision.activation_dtype)
    if plan.target.quantise_activations is not None:
        plan.target.quantise_activations(model, row_quantiser(plan.precision))


@contextmanager
def _hashing(plan: ExportPlan) -> Iterator[concurrent.futures.Future[tuple[HashedFile, ...]]]:
    """Hashes the source files on a thread while one core traces; the writer then finds their pages cached."""
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as background:
        try:
            adapter = () if plan.merge is None else plan.merge.adapter.files
            yield background.submit(hash_files, (*plan.checkpoint.files, *adapter), stop)
        except BaseException:
            stop.set()
            raise


def _manifest(
    plan: ExportPlan,
    graphs: Sequence[GraphFile],
    files: Sequence[FileEntry],
    hashed: Sequence[HashedFile],
    options: Mapping[str, Any],
) -> Manifest:
    states = plan.family.cache_states(plan.spec)
    return build_manifest(
        graphs=graphs,
        files=files,
        data_file=data_file(plan.precision.suffix),
        spec=plan.spec,
        states=states,
        variant=plan.variant.name if plan.variant is not None else None,
        source=_source(plan, hashed),
        target=plan.target.name,
        opset=plan.target.opset,
        cache_layout=plan.target.cache_layout,
        providers=plan.facts.providers,
        rows={graph.role: 1 if graph.static else "batch_size" for graph in plan.graphs},
        chunks={graph.role: chunks_of(plan.target, graph) for graph in plan.graphs},
        min_onnxruntime={graph.role: first_release(graph.model) for graph in graphs},
        windowed=frozenset(graph.role for graph in plan.graphs if graph.windowed),
        cache_bytes={
            graph.role: plan.precision.cache_nbytes(states, plan.spec.max_position_embeddings, windowed=graph.windowed)
            for graph in plan.graphs
        },
        precision=plan.precision.name,
        activation_dtype=plan.precision.activation_dtype,
        weight_dtype=plan.precision.weight_dtype,
        state_dtype=plan.precision.state_dtype,
        options=options,
    )


def _source(plan: ExportPlan, hashed: Sequence[HashedFile]) -> Source:
    checkpoint, merge = plan.checkpoint, plan.merge
    # the adapter's files were hashed behind the checkpoint's
    files = [(file.name, file.size, file.sha256) for file in hashed]
    own, more = files[: len(checkpoint.files)], files[len(checkpoint.files) :]
    # files that no Hub cache holds are left alone
    check_cached((*checkpoint.files, *(merge.adapter.files if merge is not None else ())), hashed)
    return hashed_source(
        kind=checkpoint.kind,
        repository=checkpoint.repository,
        revision=checkpoint.revision,
        name=None if checkpoint.builtin or checkpoint.repository is not None else checkpoint.name,
        seed=checkpoint.seed,
        generator_version=GENERATOR_VERSION if checkpoint.kind == "synthetic" else None,
        files=own,
        adapter=None
        if merge is None
        else hashed_adapter(
            repository=merge.adapter.repository,
            revision=merge.adapter.revision,
            name=merge.adapter.name,
            ranks=merge.ranks,
            files=more,
        ),
    )


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.laps[stage] = self.laps.get(stage, 0.0) + now - self._last
        self._last = now
