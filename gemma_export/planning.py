"""Plans every file of the folder before anything is traced. Torch-free: this is all that `--dry-run` runs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gemma_export import JSON_VERSION
from gemma_export.adapter import Merge
from gemma_export.artifact import DataPlan, data_file, file_kind, graph_file, plan_data
from gemma_export.calibration.text import Sequences, read_calibration, token_sequences
from gemma_export.checkpoint import Checkpoint, HubWeights
from gemma_export.config import DecoderSpec
from gemma_export.consumers import CONSUMERS, FolderFacts
from gemma_export.errors import UsageError
from gemma_export.families import Family
from gemma_export.precision import QUANTISERS, Precision, check_rules
from gemma_export.progress import Progress
from gemma_export.request import ExportRequest, Resolved, resolve
from gemma_export.residual_scale import ResidualScale
from gemma_export.targets import Target
from gemma_export.variants import GEMMA_TERMS_URL, Variant

__all__ = ["ExportPlan", "PlannedFile", "PlannedGraph", "adapter_json", "consumer_files", "plan_export", "plan_json"]

# positions that the speculative-verification twin returns
_LAST_FEW = 8
# Upper bounds of a graph file, measured: 6.5 KB a layer and 10 KB beside the layers on the ort target, with room.
_GRAPH_BYTES_PER_LAYER, _GRAPH_BYTES = 12_288, 32_768
_MANIFEST_BYTES_PER_LAYER, _MANIFEST_BYTES = 2_048, 16_384
# Peak resident memory: interpreter, torch, onnx and the traced graph. Measured 438 MB for 2B and 447 MB for 7B in
# float16, whatever the source; the rest is room for other builds of torch. Weights in flight are a few megabytes.
_RESIDENT_BYTES, _RESIDENT_BYTES_PER_LAYER = 480 << 20, 1 << 20
# pieces of a matrix in flight between threads, in float32 and as codes
_QUANTISING_BYTES = 64 << 20
# what calibration keeps of hidden states in memory, and of a matrix: weights, codes, candidates, activations
_HIDDEN_STATES_BYTES, _CALIBRATING_BYTES = 512 << 20, 448 << 20
# the rotary tables are the one thing that is computed whole: cosine, sine, their angles and one product, in float32
_ROTARY_COPIES = 4
# longest prompt that the residual stream is measured on (gemma_export.headroom)
_PROBE_TOKENS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedGraph:
    """One graph over the shared weights."""

    # path inside the folder
    file: str
    # "main", "all", "last8", "batched": what tells twins apart
    role: str
    # positions with logits; 0 means all
    keep: int
    # with what only the newest onnxruntime releases know: chunks of several rows
    batched: bool = False

    @property
    def logits(self) -> Literal["last", "all"] | int:
        """The manifest's word for `keep`."""
        words: dict[int, Literal["last", "all"]] = {0: "all", 1: "last"}
        return words.get(self.keep, self.keep)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One file of the folder. Data and copied files are exact; graphs and the manifest are upper bounds."""

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
    # what calibrated quantisers run the model on; None where there is none
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
    data: DataPlan
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
        return self.data.size + 4 * self.spec.hidden_size * self.calibration.tokens


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
    graphs = _graphs(precision.suffix, resolved.keep, target)
    stored = target.stored_tensors(tensors, spec)
    if precision.scheme is not None:
        check_rules(precision.scheme, stored)
    calibration = _calibration(request, resolved, stored)
    parts = [precision.stored(name, shape) for name, shape in stored]
    data = plan_data(parts)
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
        facts=facts,
        files=_files(spec, graphs, data, precision, facts),
        peak_memory_bytes=_peak_memory(resolved, tensors, parts, calibration),
        download_bytes=source.download_bytes if isinstance(source, HubWeights) else 0,
        warnings=(
            *resolved.warnings,
            *(calibration.warnings if calibration is not None else ()),
            *(warning for consumer in CONSUMERS for warning in consumer.check(facts)),
        ),
    )


def _calibration(
    request: ExportRequest, resolved: Resolved, stored: Sequence[tuple[str, tuple[int, ...]]]
) -> Sequences | None:
    """The calibration text in tokens, where a quantiser takes one."""
    scheme = resolved.precision.scheme
    used = scheme is not None and any(
        QUANTISERS[scheme.quantiser_of(name)].calibrated for name, shape in stored if scheme.format_of(name, shape)
    )
    if used:
        text = read_calibration(request.calibration)
        return token_sequences(text, resolved.checkpoint, resolved.spec)
    if request.calibration is not None:
        raise UsageError(
            f"--calibration {request.calibration} is given, and no matrix is quantised by it",
            hint="Add --quantizer gptq, or leave --calibration out.",
        )
    return None


def _graphs(suffix: str, keep: int, target: Target) -> tuple[PlannedGraph, ...]:
    last_few = f"last{_LAST_FEW}"
    batched = PlannedGraph(file=graph_file(suffix, "batched"), role="batched", keep=keep, batched=True)
    return (
        PlannedGraph(file=graph_file(suffix), role="main", keep=keep),
        PlannedGraph(file=graph_file(suffix, "all"), role="all", keep=0),
        PlannedGraph(file=graph_file(suffix, last_few), role=last_few, keep=_LAST_FEW),
        *((batched,) if target.compat is not None else ()),
    )


def _output(request: ExportRequest, resolved: Resolved) -> Path:
    if request.output is not None:
        return request.output
    base = _title(resolved)
    target = "" if request.target == "ort" else f"-{request.target}"
    return Path(f"{base}-{resolved.precision.name}{target}")


def _title(resolved: Resolved) -> str:
    variant, merge = resolved.variant, resolved.merge
    base = f"gemma-{variant.name}" if variant is not None else resolved.checkpoint.name or "gemma"
    return base if merge is None else f"{base}-{merge.adapter.name}"


def _facts(resolved: Resolved, graphs: Sequence[PlannedGraph]) -> FolderFacts:
    variant, checkpoint, merge = resolved.variant, resolved.checkpoint, resolved.merge
    kind = checkpoint.kind
    sources = {
        "synthetic": f"synthetic weights, seed {checkpoint.seed}",
        "builtin": "the built-in tiny model",
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
        activation_dtype=resolved.precision.activation_dtype,
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
    spec: DecoderSpec, graphs: Sequence[PlannedGraph], data: DataPlan, precision: Precision, facts: FolderFacts
) -> tuple[PlannedFile, ...]:
    layers = spec.num_hidden_layers
    graph_bytes = _GRAPH_BYTES + layers * _GRAPH_BYTES_PER_LAYER
    planned = [PlannedFile(path=graph.file, nbytes=graph_bytes, exact=False) for graph in graphs]
    planned.append(PlannedFile(path=data_file(precision.suffix), nbytes=data.size, exact=True))
    for path, content in consumer_files(facts).items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        planned.append(PlannedFile(path=path, nbytes=size, exact=True))
    manifest_bytes = _MANIFEST_BYTES + layers * len(graphs) * _MANIFEST_BYTES_PER_LAYER
    planned.append(PlannedFile(path="gemma_export.json", nbytes=manifest_bytes, exact=False))
    return tuple(sorted(planned, key=lambda file: file.path))


def _peak_memory(
    resolved: Resolved,
    tensors: Mapping[str, tuple[int, ...]],
    parts: Sequence[Sequence[tuple[str, int]]],
    calibration: Sequences | None,
) -> int:
    spec, merge = resolved.spec, resolved.merge
    rotary = _ROTARY_COPIES * 4 * spec.max_position_embeddings * spec.head_dim // 2
    factors = 0 if merge is None else merge.resident_bytes
    resident = _RESIDENT_BYTES + spec.num_hidden_layers * _RESIDENT_BYTES_PER_LAYER
    # one after the other
    running = max(_measuring_memory(resolved, tensors), _calibrating_memory(resolved, tensors, calibration))
    return resident + rotary + factors + running + _quantising_memory(parts)


def adapter_json(merge: Merge | None) -> dict[str, Any] | None:
    """The merged adapter for machines."""
    if merge is None:
        return None
    return {"name": merge.adapter.name, "ranks": list(merge.ranks), "tensors": len(merge.tensors)}


def _measuring_memory(resolved: Resolved, tensors: Mapping[str, tuple[int, ...]]) -> int:
    """What measuring the residual stream adds: one layer in float32, activations of the longest probe."""
    spec = resolved.spec
    if resolved.residual_scale.shift is not None:
        return 0
    layer = sum(math.prod(shape) for name, shape in tensors.items() if ".layers.0." in name)
    tokens = min(_PROBE_TOKENS, spec.max_position_embeddings)
    # gate, its gelu, up and their product; scores, masked scores, weights and their sum's exponents
    activations = 4 * tokens * (spec.intermediate_size + spec.num_attention_heads * tokens)
    return 4 * (layer + activations)


def _calibrating_memory(
    resolved: Resolved, tensors: Mapping[str, tuple[int, ...]], calibration: Sequences | None
) -> int:
    """What calibration adds: a layer, second moments of its widest input, hidden states, a piece being quantised."""
    if calibration is None:
        return 0
    layer = {name: shape for name, shape in tensors.items() if ".layers.0." in name}
    widest = max(shape[-1] for shape in layer.values())
    hidden = min(_HIDDEN_STATES_BYTES, 4 * resolved.spec.hidden_size * calibration.tokens)
    return 4 * (sum(map(math.prod, layer.values())) + widest**2) + hidden + _CALIBRATING_BYTES


def _quantising_memory(parts: Sequence[Sequence[tuple[str, int]]]) -> int:
    """Scales and zero points of one matrix wait until its data is written, twice while they are joined."""
    waiting = [sum(nbytes for _, nbytes in group[1:]) for group in parts]
    return 2 * max(waiting) + _QUANTISING_BYTES if any(waiting) else 0


def plan_json(plan: ExportPlan) -> str:
    """The plan for machines: schemas/plan.schema.json."""
    content = {
        "schema_version": JSON_VERSION,
        "output": str(plan.output),
        "family": plan.family.name,
        "variant": plan.variant.name if plan.variant else None,
        "target": plan.target.name,
        "precision": plan.precision.name,
        "source": plan.facts.source,
        "adapter": adapter_json(plan.merge),
        "residual_scale": dataclasses.asdict(plan.residual_scale),
        "files": [{"path": file.path, "size": file.nbytes, "exact": file.exact} for file in plan.files],
        "total_bytes": plan.nbytes,
        "download_bytes": plan.download_bytes,
        "peak_memory_bytes": plan.peak_memory_bytes,
        "warnings": list(plan.warnings),
        "kinds": {file.path: file_kind(file.path) for file in plan.files},
    }
    return json.dumps(content, indent=2)
