"""A request held against what there is: variant, checkpoint, adapter, architecture. Torch-free."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_export.adapter import Merge, find_adapter, plan_merge
from gemma_export.base_checkpoint import base_checkpoint, released_config
from gemma_export.checkpoint import (
    QUANTISATION_KEY,
    Checkpoint,
    HubWeights,
    QuantisedSource,
    check_tensors,
    read_quantisation,
    synthetic_checkpoint,
)
from gemma_export.config import DecoderSpec
from gemma_export.errors import CheckpointError, ConfigError, UnknownVariantError, UsageError
from gemma_export.families import FAMILIES, Family, check_generation_config, family_of
from gemma_export.precision import Precision, grid_warning, with_stored_tensors
from gemma_export.progress import Progress, format_bytes
from gemma_export.request import ExportRequest, target_and_precision
from gemma_export.residual_scale import ResidualScale, choose_residual_scale
from gemma_export.targets import Target
from gemma_export.targets.rotary import rotary_tensors
from gemma_export.variants import VARIANTS, Variant

__all__ = ["Resolved", "resolve", "variant_rows"]

# The longest rotary tables: 131,072 positions, the context of the largest Gemma. They are computed in memory,
# 64 MiB each at a head size of 256.
_LONGEST_CONTEXT = 1 << 17
# more positions than any speculative verification asks for
_MOST_POSITIONS = 1024
_EMBEDDING = "model.embed_tokens.weight"
# of a specification: what sizes do not say and a variant's name vouches for
_SAME_MATHEMATICS = ("attention_scale", "attention_softcap", "final_softcap", "windows", "rotary", "local_rotary")
# activation dtype -> types of stored scales that it holds to the last bit
_EXACT_SCALES = {
    "float32": ("float32", "float16", "bfloat16"),
    "float16": ("float16", "bfloat16"),
    "bfloat16": ("bfloat16",),
}


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
    """Looks everything up and checks names and shapes of checkpoint and adapter both ways.

    Of the weights some kilobytes are read at most, to see whether they were trained for other integers.

    Args:
        request: what to export.
        progress: told of the small files of a checkpoint on the Hub.

    Raises:
        UsageError: the request contradicts itself.
        ConfigError, CheckpointError: the checkpoint or the adapter is not what it says, or they do not fit.
        MissingResourceError: no weights, no tokenizer or no adapter.
    """
    target, precision = target_and_precision(request)
    keep = _positions(request.logits)
    variant = _variant(request.variant)
    checkpoint = base_checkpoint(request, variant, progress)
    checkpoint = _with_quantisation(checkpoint, synthetic=request.synthetic_seed is not None)
    if checkpoint.quantisation is not None:
        target, precision = target_and_precision(request, checkpoint.quantisation)
    family = family_of(checkpoint.config)
    native, unread = family.parse_config(checkpoint.config)
    warnings = [checkpoint.note] if checkpoint.note is not None else []
    if checkpoint.text_part:
        warnings.append("config.json is of a vision-language model: its text decoder is exported, images are not read")
    if unread:
        warnings.append(f"config.json: keys that nothing reads: {', '.join(unread)}")
    if variant is not None:
        warnings += _check_agreement(variant, family, checkpoint.config, native)
    _check_head_dim(target, native)
    if checkpoint.generation_config is not None:
        check_generation_config(checkpoint.generation_config, vocab_size=native.vocab_size)
    spec = _with_context(native, request.context, warnings)
    tensors = family.tensor_shapes(spec)
    if request.synthetic_seed is not None:
        checkpoint = synthetic_checkpoint(checkpoint, tensors, seed=request.synthetic_seed)
    assert checkpoint.source is not None
    view = checkpoint.view(tensors)
    check_tensors(view, tensors, headers_only=isinstance(checkpoint.source, HubWeights))
    if isinstance(view, QuantisedSource) and precision.scheme is not None:
        precision = _with_stored_tensors(precision, view, target.stored_tensors(tensors, spec))
        if request.weights.embedding_bits is None and _EMBEDDING not in view.quantised:
            nbytes = precision.stored_nbytes(tensors[_EMBEDDING])
            warnings.append(
                f"the checkpoint leaves its embedding in floating point: {format_bytes(nbytes)} of the data file; "
                "--embedding-bits 8 quantises it"
            )
    if precision.scheme is not None and request.adapter is None and request.synthetic_seed is None:
        here = None if isinstance(checkpoint.source, HubWeights) else view
        warnings += grid_warning(precision.scheme, here, tensors, checkpoint.repository)
    merge = None
    if request.adapter is not None:
        adapter, note = find_adapter(request.adapter, progress)
        merge = plan_merge(adapter, tensors, tied=spec.tie_word_embeddings)
        other = adapter.base_model_warning(**_identity(checkpoint, variant))
        warnings += [text for text in (note, other) if text is not None]
        if merge.tied != spec.tie_word_embeddings:
            spec = dataclasses.replace(spec, tie_word_embeddings=merge.tied)
            checkpoint = dataclasses.replace(
                checkpoint, config={**checkpoint.config, "tie_word_embeddings": merge.tied}
            )
    if request.keep_functions and spec.computes_rotary:
        nbytes = sum(precision.stored_nbytes(shape) for _, shape in rotary_tensors(spec))
        warnings.append(
            f"--keep-functions stores rotary tables of {spec.max_position_embeddings} positions, "
            f"{format_bytes(nbytes)}, which other graphs compute; --context N stores fewer"
        )
    residual_scale = choose_residual_scale(
        request.residual_scale,
        activation_dtype=precision.activation_dtype,
        variant=variant.name if variant is not None else None,
        source_kind=checkpoint.kind,
        merged=merge is not None,
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
        spec, _ = family.parse_config(released_config(variant))
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


def _with_quantisation(checkpoint: Checkpoint, *, synthetic: bool) -> Checkpoint:
    """Takes the section on integers out of the configuration, which is not about what is exported."""
    quantisation = None if synthetic else read_quantisation(checkpoint.config)
    config = {key: value for key, value in checkpoint.config.items() if key != QUANTISATION_KEY}
    return dataclasses.replace(checkpoint, config=config, quantisation=quantisation)


def _with_stored_tensors(
    precision: Precision, view: QuantisedSource, stored: Sequence[tuple[str, tuple[int, ...]]]
) -> Precision:
    """The precision with the matrices that the checkpoint has in integers, and scales that fit."""
    scheme = precision.scheme
    assert scheme is not None
    for tensor in view.quantised.values():
        scales = view.source.tensors[f"{tensor.module}.scales"].dtype
        if scales not in _EXACT_SCALES[precision.activation_dtype]:
            raise CheckpointError(
                f"tensor {tensor.module}.scales is {scales}: as {precision.activation_dtype} it would be rounded",
                hint="Leave --bf16 and --fp16 out: scales have the type of the activations.",
            )
    return dataclasses.replace(precision, scheme=with_stored_tensors(scheme, view.quantised, stored))


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


def _identity(checkpoint: Checkpoint, variant: Variant | None) -> dict[str, Any]:
    """How messages call the base model, and under which names an adapter may know it."""
    repository = checkpoint.repository or (variant.repository if variant is not None else None)
    local = f"the built-in {checkpoint.name} model" if checkpoint.builtin else f"the local checkpoint {checkpoint.name}"
    made_from = checkpoint.config.get("_name_or_path")
    folder = None if checkpoint.repository else checkpoint.name
    return {
        "exported": repository or local,
        "known_as": (repository, folder, made_from if isinstance(made_from, str) else None),
    }


def _check_agreement(variant: Variant, family: Family, config: Mapping[str, Any], spec: DecoderSpec) -> tuple[str, ...]:
    """Refuses a checkpoint that is not the variant.

    Returns:
        A notice for each number that releases of the variant differ in, where it is not the usual one.
    """
    found = {"family": family.name, **dataclasses.asdict(spec)}
    expected = {"family": variant.family, **dict(variant.architecture)}
    usual = released_config(variant)
    own = {key: value for key, value in variant.also if config.get(key) == value}
    if family.name == variant.family:
        released, _ = family.parse_config({**usual, **own})
        expected |= {key: dataclasses.asdict(released)[key] for key in _SAME_MATHEMATICS}
    for key, wanted in expected.items():
        if found[key] != wanted:
            raise ConfigError(
                f"the checkpoint is not variant {variant.name}: {key} is {found[key]}, expected {wanted}",
                hint="Leave --variant out to export the checkpoint as it is, or name the variant that it is.",
            )
    return tuple(
        f"config.json: {key} is {value}, where {usual[key]} is usual of {variant.name}: exported with {value}, "
        "which is what PyTorch computes of this checkpoint"
        for key, value in own.items()
    )


def _check_head_dim(target: Target, spec: DecoderSpec) -> None:
    """Kernels refuse other head sizes only when they run: the folder would be whole and useless."""
    if spec.head_dim % target.head_dim_multiple:
        raise ConfigError(
            f"target {target.name}: its attention kernel needs a head_dim that is a multiple of "
            f"{target.head_dim_multiple}, found {spec.head_dim}",
            hint="Export with --target portable, which takes any even head_dim.",
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
