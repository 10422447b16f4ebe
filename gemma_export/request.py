"""What the command line asks for, held against what there is: variant, checkpoint, architecture. Torch-free."""

from __future__ import annotations

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Any

from gemma_export.checkpoint import Checkpoint, builtin_checkpoint, check_tensors, open_checkpoint, synthetic_checkpoint
from gemma_export.config import DecoderSpec
from gemma_export.errors import ConfigError, MissingResourceError, UnknownVariantError, UsageError
from gemma_export.families import FAMILIES, Family, check_generation_config, family_of
from gemma_export.precision import PRECISIONS, Precision, WeightOptions, quantised, weight_scheme
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
    checkpoint: Path | None = None
    # None: weights come from the checkpoint
    synthetic_seed: int | None = None
    # of activations, and of the weights too unless they are quantised
    precision: str = "fp32"
    weights: WeightOptions = dataclasses.field(default_factory=WeightOptions)
    target: str = "ort"
    # "last", "all" or a number of positions
    logits: str = "last"
    # tokens that the rotary tables cover; None means the model's own
    context: int | None = None
    output: Path | None = None
    force: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """A request whose every name has been looked up and whose checkpoint has been checked."""

    variant: Variant | None
    # with its tensors, real or synthetic
    checkpoint: Checkpoint
    family: Family
    # with the exported context length
    spec: DecoderSpec
    target: Target
    precision: Precision
    # positions with logits in the main graph; 0 means all
    keep: int
    warnings: tuple[str, ...]


def resolve(request: ExportRequest) -> Resolved:
    """Looks everything up and checks names and shapes of the checkpoint both ways; no tensor is read.

    Raises:
        UsageError: the request contradicts itself.
        ConfigError, CheckpointError: the checkpoint is not what it says.
        MissingResourceError: no weights or no tokenizer.
    """
    target, precision = _choose(request)
    keep = _positions(request.logits)
    variant = _variant(request.variant)
    checkpoint = _checkpoint(request, variant)
    family = family_of(checkpoint.config)
    native, unread = family.parse_config(checkpoint.config)
    warnings = [f"config.json: keys that nothing reads: {', '.join(unread)}"] if unread else []
    if variant is not None:
        _check_agreement(variant, family, native)
    if checkpoint.generation_config is not None:
        check_generation_config(checkpoint.generation_config, vocab_size=native.vocab_size)
    spec = _with_context(native, request.context, warnings)
    tensors = family.tensor_shapes(spec)
    if request.synthetic_seed is not None:
        checkpoint = synthetic_checkpoint(checkpoint, tensors, seed=request.synthetic_seed)
    assert checkpoint.source is not None
    check_tensors(checkpoint.source, tensors)
    return Resolved(
        variant=variant,
        checkpoint=checkpoint,
        family=family,
        spec=spec,
        target=target,
        precision=precision,
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
