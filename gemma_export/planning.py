"""Plans every file of the folder before anything is traced. Torch-free: this is all that `--dry-run` runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from gemma_export.adapter import Merge
from gemma_export.artifact import DataPlan, data_file, plan_data
from gemma_export.calibration import Sequences, needs_calibration, plan_calibration
from gemma_export.checkpoint import Checkpoint, HubWeights
from gemma_export.config import CacheState, DecoderSpec
from gemma_export.consumers import CONSUMERS, FolderFacts
from gemma_export.families import Family
from gemma_export.memory_estimate import peak_memory
from gemma_export.mixed_precision import JSON_FILE, PLOT_FILE, can_plot, largest_scheme, matrices_of, with_scheme
from gemma_export.precision import Precision, WeightScheme, check_packing, check_rules, undivided_blocks
from gemma_export.progress import Progress
from gemma_export.request import ExportRequest
from gemma_export.residual_scale import ResidualScale
from gemma_export.resolution import Resolved, resolve
from gemma_export.targets import Target
from gemma_export.twins import PlannedGraph, plan_graphs
from gemma_export.variants import GEMMA_TERMS_URL, Variant

__all__ = [
    "ExportPlan",
    "PlannedFile",
    "consumer_files",
    "plan_export",
    "with_chosen",
]

# Upper bounds of a graph file, measured: 6.5 KB a layer and 10 KB beside the layers on the ort target, 15 KB a
# layer with integer products; with room.
_GRAPH_BYTES_PER_LAYER, _GRAPH_BYTES = 20_480, 32_768
_MANIFEST_BYTES_PER_LAYER, _MANIFEST_BYTES = 2_048, 16_384
# Upper bounds of what choosing a mixed precision writes: a point of the curve, a tensor, the plot
_POINT_BYTES, _PLOT_BYTES = 512, 256 << 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One file of the folder. Copied files are exact, and so is data unless its precision is yet to be measured.

    Graphs, the manifest and what a measurement writes are upper bounds.
    """

    path: str
    nbytes: int
    exact: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """Everything that is known before anything is traced or written."""

    request: ExportRequest
    variant: Variant | None
    family: Family
    spec: DecoderSpec
    target: Target
    precision: Precision
    residual_scale: ResidualScale
    # what the model is run on: by quantisers that need it, for a cache's scales, to measure KL; None: by nothing, or on
    # built-in texts
    calibration: Sequences | None
    checkpoint: Checkpoint
    # an adapter that is merged into its tensors
    merge: Merge | None
    # tensors that the checkpoint holds, and their shapes
    stored: Mapping[str, tuple[int, ...]]
    # tensor of the exported model -> shape
    tensors: Mapping[str, tuple[int, ...]]
    output: Path
    graphs: tuple[PlannedGraph, ...]
    # the largest that it can be, until `smallest_data` is None
    data: DataPlan
    # bytes of the data file where every matrix is as the scheme says; None once, or where, nothing is to be chosen
    smallest_data: int | None
    facts: FolderFacts
    files: tuple[PlannedFile, ...]
    peak_memory_bytes: int
    # weights that an export fetches from the Hub before it writes
    download_bytes: int
    warnings: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Upper bound of the folder's size."""
        return sum(file.nbytes for file in self.files)

    @property
    def scratch_bytes(self) -> int:
        """Upper bound of what calibration keeps on the disk until it is written, and hidden states with it."""
        if self.calibration is None:
            return 0
        codes = self.data.size if self.request.max_kl is not None or self.quantises_by_text else 0
        return codes + 4 * self.spec.hidden_size * self.calibration.tokens

    @property
    def quantises_by_text(self) -> bool:
        """Whether some matrices are quantised by what calibration text makes of their inputs."""
        return needs_calibration(self.precision.scheme, self.target.stored_tensors(self.tensors, self.spec))


def plan_export(request: ExportRequest, progress: Progress | None = None) -> ExportPlan:
    """Checks the request and the checkpoint's names and shapes, and plans every file.

    Args:
        request: what to export.
        progress: told of the small files of a checkpoint on the Hub; its weights are not fetched here.

    Raises:
        UsageError: the request contradicts itself.
        ConfigError, CheckpointError: the checkpoint or the adapter is not what it says, or they do not fit.
        MissingResourceError: no weights, no tokenizer or no adapter.
    """
    resolved = resolve(request, progress)
    family, spec, target, precision = resolved.family, resolved.spec, resolved.target, resolved.precision
    tensors = family.tensor_shapes(spec)
    graphs = plan_graphs(precision, resolved.keep, target, spec)
    stored = target.stored_tensors(tensors, spec)
    if precision.scheme is not None:
        check_rules(precision.scheme, stored)
        check_packing(precision.scheme, stored)
    states = family.cache_states(spec)
    smallest = None if request.max_kl is None else _plan_data(precision, stored, states).size
    largest = precision
    if request.max_kl is not None:
        largest = with_scheme(precision, largest_scheme(precision, stored))
    data = _plan_data(largest, stored, states)
    calibration = plan_calibration(
        request.calibration,
        precision.scheme,
        stored,
        resolved.checkpoint,
        spec,
        measures=request.max_kl is not None,
        cache=precision.cache is not None,
    )
    chosen = _choice_files(precision, stored) if request.max_kl is not None else ()
    facts, source = _facts(resolved, graphs), resolved.checkpoint.source
    return ExportPlan(
        request=request,
        variant=resolved.variant,
        family=family,
        spec=spec,
        target=target,
        precision=precision,
        residual_scale=resolved.residual_scale,
        calibration=calibration,
        checkpoint=resolved.checkpoint,
        merge=resolved.merge,
        stored=resolved.stored,
        tensors=tensors,
        output=_output(request, resolved),
        graphs=graphs,
        data=data,
        smallest_data=smallest,
        facts=facts,
        files=_files(spec, graphs, data, precision, facts, chosen),
        peak_memory_bytes=peak_memory(resolved, tensors, largest, stored, calibration),
        download_bytes=source.download_bytes if isinstance(source, HubWeights) else 0,
        warnings=(
            *resolved.warnings,
            *(undivided_blocks(precision.scheme, stored) if precision.scheme is not None else ()),
            *(calibration.warnings if calibration is not None else ()),
            *(warning for consumer in CONSUMERS for warning in consumer.check(facts)),
        ),
    )


def with_chosen(plan: ExportPlan, scheme: WeightScheme) -> ExportPlan:
    """The plan once its mixed precision is chosen: the data file's size is exact again."""
    precision = with_scheme(plan.precision, scheme)
    data = _plan_data(
        precision, plan.target.stored_tensors(plan.tensors, plan.spec), plan.family.cache_states(plan.spec)
    )
    path = data_file(precision.suffix)
    files = tuple(
        PlannedFile(path=path, nbytes=data.size, exact=True) if file.path == path else file for file in plan.files
    )
    return dataclasses.replace(plan, precision=precision, data=data, smallest_data=None, files=files)


def _plan_data(
    precision: Precision, stored: Sequence[tuple[str, tuple[int, ...]]], states: Sequence[CacheState]
) -> DataPlan:
    groups = [precision.stored(name, shape) for name, shape in stored]
    if precision.scheme is not None:
        groups += [(order,) for order in precision.scheme.orders(stored)]
    if precision.cache is not None:
        groups += [(scale,) for scale in precision.cache.scales(states)]
    return plan_data(groups)


def _choice_files(precision: Precision, stored: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[PlannedFile, ...]:
    """What a measured choice is told in; its parts in the manifest are as large as the tensors' in the JSON file."""
    matrices = matrices_of(precision, stored)
    points = len(stored) + sum(len(matrix.choices) for matrix in matrices)
    json_file = PlannedFile(path=JSON_FILE, nbytes=_MANIFEST_BYTES + points * _POINT_BYTES, exact=False)
    plot_file = PlannedFile(path=PLOT_FILE, nbytes=_PLOT_BYTES, exact=False)
    return (json_file, plot_file) if can_plot() else (json_file,)


def _output(request: ExportRequest, resolved: Resolved) -> Path:
    if request.output is not None:
        return request.output
    base = _title(resolved)
    target = "" if request.target == "ort" else f"-{request.target}"
    cache = resolved.precision.cache
    return Path(f"{base}-{resolved.precision.name}{'' if cache is None else f'-kv{cache.name}'}{target}")


def _title(resolved: Resolved) -> str:
    variant, merge = resolved.variant, resolved.merge
    base = f"gemma-{variant.name}" if variant is not None else resolved.checkpoint.name or "gemma"
    return base if merge is None else f"{base}-{merge.adapter.name}"


def _facts(resolved: Resolved, graphs: Sequence[PlannedGraph]) -> FolderFacts:
    variant, checkpoint, merge = resolved.variant, resolved.checkpoint, resolved.merge
    kind = checkpoint.kind
    sources = {
        "synthetic": f"synthetic weights, seed {checkpoint.seed}",
        "builtin": f"the built-in {checkpoint.name} model",
        "local": f"the local checkpoint {checkpoint.name}",
        "hub": f"{checkpoint.repository} at commit {checkpoint.revision}",
    }
    return FolderFacts(
        title=_title(resolved),
        # a local folder may hold any weights of the variant's shape
        repository=checkpoint.repository if kind == "hub" else None,
        source_kind=kind,
        source=sources[kind] if merge is None else f"{sources[kind]} with the adapter {merge.adapter.name}",
        adapter=None if merge is None else merge.adapter.name,
        license_url=variant.license_url if variant is not None else GEMMA_TERMS_URL,
        spec=resolved.spec,
        states=resolved.family.cache_states(resolved.spec),
        config=checkpoint.config,
        generation_config=checkpoint.generation_config,
        tokenizer_files=checkpoint.tokenizer_files,
        target=resolved.target.name,
        cache_layout=resolved.target.cache_layout,
        precision=resolved.precision.name,
        quantised_by=None if resolved.precision.scheme is None else resolved.precision.scheme.checkpoint,
        activation_dtype=resolved.precision.activation_dtype,
        state_dtype=resolved.precision.state_dtype,
        providers=resolved.target.providers[resolved.precision.activation_dtype],
        graphs={graph.file: (graph.role, str(graph.logits)) for graph in graphs},
        data_files=(data_file(resolved.precision.suffix),),
    )


def consumer_files(facts: FolderFacts) -> dict[str, bytes | Path]:
    """Every file that is neither graph, data nor manifest."""
    files: dict[str, bytes | Path] = {}
    for consumer in CONSUMERS:
        files |= consumer.files(facts)
    return files


def _files(
    spec: DecoderSpec,
    graphs: Sequence[PlannedGraph],
    data: DataPlan,
    precision: Precision,
    facts: FolderFacts,
    chosen: Sequence[PlannedFile],
) -> tuple[PlannedFile, ...]:
    layers = spec.num_hidden_layers
    graph_bytes = _GRAPH_BYTES + layers * _GRAPH_BYTES_PER_LAYER
    planned = [PlannedFile(path=graph.file, nbytes=graph_bytes, exact=False) for graph in graphs]
    planned.append(PlannedFile(path=data_file(precision.suffix), nbytes=data.size, exact=not chosen))
    planned += chosen
    for path, content in consumer_files(facts).items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        planned.append(PlannedFile(path=path, nbytes=size, exact=True))
    manifest_bytes = _MANIFEST_BYTES + layers * len(graphs) * _MANIFEST_BYTES_PER_LAYER
    manifest_bytes += sum(file.nbytes for file in chosen[:1])
    planned.append(PlannedFile(path="gemma_export.json", nbytes=manifest_bytes, exact=False))
    return tuple(sorted(planned, key=lambda file: file.path))
