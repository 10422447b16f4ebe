"""Runs a graph of an exported folder with any feeds.

The loop of gemma_runtime is made to generate: one row, one buffer, logits of the last position. A validation asks for
what generation never does: every position, padded batches, caches from elsewhere, values inside the graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_runtime.element_types import ELEMENT_TYPES, ElementType
from gemma_runtime.manifest import WINDOW_CAPACITY, Manifest
from gemma_runtime.state import Buffer, InPlaceState
from gemma_validation.artifact.opening import (
    VERIFY,
    element_of,
    graph_of_role,
    open_graph,
)
from gemma_validation.artifact.tapping import tapped
from gemma_validation.errors import FolderUnreadableError, MismatchError, ValidationUsageError

__all__ = ["ArtifactRunner", "Cache", "Step"]

# keys and values of every layer in the order of the graph's state, as they are stored: bfloat16 as uint16 bits
Cache = tuple[npt.NDArray[Any], ...]

# tokens: their logits of a 256,000-token vocabulary are 131 MB
_KEPT = 128

_DEVICES = {"cpu": "cpu", "cuda": "cuda", "directml": "dml"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """What one run gives."""

    # [batch_size, positions that get logits, vocab_size]
    logits: npt.NDArray[np.float32]
    # [batch_size, kv_heads, total_sequence_length, head_dim] each
    present: Cache
    # by name; a residual point is [batch_size, sequence_length, hidden_size], rolled rows where the graph rolls them
    taps: dict[str, npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Begun:
    """The first part of a sequence, in one run."""

    # of the part
    token_ids: tuple[int, ...]
    step: Step


class ArtifactRunner:
    """One graph of a folder, opened; `close` gives its memory back.

    Args:
        directory: the exported folder.
        manifest: its manifest.
        provider: "cpu", "cuda" or "directml".
        role: of the graph: "main", "all", ...; a main graph that gives all positions is also the one of role "all".
        taps: values inside the graph that steps return too; nothing is written for it.
        threads: that kernels on the CPU use; None takes as many as this process may have.
        profile: beginning of the name of a file that onnxruntime writes its profile to (`end_profile`).

    Raises:
        FolderUnreadableError: the folder has no such graph, the graph does not load, or computes no such value.
        ProviderUnavailableError: the folder does not run on the provider, or the provider does not start.
        MissingPackageError: no onnxruntime.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        provider: str = "cpu",
        role: str = "all",
        taps: Sequence[str] = (),
        threads: int | None = None,
        profile: Path | None = None,
    ) -> None:
        self.manifest, self.provider = manifest, provider
        self.graph = graph_of_role(manifest, role)
        self.vocab_size, self.context_length = manifest.vocab_size, manifest.context_length
        self.taps = tuple(dict.fromkeys(taps))
        # the longest first part that `logits` has run, of those that are not too large to keep
        self.longest: Begun | None = None
        # before the session takes its seconds: an unknown tap is known from the graph alone
        content = tapped(directory / self.graph.file, self.taps) if self.taps else None
        self._onnxruntime, self._session = open_graph(
            directory, manifest, self.graph, provider=provider, threads=threads, profile=profile, content=content
        )
        self._types = {value.name: element_of(value, self.graph) for value in self._session.get_outputs()}
        self._past = [name for state in self.graph.state for name in state.past]
        self._present = [name for state in self.graph.state for name in state.present]

    @property
    def chunked(self) -> bool:
        """Whether steps of several tokens may follow a cache."""
        return self.graph.chunks != "none"

    def step(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64], past: Cache | None = None
    ) -> Step:
        """Runs the graph once.

        Args:
            input_ids: [batch_size, sequence_length].
            attention_mask: [batch_size, total_sequence_length]; its last sequence_length columns are this step's.
            past: the present of an earlier step; None for an empty cache.

        Raises:
            MismatchError: an id that the embedding table does not have: kernels would read another row.
            FolderUnreadableError: onnxruntime cannot run the graph.
        """
        input_ids = self._checked(input_ids)
        past = self.empty(len(input_ids), 0) if past is None else past
        binding = self._session.io_binding()
        held = [np.ascontiguousarray(array) for array in past]
        for name, array, state in zip(self._past, held, self._state_types(), strict=True):
            binding.bind_input(name, "cpu", 0, state.onnx, array.shape, array.ctypes.data)
        logits = self._bind(binding, input_ids, attention_mask)
        shapes = self._present_shapes(input_ids, attention_mask, held)
        buffers = {name: self._bind_output(binding, name, shapes.get(name)) for name in (*self._present, *self.taps)}
        self._run(binding)
        found = dict(zip((value.name for value in self._session.get_outputs()), binding.get_outputs(), strict=True))
        values = {name: found[name].numpy() if buffer is None else buffer.memory for name, buffer in buffers.items()}
        return Step(
            logits=logits.float32(),
            present=tuple(values[name] for name in self._present),
            taps={name: self._types[name].to_float32(values[name]) for name in self.taps},
        )

    def step_in_place(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64], state: InPlaceState
    ) -> npt.NDArray[np.float32]:
        """Runs the graph once over a cache that is past and present in one place, as gemma_runtime does.

        Args:
            input_ids: [batch_size, sequence_length].
            attention_mask: [batch_size, total_sequence_length], no longer than the state's capacity.
            state: of `state_in_place`; the step writes its keys and values there. Taps are left out.

        Returns:
            Logits [batch_size, positions that get logits, vocab_size].

        Raises:
            MismatchError, FolderUnreadableError: see `step`.
        """
        input_ids = self._checked(input_ids)
        binding = self._session.io_binding()
        logits = self._bind(binding, input_ids, attention_mask)
        state.bind(binding, 0, 0)
        self._run(binding)
        return logits.float32()

    def state_in_place(self, rows: int, capacity: int) -> InPlaceState:
        """An empty cache of some rows with room for `capacity` tokens, for a folder of layout "compacted"."""
        return InPlaceState(self._onnxruntime, self.graph, capacity=capacity, device=_DEVICES[self.provider], rows=rows)

    def empty(self, rows: int, length: int) -> Cache:
        """Zeros in the shape of a cache; window-sized tensors are exactly as long as the window.

        Args:
            rows: batch_size.
            length: tokens.
        """
        shapes = [
            [
                dim if isinstance(dim, int) else {"batch_size": rows, WINDOW_CAPACITY: state.window}.get(dim, length)
                for dim in state.shape
            ]
            for state in self.graph.state
            for _ in state.past
        ]
        return tuple(np.zeros(shape, state.storage) for shape, state in zip(shapes, self._state_types(), strict=True))

    def logits(self, token_ids: Sequence[int], *, rows: int = 256) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Logits of every position of one sequence, part by part: those of a 2B take 1 MB a position.

        Args:
            token_ids: at least one.
            rows: most tokens of a part; a graph that takes no chunks runs whole.

        Yields:
            The first position of a part, and its logits [n, vocab_size].

        Raises:
            ValidationUsageError: the graph gives logits of the last positions only, or the text is too long for it.
            MismatchError, FolderUnreadableError: see `step`.
        """
        if self.graph.logits != "all":
            raise ValidationUsageError(
                f"{self.graph.file} gives logits of the last positions only", hint="Ask for the graph of role all."
            )
        if not 0 < len(token_ids) <= self.context_length:
            raise ValidationUsageError(
                f"a text of {len(token_ids)} tokens does not fit a context of {self.context_length}",
                hint="Validate with shorter texts, or export with a longer --context.",
            )
        size = rows if self.chunked else len(token_ids)
        past: Cache | None = None
        for first in range(0, len(token_ids), size):
            part = np.array([token_ids[first : first + size]], np.int64)
            step = self.step(part, np.ones((1, first + part.shape[1]), np.int64), past)
            past = step.present
            longest = 0 if self.longest is None else len(self.longest.token_ids)
            if not first and longest < part.size <= _KEPT:
                self.longest = Begun(token_ids=tuple(token_ids[:size]), step=step)
            yield first, step.logits[0]

    def end_profile(self) -> Path:
        """The profile of all that ran, where one was asked for."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Gives the session's memory back; no step after it."""
        self._session = self.longest = None

    def __enter__(self) -> ArtifactRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _state_types(self) -> list[ElementType]:
        return [ELEMENT_TYPES[state.dtype] for state in self.graph.state for _ in state.past]

    def _checked(self, input_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        wrong = input_ids[(input_ids < 0) | (input_ids >= self.vocab_size)]
        if wrong.size:
            raise MismatchError(
                f"token id {wrong[0]} does not exist: the model has {self.vocab_size}",
                hint="The text was cut by another model's tokenizer.",
            )
        return np.ascontiguousarray(input_ids, np.int64)

    def _bind(self, binding: Any, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]) -> Buffer:
        """Binds what every step has; the logits go into a buffer, since onnxruntime's own would be copied."""
        binding.bind_cpu_input("input_ids", input_ids)
        binding.bind_cpu_input("attention_mask", np.ascontiguousarray(attention_mask, np.int64))
        rows, sequence = input_ids.shape
        kept = {"last": 1, "all": sequence}.get(str(self.graph.logits))
        positions = min(int(self.graph.logits), sequence) if kept is None else kept
        logits = Buffer(self._onnxruntime, (rows, positions, self.vocab_size), self._types["logits"], "cpu")
        logits.bind_output(binding, "logits")
        return logits

    def _bind_output(self, binding: Any, name: str, shape: Sequence[int] | None) -> Buffer | None:
        """Lets onnxruntime make an output, except in a type that numpy does not have."""
        element = self._types[name]
        if element.is_numpy or shape is None:
            binding.bind_output(name, "cpu")
            return None
        buffer = Buffer(self._onnxruntime, shape, element, "cpu")
        buffer.bind_output(binding, name)
        return buffer

    def _present_shapes(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64], past: Sequence[npt.NDArray[Any]]
    ) -> dict[str, tuple[int, ...]]:
        shapes = {}
        windowed = [state.windowed for state in self.graph.state for _ in state.past]
        for name, array, fixed in zip(self._present, past, windowed, strict=True):
            # the kernel keeps a cache that is longer than the mask, and one that is as long as the window
            length = array.shape[2] if fixed else max(array.shape[2], attention_mask.shape[1])
            shapes[name] = (*array.shape[:2], length, array.shape[3])
        hidden = {value.name: value.shape[-1] for value in self._session.get_outputs() if value.name in self.taps}
        return shapes | {name: (*input_ids.shape, size) for name, size in hidden.items() if isinstance(size, int)}

    def _run(self, binding: Any) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            # onnxruntime's exceptions share no base class of their own
            raise FolderUnreadableError(
                f"onnxruntime could not run {self.graph.file}: {str(error).splitlines()[0]}", hint=VERIFY
            ) from error
