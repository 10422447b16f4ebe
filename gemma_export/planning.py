"""Resolves what is asked for and plans what will be written. Torch-free: this is all that `--dry-run` runs."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gemma_export.artifact import DataPlan, data_file, file_kind, graph_file, plan_data
from gemma_export.checkpoint import Checkpoint, builtin_checkpoint, check_tensors, open_checkpoint, synthetic_checkpoint
from gemma_export.config import DecoderSpec
from gemma_export.consumers import CONSUMERS, FolderFacts
from gemma_export.errors import ConfigError, MissingResourceError, UnknownVariantError, UsageError
from gemma_export.families import FAMILIES, Family, family_of
from gemma_export.precision import PRECISIONS, Precision
from gemma_export.targets import TARGETS, Target
from gemma_export.variants import GEMMA_TERMS_URL, VARIANTS, Variant

__all__ = ["ExportPlan", "ExportRequest", "PlannedFile", "PlannedGraph", "plan_export"]

# positions that the speculative-verification twin returns
_LAST_FEW = 8
# Upper bounds of a graph file, measured: 6.5 KB a layer and 10 KB beside the layers on the ort target, with room.
_GRAPH_BYTES_PER_LAYER, _GRAPH_BYTES = 12_288, 32_768
_MANIFEST_BYTES_PER_LAYER, _MANIFEST_BYTES = 2_048, 16_384
# Peak resident memory beside the weights that are in flight: interpreter, torch, onnx and the traced graph, measured.
_RESIDENT_BYTES, _RESIDENT_BYTES_PER_LAYER = 520 << 20, 3 << 20
# no rotary table may be longer than this many positions
_LONGEST_CONTEXT = 1 << 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What the command line asks for."""

    variant: str | None = None
    checkpoint: Path | None = None
    # None: weights come from the checkpoint
    synthetic_seed: int | None = None
    precision: str = "fp32"
    target: str = "ort"
    # "last", "all" or a number of positions
    logits: str = "last"
    # tokens that the rotary tables cover; None means the model's own
    context: int | None = None
    output: Path | None = None
    force: bool = False


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
    target, precision = _choose(request)
    variant = _variant(request.variant)
    checkpoint = _checkpoint(request, variant)
    family = family_of(checkpoint.config)
    native, unread = family.parse_config(checkpoint.config)
    warnings = [f"config.json: keys that nothing reads: {', '.join(unread)}"] if unread else []
    if variant is not None:
        _check_agreement(variant, family, native)
    spec = _with_context(native, request.context, warnings)
    tensors = family.tensor_shapes(spec)
    if request.synthetic_seed is not None:
        checkpoint = synthetic_checkpoint(checkpoint, tensors, seed=request.synthetic_seed)
    assert checkpoint.source is not None
    check_tensors(checkpoint.source, tensors)
    graphs = _graphs(precision.suffix, _positions(request.logits))
    stored = target.stored_tensors(tensors, spec)
    data = plan_data((name, precision.stored_nbytes(shape)) for name, shape in stored)
    facts = _facts(request, variant, checkpoint, spec, graphs)
    return ExportPlan(
        request=request,
        variant=variant,
        family=family,
        spec=spec,
        target=target,
        precision=precision,
        checkpoint=checkpoint,
        tensors=tensors,
        output=_output(request, variant),
        graphs=graphs,
        data=data,
        facts=facts,
        files=_files(spec, graphs, data, precision, facts),
        peak_memory_bytes=_peak_memory(tensors, spec),
        warnings=tuple(warnings),
    )


def _choose(request: ExportRequest) -> tuple[Target, Precision]:
    if request.variant is None and request.checkpoint is None:
        raise UsageError(
            "nothing to export: neither --variant nor --checkpoint is given",
            hint="Try `gemma-export --variant tiny`, or `gemma-export variants` for the list.",
        )
    for name, registry, option in ((request.target, TARGETS, "target"), (request.precision, PRECISIONS, "precision")):
        if name not in registry:
            raise UsageError(
                f"unknown {option} {name!r}, expected one of: {', '.join(registry)}", hint="See gemma-export --help."
            )
    return TARGETS[request.target], PRECISIONS[request.precision]


def _variant(name: str | None) -> Variant | None:
    if name is None:
        return None
    if name not in VARIANTS:
        near = difflib.get_close_matches(name.lower().removeprefix("gemma-"), VARIANTS, n=3, cutoff=0.4)
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        raise UnknownVariantError(
            f"unknown variant {name!r}{nearest}", hint="`gemma-export variants` lists every variant."
        )
    return VARIANTS[name]


def _checkpoint(request: ExportRequest, variant: Variant | None) -> Checkpoint:
    """Where config, weights and tokenizer come from; a source of None means synthetic weights."""
    synthetic = request.synthetic_seed is not None
    if request.checkpoint is not None:
        checkpoint = open_checkpoint(request.checkpoint, weights=not synthetic)
        if not synthetic and not checkpoint.has_tokenizer:
            raise MissingResourceError(
                f"{request.checkpoint.name}: no tokenizer: neither tokenizer.json nor tokenizer.model is there",
                hint="Copy the tokenizer files of the original model into the checkpoint's folder.",
            )
        return checkpoint
    assert variant is not None
    if variant.repository is None:
        return builtin_checkpoint(weights=not synthetic)
    if synthetic:
        return Checkpoint(config=_released_config(variant), source=None)
    raise MissingResourceError(
        f"no weights for variant {variant.name}: give --checkpoint DIR with the files of {variant.repository}",
        hint=f"Accept the licence at {variant.license_url}, run `hf download {variant.repository} --local-dir DIR`, "
        "then add --checkpoint DIR; or add --synthetic-weights for sizing and benchmarks.",
    )


def _released_config(variant: Variant) -> dict[str, Any]:
    """The config.json of a released variant: its sizes and Gemma 1's constants (https://arxiv.org/abs/2403.08295)."""
    return {
        "model_type": FAMILIES[variant.family].model_type,
        **dict(variant.architecture),
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _check_agreement(variant: Variant, family: Family, spec: DecoderSpec) -> None:
    found = {"family": family.name, **dataclasses.asdict(spec)}
    for key, expected in (("family", variant.family), *variant.architecture):
        if found[key] != expected:
            raise ConfigError(
                f"the checkpoint is not variant {variant.name}: {key} is {found[key]}, expected {expected}",
                hint="Leave --variant out to export the checkpoint as it is, or name the variant that it is.",
            )


def _with_context(spec: DecoderSpec, context: int | None, warnings: list[str]) -> DecoderSpec:
    if context is None:
        return spec
    if not 1 <= context <= _LONGEST_CONTEXT:
        raise UsageError(
            f"--context must be from 1 to {_LONGEST_CONTEXT} tokens, found {context}",
            hint=f"The model's own context is {spec.max_position_embeddings} tokens.",
        )
    if context > spec.max_position_embeddings:
        warnings.append(f"--context {context} exceeds the {spec.max_position_embeddings} tokens the model is made for")
    return dataclasses.replace(spec, max_position_embeddings=context)


def _positions(logits: str) -> int:
    if logits in ("last", "all"):
        return {"last": 1, "all": 0}[logits]
    if logits.isascii() and logits.isdigit() and 1 <= int(logits) <= 1024:
        return int(logits)
    raise UsageError(
        f"--logits must be last, all or a number from 1 to 1024, found {logits!r}", hint="The default is last."
    )


def _graphs(suffix: str, keep: int) -> tuple[PlannedGraph, ...]:
    last_few = f"last{_LAST_FEW}"
    return (
        PlannedGraph(file=graph_file(suffix), role="main", keep=keep),
        PlannedGraph(file=graph_file(suffix, "all"), role="all", keep=0),
        PlannedGraph(file=graph_file(suffix, last_few), role=last_few, keep=_LAST_FEW),
        PlannedGraph(file=graph_file(suffix, "compat"), role="compat", keep=keep, compat=True),
    )


def _output(request: ExportRequest, variant: Variant | None) -> Path:
    if request.output is not None:
        return request.output
    base = f"gemma-{variant.name}" if variant is not None else Path(request.checkpoint or ".").resolve().name
    target = "" if request.target == "ort" else f"-{request.target}"
    return Path(f"{base}-{request.precision}{target}")


def _facts(
    request: ExportRequest,
    variant: Variant | None,
    checkpoint: Checkpoint,
    spec: DecoderSpec,
    graphs: Sequence[PlannedGraph],
) -> FolderFacts:
    target, precision = TARGETS[request.target], PRECISIONS[request.precision]
    if request.synthetic_seed is not None:
        source = f"synthetic weights, seed {request.synthetic_seed}"
    elif checkpoint.builtin:
        source = "the built-in tiny model"
    else:
        source = f"the local checkpoint {checkpoint.name}"
    return FolderFacts(
        title=f"gemma-{variant.name}" if variant is not None else checkpoint.name or "gemma",
        variant=variant.name if variant is not None else None,
        repository=variant.repository if variant is not None and request.synthetic_seed is None else None,
        source=source,
        license_url=variant.license_url if variant is not None else GEMMA_TERMS_URL,
        spec=spec,
        config=checkpoint.config,
        generation_config=checkpoint.generation_config,
        tokenizer_files=checkpoint.tokenizer_files,
        target=target.name,
        precision=precision.name,
        providers=target.providers[precision.activation_dtype],
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


def _peak_memory(tensors: Mapping[str, tuple[int, ...]], spec: DecoderSpec) -> int:
    del tensors
    return _RESIDENT_BYTES + spec.num_hidden_layers * _RESIDENT_BYTES_PER_LAYER


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


def variant_rows() -> list[dict[str, Any]]:
    """The table of variants: name, parameters, size in float16, kind of prompt, licence page."""
    rows = []
    for variant in VARIANTS.values():
        family = FAMILIES[variant.family]
        spec, _ = family.parse_config(_released_config(variant))
        parameters = sum(math.prod(shape) for shape in family.tensor_shapes(spec).values())
        rows.append(
            {
                "variant": variant.name,
                "parameters": parameters,
                "fp16_bytes": 2 * parameters,
                "prompt": variant.prompt,
                "repository": variant.repository,
                "license_url": variant.license_url,
            }
        )
    return rows
