"""The run itself: hidden states of all batches move up the stack, one layer's weights in memory at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch

from gemma_export.errors import NonFiniteError
from gemma_export.layerwise.hidden_states import HiddenStates
from gemma_export.layerwise.stack import Call, LayerStack
from gemma_export.ops.taps import observing
from gemma_export.progress import NullProgress, Progress
from gemma_export.weights import Weight, one_thread

__all__ = ["LayerwiseRun", "LoadedLayer", "Observer", "Tap", "require_finite", "row_blocks"]

# rows of the head in memory at a time: 48 MiB for a hidden size of 3072
_HEAD_ROWS = 4096
# parameters of a layer up to which a second thread waits more than it works; on a busy machine far more
_SMALL_LAYER = 1 << 24


@dataclasses.dataclass(frozen=True)
class Tap:
    """Where a value was seen."""

    # the layer's index; None before the first and after the last layer
    layer: int | None
    # within the layer: `{module path}.input` and `{module path}.output` of every module without submodules
    # ("self_attn.o_proj.input"), "attn_residual", "attn_residual.branch", "attention.scores" (gemma_export.ops.taps);
    # outside: "embedding", "norm.output", "logits"
    name: str
    # index of the batch
    batch: int

    def __str__(self) -> str:
        return self.name if self.layer is None else f"layers.{self.layer}.{self.name}"


# Called with the value itself, not a copy: it must neither change nor keep it. Values come in the order of the
# computation, and one that passes through two taps is the same object in both.
Observer = Callable[[Tap, torch.Tensor], None]


class LoadedLayer:
    """One layer with its weights. Its module's parameters may be changed: later calls see the changed layer.

    The next layer's weights overwrite them.
    """

    def __init__(self, run: LayerwiseRun, index: int, module: torch.nn.Module) -> None:
        self.index, self.module = index, module
        self._run = run
        self.advanced = False

    def forward(self, batch: int, observer: Observer | None = None) -> torch.Tensor:
        """One batch through the layer, from the hidden states that reached it."""
        assert not self.advanced, "the hidden states have moved on to the next layer"
        with torch.no_grad(), contextlib.ExitStack() as stack:
            stack.enter_context(self._run.threads())
            if observer is not None:
                stack.enter_context(_taps(self.module, self.index, batch, observer))
            call = self._run.calls.get(batch, self._run.stack.call)
            return call(self.module, self.index, self._run.hidden[batch])

    def observe(self, observer: Observer) -> None:
        """Every batch through the layer, shown to the observer; the results are dropped."""
        for batch in range(len(self._run.hidden)):
            self.forward(batch, observer)

    def advance(self, observer: Observer | None = None) -> None:
        """Every batch through the layer; its results are the next layer's hidden states.

        Raises:
            NonFiniteError: a result is NaN or infinite; the error names the first tap where that shows.
        """
        for batch in range(len(self._run.hidden)):
            output = self.forward(batch, observer)
            if not is_finite(output):
                # once more, looking at every value on the way
                self.forward(batch, require_finite)
                raise non_finite(Tap(self.index, "output", batch), output)
            self._run.hidden[batch] = output
        self.advanced = True


class LayerwiseRun:
    """Hidden states of some batches on their way through a model.

    Args:
        stack: the architecture.
        weights: name -> lazy weight; layers are computed in its dtype, normally float32.
        batches: token ids, int64 [batch_size, sequence_length] each, without padding: sequences of different lengths
            are batches of their own.
        hidden: where hidden states are kept between layers; in memory if not given.
        calls: batch -> what runs it through a layer, where that is not the stack's own `call`.
        progress: told of the weights' bytes, as they are in memory.
        label: of the progress.

    Raises:
        ResourceExhaustedError: the hidden states do not fit.
        CheckpointError, NonFiniteError: a weight cannot be read, or is not finite.
    """

    def __init__(
        self,
        stack: LayerStack,
        weights: Callable[[str], Weight],
        batches: Sequence[torch.Tensor],
        *,
        hidden: HiddenStates | None = None,
        calls: Mapping[int, Call] | None = None,
        progress: Progress | None = None,
        label: str = "running layer by layer",
    ) -> None:
        self.stack = stack
        self.calls = calls or {}
        self.batches = tuple(batches)
        shapes = [(len(ids), ids.shape[1], stack.hidden_size) for ids in self.batches]
        self.hidden = HiddenStates(shapes) if hidden is None else hidden
        self._weights = weights
        self._progress, self._label = progress or NullProgress(), label
        # of the last layer, for the next one's weights
        self._buffers: list[torch.Tensor] = []

    def layers(self, observer: Observer | None = None) -> Generator[LoadedLayer, None, None]:
        """Embeds the ids, then yields each layer with its weights in memory; leaving one advances it.

        Args:
            observer: shown the embedding, and every tap of a layer that the caller did not advance itself.
        """
        self._progress.start(self._nbytes(), self._label)
        try:
            self._embed(observer)
            for index in range(self.stack.num_layers):
                layer = LoadedLayer(self, index, self._loaded_layer(index))
                yield layer
                if not layer.advanced:
                    layer.advance(observer)
                # the next layer's weights take the place of its own
                _unload(layer.module)
        finally:
            self._buffers = []
            self._progress.finish()

    def through(self, observer: Observer | None = None) -> None:
        """All layers, as they are.

        Args:
            observer: shown the embedding, and every tap of the layers.
        """
        with contextlib.closing(self.layers(observer)) as layers:
            for _ in layers:
                pass

    def head(self, observer: Observer | None = None) -> Generator[tuple[int, int, torch.Tensor], None, None]:
        """Logits after the last layer, before any softcap: (batch, first row of the vocabulary, [B, S, rows]).

        Each block of the vocabulary is read once and serves every batch.

        Args:
            observer: shown "norm.output" of each batch, and "logits" of each block.
        """
        self.normalise(observer)
        table = self._weights(self.stack.head)
        self._progress.start(_nbytes(table), f"{self._label}: head")
        try:
            for first, rows in row_blocks(table):
                for batch in range(len(self.hidden)):
                    # not around the yield: the caller's code is not ours to switch gradients and threads for
                    with torch.no_grad(), self.threads():
                        logits = torch.nn.functional.linear(self.hidden[batch], rows)
                        if observer is not None:
                            observer(Tap(None, "logits", batch), logits)
                    yield batch, first, logits
                self._progress.advance(rows.nbytes)
        finally:
            self._progress.finish()

    def normalise(self, observer: Observer | None = None) -> None:
        """The norm before the head; `head` begins with it, so only who computes logits himself calls it.

        Args:
            observer: shown "norm.output" of each batch.
        """
        norm = self._load(self.stack.norm(), self.stack.norm_weight)
        for batch in range(len(self.hidden)):
            with torch.no_grad():
                normed = norm(self.hidden[batch])
            require_finite(Tap(None, "norm.output", batch), normed)
            if observer is not None:
                observer(Tap(None, "norm.output", batch), normed)
            self.hidden[batch] = normed
        _unload(norm)

    def threads(self) -> AbstractContextManager[None]:
        """For the computation: all of torch's threads, or one where they would wait more than work."""
        return one_thread() if self._is_small else contextlib.nullcontext()

    @functools.cached_property
    def _is_small(self) -> bool:
        return sum(parameter.numel() for parameter in self.stack.layer(0).parameters()) <= _SMALL_LAYER

    def _embed(self, observer: Observer | None) -> None:
        """Gathers the rows that the batches need: the table itself is never in memory."""
        table = self._weights(self.stack.embedding)
        ids = torch.unique(torch.cat([batch.reshape(-1) for batch in self.batches]))
        rows = torch.empty(len(ids), self.stack.hidden_size, dtype=table.dtype)
        first = 0
        with one_thread():
            for chunk in table.chunks():
                start, stop = torch.searchsorted(ids, torch.tensor([first, first + len(chunk)])).tolist()
                rows[start:stop] = chunk[ids[start:stop] - first]
                first += len(chunk)
        self._progress.advance(_nbytes(table))
        # the reference rounds the factor to the stream's type before it multiplies
        rows *= torch.tensor(self.stack.embedding_scale, dtype=rows.dtype)
        for batch, tokens in enumerate(self.batches):
            states = rows[torch.searchsorted(ids, tokens)]
            if observer is not None:
                observer(Tap(None, "embedding", batch), states)
            self.hidden[batch] = states

    def _loaded_layer(self, index: int) -> torch.nn.Module:
        layer = self._load(self.stack.layer(index), lambda name: self.stack.layer_weight(index, name), self._buffers)
        self._buffers = [parameter.data for parameter in layer.parameters()]
        return layer

    def _load(
        self, module: torch.nn.Module, name_of: Callable[[str], str], buffers: Sequence[torch.Tensor] = ()
    ) -> torch.nn.Module:
        """Gives a module its weights, streamed in; into buffers, where one has the shape."""
        free = list(buffers)
        with one_thread():
            for name, parameter in list(module.named_parameters()):
                weight = self._weights(name_of(name))
                assert tuple(weight.shape) == tuple(parameter.shape), (name_of(name), weight.shape, parameter.shape)
                _assign(module, name, weight.tensor(_taken(free, weight)))
                self._progress.advance(_nbytes(weight))
        return module

    def _nbytes(self) -> int:
        total = _nbytes(self._weights(self.stack.embedding))
        for index in range(self.stack.num_layers):
            for name, _ in self.stack.layer(index).named_parameters():
                total += _nbytes(self._weights(self.stack.layer_weight(index, name)))
        return total


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every value is; the extremes pass NaN on."""
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def require_finite(tap: Tap, tensor: torch.Tensor) -> None:
    """An observer that raises NonFiniteError for a value that is not finite."""
    if not is_finite(tensor):
        raise non_finite(tap, tensor)


def non_finite(tap: Tap, tensor: torch.Tensor) -> NonFiniteError:
    """The error that names the layer, the tap and the first position."""
    position = (~tensor.isfinite()).nonzero()[0].tolist()
    value = tensor[tuple(position)].item()
    return NonFiniteError(
        f"{tap}: {value} in the reference's {str(tensor.dtype).removeprefix('torch.')} run, batch {tap.batch}, "
        f"position {position}; expected a finite number",
        hint="The checkpoint is damaged or its training diverged: fetch it again, or use an earlier one.",
    )


@contextlib.contextmanager
def _taps(module: torch.nn.Module, layer: int, batch: int, observer: Observer) -> Iterator[None]:
    """Shows a layer's values to an observer while it runs."""
    own = f"layers.{layer}."

    def inside(name: str, tensor: torch.Tensor) -> None:
        observer(Tap(layer, name.removeprefix(own), batch), tensor)

    handles = []
    for path, part in module.named_modules():
        if next(part.children(), None) is not None:
            continue
        before, after = Tap(layer, f"{path}.input", batch), Tap(layer, f"{path}.output", batch)
        handles.append(part.register_forward_pre_hook(lambda _, inputs, tap=before: _show(observer, tap, *inputs[:1])))
        handles.append(part.register_forward_hook(lambda _, inputs, output, tap=after: _show(observer, tap, output)))
    try:
        with observing(inside):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _show(observer: Observer, tap: Tap, *values: object) -> None:
    """What a module takes or gives may be no tensor, in another implementation's layers."""
    for value in values:
        if isinstance(value, torch.Tensor):
            observer(tap, value)


def row_blocks(weight: Weight) -> Iterator[tuple[int, torch.Tensor]]:
    """A matrix in blocks of rows that are worth a multiplication; each is valid until the next is taken."""
    block = torch.empty(min(_HEAD_ROWS, weight.shape[0]), *weight.shape[1:], dtype=weight.dtype)
    first = filled = 0
    for chunk in weight.chunks():
        while len(chunk):
            count = min(len(chunk), len(block) - filled)
            block[filled : filled + count] = chunk[:count]
            chunk, filled = chunk[count:], filled + count
            if filled == len(block):
                yield first, block
                first, filled = first + filled, 0
    if filled:
        yield first, block[:filled]


def _assign(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, torch.nn.Parameter(tensor, requires_grad=False))


def _taken(buffers: list[torch.Tensor], weight: Weight) -> torch.Tensor | None:
    """One of the weight's shape and type, no longer in the list."""
    for index, buffer in enumerate(buffers):
        if (*buffer.shape, buffer.dtype) == (*weight.shape, weight.dtype):
            return buffers.pop(index)
    return None


def _unload(module: torch.nn.Module) -> None:
    for name, parameter in list(module.named_parameters()):
        _assign(module, name, torch.empty_like(parameter, device="meta"))


def _nbytes(weight: Weight) -> int:
    return math.prod(weight.shape) * weight.dtype.itemsize
