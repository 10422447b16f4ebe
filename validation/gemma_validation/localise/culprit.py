"""Which half of which layer adds an error that its neighbours and its precision do not explain."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from gemma_runtime.manifest import Manifest
from gemma_validation.findings import NOT_FINITE, Localisation
from gemma_validation.localise.measure import Measured

__all__ = ["conclude", "expected_error"]

# A half stands out from those of its kind above ten times their median. Measured on trained weights: the noisiest of
# four layers has 3 times the median in 4 bits, 1.5 times in 8 bits and in floating point. A wrong scale, gain, order or
# angle makes an error near 1, 30 times the noise of 4 bits.
_OUTLIER = 10.0
# What rounding the stream alone explains, times this: sums of thousands of products, a softmax and tanh are rounded
# too. Measured: 1 in float16, up to 70 in float32, where it costs nothing to allow more.
_ROUNDING = 1000.0
# The most that a half's quantised matrices may change what it adds, squared and relative. Measured on trained weights:
# 0.037 in 4 bits, 0.0008 in 8 bits with 8-bit activations; the bounds are four and six times that.
_QUANTISED = {4: 0.15, 8: 0.005}
# headroom below which the report says so: exports of float16 keep 2 bits above the peaks of their probes
_LOW_HEADROOM = 2.0
# in place of a median where a point has no others of its kind
_HUGE = 1e30
# names in a message
_NAMED = 4


def conclude(measured: Sequence[Measured], manifest: Manifest) -> Localisation:
    """The points, and the one that stands out.

    A point is suspected where its injected error is beyond what rounding explains, and either ten times the median of
    the other halves of its kind or more than its weights' bits explain. If most halves of a kind are, what they share
    is to blame and no layer. Otherwise the culprit is the one with the largest error.

    Args:
        measured: all points in order.
        manifest: of the folder: bits of its weights.
    """
    suspects = [one for one in measured if _stands_out(one, measured, manifest)]
    culprit, message = _culprit(suspects, measured)
    return Localisation(
        points=tuple(one.found for one in measured),
        culprit=culprit,
        message="; ".join([message, *_headroom(measured, manifest)]),
    )


def expected_error(one: Measured, manifest: Manifest) -> float:
    """The most that the formats of weights and activations explain at a point."""
    options = manifest.precision.options
    bits = options.get("embedding_bits" if one.point.kind in ("embedding", "head") else "bits")
    floor = _ROUNDING * one.rounding
    if one.point.kind == "final norm" or "bits" not in options:
        return floor
    return max(floor, _QUANTISED.get(int(bits), 0.0) if isinstance(bits, int) else 0.0)


def _injected(one: Measured) -> float:
    return 0.0 if one.found.injected is None else one.found.injected


def _stands_out(one: Measured, measured: Sequence[Measured], manifest: Manifest) -> bool:
    injected = _injected(one)
    if injected <= _ROUNDING * one.rounding:
        return False
    others = [_injected(other) for other in measured if other.point.kind == one.point.kind and other is not one]
    return injected > min(expected_error(one, manifest), _OUTLIER * statistics.median(others or [_HUGE]))


def _culprit(suspects: Sequence[Measured], measured: Sequence[Measured]) -> tuple[str | None, str]:
    if not suspects:
        worst = max(measured, key=_injected)
        return None, (
            f"no point stands out: the largest error of one part alone is {_text(worst)} of what it adds, in the "
            f"{worst.point}"
        )
    kinds = dict.fromkeys(one.point.kind for one in suspects)
    for kind in kinds:
        found, halves = _of_kind(kind, suspects), _of_kind(kind, measured)
        if len(found) > max(1, len(halves) // 2):
            return None, (
                f"the {kind} is off in {len(found)} of {len(halves)} layers, by {_text(min(found, key=_injected))} to "
                f"{_text(max(found, key=_injected))} of what it adds: look at what these layers share"
            )
    worst = max(suspects, key=_injected)
    ordinary = [_injected(one) for one in measured if one.point.kind == worst.point.kind and one not in suspects]
    beside = f", the others {statistics.median(ordinary):.2g}" if ordinary else ""
    rest = [str(one.point) for one in suspects if one is not worst]
    more = f"; also {', '.join(rest[:_NAMED])}" + (f" and {len(rest) - _NAMED} more" if len(rest) > _NAMED else "")
    return worst.found.point, (
        f"the {worst.point} stands out: fed the reference's stream its error is {_text(worst)} of what it adds{beside}"
        + (more if rest else "")
    )


def _of_kind(kind: str, among: Sequence[Measured]) -> list[Measured]:
    return [one for one in among if one.point.kind == kind]


def _text(one: Measured) -> str:
    return "not finite, no part" if _injected(one) >= NOT_FINITE else f"{_injected(one):.2g}"


def _headroom(measured: Sequence[Measured], manifest: Manifest) -> list[str]:
    dtype = manifest.precision.activation_dtype
    bits = [(one.found.headroom_bits, one) for one in measured if one.found.headroom_bits is not None]
    # float32 holds what float16 does not: the figures are there, and nothing has to be said of them
    if not bits or dtype == "float32":
        return []
    least, one = min(bits, key=lambda pair: pair[0])
    if least < 0:
        first = next(point for headroom, point in bits if headroom < 0)
        return [
            f"{dtype} overflows from the {first.point} on: values reach {2**-least:.2g} times its largest number "
            f"at the {one.point}"
        ]
    return [f"{least:.1f} bits of headroom are left at the {one.point}"] if least < _LOW_HEADROOM else []
