"""Decode steps over buffers whose addresses never change: what CUDA captures once as a graph and then replays.

A replay launches every kernel of a step at once, without onnxruntime's executor. It also skips everything else that a
run does: inputs are not copied to the device and outputs are not copied from it. So ids, mask, logits and cache
all lie on the device, in the same place, from the first step to the last.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_runtime.element_types import ELEMENT_TYPES, ElementType
from gemma_runtime.errors import GemmaRuntimeError, ModelOutputError, PromptError, ProviderError
from gemma_runtime.manifest import Graph
from gemma_runtime.opening import open_session

__all__ = ["StateBuffer", "StaticDecoder", "StaticGraph"]

# of the providers that run it: what CUDA needs to capture
_SETTINGS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"enable_cuda_graph": "1"}}
# which captured graph a run replays: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
_GRAPH_ID = "gpu_graph_id"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateBuffer:
    """One state tensor, past and present in one place."""

    # the graph's input and output
    past: str
    present: str
    # onnxruntime's OrtValue [1, kv_heads, capacity, head_dim] on the graph's device, in the type's storage: bfloat16 as
    # uint16 bits. Another session may have filled it
    value: Any


class StaticGraph:
    """The static twin of a folder, loaded once; each cache gets a `StaticDecoder` of its own.

    It has its own copy of the weights on the device, beside that of the session that reads the prompt.

    Args:
        onnxruntime: the module.
        directory: the exported folder, structure checked.
        graph: its graph of role "static".
        provider: "cuda" captures and replays; "cpu" runs the same steps without.
        vocab_size: the manifest's.
        activation_dtype: the manifest's: element type of the logits.
        options: onnxruntime's SessionOptions; None for its defaults.

    Raises:
        ProviderError: the provider does not start, or cannot take the whole graph and so not capture it.
    """

    def __init__(
        self,
        onnxruntime: Any,
        directory: Path,
        graph: Graph,
        *,
        provider: str,
        vocab_size: int,
        activation_dtype: str,
        options: Any = None,
    ) -> None:
        self.onnxruntime, self.graph, self.provider = onnxruntime, graph, provider
        self.vocab_size, self.element = vocab_size, ELEMENT_TYPES[activation_dtype]
        if provider not in _SETTINGS:
            raise ProviderError(
                f"{graph.file} runs on {' and '.join(_SETTINGS)}, not on {provider}",
                hint="The folder's main graph does the same steps.",
            )
        options = onnxruntime.SessionOptions() if options is None else options
        self.session = open_session(onnxruntime, directory / graph.file, provider, options, _SETTINGS[provider])
        # 0 is the id of runs that name none; an id stands for one set of addresses and is never used again
        self._ids = itertools.count(1)

    def decoder(self, state: Sequence[StateBuffer], *, capacity: int, length: int = 0) -> StaticDecoder:
        """Steps over a cache.

        Args:
            state: every state tensor of the graph.
            capacity: tokens that the buffers hold.
            length: tokens that they hold already.

        Raises:
            GemmaRuntimeError: the buffers are not those of the graph.
        """
        _check_buffers(self.graph, state, capacity)
        decoder = StaticDecoder(self, state, capacity=capacity, graph_id=next(self._ids))
        decoder.set_length(length)
        return decoder


class StaticDecoder:
    """Appends one token at a time to a cache; `StaticGraph.decoder` makes it.

    On CUDA the first step runs the graph, captures it and replays it. That writes the same keys to the same
    place several times, so the numbers are those of one run. While it captures, no other thread may allocate
    on the device, and each thread that steps captures for itself: let one thread make the steps of a decoder.

    What a step copies: to the device the token and the mask, 8 bytes for each position of the capacity; from the
    device the logits, vocab_size elements, which is the least there is: onnxruntime has no way to choose a
    token on the device that needs no further graph, and a replay does not fill outputs in host memory.
    """

    def __init__(self, graph: StaticGraph, state: Sequence[StateBuffer], *, capacity: int, graph_id: int) -> None:
        self.capacity = capacity
        self._graph, self._graph_id = graph, graph_id
        # the binding keeps addresses only: somebody must hold the buffers
        self._state = tuple(state)
        self._length = 0
        self._host_mask = np.zeros((1, capacity), np.int64)
        self._ids = self._on_device(np.zeros((1, 1), np.int64))
        self._mask = self._on_device(self._host_mask.copy())
        self._logits = self._on_device(np.zeros((1, 1, graph.vocab_size), graph.element.storage))
        self._binding = self._bind()
        self._options = None
        if graph.provider == "cuda":
            self._options = graph.onnxruntime.RunOptions()
            self._options.add_run_config_entry(_GRAPH_ID, str(graph_id))

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    def set_length(self, length: int) -> None:
        """Says how many tokens the cache holds: after a prompt, or to go back to an earlier token.

        Args:
            length: positions [0, length) are kept, whatever lies behind them is never read.

        Raises:
            PromptError: more than the capacity, or fewer than none.
        """
        if not 0 <= length <= self.capacity:
            raise PromptError(
                f"a cache of {self.capacity} tokens cannot hold {length}",
                hint="Shorten prompt and answer, or make the cache larger.",
            )
        self._host_mask[0, :length], self._host_mask[0, length:] = 1, 0
        self._length = length

    def step(self, token: int) -> npt.NDArray[np.float32]:
        """Appends one token.

        Args:
            token: its id.

        Returns:
            float32 [vocab_size]: the logits after it.

        Raises:
            PromptError: the cache is full.
            ModelOutputError: onnxruntime could not run the step; the cache's length is as it was.
        """
        if self._length == self.capacity:
            raise PromptError(
                f"the cache is full: it holds {self.capacity} tokens",
                hint="Shorten prompt and answer, or make the cache larger.",
            )
        self._host_mask[0, self._length] = 1
        self._ids.update_inplace(np.array([[token]], np.int64))
        self._mask.update_inplace(self._host_mask)
        try:
            self._graph.session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            # onnxruntime's exceptions share no base class of their own
            raise ModelOutputError(
                f"onnxruntime could not run {self._graph.graph.file}: {str(error).splitlines()[0]}",
                hint="`gemma-export verify` checks the folder; with too little memory, shorten prompt and answer.",
            ) from error
        self._length += 1
        logits: npt.NDArray[np.float32] = self._graph.element.to_float32(self._logits.numpy())[0, 0]
        return logits

    def release(self) -> None:
        """Lets onnxruntime forget the captured graph, where its release can; the decoder takes no step after it."""
        forget = getattr(self._graph.session, "release_captured_graph", None)
        if self._options is not None and forget is not None:
            forget(self._graph_id)

    def _on_device(self, array: npt.NDArray[Any]) -> Any:
        return self._graph.onnxruntime.OrtValue.ortvalue_from_numpy(array, self._graph.provider, 0)

    def _bind(self) -> Any:
        binding = self._graph.session.io_binding()
        binding.bind_ortvalue_input("input_ids", self._ids)
        binding.bind_ortvalue_input("attention_mask", self._mask)
        types = {name: ELEMENT_TYPES[state.dtype] for state in self._graph.graph.state for name in state.past}
        self._bind_value(binding.bind_ortvalue_output, binding.bind_output, "logits", self._logits, self._graph.element)
        for buffer in self._state:
            element = types[buffer.past]
            self._bind_value(binding.bind_ortvalue_input, binding.bind_input, buffer.past, buffer.value, element)
            self._bind_value(binding.bind_ortvalue_output, binding.bind_output, buffer.present, buffer.value, element)
        return binding

    def _bind_value(self, by_value: Any, by_pointer: Any, name: str, value: Any, element: ElementType) -> None:
        if element.is_numpy:
            by_value(name, value)
        else:
            # the bits lie in a uint16 tensor: only a pointer can be bound under their true type
            by_pointer(name, self._graph.provider, 0, element.onnx, value.shape(), value.data_ptr())


def _check_buffers(graph: Graph, state: Sequence[StateBuffer], capacity: int) -> None:
    """A wrong address is read and written all the same: nothing later would say so."""
    expected = {
        (past, present): [capacity if dim == "past_sequence_length" else dim for dim in entry.shape]
        for entry in graph.state
        for past, present in zip(entry.past, entry.present, strict=True)
    }
    found = {(buffer.past, buffer.present): list(buffer.value.shape()) for buffer in state}
    if found != expected or len(found) != len(state):
        wrong = next((pair for pair in {**expected, **found} if found.get(pair) != expected.get(pair)), None)
        told = "one comes twice" if wrong is None else f"{wrong[0]}: {found.get(wrong)}, expected {expected.get(wrong)}"
        raise GemmaRuntimeError(
            f"{graph.file}: the cache's buffers are not the graph's: {told}", hint="Report this with --debug."
        )
