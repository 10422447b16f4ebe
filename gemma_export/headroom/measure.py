"""Runs the float32 reference on probe prompts, layer by layer, and finds the smallest sufficient rescaling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from gemma_export.checkpoint import Checkpoint
from gemma_export.config import DecoderSpec
from gemma_export.families import Family
from gemma_export.headroom.probes import probes_for
from gemma_export.headroom.report import Headroom, Peak
from gemma_export.headroom.weight_ranges import WeightRanges
from gemma_export.layerwise import LayerwiseRun, Tap, reference_stack, require_finite
from gemma_export.progress import Progress
from gemma_export.residual_scale import shift_for_peak
from gemma_export.weights import Weight

__all__ = ["measure_headroom"]

# inputs of modules that no module outputs: the attention's output and gelu(gate) * up
_INPUTS = frozenset({"self_attn.o_proj.input", "mlp.down_proj.input"})


def measure_headroom(
    checkpoint: Checkpoint,
    family: Family,
    spec: DecoderSpec,
    weights: Callable[[str], Weight],
    progress: Progress | None = None,
    *,
    is_float: Callable[[str], bool] = lambda name: True,
) -> Headroom:
    """Peaks of every activation and weight, and the smallest shift that leaves the stream two bits of headroom.

    Args:
        checkpoint: has the tokenizer of the probes.
        family, spec: the architecture.
        weights: name -> lazy float32 weight of the model that is exported, adapter included.
        progress: told of the weights' bytes.
        is_float: whether a weight is stored as float16: the range of another says nothing of what is stored.

    Memory: one layer in float32 and the activations of the longest probe.

    Raises:
        NonFiniteError: an activation or weight is NaN or infinite in float32, or no shift suffices.
        MissingResourceError, ConfigError: the tokenizer cannot be used.
        CheckpointError: a weight cannot be read.
    """
    probes = probes_for(checkpoint, spec)
    ranges = WeightRanges(weights, is_gain=lambda name: name.endswith("norm.weight"), is_float=is_float)
    batches = [torch.tensor([probe.token_ids]) for probe in probes]
    stack = reference_stack(family, spec, positions=max(len(probe.token_ids) for probe in probes))
    run = LayerwiseRun(stack, ranges.weight, batches, progress=progress, label="measuring headroom")
    peaks = _Peaks()
    run.through(peaks)
    with contextlib.closing(run.head(peaks)) as blocks:
        for _ in blocks:
            pass
    found = peaks.found()
    shift = shift_for_peak(max(peak.value for peak in found.values() if peak.scaled))
    return Headroom(
        shift=shift,
        probes={probe.name: len(probe.token_ids) for probe in probes},
        peaks=found,
        weights=ranges.ranges({f"{module}.weight" for module in peaks.writers}, shift),
    )


class _Peaks:
    """An observer that keeps the largest |value| of each tap over layers and batches."""

    def __init__(self) -> None:
        # modules whose output is added to the stream, without their layer
        self.writers: set[str] = set()
        self._peaks: dict[str, tuple[float, int | None]] = {}
        self._last_output: tuple[str, torch.Tensor | None] = ("", None)

    def __call__(self, tap: Tap, tensor: torch.Tensor) -> None:
        if tap.name.endswith(".input") and tap.name not in _INPUTS:
            return
        if tap.name.endswith(".output"):
            self._last_output = (tap.name, tensor)
        elif tap.name.endswith(".branch") and self._last_output[1] is tensor:
            # the branch is this module's output: the same values, and scaled
            self.writers.add(self._last_output[0].removesuffix(".output"))
        low, high = torch.stack(torch.aminmax(tensor)).tolist()
        peak = max(-low, high)
        if not low - low == high - high == 0:
            require_finite(tap, tensor)
        if tap.name not in self._peaks or peak > self._peaks[tap.name][0]:
            self._peaks[tap.name] = (peak, tap.layer)

    def found(self) -> dict[str, Peak]:
        """Peaks by tap, in the order of the computation."""
        return {
            name: Peak(value=value, layer=layer, scaled=_is_stream(name))
            for name, (value, layer) in self._peaks.items()
            if name.removesuffix(".output") not in self.writers
        }


def _is_stream(name: str) -> bool:
    """The stream itself, and what is added to it."""
    return name == "embedding" or name.endswith(("_residual", ".branch"))
