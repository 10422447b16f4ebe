"""What an export measured, and how manifest, user and further files are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_export.artifact.lock import cache_directory
from gemma_export.mixed_precision import JSON_FILE, PLOT_FILE, MixedPrecision, can_plot
from gemma_export.planning import ExportPlan

if TYPE_CHECKING:
    import onnx_ir as ir

    from gemma_export.calibration.channels import ChannelScales
    from gemma_export.headroom import Headroom
    from gemma_export.precision.scale_counts import ScaleCounts

__all__ = [
    "Measurements",
    "RoundedScales",
    "choice_files",
    "format_options",
    "measurement_notes",
    "rounded_scales",
    "scale_warnings",
    "written_scales",
]

# Share of coarse scales from which on they are told of.
_COARSE_SHARE = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundedScales:
    """Scales of a quantised checkpoint that the activations' type does not hold to the last bit."""

    # of so many in all
    count: int
    total: int
    largest_relative_change: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurements:
    """What was measured on the way; None where nothing asked for it."""

    headroom: Headroom | None
    scales: ChannelScales | None
    mixed: MixedPrecision | None
    rounded: RoundedScales | None


def rounded_scales(plan: ExportPlan, model: ir.Model) -> RoundedScales | None:
    """What becomes of a quantised checkpoint's scales in a lowered graph; None for other weights.

    float16 has them all, until the residual stream's power of two makes the smallest subnormal.
    """
    scheme = plan.precision.scheme
    if scheme is None or scheme.checkpoint is None:
        return None
    from gemma_export.precision.graph_blocks import rounded_scales as count_rounded

    count, total, change = count_rounded(model)
    return RoundedScales(count=count, total=total, largest_relative_change=change)


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
    found: Measurements,
) -> dict[str, Any]:
    """The number format's options, in the manifest's words."""
    options = {} if plan.precision.scheme is None else dict(plan.precision.scheme.options())
    cache = plan.precision.cache
    if plan.calibration is not None:
        if cache is not None:
            options["kv_cache"] = cache.options(plan.calibration.options)
        if cache is None or plan.quantises_by_text:
            options["calibration"] = dict(plan.calibration.options)
    if plan.precision.scheme is not None and plan.precision.scheme.dynamic:
        options["smoothing"] = None if found.scales is None else found.scales.to_dict()
    elif found.scales is not None:
        options["activation_aware"] = found.scales.to_dict()
    if found.mixed is not None:
        options["mixed_precision"] = found.mixed.summary()
    if plan.checkpoint.quantisation is not None and plan.precision.scheme is None:
        options["dequantised"] = plan.checkpoint.quantisation.describe()
    if found.rounded is not None:
        options["rounded_scales"] = dataclasses.asdict(found.rounded)
    if plan.precision.activation_dtype != "float16":
        return options
    residual_scale: dict[str, Any] = dataclasses.asdict(plan.residual_scale)
    if found.headroom is not None:
        from gemma_export.headroom import largest_constant

        residual_scale["measured"] = found.headroom.to_dict() | {
            "largest_constant": max(largest_constant(model) for model in models)
        }
    return {**options, "residual_scale": residual_scale}


def measurement_notes(plan: ExportPlan, found: Measurements) -> tuple[str, ...]:
    """What the user should know of the number format, a line each."""
    notes = [each.note() for each in (found.scales, found.mixed) if each is not None]
    if found.mixed is not None and not can_plot():
        notes.append(f"{PLOT_FILE} was not drawn: pip install matplotlib")
    scale = plan.residual_scale
    if plan.precision.activation_dtype != "float16":
        return (*notes, *_stored_notes(plan, found.rounded))
    how = f"scaled by 2^-{scale.shift}" if scale.shift else "not scaled"
    why = scale.reason
    if found.headroom is not None:
        peak = found.headroom.stream
        where = "the embedding" if peak.layer is None else f"layer {peak.layer}"
        why = f"measured: peaks at {peak.value:,.4g} in {where}, {found.headroom.headroom_bits:.1f} bits of headroom"
    return (*notes, f"residual stream {how} ({why})", *_stored_notes(plan, found.rounded))


def written_scales(plan: ExportPlan, model: ir.Model) -> ScaleCounts | None:
    """The scales that an export chose for float16 activations, counted; None where it chose none.

    Args:
        plan: of the export.
        model: a lowered graph whose weights have been written.
    """
    scheme = plan.precision.scheme
    if scheme is None or scheme.checkpoint is not None or plan.precision.activation_dtype != "float16":
        return None
    from gemma_export.precision.graph_blocks import scale_counts

    return scale_counts(model)


def scale_warnings(plan: ExportPlan, counts: ScaleCounts | None) -> tuple[str, ...]:
    """A line where many scales are so small that rounding them costs accuracy."""
    if counts is None or counts.coarse <= _COARSE_SHARE * counts.total:
        return ()
    shift = plan.residual_scale.shift
    way_out = f"a --residual-scale below {shift}, or float32 activations" if shift else "float32 activations"
    return (
        f"{counts.subnormal / counts.total:.1%} of the scales of blocks are subnormal float16 numbers, "
        f"{counts.coarse / counts.total:.1%} below 2^-20, where rounding them costs accuracy: {way_out} keep them",
    )


def _stored_notes(plan: ExportPlan, rounded: RoundedScales | None) -> tuple[str, ...]:
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
