"""The checkpoints that defects need compute what the built-in one computes, by other numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from observed import observe, residual_stream, token_ids
from tolerances import FP16_MEAN_KL, FP32_MEAN_KL

from gemma_runtime import read_manifest
from gemma_validation import measure_drift
from gemma_validation.mutations.checkpoints import GROWTH, ODD_HIDDEN_SIZE

Make = Callable[[str], object]


def test_odd_width_is_the_same_function(sound: Make) -> None:
    assert math.isqrt(ODD_HIDDEN_SIZE) ** 2 != ODD_HIDDEN_SIZE
    plain, odd = sound("fp32").folder, sound("fp32 odd").folder
    ids = token_ids(plain)
    assert next(iter(residual_stream(odd, ids).values())).shape[-1] == ODD_HIDDEN_SIZE
    assert measure_drift(observe(plain, "text", ids), observe(odd, "text", ids)).mean_kl <= FP32_MEAN_KL


def test_grown_leaves_float16_and_is_held_by_the_rescaling(sound: Make) -> None:
    plain, grown = sound("fp32").folder, sound("fp16 grown").folder
    ids = token_ids(plain)
    shift = read_manifest(grown).precision.options["residual_scale"]["shift"]
    peak = max(float(np.abs(point.astype(np.float32)).max()) for point in residual_stream(grown, ids).values())
    assert peak <= 65504 < peak * 2.0**shift
    assert peak * 2.0**shift > GROWTH * 10
    assert measure_drift(observe(plain, "text", ids), observe(grown, "text", ids)).mean_kl <= FP16_MEAN_KL
