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

# Sequences that --max-kl measures on: each position costs two products with the whole vocabulary in every run.
_MEASURED_SEQUENCES = 16


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
) -> Sequences | None:
    """The calibration text in tokens, where something takes one.

    Args:
        path: of the text, None for the built-in one.
        scheme: layouts and quantisers; None for floating-point weights.
        stored: name and shape of every tensor of the data file.
        checkpoint: has the tokenizer.
        spec: the architecture.
        measures: whether mean KL is measured to choose a mixed precision; without `path` on texts of its own.

    Raises:
        UsageError: nothing takes the text.
        MissingResourceError, ConfigError, InputError: the text or the tokenizer cannot be used.
    """
    if needs_calibration(scheme, stored):
        return token_sequences(read_calibration(path), checkpoint, spec)
    if path is None:
        return None
    if measures:
        return token_sequences(read_calibration(path), checkpoint, spec, most=_MEASURED_SEQUENCES)
    raise UsageError(
        f"--calibration {path} is given, and no matrix is quantised by it",
        hint="Add --quantizer gptq or --max-kl, or leave --calibration out.",
    )
