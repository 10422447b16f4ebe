"""What a quantisation learns from running the float32 reference on text: scales of channels, chosen layer by layer."""

from __future__ import annotations

from gemma_export.calibration.channels import (
    ACTIVATION_AWARE,
    SMOOTHING,
    ChannelScales,
    Method,
    measure_channel_scales,
)
from gemma_export.calibration.text import calibration_batches

__all__ = ["ACTIVATION_AWARE", "SMOOTHING", "ChannelScales", "Method", "calibration_batches", "measure_channel_scales"]
