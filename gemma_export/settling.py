"""What a plan leaves to a measurement, settled before graphs are lowered: residual scale, channels, precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gemma_export.artifact.disk import nearest_existing
from gemma_export.artifact.lock import cache_directory
from gemma_export.mixed_precision import JSON_FILE, PLOT_FILE, MixedPrecision, can_plot
from gemma_export.planning import ExportPlan, with_chosen
from gemma_export.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

    from gemma_export.calibration.channels import ChannelScales
    from gemma_export.headroom import Headroom
    from gemma_export.precision.block_weight import BlockWeight

__all__ = [
    "Calibration",
    "RoundedScales",
    "cache_scales_of",
    "calibrates",
    "calibration_of",
    "choice_files",
    "format_options",
    "measurement_notes",
    "rounded_scales",
    "settle_channel_scales",
    "settle_precision",
    "settle_residual_scale",
    "stored_notes",
]

# the lowered graph -> (initializer -> its matrix, None for one that is quantised while it is written)
Calibration: TypeAlias = "Callable[[ir.Model], Callable[[str], BlockWeight | None]]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundedScales:
    """Scales of a quantised checkpoint that the activations' type does not hold to the last bit."""

    # of so many in all
    count: int
    total: int
    largest_relative_change: float


def settle_residual_scale(plan: ExportPlan, progress: Progress | None = None) -> tuple[ExportPlan, Headroom | None]:
    """The plan with a residual shift; where that is to be measured, runs the reference layer by layer."""
    if plan.residual_scale.shift is not None:
        return plan, None
    from gemma_export.headroom import measure_headroom
    from gemma_export.tracing import model_weight

    source = plan.checkpoint.view(plan.stored)
    headroom = measure_headroom(
        plan.checkpoint, plan.family, plan.spec, lambda name: model_weight(source, plan.merge, name), progress
    )
    settled = dataclasses.replace(plan.residual_scale, shift=headroom.shift)
    return dataclasses.replace(plan, residual_scale=settled), headroom


def settle_channel_scales(plan: ExportPlan, model: ir.Model, progress: Progress | None = None) -> ChannelScales | None:
    """Folds scales of channels into the graph's weights, where the scheme calibrates them."""
    scheme = plan.precision.scheme
    if scheme is None or not scheme.calibrates(plan.checkpoint.kind):
        return None
    from gemma_export.calibration.batches import measured_batches
    from gemma_export.calibration.channels import ACTIVATION_AWARE, SMOOTHING, measure_channel_scales
    from gemma_export.calibration.placement import bound_weights
    from gemma_export.passes import FoldChannelScales

    scales = measure_channel_scales(
        plan.family,
        plan.spec,
        bound_weights(model).__getitem__,
        measured_batches(plan.checkpoint, plan.spec, plan.calibration),
        plan.precision,
        SMOOTHING if scheme.dynamic else ACTIVATION_AWARE,
        rounds_activations=plan.precision.activation_dtype in plan.target.rounded_activations,
        progress=progress,
    )
    FoldChannelScales(scales.exponents)(model)
    return scales


def settle_precision(
    plan: ExportPlan, model: ir.Model, progress: Progress | None = None
) -> tuple[ExportPlan, MixedPrecision | None]:
    """The plan with the precision of every tensor; under `--max-kl`, runs the reference to choose it.

    Raises:
        DriftError: the bound cannot be met.
    """
    if plan.request.max_kl is None:
        return plan, None
    from gemma_export.calibration.batches import measured_batches
    from gemma_export.calibration.placement import bound_weights
    from gemma_export.mixed_precision.choose import choose_mixed_precision, reference_for

    stored = plan.target.stored_tensors(plan.tensors, plan.spec)
    reference = reference_for(
        plan.family,
        plan.spec,
        bound_weights(model).__getitem__,
        stored,
        measured_batches(plan.checkpoint, plan.spec, plan.calibration),
        factors=_residual_factors(plan, model),
        rounds_activations=plan.precision.activation_dtype in plan.target.rounded_activations,
        progress=progress,
    )
    mixed = choose_mixed_precision(
        reference,
        plan.precision,
        stored,
        plan.request.max_kl,
        directory=_scratch(plan),
        progress=progress,
    )
    return with_chosen(plan, mixed.scheme), mixed


def calibrates(plan: ExportPlan) -> bool:
    """Whether the model is run on calibration text while it is lowered."""
    return plan.precision.cache is not None or plan.quantises_by_text


def calibration_of(plan: ExportPlan, model: ir.Model, progress: Progress | None = None) -> Calibration:
    """What will quantise the lowered graph's matrices by calibration, where the scheme has such.

    Args:
        plan: settled.
        model: the semantic graph before any pass, whose weights are taken note of.
        progress: told of the weights' bytes.
    """
    scheme = plan.precision.scheme
    if scheme is None or plan.calibration is None or not plan.quantises_by_text:
        return lambda lowered: lambda name: None
    from gemma_export.calibration.placement import bound_weights, place
    from gemma_export.calibration.quantise import quantise_by_layer
    from gemma_export.layerwise import reference_stack
    from gemma_export.precision.blockwise import scale_dtype_of

    bound = bound_weights(model)
    sequences = plan.calibration.token_ids

    def run(lowered: ir.Model) -> Callable[[str], BlockWeight | None]:
        return quantise_by_layer(
            reference_stack(plan.family, plan.spec, positions=max(map(len, sequences))),
            bound.__getitem__,
            sequences,
            place(lowered, bound, scheme),
            scale_dtype=scale_dtype_of(plan.precision),
            directory=_scratch(plan),
            progress=progress,
        )

    return run


def cache_scales_of(
    plan: ExportPlan, model: ir.Model, progress: Progress | None = None
) -> Mapping[str, npt.NDArray[np.float32]] | None:
    """Past tensor -> scales of its integers, measured on calibration text; None for a cache of the activations' type.

    Args:
        plan: settled.
        model: the semantic graph before any pass.
        progress: told of the weights' bytes.
    """
    cache = plan.precision.cache
    if cache is None:
        return None
    from gemma_export.calibration.cache_scales import cache_scales
    from gemma_export.calibration.placement import bound_weights
    from gemma_export.layerwise import reference_stack

    assert plan.calibration is not None
    sequences = plan.calibration.token_ids
    return cache_scales(
        reference_stack(plan.family, plan.spec, positions=max(map(len, sequences))),
        plan.family.cache_states(plan.spec),
        bound_weights(model).__getitem__,
        sequences,
        cache,
        directory=_scratch(plan),
        progress=progress,
    )


def _scratch(plan: ExportPlan) -> Path:
    """The folder that has the space: nameless files go there."""
    return nearest_existing(plan.output.absolute().parent)


def _residual_factors(plan: ExportPlan, model: ir.Model) -> dict[str, float]:
    """What the rescaled stream will multiply each matrix by, before it is quantised."""
    if not plan.residual_scale.shift:
        return {}
    from gemma_export.passes import RescaleResidual
    from gemma_export.weights import Scale, WeightTensor

    rescaled = model.clone()
    RescaleResidual(plan.residual_scale.shift)(rescaled)
    tensors = {str(name): value.const_value for name, value in rescaled.graph.initializers.items()}
    weights = {name: tensor.weight for name, tensor in tensors.items() if isinstance(tensor, WeightTensor)}
    return {name: weight.factor for name, weight in weights.items() if isinstance(weight, Scale)}


def rounded_scales(plan: ExportPlan, model: ir.Model) -> RoundedScales | None:
    """What becomes of a quantised checkpoint's scales in a lowered graph; None for other weights.

    float16 has them all, until the residual stream's power of two makes the smallest subnormal.
    """
    scheme = plan.precision.scheme
    if scheme is None or scheme.checkpoint is None:
        return None
    from gemma_export.precision.stored_blocks import rounded_scales as count_rounded

    count, total, change = count_rounded(model)
    return RoundedScales(count=count, total=total, largest_relative_change=change)


def stored_notes(plan: ExportPlan, rounded: RoundedScales | None) -> tuple[str, ...]:
    """What the user should know of a quantised checkpoint's integers."""
    quantisation = plan.checkpoint.quantisation
    if quantisation is None:
        return ()
    if rounded is None:
        exactly = (
            "exactly" if plan.precision.weight_dtype == "float32" else f"and rounded to {plan.precision.weight_dtype}"
        )
        return (f"the checkpoint's integers ({quantisation.describe()}) were multiplied out {exactly}",)
    if not rounded.count:
        return ("the checkpoint's integers, zero points and scales are exported as they are",)
    return (
        f"{rounded.count:,} of {rounded.total:,} scales of the checkpoint are no float16 numbers once the residual "
        f"stream is scaled, and are rounded by up to {rounded.largest_relative_change:.2g}; --residual-scale off keeps "
        "them",
    )


def choice_files(mixed: MixedPrecision | None) -> dict[str, bytes | Path]:
    """The trade-off, beside the manifest."""
    if mixed is None:
        return {}
    files: dict[str, bytes | Path] = {JSON_FILE: mixed.to_json()}
    if can_plot():
        from gemma_export.mixed_precision.plot import draw

        files[PLOT_FILE] = draw(mixed, cache_directory())
    return files


def format_options(
    plan: ExportPlan,
    models: Sequence[ir.Model],
    headroom: Headroom | None,
    scales: ChannelScales | None,
    mixed: MixedPrecision | None,
    rounded: RoundedScales | None,
) -> dict[str, Any]:
    """The number format's options, in the manifest's words."""
    options = {} if plan.precision.scheme is None else dict(plan.precision.scheme.options())
    cache = plan.precision.cache
    if plan.calibration is not None:
        if cache is not None:
            options["kv_cache"] = cache.options(plan.calibration.options)
        if cache is None or plan.quantises_by_text:
            options["calibration"] = dict(plan.calibration.options)
    if plan.precision.scheme is not None:
        name = "smoothing" if plan.precision.scheme.dynamic else "activation_aware"
        options[name] = None if scales is None else scales.to_dict()
    if mixed is not None:
        options["mixed_precision"] = mixed.summary()
    if plan.checkpoint.quantisation is not None and plan.precision.scheme is None:
        options["dequantised"] = plan.checkpoint.quantisation.describe()
    if rounded is not None:
        options["rounded_scales"] = dataclasses.asdict(rounded)
    if plan.precision.activation_dtype != "float16":
        return options
    residual_scale: dict[str, Any] = dataclasses.asdict(plan.residual_scale)
    if headroom is not None:
        from gemma_export.headroom import largest_constant

        residual_scale["measured"] = headroom.to_dict() | {
            "largest_constant": max(largest_constant(model) for model in models)
        }
    return {**options, "residual_scale": residual_scale}


def measurement_notes(
    plan: ExportPlan, headroom: Headroom | None, scales: ChannelScales | None, mixed: MixedPrecision | None
) -> tuple[str, ...]:
    """What the user should know of the number format, a line each."""
    notes = [found.note() for found in (scales, mixed) if found is not None]
    if mixed is not None and not can_plot():
        notes.append(f"{PLOT_FILE} was not drawn: pip install matplotlib")
    scale = plan.residual_scale
    if plan.precision.activation_dtype != "float16":
        return tuple(notes)
    how = f"scaled by 2^-{scale.shift}" if scale.shift else "not scaled"
    why = scale.reason
    if headroom is not None:
        peak = headroom.stream
        where = "the embedding" if peak.layer is None else f"layer {peak.layer}"
        why = f"measured: peaks at {peak.value:,.4g} in {where}, {headroom.headroom_bits:.1f} bits of headroom"
    return (*notes, f"residual stream {how} ({why})")
