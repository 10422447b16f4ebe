"""Quantises a model layer by layer, each layer by what the quantised ones before it give and the reference's give.

Inside a layer too: projections that share an input are quantised together, then the next ones see what they now give.
A tied table of few bits comes first, by the reference's last hidden states: layers see the embedding they will get.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from gemma_export.calibration.placement import Placement
from gemma_export.calibration.runs import calibration_run
from gemma_export.layerwise import LayerStack, LayerwiseRun, LoadedLayer, Tap
from gemma_export.precision.block_codes import BlockCodes, dequantise, require_finite_scales
from gemma_export.precision.block_weight import BlockWeight, DequantisedWeight
from gemma_export.precision.code_store import CalibratedWeight, CodeStore
from gemma_export.precision.gptq import gptq
from gemma_export.precision.quantised_weight import QuantisedWeight
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.row_pieces import row_pieces
from gemma_export.precision.second_moments import Asymmetry, Gram
from gemma_export.progress import Progress
from gemma_export.weights import Scale, Weight

__all__ = ["CalibratedWeights", "quantise_by_layer"]

# weights that are quantised at a time: 16 MiB of float32, and as much several times over for what they are rounded by
_PIECE = 1 << 22
# Bits of a tied table from which on its rounding no longer matters to the layers, and the most sequences, spread over
# the text, that one of fewer bits is quantised by: half of the built-in text gave the KL of the whole on two models.
_EXACT_BITS, _TABLE_SEQUENCES = 8, 32


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
    new_stack: Callable[[], LayerStack],
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
        new_stack: the architecture, for each run anew: a stack's modules hold one run's weights.
        weights: name -> lazy float32 weight.
        sequences: token ids of the calibration text, BOS first.
        placements: where the graph stores its matrices.
        scale_dtype: of the scales.
        directory: for codes, and hidden states that do not fit in memory.
        progress: told of the weights' bytes.

    Memory: one layer in float32, as it is quantised and as it was; half the second moments of its widest projection,
    and as much as that projection for what its rows make up for; hidden states of both.

    Raises:
        NonFiniteError: a weight or activation is not finite.
        ResourceExhaustedError: the disk is full.
    """
    stack = new_stack()
    work = _Work(placements, scale_dtype, CodeStore(directory))
    head = stack.head in work.by_tensor and work.calibrated(stack.head)
    table_first = head and stack.head == stack.embedding and work.by_tensor[stack.head][1].layout.bits < _EXACT_BITS
    if table_first:
        some = sequences[:: -(-len(sequences) // _TABLE_SEQUENCES)]
        label = "calibrating the table"
        with calibration_run(new_stack(), weights, some, directory=directory, progress=progress, label=label) as run:
            run.through()
            work.head(run, weights(stack.head))
    embedded, label = work.embedded(stack, weights), "calibrating"
    with (
        calibration_run(stack, embedded, sequences, directory=directory, progress=progress, label=label) as run,
        calibration_run(new_stack(), weights, sequences, directory=directory) as reference,
        contextlib.closing(run.layers()) as layers,
        contextlib.closing(reference.layers()) as originals,
    ):
        for layer, original in zip(layers, originals, strict=True):
            with torch.no_grad(), run.threads():
                work.layer(stack, layer, original, len(sequences))
        if head and not table_first:
            work.head(run, weights(stack.head))
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

    def embedded(self, stack: LayerStack, weights: Callable[[str], Weight]) -> Callable[[str], Weight]:
        """The weights, the embedding as it is quantised or will be."""
        name = stack.embedding
        if name not in self.by_tensor:
            return weights
        factor, placement = self.by_tensor[name]
        table, layout = weights(name), placement.layout
        rounded: BlockWeight
        if name in self.store:
            rounded = CalibratedWeight(self.store, [name], name, table.shape, layout, self._scale_dtype)
        else:
            rows = _row_quantiser(name, placement, self._scale_dtype)
            rounded = QuantisedWeight(Scale(table, factor), name, layout, self._scale_dtype, rows)
        embedding = Scale(DequantisedWeight(rounded), 1 / factor)
        return lambda other: embedding if other == name else weights(other)

    def layer(self, stack: LayerStack, layer: LoadedLayer, original: LoadedLayer, batches: int) -> None:
        """Quantises a loaded layer, in the order of its computation.

        Args:
            stack: the architecture.
            layer: behind quantised ones.
            original: the same layer of the reference; not changed, perhaps advanced.
            batches: of both.
        """
        tensors = {
            path: name
            for path, _ in layer.module.named_modules()
            if (name := stack.layer_weight(layer.index, f"{path}.weight")) in self.by_tensor
        }
        groups = _shared_inputs(layer, set(tensors))
        for paths in groups:
            calibrated = {path: tensors[path] for path in paths if self.calibrated(tensors[path])}
            for path in paths:
                if path not in calibrated:
                    self._round(layer.module.get_submodule(path), tensors[path])
            if calibrated:
                self._calibrate(layer, original, calibrated, batches, last=paths is groups[-1])

    def _calibrate(
        self, layer: LoadedLayer, original: LoadedLayer, tensors: Mapping[str, str], batches: int, *, last: bool
    ) -> None:
        """Replaces weights of projections that share an input by what their codes mean, and keeps these: `_moments`."""
        gram, asymmetries = _moments(layer, original, tensors, batches, last=last)
        feedback = gram.feedback(next(iter(tensors.values())))
        for path, tensor in tensors.items():
            factor, placement = self.by_tensor[tensor]
            asymmetry = asymmetries.pop(path)
            for first, part in _pieces(layer.module.get_submodule(path)):
                pull = feedback.pull(asymmetry.moments(first, first + len(part)) * factor)
                columns = (part.t() * factor).contiguous()
                codes = gptq(columns, feedback, placement.layout, self._scale_dtype, pull)
                self._keep(tensor, first, codes)
                _replace(part, codes, placement, factor)

    def _round(self, module: torch.nn.Module, tensor: str) -> None:
        """Replaces a projection's weight by what another quantiser's codes mean."""
        factor, placement = self.by_tensor[tensor]
        rows = _row_quantiser(tensor, placement, self._scale_dtype)
        for _, part in _pieces(module):
            _replace(part, rows(part * factor), placement, factor)

    def head(self, run: LayerwiseRun, weight: Weight) -> None:
        """Quantises the head by the normalised hidden states after the last layer."""
        name = run.stack.head
        gram = Gram(run.stack.hidden_size)

        def add(tap: Tap, values: torch.Tensor) -> None:
            if tap.name == "norm.output":
                gram.add(values)

        run.normalise(add)
        factor, placement = self.by_tensor[name]
        with torch.no_grad(), run.threads():
            feedback = gram.feedback(name)
            first = 0
            for rows in row_pieces(weight, _PIECE):
                columns = (rows.t() * factor).contiguous()
                self._keep(name, first, gptq(columns, feedback, placement.layout, self._scale_dtype))
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


def _moments(
    layer: LoadedLayer, original: LoadedLayer, tensors: Mapping[str, str], batches: int, *, last: bool
) -> tuple[Gram, dict[str, Asymmetry]]:
    """Second moments of the input that projections share, and how it differs from the reference's, over all batches.

    Args:
        layer, original: the quantised model's and the reference's.
        tensors: the projections, within the layer and in the model.
        batches: of both.
        last: whether the reference's layer is not needed again, and advances.
    """
    weights = {path: layer.module.get_submodule(path).get_parameter("weight") for path in tensors}
    path, weight = next(iter(weights.items()))
    gram = Gram(weight.shape[1])
    asymmetries = {path: Asymmetry(tensors[path], weight) for path, weight in weights.items()}

    def add(batch: int, expected: torch.Tensor) -> None:
        inputs = _input(layer, path, batch)
        gram.add(inputs)
        for asymmetry in asymmetries.values():
            asymmetry.add(expected, inputs)

    def look(tap: Tap, values: torch.Tensor) -> None:
        if tap.name == f"{path}.input":
            add(tap.batch, values)

    if last:
        original.advance(look)
    else:
        for batch in range(batches):
            add(batch, _input(original, path, batch))
    return gram, asymmetries


def _input(layer: LoadedLayer, path: str, batch: int) -> torch.Tensor:
    """What reaches a projection; the layer runs no further."""
    seen: list[torch.Tensor] = []

    def look(tap: Tap, values: torch.Tensor) -> None:
        if tap.name == f"{path}.input":
            # nothing runs behind it that could change it
            seen.append(values)
            raise _Enough

    with contextlib.suppress(_Enough):
        layer.forward(batch, look)
    return seen[0]


def _pieces(module: torch.nn.Module) -> Iterator[tuple[int, torch.Tensor]]:
    """First row and rows of a projection's weight that are quantised together."""
    weight = module.get_parameter("weight")
    step = max(1, _PIECE // weight.shape[1])
    for first in range(0, len(weight), step):
        yield first, weight[first : first + step]


def _replace(part: torch.Tensor, codes: BlockCodes, placement: Placement, factor: float) -> None:
    part.copy_(dequantise(codes, placement.layout)[:, : part.shape[1]].div_(factor))


def _row_quantiser(tensor: str, placement: Placement, scale_dtype: torch.dtype) -> Callable[[torch.Tensor], BlockCodes]:
    return QUANTISERS[placement.quantiser].prepare(tensor, placement.layout, scale_dtype)
