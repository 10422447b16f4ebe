"""The search: both ends, the cost of each matrix, then true runs until the fewest bytes are found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gemma_export.artifact import plan_data
from gemma_export.config import DecoderSpec
from gemma_export.errors import DriftError
from gemma_export.families import Family
from gemma_export.layerwise import reference_stack
from gemma_export.mixed_precision.candidates import Matrix, largest_scheme, matrices_of, with_rules, with_scheme
from gemma_export.mixed_precision.curve import Step, interpolated, search, steps
from gemma_export.mixed_precision.reference import Reference
from gemma_export.mixed_precision.report import MixedPrecision, Point
from gemma_export.mixed_precision.sensitivity import sweep
from gemma_export.mixed_precision.weights import ExportedWeights
from gemma_export.precision import Precision, WeightScheme
from gemma_export.progress import Progress
from gemma_export.weights import Weight

__all__ = ["choose_mixed_precision", "reference_for"]

Stored = Sequence[tuple[str, tuple[int, ...]]]


def choose_mixed_precision(
    reference: Reference,
    precision: Precision,
    stored: Stored,
    max_kl: float,
    *,
    directory: Path,
    progress: Progress | None = None,
) -> MixedPrecision:
    """The fewest bytes, among those that greedy steps pass through, whose measured mean KL is at most `max_kl`.

    Args:
        reference: the model and the text.
        precision: with the scheme to start from.
        stored: name and shape of every tensor of the data file.
        max_kl: nats.
        directory: for hidden states that do not fit in memory.
        progress: told of the weights' bytes.

    Raises:
        DriftError: the bound is missed with every matrix at its most bytes.
    """
    scheme = precision.scheme
    assert scheme is not None
    matrices = matrices_of(precision, stored)
    measured = {0: reference.mean_kl(precision)}
    ordered: tuple[Step, ...] = ()
    sums, taken = [0.0], 0
    if measured[0] > max_kl:
        most = with_scheme(precision, largest_scheme(precision, stored))
        best = reference.mean_kl(most) if matrices else measured[0]
        if best > max_kl:
            raise _missed(best, max_kl, _data_bytes(most, stored))
        costs = sweep(reference, precision, matrices, directory=directory, progress=progress)
        ordered = steps(matrices, costs)
        total = sum(costs[matrix.name][0] for matrix in matrices)
        sums = [total, *(total - saved for saved in itertools.accumulate(step.saves for step in ordered))]
        measured[len(ordered)] = best
    configurations = [_configured(scheme, matrices, ordered[:count]) for count in range(len(ordered) + 1)]
    nbytes = [_data_bytes(with_scheme(precision, configuration), stored) for configuration in configurations]
    if ordered:
        taken = search(
            sums,
            nbytes,
            measured,
            max_kl,
            lambda count: reference.mean_kl(with_scheme(precision, configurations[count])),
        )
    return MixedPrecision(
        max_kl=max_kl,
        kl=measured[taken],
        scheme=configurations[taken],
        taken=taken,
        curve=_curve(ordered, sums, nbytes, measured),
        positions=reference.positions,
        runs=reference.runs,
        rounds_activations=reference.rounds_activations,
        tensors=_tensors(configurations[taken], stored),
    )


def reference_for(
    family: Family,
    spec: DecoderSpec,
    weights: Callable[[str], Weight],
    stored: Stored,
    batches: tuple[torch.Tensor, ...],
    *,
    factors: Mapping[str, float],
    rounds_activations: bool,
    progress: Progress | None = None,
) -> Reference:
    """The model in float32 on some text.

    Args:
        family, spec: the architecture.
        weights: name -> lazy float32 weight of the exported model, adapter included.
        stored: name and shape of every tensor of the data file.
        batches: token ids, int64 [batch_size, sequence_length] each.
        factors: what the rescaled stream multiplies tensors by.
        rounds_activations: whether the target's products round activations to 8 bits.
        progress: told of the weights' bytes.

    Raises:
        NonFiniteError: a weight or a hidden state is not finite.
    """
    stack = reference_stack(family, spec, positions=max(batch.shape[1] for batch in batches))
    exported = ExportedWeights(weights, [name for name, _ in stored], factors)
    return Reference(stack, exported, batches, rounds_activations=rounds_activations, progress=progress)


def _configured(scheme: WeightScheme, matrices: Sequence[Matrix], taken: Sequence[Step]) -> WeightScheme:
    """The scheme after some steps: each matrix at its last one, in the data file's order."""
    last = {step.matrix: step.choice.rule for step in taken}
    return with_rules(scheme, [last.get(matrix.name) for matrix in matrices])


def _data_bytes(precision: Precision, stored: Stored) -> int:
    """Exact size of the data file."""
    return plan_data([precision.stored(name, shape) for name, shape in stored]).size


def _curve(
    ordered: Sequence[Step], sums: Sequence[float], nbytes: Sequence[int], measured: Mapping[int, float]
) -> tuple[Point, ...]:
    return tuple(
        Point(
            nbytes=size,
            estimated=interpolated(sums, measured, index),
            measured=measured.get(index),
            matrix=ordered[index - 1].matrix if index else None,
            change=str(ordered[index - 1].choice) if index else None,
        )
        for index, size in enumerate(nbytes)
    )


def _tensors(scheme: WeightScheme, stored: Stored) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, shape in stored:
        layout = scheme.block_format_of(name, shape)
        if layout is not None:
            found[name] = {
                "bits": layout.bits,
                "block_size": layout.block_size,
                "symmetric": layout.symmetric,
                "quantizer": scheme.quantiser_of(name),
            }
        elif scheme.covers(name, shape):
            found[name] = {"bits": "float"}
    return found


def _missed(best: float, max_kl: float, nbytes: int) -> DriftError:
    return DriftError(
        f"mean KL is {best:.3g} with the most bytes for every tensor ({nbytes / 1e6:,.1f} MB of weights), "
        f"expected at most {max_kl:g}; nothing was written",
        hint=f"Allow --max-kl {best * 1.05:.2g}, or export with --fp16: integer weights come no nearer here.",
    )
