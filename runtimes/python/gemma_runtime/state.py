"""Decoder state between steps: buffers written in place, or tensors that grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gemma_runtime.element_types import ELEMENT_TYPES, ElementType
from gemma_runtime.manifest import Graph, State

__all__ = ["Buffer", "DecoderState", "GrowingState", "InPlaceState", "make_state"]


class Buffer:
    """Zeros of one element type on one device, bound by what the binding understands.

    Args:
        onnxruntime: the module.
        shape: of the tensor.
        element: its type.
        device: onnxruntime's device name.
    """

    def __init__(self, onnxruntime: Any, shape: Sequence[int], element: ElementType, device: str) -> None:
        self.shape, self.element, self.device = tuple(shape), element, device
        # zeros: a kernel may read a whole block of a buffer, and 0 * NaN is NaN
        zeros = np.zeros(self.shape, element.storage)
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, device, 0)
        # on the CPU the value may lie in numpy's own memory
        self._memory = zeros if device == "cpu" else None

    def bind_input(self, binding: Any, name: str) -> None:
        """Binds the buffer as a graph input."""
        if self.element.is_numpy:
            binding.bind_ortvalue_input(name, self._value)
        else:
            # the bits lie in a uint16 tensor: only a pointer can be bound under their true type
            binding.bind_input(name, self.device, 0, self.element.onnx, self.shape, self._value.data_ptr())

    def bind_output(self, binding: Any, name: str) -> None:
        """Binds the buffer as a graph output."""
        if self.element.is_numpy:
            binding.bind_ortvalue_output(name, self._value)
        else:
            binding.bind_output(name, self.device, 0, self.element.onnx, self.shape, self._value.data_ptr())

    def float32(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The buffer's values; only for buffers on the CPU."""
        return self.element.to_float32(self._value.numpy())


class DecoderState(Protocol):
    """What a session asks of its state."""

    def bind(self, binding: Any) -> None:
        """Binds the past as inputs and the present as outputs, before every step."""

    def advance(self, binding: Any) -> None:
        """Takes the present as the next step's past, after every step."""


class InPlaceState:
    """One buffer of full capacity per tensor, bound as past and as present: kernels write new keys in place.

    Args:
        onnxruntime: the module.
        graph: the graph whose state this is.
        capacity: tokens.
        device: onnxruntime's device name.
    """

    def __init__(self, onnxruntime: Any, graph: Graph, *, capacity: int, device: str) -> None:
        self._buffers = [
            (past, present, Buffer(onnxruntime, _shape(state, capacity), ELEMENT_TYPES[state.dtype], device))
            for state in graph.state
            for past, present in zip(state.past, state.present, strict=True)
        ]
        self._bound = False

    def bind(self, binding: Any) -> None:
        """See DecoderState; a binding keeps its buffers, so once is enough."""
        if not self._bound:
            for past, present, buffer in self._buffers:
                buffer.bind_input(binding, past)
                buffer.bind_output(binding, present)
            self._bound = True

    def advance(self, binding: Any) -> None:
        """See DecoderState; the buffers already hold the present."""


class GrowingState:
    """Tensors that every step makes anew, longer by its tokens: for kernels that join past and present.

    Args:
        onnxruntime: the module.
        graph: the graph whose state this is.
        device: onnxruntime's device name.
    """

    def __init__(self, onnxruntime: Any, graph: Graph, *, device: str) -> None:
        self._device = device
        self._names = [pair for state in graph.state for pair in zip(state.past, state.present, strict=True)]
        self._past: list[Any] | None = None
        self._empty = [
            Buffer(onnxruntime, _shape(state, 0), ELEMENT_TYPES[state.dtype], "cpu")
            for state in graph.state
            for _ in state.past
        ]

    def bind(self, binding: Any) -> None:
        """See DecoderState."""
        for index, (past, present) in enumerate(self._names):
            if self._past is None:
                self._empty[index].bind_input(binding, past)
            else:
                binding.bind_ortvalue_input(past, self._past[index])
            binding.bind_output(present, self._device)

    def advance(self, binding: Any) -> None:
        """See DecoderState."""
        # the logits are the binding's output 0
        self._past = list(binding.get_outputs()[1:])


def make_state(onnxruntime: Any, graph: Graph, *, cache_layout: str, capacity: int, device: str) -> DecoderState:
    """The state that a graph's kernels take: "compacted" rows are written in place, "columns" grow."""
    if cache_layout == "compacted":
        return InPlaceState(onnxruntime, graph, capacity=capacity, device=device)
    return GrowingState(onnxruntime, graph, device=device)


def _shape(state: State, length: int) -> list[int]:
    return [dim if isinstance(dim, int) else {"batch_size": 1}.get(dim, length) for dim in state.shape]
