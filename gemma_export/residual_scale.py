"""`--residual-scale`: by which power of two the residual stream is scaled down. Torch-free.

float16 ends at 65504; the stream of a Gemma grows past it. The rescaling itself is `passes.RescaleResidual`.
"""

from __future__ import annotations

import dataclasses
import math

from gemma_export.errors import NonFiniteError, UsageError

__all__ = ["FLOAT16_MAX", "HEADROOM_BITS", "MAX_SHIFT", "ResidualScale", "choose_residual_scale", "shift_for_peak"]

FLOAT16_MAX = 65504.0
# kept free above the largest value seen: other prompts reach further than the probes
HEADROOM_BITS = 2
# Covers peaks to 10^6. Measured on a trained model, surplus bits cost next to nothing: small values of the stream, and
# weights that become subnormal, lose bits that the large values beside them drown anyway.
_DEFAULT_SHIFT = 6
# 2^16 covers peaks to 10^9. Beyond it the embedding's factor sqrt(hidden_size) * 2^-k would be a subnormal float16
# number for hidden sizes below 256, and so would nearly every projection that writes to the stream.
MAX_SHIFT = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualScale:
    """The residual stream is multiplied by 2^-shift."""

    # the option as it was given: "auto", "measure", "off" or a number
    option: str
    # None: to be measured
    shift: int | None
    # why this shift, for the manifest and for people
    reason: str


def choose_residual_scale(
    option: str,
    *,
    activation_dtype: str,
    variant: str | None,
    source_kind: str,
    merged: bool = False,
) -> ResidualScale:
    """What the option means for a model and a precision.

    Args:
        option: "auto", "measure", "off" or a number.
        activation_dtype: of the precision; only float16 needs the rescaling.
        variant: name of the released model, if it is one.
        source_kind: the checkpoint's kind: synthetic, builtin, local, ...
        merged: an adapter changes the weights: what is known of the model without it says nothing of the stream.

    Raises:
        UsageError: the option is none of these, out of range, or asks for what the precision does not need.
    """
    fixed = _number(option)
    if activation_dtype != "float16":
        if option == "measure" or fixed:
            raise UsageError(
                f"--residual-scale {option} is for float16 activations, this precision's are {activation_dtype}",
                hint=f"Leave it out: {activation_dtype} holds any residual stream as it is.",
            )
        return ResidualScale(option=option, shift=0, reason=f"{activation_dtype} activations")
    if option == "off":
        return ResidualScale(option=option, shift=0, reason="off")
    if fixed is not None:
        return ResidualScale(option=option, shift=fixed, reason="given")
    known = not merged and (variant is not None or source_kind in ("synthetic", "builtin"))
    if option == "measure" or not known:
        return ResidualScale(option=option, shift=None, reason="measured")
    reason = f"variant {variant}" if variant is not None else f"{source_kind} weights"
    return ResidualScale(option=option, shift=_DEFAULT_SHIFT, reason=reason)


def shift_for_peak(peak: float) -> int:
    """The smallest k for which peak * 2^-k leaves the headroom below float16's largest number.

    Raises:
        NonFiniteError: no k up to MAX_SHIFT does.
    """
    shift = max(0, math.ceil(math.log2(max(peak, 1.0) / FLOAT16_MAX)) + HEADROOM_BITS)
    # the logarithm may round the wrong way next to a power of two
    while shift > 0 and peak * 2.0 ** (HEADROOM_BITS - shift + 1) <= FLOAT16_MAX:
        shift -= 1
    while peak * 2.0 ** (HEADROOM_BITS - shift) > FLOAT16_MAX:
        shift += 1
    if shift > MAX_SHIFT:
        raise NonFiniteError(
            f"the residual stream peaks at {peak:g}: float16 would need it scaled by 2^-{shift}, "
            f"expected at most 2^-{MAX_SHIFT}",
            hint="Export with --fp32: this checkpoint's activations exceed what float16 can be made to hold.",
        )
    return shift


def _number(option: str) -> int | None:
    if option in ("auto", "measure", "off"):
        return None
    if option.isascii() and option.isdigit() and int(option) <= MAX_SHIFT:
        return int(option)
    raise UsageError(
        f"--residual-scale must be auto, measure, off or a number from 0 to {MAX_SHIFT}, found {option!r}",
        hint="The number K scales the residual stream by 2^-K. The default, auto, is right unless you know better.",
    )
