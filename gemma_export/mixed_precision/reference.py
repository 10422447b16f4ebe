"""The true mean KL of a whole configuration: float32 torch over quantised weights against float32 torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from gemma_export.layerwise import LayerStack, LayerwiseRun, row_blocks
from gemma_export.mixed_precision.divergence import StreamedKL
from gemma_export.mixed_precision.weights import ExportedWeights
from gemma_export.precision import Precision
from gemma_export.precision.activations import round_activations
from gemma_export.progress import Progress
from gemma_export.weights import Weight

__all__ = ["Reference"]


class Reference:
    """The model in float32 on some text, and how far precisions are from it.

    Memory: one layer in float32, two blocks of the head, the final hidden states of the text.

    Args:
        stack: the architecture.
        weights: of the exported model.
        batches: token ids, int64 [batch_size, sequence_length] each.
        rounds_activations: whether the target's products round activations to 8 bits too.
        progress: told of the weights' bytes.
    """

    def __init__(
        self,
        stack: LayerStack,
        weights: ExportedWeights,
        batches: tuple[torch.Tensor, ...],
        *,
        rounds_activations: bool,
        progress: Progress | None = None,
    ) -> None:
        self.stack, self.weights, self.batches = stack, weights, batches
        self.rounds_activations, self._progress = rounds_activations, progress
        # precisions measured so far
        self.runs = 0
        # for computations of this size: all of torch's threads, or one where they would wait more than work
        self.threads: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        self._final = self._states(weights.plain, None, "running the reference")

    @property
    def positions(self) -> int:
        """How many the mean is over."""
        return sum(batch.numel() for batch in self.batches)

    def mean_kl(self, precision: Precision) -> float:
        """Mean over all positions of KL(reference || precision), nats, full vocabulary."""
        self.runs += 1

        def weights(name: str) -> Weight:
            return self.weights.quantised(name, precision)

        final = self._states(weights, precision, f"measuring KL, run {self.runs}")
        layout = self.weights.layout(self.stack.head, precision)
        if self.rounds_activations and layout is not None:
            final = round_activations(final, layout.block_size)
        streamed = StreamedKL(len(final), 1, self.stack.final_softcap)
        plain, quantised = row_blocks(self.weights.plain(self.stack.head)), row_blocks(weights(self.stack.head))
        with torch.no_grad(), self.threads():
            for (_, rows), (_, changed) in zip(plain, quantised, strict=True):
                streamed.reference(self._final @ rows.T)
                streamed.model(0, final @ changed.T)
        return streamed.means()[0]

    def _states(self, weights: Callable[[str], Weight], precision: Precision | None, label: str) -> torch.Tensor:
        """What reaches the head, float32 [positions, hidden_size]."""
        run = LayerwiseRun(self.stack, weights, self.batches, progress=self._progress, label=label)
        with contextlib.closing(run.layers()) as layers:
            for layer in layers:
                with self._rounding(layer.module, layer.index, precision):
                    layer.advance()
        run.normalise()
        final = torch.cat([run.hidden[batch].flatten(0, 1) for batch in range(len(run.hidden))])
        run.hidden.close()
        self.threads = run.threads
        return final

    @contextlib.contextmanager
    def _rounding(self, module: torch.nn.Module, index: int, precision: Precision | None) -> Iterator[None]:
        """Rounds what enters each quantised projection, where the target does."""
        handles = []
        for path, part in module.named_modules():
            if precision is None or not self.rounds_activations or getattr(part, "weight", None) is None:
                continue
            layout = self.weights.layout(self.stack.layer_weight(index, f"{path}.weight"), precision)
            if layout is not None:
                handles.append(part.register_forward_pre_hook(_rounded(layout.block_size)))
        try:
            yield
        finally:
            # the stack's modules outlive the run
            for handle in handles:
                handle.remove()


def _rounded(block_size: int) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    return lambda module, inputs: (round_activations(inputs[0], block_size), *inputs[1:])
