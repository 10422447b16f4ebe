"""What the command line asks for, held against what there is: variant, checkpoint, architecture. Torch-free."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_export.adapter import Merge, find_adapter, plan_merge
from gemma_export.checkpoint import (
    Checkpoint,
    HubWeights,
    builtin_checkpoint,
    check_revision,
    check_tensors,
    is_repository_id,
    open_checkpoint,
    open_hub_checkpoint,
    synthetic_checkpoint,
)
from gemma_export.config import DecoderSpec
from gemma_export.errors import ConfigError, HubUnreachableError, MissingResourceError, UnknownVariantError, UsageError
from gemma_export.families import FAMILIES, Family, check_generation_config, family_of
from gemma_export.precision import PRECISIONS, Precision, WeightOptions, quantised, weight_scheme
from gemma_export.progress import Progress
from gemma_export.residual_scale import ResidualScale, choose_residual_scale
from gemma_export.targets import TARGETS, Target
from gemma_export.variants import VARIANTS, Variant

__all__ = ["ExportRequest", "Resolved", "resolve", "variant_rows"]

# The longest rotary tables: 131,072 positions, the context of the largest Gemma. They are computed in memory,
# 64 MiB each at a head size of 256.
_LONGEST_CONTEXT = 1 << 17
# more positions than any speculative verification asks for
_MOST_POSITIONS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What the command line asks for."""

    variant: str | None = None
    # a local folder, or a Hub repository ORG/NAME
    checkpoint: Path | str | None = None
    # branch, tag or commit of a Hub repository
    revision: str | None = None
    # a PEFT adapter that is merged into the weights: a local folder, or a Hub repository ORG/NAME[@REVISION]
    adapter: str | None = None
    # None: weights come from the checkpoint
    synthetic_seed: int | None = None
    # of activations, and of the weights too unless they are quantised
    precision: str = "fp32"
    weights: WeightOptions = dataclasses.field(default_factory=WeightOptions)
    # text for quantisers that run the model; None: the built-in one
    calibration: Path | None = None
    target: str = "ort"
    # keep the semantic operators as functions of the graph, where the target can
    keep_functions: bool = False
    # "last", "all" or a number of positions
    logits: str = "last"
    # tokens that the rotary tables cover; None means the model's own
    context: int | None = None
    # "auto", "measure", "off" or a number: gemma_export.residual_scale
    residual_scale: str = "auto"
    output: Path | None = None
    force: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """A request whose every name has been looked up and whose checkpoint has been checked."""

    variant: Variant | None
    # with its tensors, real or synthetic; of one on the Hub only their names, shapes and types
    checkpoint: Checkpoint
    # tensors that the checkpoint must hold, and their shapes; an adapter may untie one more from them
    stored: Mapping[str, tuple[int, ...]]
    # the adapter, held against those tensors
    merge: Merge | None
    family: Family
    # with the exported context length
    spec: DecoderSpec
    target: Target
    precision: Precision
    residual_scale: ResidualScale
    # positions with logits in the main graph; 0 means all
    keep: int
    warnings: tuple[str, ...]


def resolve(request: ExportRequest, progress: Progress | None = None) -> Resolved:
    """Looks everything up and checks names and shapes of checkpoint and adapter both ways; no weights are read.

    Args:
        request: what to export.
        progress: told of the small files of a checkpoint on the Hub.

    Raises:
        UsageError: the request contradicts itself.
        ConfigError, CheckpointError: the checkpoint or the adapter is not what it says, or they do not fit.
        MissingResourceError: no weights, no tokenizer or no adapter.
    """
    target, precision = _choose(request)
    keep = _positions(request.logits)
    variant = _variant(request.variant)
    checkpoint = _checkpoint(request, variant, progress)
    family = family_of(checkpoint.config)
    native, unread = family.parse_config(checkpoint.config)
    warnings = [checkpoint.note] if checkpoint.note is not None else []
    if unread:
        warnings.append(f"config.json: keys that nothing reads: {', '.join(unread)}")
    if variant is not None:
        _check_agreement(variant, family, native)
    if checkpoint.generation_config is not None:
        check_generation_config(checkpoint.generation_config, vocab_size=native.vocab_size)
    spec = _with_context(native, request.context, warnings)
    tensors = family.tensor_shapes(spec)
    if request.synthetic_seed is not None:
        checkpoint = synthetic_checkpoint(checkpoint, tensors, seed=request.synthetic_seed)
    assert checkpoint.source is not None
    check_tensors(checkpoint.source, tensors, headers_only=isinstance(checkpoint.source, HubWeights))
    merge = None
    if request.adapter is not None:
        adapter, note = find_adapter(request.adapter, progress)
        merge = plan_merge(adapter, tensors, tied=spec.tie_word_embeddings)
        base = checkpoint.repository or (variant.repository if variant is not None else None)
        warnings += [text for text in (note, adapter.base_model_warning(base)) if text is not None]
        if merge.tied != spec.tie_word_embeddings:
            spec = dataclasses.replace(spec, tie_word_embeddings=merge.tied)
            checkpoint = dataclasses.replace(
                checkpoint, config={**checkpoint.config, "tie_word_embeddings": merge.tied}
            )
    residual_scale = choose_residual_scale(
        request.residual_scale,
        activation_dtype=precision.activation_dtype,
        variant=variant.name if variant is not None else None,
        published_peak=variant.published_peak[0] if variant is not None and variant.published_peak else None,
        source_kind=checkpoint.kind,
    )
    return Resolved(
        variant=variant,
        checkpoint=checkpoint,
        stored=tensors,
        merge=merge,
        family=family,
        spec=spec,
        target=target,
        precision=precision,
        residual_scale=residual_scale,
        keep=keep,
        warnings=tuple(warnings),
    )


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
    target, precision = TARGETS[request.target], PRECISIONS[request.precision]
    if request.keep_functions:
        if target.with_functions is None:
            raise UsageError(
                f"--keep-functions does not apply to target {target.name}: its kernels replace the functions",
                hint="Add --target portable, or leave --keep-functions out.",
            )
        target = target.with_functions
    if precision.activation_dtype not in target.providers:
        raise UsageError(
            f"target {target.name} has no {precision.activation_dtype} kernels: --{precision.name} cannot run there",
            hint=f"Choose a precision with {' or '.join(target.providers)} activations, or another --target.",
        )
    scheme = weight_scheme(request.weights)
    if scheme is None:
        return target, precision
    if target.quantise is None:
        raise UsageError(
            f"target {target.name} has no kernels for {scheme.name} weights", hint="Export with --target ort."
        )
    return target, quantised(precision, scheme)


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


def _checkpoint(request: ExportRequest, variant: Variant | None, progress: Progress | None) -> Checkpoint:
    """Where config, weights and tokenizer come from; a source of None means synthetic weights."""
    synthetic = request.synthetic_seed is not None
    if request.revision is not None:
        check_revision(request.revision)
    if request.checkpoint is not None:
        return _given_checkpoint(request, progress)
    assert variant is not None
    if variant.repository is None:
        _refuse_revision(request, "the built-in model has none")
        return builtin_checkpoint(weights=not synthetic)
    if synthetic:
        _refuse_revision(request, "synthetic weights of a variant come from no repository")
        return Checkpoint(config=_released_config(variant), source=None)
    revision = request.revision or variant.revision
    return _with_tokenizer(open_hub_checkpoint(variant.repository, revision, progress=progress))


def _given_checkpoint(request: ExportRequest, progress: Progress | None) -> Checkpoint:
    """A local folder, or else a repository: what is there on the disk is never looked for on the Hub."""
    assert request.checkpoint is not None
    folder, weights = Path(request.checkpoint), request.synthetic_seed is None
    text = request.checkpoint if isinstance(request.checkpoint, str) else folder.as_posix()
    if folder.exists():
        _refuse_revision(request, f"{text} is a local path")
        checkpoint = open_checkpoint(folder, weights=weights)
    elif is_repository_id(text):
        try:
            checkpoint = open_hub_checkpoint(text, request.revision, weights=weights, progress=progress)
        except HubUnreachableError as error:
            # who meant a folder does not care for the network
            raise type(error)(f"{error.message}; nor is there a local folder {text}", hint=error.hint) from error
    else:
        raise MissingResourceError(
            f"checkpoint {text} does not exist as a local folder, and is no Hub repository, which is called ORG/NAME",
            hint="Give the folder that holds config.json and the safetensors files, or a name like google/gemma-2b.",
        )
    return checkpoint if not weights else _with_tokenizer(checkpoint)


def _refuse_revision(request: ExportRequest, why: str) -> None:
    if request.revision is not None:
        raise UsageError(
            f"--revision {request.revision} names a revision of a Hub repository, but {why}",
            hint="Leave --revision out, or give --checkpoint ORG/NAME.",
        )


def _with_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    if not checkpoint.has_tokenizer:
        whole = f"{checkpoint.repository}, downloaded with `hf download`" if checkpoint.repository else "the checkpoint"
        raise MissingResourceError(
            f"{checkpoint.name}: no tokenizer: neither tokenizer.json nor tokenizer.model is there",
            hint=f"Copy the tokenizer files of the original model into the folder of {whole}.",
        )
    return checkpoint


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
        if spec.max_position_embeddings > _LONGEST_CONTEXT:
            raise ConfigError(
                f"config.json: max_position_embeddings is {spec.max_position_embeddings}, at most {_LONGEST_CONTEXT} "
                "can be exported",
                hint="Choose how many tokens you need with --context.",
            )
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
    if logits.isascii() and logits.isdigit() and 1 <= int(logits) <= _MOST_POSITIONS:
        return int(logits)
    raise UsageError(
        f"--logits must be last, all or a number from 1 to {_MOST_POSITIONS}, found {logits!r}",
        hint="The default is last.",
    )
