"""Plans every file of the folder before anything is traced. Torch-free: this is all that `--dry-run` runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from gemma_export.artifact import DataPlan, data_file, file_kind, graph_file, plan_data
from gemma_export.checkpoint import Checkpoint
from gemma_export.config import DecoderSpec
from gemma_export.consumers import CONSUMERS, FolderFacts
from gemma_export.families import Family
from gemma_export.precision import Precision, check_rules
from gemma_export.request import ExportRequest, Resolved, resolve
from gemma_export.targets import Target
from gemma_export.variants import GEMMA_TERMS_URL, Variant

__all__ = ["ExportPlan", "PlannedFile", "PlannedGraph", "consumer_files", "plan_export", "plan_json"]

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
# the rotary tables are the one thing that is computed whole: cosine, sine, their angles and one product, in float32
_ROTARY_COPIES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedGraph:
    """One graph over the shared weights."""

    # path inside the folder
    file: str
    # "main", "all", "last8", "compat": what tells twins apart
    role: str
    # positions with logits; 0 means all
    keep: int
    # without what only the newest onnxruntime releases know
    compat: bool = False

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
    checkpoint: Checkpoint
    # checkpoint tensor -> shape
    tensors: Mapping[str, tuple[int, ...]]
    output: Path
    graphs: tuple[PlannedGraph, ...]
    data: DataPlan
    facts: FolderFacts
    files: tuple[PlannedFile, ...]
    peak_memory_bytes: int
    warnings: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Upper bound of the folder's size."""
        return sum(file.nbytes for file in self.files)


def plan_export(request: ExportRequest) -> ExportPlan:
    """Checks the request and the checkpoint's names and shapes, and plans every file.

    Raises:
        UsageError: the request contradicts itself.
        ConfigError, CheckpointError: the checkpoint is not what it says.
        MissingResourceError: no weights or no tokenizer.
    """
    resolved = resolve(request)
    family, spec, target, precision = resolved.family, resolved.spec, resolved.target, resolved.precision
    tensors = family.tensor_shapes(spec)
    graphs = _graphs(precision.suffix, resolved.keep)
    stored = target.stored_tensors(tensors, spec)
    if precision.scheme is not None:
        check_rules(precision.scheme, stored)
    parts = [precision.stored(name, shape) for name, shape in stored]
    data = plan_data(parts)
    facts = _facts(resolved, graphs)
    return ExportPlan(
        request=request,
        variant=resolved.variant,
        family=family,
        spec=spec,
        target=target,
        precision=precision,
        checkpoint=resolved.checkpoint,
        tensors=tensors,
        output=_output(request, resolved),
        graphs=graphs,
        data=data,
        facts=facts,
        files=_files(spec, graphs, data, precision, facts),
        peak_memory_bytes=_peak_memory(spec) + _quantising_memory(parts),
        warnings=resolved.warnings,
    )


def _graphs(suffix: str, keep: int) -> tuple[PlannedGraph, ...]:
    last_few = f"last{_LAST_FEW}"
    return (
        PlannedGraph(file=graph_file(suffix), role="main", keep=keep),
        PlannedGraph(file=graph_file(suffix, "all"), role="all", keep=0),
        PlannedGraph(file=graph_file(suffix, last_few), role=last_few, keep=_LAST_FEW),
        PlannedGraph(file=graph_file(suffix, "compat"), role="compat", keep=keep, compat=True),
    )


def _output(request: ExportRequest, resolved: Resolved) -> Path:
    if request.output is not None:
        return request.output
    variant = resolved.variant
    base = f"gemma-{variant.name}" if variant is not None else resolved.checkpoint.name or "gemma"
    target = "" if request.target == "ort" else f"-{request.target}"
    return Path(f"{base}-{resolved.precision.name}{target}")


def _facts(resolved: Resolved, graphs: Sequence[PlannedGraph]) -> FolderFacts:
    variant, checkpoint = resolved.variant, resolved.checkpoint
    kind = checkpoint.kind
    sources = {
        "synthetic": f"synthetic weights, seed {checkpoint.seed}",
        "builtin": "the built-in tiny model",
        "local": f"the local checkpoint {checkpoint.name}",
    }
    return FolderFacts(
        title=f"gemma-{variant.name}" if variant is not None else checkpoint.name or "gemma",
        # a local folder may hold any weights of the variant's shape
        repository=None,
        source_kind=kind,
        source=sources[kind],
        license_url=variant.license_url if variant is not None else GEMMA_TERMS_URL,
        spec=resolved.spec,
        config=checkpoint.config,
        generation_config=checkpoint.generation_config,
        tokenizer_files=checkpoint.tokenizer_files,
        target=resolved.target.name,
        precision=resolved.precision.name,
        providers=resolved.target.providers[resolved.precision.activation_dtype],
        graphs={graph.file: (graph.role, str(graph.logits)) for graph in graphs},
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


def _peak_memory(spec: DecoderSpec) -> int:
    rotary = _ROTARY_COPIES * 4 * spec.max_position_embeddings * spec.head_dim // 2
    return _RESIDENT_BYTES + spec.num_hidden_layers * _RESIDENT_BYTES_PER_LAYER + rotary


def _quantising_memory(parts: Sequence[Sequence[tuple[str, int]]]) -> int:
    """Scales and zero points of one matrix wait until its data is written, twice while they are joined."""
    waiting = [sum(nbytes for _, nbytes in group[1:]) for group in parts]
    return 2 * max(waiting) + _QUANTISING_BYTES if any(waiting) else 0


def plan_json(plan: ExportPlan) -> str:
    """The plan for machines."""
    content = {
        "output": str(plan.output),
        "family": plan.family.name,
        "variant": plan.variant.name if plan.variant else None,
        "target": plan.target.name,
        "precision": plan.precision.name,
        "source": plan.facts.source,
        "files": [{"path": file.path, "size": file.nbytes, "exact": file.exact} for file in plan.files],
        "total_bytes": plan.nbytes,
        "peak_memory_bytes": plan.peak_memory_bytes,
        "warnings": list(plan.warnings),
        "kinds": {file.path: file_kind(file.path) for file in plan.files},
    }
    return json.dumps(content, indent=2)
