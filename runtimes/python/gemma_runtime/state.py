"""Decoder state between steps: buffers written in place, or tensors that grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gemma_runtime.element_types import ELEMENT_TYPES, ElementType
from gemma_runtime.manifest import Graph, State
from gemma_runtime.window_layout import WindowLayout, capacity_for

__all__ = ["Buffer", "DecoderState", "GrowingState", "InPlaceState", "make_state"]


class Buffer:
    """Zeros of one element type on one device, bound by address: numpy has no bfloat16, onnxruntime does.

    Args:
        onnxruntime: the module.
        shape: of the tensor.
        element: its type.
        device: onnxruntime's device name.
    """

    def __init__(self, onnxruntime: Any, shape: Sequence[int], element: ElementType, device: str) -> None:
        self.shape, self.element, self.device = tuple(shape), element, device
        self._onnxruntime = onnxruntime
        # zeros: a kernel may read a whole block of a buffer, and 0 * NaN is NaN
        self._hold(np.zeros(self.shape, element.storage))

    @property
    def memory(self) -> npt.NDArray[Any]:
        """The values as they are stored; on a device a copy of them."""
        return self._array if self._array is not None else self._value.numpy()

    @property
    def value(self) -> Any:
        """onnxruntime's tensor over the same memory; bfloat16 as uint16."""
        if self._array is not None:
            return self._onnxruntime.OrtValue.ortvalue_from_numpy(self._array, self.device, 0)
        return self._value

    def float32(self) -> npt.NDArray[np.float32]:
        """The values; for float32 on the CPU the buffer itself."""
        return self.element.to_float32(self.memory)

    def fill(self, values: npt.NDArray[Any]) -> None:
        """Takes other values of the same shape and storage, as they are; bindings made before hold the former ones."""
        assert (values.shape, values.dtype) == (self.shape, self.element.storage)
        self._hold(np.ascontiguousarray(values))

    def bind_input(self, binding: Any, name: str, shape: Sequence[int] | None = None) -> None:
        """Binds the buffer as a graph input, or the beginning of it under a smaller shape."""
        shape = self.shape if shape is None else shape
        binding.bind_input(name, self.device, 0, self.element.onnx, shape, self._address)

    def bind_output(self, binding: Any, name: str, shape: Sequence[int] | None = None) -> None:
        """Binds the buffer as a graph output, or the beginning of it under a smaller shape."""
        binding.bind_output(
            name, self.device, 0, self.element.onnx, self.shape if shape is None else shape, self._address
        )

    def longer(self, capacity: int, used: int) -> Buffer:
        """A buffer with room for more tokens that starts with this one's first `used`."""
        shape = (*self.shape[:2], capacity, self.shape[3])
        values = np.zeros(shape, self.element.storage)
        values[:, :, :used] = self.memory[:, :, :used]
        other = Buffer(self._onnxruntime, (0,), self.element, self.device)
        other.shape = shape
        other._hold(values)
        return other

    def _hold(self, values: npt.NDArray[Any]) -> None:
        if self.device == "cpu":
            self._array: npt.NDArray[Any] | None = values
            self._address: int = values.ctypes.data
        else:
            self._array = None
            self._value = self._onnxruntime.OrtValue.ortvalue_from_numpy(values, self.device, 0)
            self._address = self._value.data_ptr()


class DecoderState(Protocol):
    """What a sequence asks of its state."""

    # tokens that fit
    capacity: int

    def bind(self, binding: Any, length: int, total: int) -> None:
        """Binds the past, of which the first `length` tokens hold, and the present of `total`, before every step."""

    def advance(self, binding: Any, length: int) -> None:
        """Takes the present, of `length` tokens, as the next step's past, after every step."""

    def grow(self, capacity: int, used: int) -> None:
        """Makes room for more tokens; the first `used` stay."""

    def goes_back(self, length: int) -> bool:
        """Whether the next step may take the first `length` tokens for its past; else all have to be read again."""

    def forget(self) -> None:
        """What the tensors hold is of no use: only an empty past can be gone back to, where that makes a difference."""

    def next_eviction(self, length: int) -> int | None:
        """Tokens behind the first `length` can be taken back up to this number, not included; None without end."""


class InPlaceState:
    """One buffer of full capacity per tensor, bound as past and as present: kernels write new keys in place.

    Going back to fewer tokens costs nothing: what lies beyond a step's length is never read. Window-sized buffers are
    as long from the first token to the last, and no way leads back to before a step at which tokens went.

    Args:
        onnxruntime: the module.
        graph: the graph whose state this is.
        capacity: tokens, of buffers that are not window-sized.
        device: onnxruntime's device name.
        rows: sequences side by side.
    """

    def __init__(self, onnxruntime: Any, graph: Graph, *, capacity: int, device: str, rows: int = 1) -> None:
        self.capacity = capacity
        layouts = [_layout(state, device) for state in graph.state]
        # buffer -> its layout, where it is window-sized
        self._layouts = [layout for layout, state in zip(layouts, graph.state, strict=True) for _ in state.past]
        self._windows = {layout for layout in layouts if layout is not None}
        self.buffers = [
            Buffer(
                onnxruntime,
                _shape(state, rows, capacity if layout is None else layout.capacity),
                ELEMENT_TYPES[state.dtype],
                device,
            )
            for layout, state in zip(layouts, graph.state, strict=True)
            for _ in state.past
        ]
        self._names = [pair for state in graph.state for pair in zip(state.past, state.present, strict=True)]
        self._bound: Any = None
        self._rows = rows
        # tokens that the last step left, or would have left if nothing had gone wrong in it
        self._written = 0

    @property
    def rows(self) -> int:
        """Rows that steps run; there may be room for more."""
        return self._rows

    @rows.setter
    def rows(self, rows: int) -> None:
        assert rows <= self.buffers[0].shape[0]
        if rows != self._rows:
            self._rows, self._bound = rows, None

    def bind(self, binding: Any, length: int, total: int) -> None:
        """See DecoderState; a binding keeps its buffers, so once is enough."""
        self._written = total
        if self._bound is not binding:
            sizes = {buffer.shape[2] for index, buffer in enumerate(self.buffers) if self._layouts[index] is None}
            if len(sizes) > 1:
                # growing failed in between, for want of memory: kernels want keys and values of one size
                self.grow(max(sizes), min(sizes))
            for (past, present), buffer in zip(self._names, self.buffers, strict=True):
                shape = (self._rows, *buffer.shape[1:])
                buffer.bind_input(binding, past, shape)
                buffer.bind_output(binding, present, shape)
            self._bound = binding

    def advance(self, binding: Any, length: int) -> None:
        """See DecoderState; the buffers already hold the present."""

    def grow(self, capacity: int, used: int) -> None:
        """See DecoderState; one tensor at a time, so that the old and the new do not lie side by side."""
        # before anything fails in between: the binding must not keep the address of a buffer that is gone
        self._bound = None
        for index, buffer in enumerate(self.buffers):
            if self._layouts[index] is None and buffer.shape[2] < capacity:
                self.buffers[index] = buffer.longer(capacity, used)
        self.capacity = capacity

    def goes_back(self, length: int) -> bool:
        """See DecoderState."""
        if length == 0 or not self._windows:
            return True
        return length <= self._written and all(layout.goes_back(self._written, length) for layout in self._windows)

    def forget(self) -> None:
        """See DecoderState."""
        self._written = 0

    def next_eviction(self, length: int) -> int | None:
        """See DecoderState."""
        return min((layout.next_eviction(length) for layout in self._windows), default=None)

    def named(self) -> list[tuple[str, str, Buffer]]:
        """Names of past and present, and the buffer that is both."""
        return [(*names, buffer) for names, buffer in zip(self._names, self.buffers, strict=True)]

    def copy_row(self, source: InPlaceState, source_row: int, row: int, length: int) -> None:
        """Takes over the first `length` tokens of another state's row, which has no more where it is window-sized.

        Only for buffers on the CPU.
        """
        # the slice of a window-sized buffer is at most the whole of it
        for buffer, other in zip(self.buffers, source.buffers, strict=True):
            buffer.memory[row, :, :length] = other.memory[source_row, :, :length]


class GrowingState:
    """Tensors that every step makes anew, longer by its tokens: for kernels that join past and present.

    Args:
        onnxruntime: the module.
        graph: the graph whose state this is.
        device: onnxruntime's device name.
    """

    def __init__(self, onnxruntime: Any, graph: Graph, *, capacity: int, device: str) -> None:
        self.capacity = capacity
        self._onnxruntime, self._device = onnxruntime, device
        self._names = [pair for state in graph.state for pair in zip(state.past, state.present, strict=True)]
        self._past: list[Any] | None = None
        self._length = 0
        self._empty = [
            Buffer(onnxruntime, _shape(state, 1, 0), ELEMENT_TYPES[state.dtype], "cpu")
            for state in graph.state
            for _ in state.past
        ]

    def bind(self, binding: Any, length: int, total: int) -> None:
        """See DecoderState; tokens beyond `length` are cut off."""
        if length == 0:
            self._past, self._length = None, 0
        elif length < self._length:
            assert self._past is not None
            self._past = [self._first(value, length) for value in self._past]
            self._length = length
        for index, (past, present) in enumerate(self._names):
            if self._past is None:
                self._empty[index].bind_input(binding, past)
            else:
                binding.bind_ortvalue_input(past, self._past[index])
            binding.bind_output(present, self._device)

    def advance(self, binding: Any, length: int) -> None:
        """See DecoderState."""
        # the logits are the binding's output 0
        self._past, self._length = list(binding.get_outputs()[1:]), length

    def grow(self, capacity: int, used: int) -> None:
        """See DecoderState; there is always room."""
        self.capacity = capacity

    def goes_back(self, length: int) -> bool:
        """See DecoderState; every token is held."""
        return True

    def forget(self) -> None:
        """See DecoderState; its tensors are replaced whole, so they hold what `advance` took."""

    def next_eviction(self, length: int) -> int | None:
        """See DecoderState; every token is held."""
        return None

    def _first(self, value: Any, length: int) -> Any:
        kept = np.ascontiguousarray(value.numpy()[:, :, :length])
        return self._onnxruntime.OrtValue.ortvalue_from_numpy(kept, self._device, 0)


def make_state(onnxruntime: Any, graph: Graph, *, cache_layout: str, capacity: int, device: str) -> DecoderState:
    """The state that a graph's kernels take: "compacted" rows are written in place, "columns" grow."""
    if cache_layout == "compacted":
        return InPlaceState(onnxruntime, graph, capacity=capacity, device=device)
    return GrowingState(onnxruntime, graph, capacity=capacity, device=device)


def _layout(state: State, device: str) -> WindowLayout | None:
    if not state.windowed:
        return None
    return WindowLayout(window=state.window, capacity=capacity_for(state.window, device))


def _shape(state: State, rows: int, length: int) -> list[int]:
    return [dim if isinstance(dim, int) else {"batch_size": rows}.get(dim, length) for dim in state.shape]
