"""A layerwise run on calibration text, whose hidden states may outgrow memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from gemma_export.layerwise import HiddenStates, LayerStack, LayerwiseRun
from gemma_export.progress import Progress
from gemma_export.weights import Weight

__all__ = ["calibration_run"]


@contextlib.contextmanager
def calibration_run(
    stack: LayerStack,
    weights: Callable[[str], Weight],
    sequences: Sequence[Sequence[int]],
    *,
    directory: Path,
    progress: Progress | None = None,
    label: str = "",
) -> Iterator[LayerwiseRun]:
    """A run of the calibration text, a batch for each sequence.

    Args:
        stack: the architecture.
        weights: name -> lazy float32 weight.
        sequences: token ids, BOS first.
        directory: for hidden states that do not fit in memory.
        progress: told of the weights' bytes.
        label: of the progress.

    Raises:
        ResourceExhaustedError: the disk is full.
    """
    batches = [torch.tensor([ids]) for ids in sequences]
    shapes = [(len(ids), ids.shape[1], stack.hidden_size) for ids in batches]
    with contextlib.closing(HiddenStates(shapes, directory=directory)) as hidden:
        yield LayerwiseRun(stack, weights, batches, hidden=hidden, progress=progress, label=label)
