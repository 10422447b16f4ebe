"""Quantises a model layer by layer, each layer by what the quantised ones before it give.

Inside a layer too: projections that share an input are quantised together, then the next ones see what they now give.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from gemma_export.calibration.placement import Placement
from gemma_export.layerwise import HiddenStates, LayerStack, LayerwiseRun, LoadedLayer, Tap
from gemma_export.precision.block_codes import BlockCodes, dequantise, require_finite_scales
from gemma_export.precision.block_weight import DequantisedWeight
from gemma_export.precision.code_store import CalibratedWeight, CodeStore
from gemma_export.precision.gptq import Feedback, Gram, gptq
from gemma_export.precision.quantised_weight import QuantisedWeight
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.row_pieces import row_pieces
from gemma_export.progress import Progress
from gemma_export.weights import Weight

__all__ = ["CalibratedWeights", "quantise_by_layer"]

# weights that are quantised at a time, in float32 with their codes and what they wait for: 400 MiB
_PIECE = 1 << 24


class CalibratedWeights:
    """The matrices that calibration quantised.

    Args:
        store: their codes, by tensor of the model.
        placements: by initializer.
        scale_dtype: of the scales.
    """

    def __init__(self, store: CodeStore, placements: Mapping[str, Placement], scale_dtype: torch.dtype) -> None:
        self.store, self._placements, self._scale_dtype = store, placements, scale_dtype

    def __call__(self, name: str) -> CalibratedWeight | None:
        """A matrix by its initializer; None for one that is quantised while it is written."""
        placement = self._placements.get(name)
        tensors = [] if placement is None else [tensor for tensor, _ in placement.parts]
        if placement is None or not all(tensor in self.store for tensor in tensors):
            return None
        return CalibratedWeight(self.store, tensors, name, placement.shape, placement.layout, self._scale_dtype)


def quantise_by_layer(
    stack: LayerStack,
    weights: Callable[[str], Weight],
    sequences: Sequence[Sequence[int]],
    placements: Mapping[str, Placement],
    *,
    scale_dtype: torch.dtype,
    directory: Path,
    progress: Progress | None = None,
) -> CalibratedWeights:
    """Quantises every matrix that a calibrated quantiser is chosen for.

    Args:
        stack: the architecture.
        weights: name -> lazy float32 weight.
        sequences: token ids of the calibration text, BOS first.
        placements: where the graph stores its matrices.
        scale_dtype: of the scales.
        directory: for codes, and hidden states that do not fit in memory.
        progress: told of the weights' bytes.

    Memory: one layer in float32, second moments of its widest projection, hidden states.

    Raises:
        NonFiniteError: a weight or activation is not finite.
        ResourceExhaustedError: the disk is full.
    """
    work = _Work(placements, scale_dtype, CodeStore(directory))
    table = work.by_tensor.get(stack.embedding)

    def rounded(name: str) -> Weight:
        if table is not None and name == stack.embedding:
            layout, rows = table[1].layout, _row_quantiser(name, table[1], scale_dtype)
            return DequantisedWeight(QuantisedWeight(weights(name), name, layout, scale_dtype, rows))
        return weights(name)

    batches = [torch.tensor([ids]) for ids in sequences]
    shapes = [(len(ids), ids.shape[1], stack.hidden_size) for ids in batches]
    hidden = HiddenStates(shapes, directory=directory)
    run = LayerwiseRun(stack, rounded, batches, hidden=hidden, progress=progress, label="calibrating")
    try:
        with contextlib.closing(run.layers()) as layers:
            for layer in layers:
                with torch.no_grad(), run.threads():
                    work.layer(stack, layer, len(batches))
        if stack.head in work.by_tensor and work.calibrated(stack.head):
            work.head(stack, run, weights(stack.head))
    finally:
        hidden.close()
    return CalibratedWeights(work.store, placements, scale_dtype)


class _Enough(Exception):  # noqa: N818
    """The rest of the layer is not needed."""


class _Work:
    """The matrices on their way into the store."""

    def __init__(self, placements: Mapping[str, Placement], scale_dtype: torch.dtype, store: CodeStore) -> None:
        self.store, self._scale_dtype = store, scale_dtype
        self.by_tensor = {
            tensor: (factor, placement) for placement in placements.values() for tensor, factor in placement.parts
        }

    def calibrated(self, tensor: str) -> bool:
        """Whether a tensor's quantiser needs the inputs of its matrix."""
        return QUANTISERS[self.by_tensor[tensor][1].quantiser].calibrated

    def layer(self, stack: LayerStack, layer: LoadedLayer, batches: int) -> None:
        """Quantises a loaded layer, in the order of its computation."""
        tensors = {
            path: name
            for path, _ in layer.module.named_modules()
            if (name := stack.layer_weight(layer.index, f"{path}.weight")) in self.by_tensor
        }
        for paths in _shared_inputs(layer, set(tensors)):
            feedback = None
            if any(self.calibrated(tensors[path]) for path in paths):
                feedback = _moments(layer, paths[0], batches).feedback(tensors[paths[0]])
            for path in paths:
                self._projection(layer.module.get_submodule(path), tensors[path], feedback)

    def _projection(self, module: torch.nn.Module, tensor: str, feedback: Feedback | None) -> None:
        """Replaces a projection's weight by what its codes mean; keeps the codes if they are calibrated."""
        factor, placement = self.by_tensor[tensor]
        weight = module.get_parameter("weight")
        calibrated = self.calibrated(tensor)
        rows = _row_quantiser(tensor, placement, self._scale_dtype)
        step = max(1, _PIECE // weight.shape[1])
        for first in range(0, len(weight), step):
            part = weight[first : first + step]
            if calibrated:
                assert feedback is not None
                codes = gptq((part.t() * factor).contiguous(), feedback, placement.layout, self._scale_dtype)
                self._keep(tensor, first, codes)
            else:
                codes = rows(part * factor)
            part.copy_(dequantise(codes, placement.layout)[:, : weight.shape[1]].div_(factor))

    def head(self, stack: LayerStack, run: LayerwiseRun, weight: Weight) -> None:
        """Quantises the head by the normalised hidden states after the last layer."""
        gram = Gram(stack.hidden_size)

        def add(tap: Tap, values: torch.Tensor) -> None:
            if tap.name == "norm.output":
                gram.add(values)

        run.normalise(add)
        factor, placement = self.by_tensor[stack.head]
        with torch.no_grad(), run.threads():
            feedback = gram.feedback(stack.head)
            first = 0
            for rows in row_pieces(weight, _PIECE):
                columns = (rows.t() * factor).contiguous()
                self._keep(stack.head, first, gptq(columns, feedback, placement.layout, self._scale_dtype))
                first += len(rows)

    def _keep(self, tensor: str, first_row: int, codes: BlockCodes) -> None:
        require_finite_scales(codes, tensor, first_row, self.by_tensor[tensor][1].layout)
        self.store.append(tensor, codes)


def _shared_inputs(layer: LoadedLayer, paths: set[str]) -> list[list[str]]:
    """Projections in the order of the computation, those that read the same value together."""
    seen: list[tuple[str, torch.Tensor]] = []

    def look(tap: Tap, values: torch.Tensor) -> None:
        if tap.name.removesuffix(".input") in paths:
            seen.append((tap.name.removesuffix(".input"), values))

    layer.forward(0, look)
    groups: list[list[str]] = []
    for number, (path, values) in enumerate(seen):
        if number and seen[number - 1][1] is values:
            groups[-1].append(path)
        else:
            groups.append([path])
    return groups


def _moments(layer: LoadedLayer, path: str, batches: int) -> Gram:
    """Second moments of a projection's inputs over all batches."""
    gram = Gram(layer.module.get_submodule(path).get_parameter("weight").shape[1])

    def look(tap: Tap, values: torch.Tensor) -> None:
        if tap.name == f"{path}.input":
            gram.add(values)
            raise _Enough

    for batch in range(batches):
        with contextlib.suppress(_Enough):
            layer.forward(batch, look)
    return gram


def _row_quantiser(tensor: str, placement: Placement, scale_dtype: torch.dtype) -> Callable[[torch.Tensor], BlockCodes]:
    return QUANTISERS[placement.quantiser].prepare(tensor, placement.layout, scale_dtype)
