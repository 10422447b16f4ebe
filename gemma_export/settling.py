"""What a plan leaves to a measurement, settled before graphs are lowered: residual scale, channels, precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from gemma_export.artifact.disk import nearest_existing
from gemma_export.mixed_precision import MixedPrecision
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
    "cache_scales_of",
    "calibrates",
    "calibration_of",
    "settle_channel_scales",
    "settle_precision",
    "settle_residual_scale",
]

# the lowered graph -> (initializer -> its matrix, None for one that is quantised while it is written)
Calibration: TypeAlias = "Callable[[ir.Model], Callable[[str], BlockWeight | None]]"


def settle_residual_scale(plan: ExportPlan, progress: Progress | None = None) -> tuple[ExportPlan, Headroom | None]:
    """The plan with a residual shift; where that is to be measured, runs the reference layer by layer."""
    if plan.residual_scale.shift is not None:
        return plan, None
    from gemma_export.headroom import measure_headroom
    from gemma_export.tracing import model_weight

    source, scheme = plan.checkpoint.view(plan.stored), plan.precision.scheme
    headroom = measure_headroom(
        plan.checkpoint,
        plan.family,
        plan.spec,
        lambda name: model_weight(source, plan.merge, name),
        progress,
        is_float=lambda name: scheme is None or scheme.format_of(name, plan.tensors[name]) is None,
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
            lambda: reference_stack(plan.family, plan.spec, positions=max(map(len, sequences))),
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
