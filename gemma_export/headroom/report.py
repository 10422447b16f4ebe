"""What a measurement found, and how it is told."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from gemma_export.residual_scale import FLOAT16_MAX, HEADROOM_BITS

__all__ = ["Headroom", "Peak", "WeightRange"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
    """The largest |value| that a tap of all layers saw, before any scaling."""

    value: float
    # the layer it was in; None outside the layers
    layer: int | None
    # whether the rescaling of the residual stream scales this value too
    scaled: bool

    def bits(self, shift: int) -> float:
        """log2 of how often it fits below float16's largest number; negative means overflow."""
        value = self.value * (2.0**-shift if self.scaled else 1.0)
        return math.log2(FLOAT16_MAX / value) if value > 0 else math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightRange:
    """One tensor, or one kind of tensor of all layers, as float16 will store it (scaled, a norm as its gain 1 + w)."""

    # largest |value|
    largest: float
    # shares of all values that are subnormal in float16 (fewer than eleven significant bits), and that become zero
    subnormal: float
    zero: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headroom:
    """The measurement and the shift that follows from it."""

    # the residual stream is to be multiplied by 2^-shift
    shift: int
    # probe -> tokens
    probes: Mapping[str, int]
    # tap without its layer -> peak
    peaks: Mapping[str, Peak]
    # tensor without its layer -> range; none of matrices that are stored as integers
    weights: Mapping[str, WeightRange]

    @property
    def stream(self) -> Peak:
        """The peak that decides the shift."""
        return max((peak for peak in self.peaks.values() if peak.scaled), key=lambda peak: peak.value)

    @property
    def headroom_bits(self) -> float:
        """Bits left above the scaled stream's peak."""
        return self.stream.bits(self.shift)

    def warnings(self) -> list[str]:
        """Every hazard that no rescaling of the stream cures, a line each.

        Activations are told of from 16,376 on: what the stream keeps free for other prompts, they lack too.
        """
        lines = []
        for name, peak in self.peaks.items():
            if not peak.scaled and peak.bits(self.shift) < HEADROOM_BITS:
                where = name if peak.layer is None else f"layers.{peak.layer}.{name}"
                less = "" if peak.value > FLOAT16_MAX else ": other prompts may reach it"
                lines.append(f"{where} peaks at {peak.value:,.0f} on the probe prompts, float16 ends at 65,504{less}")
        for name, weight in self.weights.items():
            if weight.largest > FLOAT16_MAX:
                lines.append(f"{name} holds {weight.largest:,.0f}, float16 ends at 65,504")
            if weight.zero > 0.5:
                lines.append(f"{weight.zero:.0%} of {name} become zero in float16")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """For the manifest. Four digits: the last bits of a sum depend on the machine, manifests must not."""
        return {
            "headroom_bits": _round(self.headroom_bits),
            "probes": dict(self.probes),
            "peaks": {
                name: {
                    "peak": _round(peak.value),
                    "layer": peak.layer,
                    "scaled": peak.scaled,
                    "headroom_bits": _round(peak.bits(self.shift)),
                }
                for name, peak in self.peaks.items()
            },
            "weights": {
                name: {
                    "largest": _round(weight.largest),
                    "subnormal": _round(weight.subnormal),
                    "zero": _round(weight.zero),
                }
                for name, weight in self.weights.items()
            },
        }


def _round(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
