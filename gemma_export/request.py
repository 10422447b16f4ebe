"""What the command line asks for, and the target and precision that it names. Torch-free."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from gemma_export.checkpoint import Quantisation
from gemma_export.errors import UsageError
from gemma_export.precision import (
    CACHE_FORMATS,
    PRECISIONS,
    QUANTISERS,
    Precision,
    WeightOptions,
    WeightScheme,
    quantised,
    stored_scheme,
    weight_scheme,
)
from gemma_export.targets import TARGETS, Target

__all__ = ["ExportRequest", "target_and_precision"]

_DEFAULT_PRECISION = "fp32"


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
    # None: fp32, and the checkpoint's own integers where it has such weights
    precision: str | None = None
    weights: WeightOptions = dataclasses.field(default_factory=WeightOptions)
    # text that quantisers or --max-kl run the model on; None: a built-in one
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
    # integer type of keys and values between steps, a name of CACHE_FORMATS; None: the activations' type
    kv_cache: str | None = None
    # mean KL in nats that mixed precision must keep; None: the scheme as it is
    max_kl: float | None = None
    output: Path | None = None
    force: bool = False


def target_and_precision(request: ExportRequest, quantisation: Quantisation | None = None) -> tuple[Target, Precision]:
    """Looks both up; every combination of options that cannot be is refused here.

    Args:
        request: what was asked for.
        quantisation: of the checkpoint, once that is known: its integers are taken unless floating point is asked for.

    Raises:
        UsageError: the request contradicts itself, or the checkpoint.
    """
    if request.variant is None and request.checkpoint is None:
        raise UsageError(
            "nothing to export: neither --variant nor --checkpoint is given",
            hint="Try `gemma-export --variant tiny`, or `gemma-export variants` for the list.",
        )
    activations = request.precision or _DEFAULT_PRECISION
    for name, registry, option in ((request.target, TARGETS, "target"), (activations, PRECISIONS, "precision")):
        if name not in registry:
            raise UsageError(
                f"unknown {option} {name!r}, expected one of: {', '.join(registry)}", hint="See gemma-export --help."
            )
    for option, value in (("checkpoint", request.checkpoint), ("adapter", request.adapter)):
        if value == "":
            # as a path it would be the current folder
            raise UsageError(f"--{option} is empty", hint="Name a folder or a Hub repository, or leave it out.")
    target, precision = TARGETS[request.target], PRECISIONS[activations]
    if request.keep_functions:
        if target.with_functions is None:
            raise UsageError(
                f"--keep-functions does not apply to target {target.name}: its kernels replace the functions",
                hint="Add --target portable, or leave --keep-functions out.",
            )
        target = target.with_functions
    scheme = weight_scheme(request.weights)
    if quantisation is not None and (scheme is not None or request.precision is None):
        _refuse_changes(request, quantisation)
        scheme = stored_scheme(quantisation, request.weights)
    _check_max_kl(request.max_kl, scheme)
    if scheme is not None:
        target = _with_format(target, request, scheme)
        scheme = dataclasses.replace(scheme, format=target.weight_format)
        if request.max_kl is not None and scheme.format == "qdq":
            raise UsageError(
                "--max-kl measures the kernels of target ort, not --format qdq",
                hint="Choose with --target ort, then give the chosen rules with --precision-config.",
            )
        _check_dynamic(scheme, target, precision)
    if precision.activation_dtype not in target.providers:
        raise UsageError(
            f"target {target.name} has no {precision.activation_dtype} kernels: --{precision.name} cannot run there",
            hint=f"Choose a precision with {' or '.join(target.providers)} activations, or another --target.",
        )
    if scheme is not None:
        precision = quantised(precision, scheme)
    return (target, precision) if request.kv_cache is None else _with_cache(target, precision, request)


def _with_cache(target: Target, precision: Precision, request: ExportRequest) -> tuple[Target, Precision]:
    """Both with integers for keys and values between steps."""
    if request.kv_cache not in CACHE_FORMATS:
        raise UsageError(
            f"unknown --kv-cache {request.kv_cache!r}, expected one of: {', '.join(CACHE_FORMATS)}",
            hint="Leave --kv-cache out for a cache of the activations' type.",
        )
    option = f"--kv-cache {request.kv_cache}"
    if target.quantise_cache is None:
        raise UsageError(
            f"target {target.name}{' with functions' * request.keep_functions} has no attention over "
            f"{request.kv_cache} caches",
            hint=f"Export with --target ort, or leave {option} out.",
        )
    if precision.activation_dtype not in target.cache_providers:
        raise UsageError(
            f"{option} runs on the CPU provider, which has no {precision.activation_dtype} kernels; "
            "it is not proven on any other",
            hint=f"Choose a precision with {' or '.join(target.cache_providers)} activations, or leave {option} out.",
        )
    if request.max_kl is not None:
        raise UsageError(
            f"--max-kl measures a cache of the activations' type, and {option} is given",
            hint=f"Choose without it, then give the chosen rules with --precision-config and {option}.",
        )
    target = dataclasses.replace(target, providers=target.cache_providers)
    return target, dataclasses.replace(precision, cache=CACHE_FORMATS[request.kv_cache])


def _with_format(target: Target, request: ExportRequest, scheme: WeightScheme) -> Target:
    """The target that stores integer weights as asked for."""
    if target.quantise is None:
        raise UsageError(
            f"target {target.name} has no kernels for {scheme.name} weights"
            + (" among functions" if request.keep_functions else ""),
            hint="Leave --keep-functions out." if request.keep_functions else "Export with --target ort.",
        )
    found = target.with_format(scheme.format)
    if found is None:
        raise UsageError(
            f"target {target.name} stores integer weights as {target.weight_format}, not as {scheme.format}",
            hint="Leave --format out, or export with --target ort, which has both.",
        )
    return found


def _check_dynamic(scheme: WeightScheme, target: Target, precision: Precision) -> None:
    if not scheme.dynamic:
        return
    if target.quantise_activations is None:
        raise UsageError(
            f"target {target.name} has no kernels for --{scheme.name}", hint="Export with --target ort, or with --int8."
        )
    if precision.activation_dtype != "float32":
        raise UsageError(
            f"--{scheme.name} and --{precision.name} exclude each other: its integer products are a kernel of the CPU "
            "provider, for float32 activations",
            hint=f"Leave --{precision.name} out, or combine it with --int8.",
        )


def _refuse_changes(request: ExportRequest, quantisation: Quantisation) -> None:
    """What would need other integers than the checkpoint has."""
    has = quantisation.stated()
    if request.max_kl is not None:
        raise UsageError(
            f"--max-kl has nothing to choose; {has}",
            hint="Leave it out, or export the checkpoint that it was made from.",
        )
    if request.adapter is not None:
        raise UsageError(
            f"--adapter cannot be merged into integers; {has}",
            hint="Export with --fp32 or --fp16 alone: the integers are multiplied out and the adapter is merged.",
        )


def _check_max_kl(max_kl: float | None, scheme: WeightScheme | None) -> None:
    if max_kl is None:
        return
    if not 0 < max_kl < math.inf:
        raise UsageError(
            f"--max-kl must be a finite number above 0, found {max_kl:g}",
            hint="It is the mean KL divergence in nats: 0.01 is strict for 4 bits, 0.05 loose.",
        )
    if scheme is None or scheme.bits != 4:
        found = "neither --int4 nor --int8 is given" if scheme is None else f"--{scheme.name} is given"
        raise UsageError(
            f"--max-kl spends bytes on a 4-bit export, and {found}",
            hint="Add --int4. Its most bytes are what --int8 stores everywhere.",
        )
    used = {scheme.quantiser, *(rule.quantiser for rule in scheme.rules if rule.quantiser is not None)}
    calibrated = sorted(name for name in used if QUANTISERS[name].calibrated)
    if calibrated:
        raise UsageError(
            f"--max-kl measures matrices one at a time, and --quantizer {calibrated[0]} quantises them in a row",
            hint="Choose with --quantizer search, then give the chosen rules to gptq with --precision-config.",
        )
