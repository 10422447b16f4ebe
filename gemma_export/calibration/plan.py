"""Which text an export runs the model on, decided before anything runs. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gemma_export.calibration.text import Sequences, read_calibration, token_sequences
from gemma_export.checkpoint import Checkpoint
from gemma_export.config import DecoderSpec
from gemma_export.errors import UsageError
from gemma_export.precision import QUANTISERS, WeightScheme
from gemma_export.precision.block_format import BlockFormat

__all__ = ["needs_calibration", "plan_calibration"]

# Sequences where no quantiser needs more. --max-kl pays for two products with the whole vocabulary at each position in
# every run. A cache's scales are as good from 16 as from 40 (CONTRIBUTING.md).
_FEW_SEQUENCES = 16
_CALIBRATED = frozenset(name for name, quantiser in QUANTISERS.items() if quantiser.calibrated)


def needs_calibration(scheme: WeightScheme | None, stored: Iterable[tuple[str, tuple[int, ...]]]) -> bool:
    """Whether a quantiser of some matrix runs the model.

    Args:
        scheme: layouts and quantisers; None for floating-point weights.
        stored: name and shape of every tensor of the data file.
    """
    return scheme is not None and any(
        scheme.quantiser_of(name) in _CALIBRATED
        for name, shape in stored
        if isinstance(scheme.format_of(name, shape), BlockFormat)
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
        measures: whether a mixed precision is chosen by measured KL.

    Raises:
        UsageError: nothing takes the text, or the context has no room for any.
        MissingResourceError, ConfigError, InputError: the text or the tokenizer cannot be used.
    """
    quantises = needs_calibration(scheme, stored)
    scales = scheme is not None and scheme.calibrates(checkpoint.kind)
    if spec.max_position_embeddings < 2 and (quantises or scales or measures or cache):
        raise UsageError(
            f"a context of {spec.max_position_embeddings} token has room for BOS alone: there is no text to run the "
            "model on",
            hint="Give --context 2 or more, or leave out --quantizer gptq, --activation-aware, --kv-cache and "
            "--max-kl; with --int8-dynamic add --no-smoothing.",
        )
    if quantises:
        return token_sequences(read_calibration(path), checkpoint, spec)
    if cache or (path is not None and (measures or scales)):
        return token_sequences(read_calibration(path), checkpoint, spec, most=_FEW_SEQUENCES)
    if path is None:
        # channels and KL have built-in texts of their own
        return None
    raise UsageError(
        f"--calibration {path} is given, and nothing here runs the model on it",
        hint="Add --quantizer gptq, --activation-aware, --int8-dynamic, --kv-cache int8 or --max-kl, or leave it out.",
    )
