"""Which text an export runs the model on, decided before anything runs. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gemma_export.calibration.text import Sequences, read_calibration, token_sequences
from gemma_export.checkpoint import Checkpoint
from gemma_export.config import DecoderSpec
from gemma_export.errors import UsageError
from gemma_export.precision import QUANTISERS, WeightScheme

__all__ = ["needs_calibration", "plan_calibration"]

# Sequences where no quantiser needs more. --max-kl pays for two products with the whole vocabulary at each position in
# every run. A cache's scales are as good from 16 as from 40 (CONTRIBUTING.md).
_FEW_SEQUENCES = 16


def needs_calibration(scheme: WeightScheme | None, stored: Iterable[tuple[str, tuple[int, ...]]]) -> bool:
    """Whether a quantiser of some matrix runs the model.

    Args:
        scheme: layouts and quantisers; None for floating-point weights.
        stored: name and shape of every tensor of the data file.
    """
    return scheme is not None and any(
        QUANTISERS[scheme.quantiser_of(name)].calibrated for name, shape in stored if scheme.format_of(name, shape)
    )


def plan_calibration(
    path: Path | None,
    scheme: WeightScheme | None,
    stored: Iterable[tuple[str, tuple[int, ...]]],
    checkpoint: Checkpoint,
    spec: DecoderSpec,
    *,
    measures: bool,
    cache: bool,
) -> Sequences | None:
    """The calibration text in tokens, where something takes one.

    Args:
        path: of the text, None for the built-in one.
        scheme: layouts and quantisers; None for floating-point weights.
        stored: name and shape of every tensor of the data file.
        checkpoint: has the tokenizer.
        spec: the architecture.
        cache: whether keys and values are stored in integers, whose scales are calibrated.
        measures: whether mean KL is measured to choose a mixed precision; without `path` on texts of its own.

    Raises:
        UsageError: nothing takes the text.
        MissingResourceError, ConfigError, InputError: the text or the tokenizer cannot be used.
    """
    if needs_calibration(scheme, stored):
        return token_sequences(read_calibration(path), checkpoint, spec)
    if cache or (measures and path is not None):
        return token_sequences(read_calibration(path), checkpoint, spec, most=_FEW_SEQUENCES)
    if path is None:
        return None
    raise UsageError(
        f"--calibration {path} is given, and no matrix is quantised by it",
        hint="Add --quantizer gptq, --kv-cache int8 or --max-kl, or leave --calibration out.",
    )
