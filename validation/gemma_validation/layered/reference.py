"""A reference that holds one layer's weights at a time: transformers' layers, streamed weights."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gemma_validation.documents import Document
from gemma_validation.findings import ReferenceAbout
from gemma_validation.layered.architecture import Architecture, architecture_of
from gemma_validation.layered.like_lengths import groups_of_like_length
from gemma_validation.softcap import soft_capped

if TYPE_CHECKING:
    import torch

    from gemma_export.layerwise import LayerStack, LayerwiseRun, Observer
    from gemma_export.progress import Progress
    from gemma_export.weights import Weight
    from gemma_validation.layered.caches import LayerCache
    from gemma_validation.reference.source import Cache, Exchanged

__all__ = ["LayeredReference"]

# rows of logits that one reading of the head serves: 262 MB of a vocabulary of 256,000
_LOGIT_ROWS = 256


class LayeredReference:
    """transformers' next-token logits of some documents.

    Memory: one layer in the reference's type, final hidden states of all documents, 256 rows of logits. Time: one
    reading of all layers in `prepare`, one of the head for each 256 positions.

    Args:
        config: config.json of the model.
        name: of the checkpoint, as people know it.
        weights: tensor name -> lazy weight, names and shapes checked.
        dtype: everything is computed in it; norms, rotary angles and softmax wherever transformers widens them.
        progress: told of the weights' bytes.

    Raises:
        MismatchError, MissingPackageError: see `architecture_of`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        name: str,
        weights: Callable[[str], Weight],
        dtype: Literal["float32", "bfloat16"] = "float32",
        progress: Progress | None = None,
    ) -> None:
        self.architecture: Architecture = architecture_of(config)
        self.stack: LayerStack = self.architecture.stack(config)
        self.vocab_size = self.stack.vocab_size
        versions = {package: version(package) for package in ("torch", "transformers")}
        self.about = ReferenceAbout(kind="layerwise", name=name, dtype=dtype, versions=versions)
        self._config, self._progress = config, progress
        self._weights = weights
        self._states: torch.Tensor | None = None
        # first position of each document among all, and the end
        self._starts: tuple[int, ...] = (0,)
        # logits of positions from the first number on
        self._block: tuple[int, npt.NDArray[np.float32]] = (0, np.empty((0, self.vocab_size), np.float32))
        self._threads: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        self._exchange: _Exchange | None = None

    def weight(self, name: str) -> Weight:
        """A weight in the reference's type, lazily."""
        import torch

        from gemma_export.weights import Cast

        return Cast(self._weights(name), getattr(torch, self.about.dtype))

    def _matrix(self, name: str) -> Weight:
        """A weight as `linear` takes it: in its own type where that is narrower than the reference's."""
        stored, own = self._weights(name), self.weight(name)
        return stored if stored.dtype.itemsize < own.dtype.itemsize else own

    def _of_layers(self, name: str) -> Weight:
        """A weight as the layers take it: rows of the embedding are scaled, and norms computed, in the wider type."""
        is_matrix = len(self._weights(name).shape) > 1 and name != self.stack.embedding
        return self._matrix(name) if is_matrix else self.weight(name)

    def prepare(self, documents: Sequence[Document], observer: Observer | None = None) -> None:
        """Runs all layers over all documents.

        Args:
            documents: at least one, none empty.
            observer: shown every tap: "embedding", those of each layer, "output" of each layer, "norm.output".

        Raises:
            NonFiniteError: a weight or a value on the way is NaN or infinite.
            ResourceExhaustedError: hidden states do not fit into memory.
        """
        import torch

        texts = [document.token_ids for document in documents]
        states = self._run_with_exchange(texts) if observer is None else self._run(texts, observer)
        self._states = torch.cat(states)
        self._starts = tuple(np.cumsum([0, *(len(document.token_ids) for document in documents)]).tolist())
        self._block = (0, self._block[1][:0])

    def _run(
        self,
        texts: Sequence[Sequence[int]],
        observer: Observer | None = None,
        caches: Mapping[int, LayerCache] = MappingProxyType({}),
    ) -> list[torch.Tensor]:
        """One reading of all layers: final hidden states of each text, [tokens, hidden_size].

        Texts that nobody looks at run side by side: what follows a causal text, a copy of its last token, changes
        nothing in it.

        Args:
            texts: token ids.
            observer: see `prepare`.
            caches: of some texts, which run behind what is there and leave their own keys and values.
        """
        from gemma_export.layerwise import LayerwiseRun

        shared = [text for text in range(len(texts)) if text not in caches]
        groups = [[text] for text in shared]
        if observer is None:
            found = groups_of_like_length([len(texts[text]) for text in shared])
            groups = [[shared[index] for index in group] for group in found]
        # a stack of module_stack takes a cache
        call: Any = self.stack.call
        calls = {
            batch: functools.partial(call, cache=cache) for batch, cache in enumerate(caches.values(), len(groups))
        }
        groups += [[text] for text in caches]
        batches = [_side_by_side([texts[text] for text in group]) for group in groups]
        run = LayerwiseRun(
            self.stack, self._of_layers, batches, calls=calls, progress=self._progress, label="running the reference"
        )
        with contextlib.closing(run.layers(observer)) as layers:
            for layer in layers:
                layer.advance(observer)
                _show_outputs(run, layer.index, observer)
        run.normalise(observer)
        self._threads = run.threads
        states = {
            text: run.hidden[batch][row, : len(texts[text])]
            for batch, group in enumerate(groups)
            for row, text in enumerate(group)
        }
        run.hidden.close()
        return [states[text] for text in range(len(texts))]

    def exchange(self, token_ids: Sequence[int], past: Cache) -> None:
        """See CacheSource."""
        self._exchange = _Exchange(token_ids=token_ids, past=past)

    def exchanged(self) -> Exchanged:
        """See CacheSource; one reading of the head, and one of all layers if `prepare` has not made it."""
        import torch

        from gemma_validation.reference.source import Exchanged

        assert self._exchange is not None, "exchange() comes first"
        for behind in (True, False):
            if self._exchange.plain is None:
                self._run_with_exchange([], behind=behind)
        asked = self._exchange
        assert asked.plain is not None
        assert asked.own is not None
        logits = self._head(asked.plain if asked.behind is None else torch.cat((asked.plain, asked.behind)))
        count = len(asked.plain)
        return Exchanged(
            cache=tuple(part.float().numpy() for part in asked.own.parts(asked.split)),
            plain=logits[:count],
            behind=np.full_like(logits, np.nan) if asked.behind is None else logits[count:],
        )

    def _run_with_exchange(self, texts: Sequence[Sequence[int]], *, behind: bool = True) -> list[torch.Tensor]:
        """Final hidden states of the texts; in the same reading what `exchange` asked for, if anything.

        A cache that is no number must not end the run of the texts: they run again without it. The weights are known
        to be finite, so whoever gave the cache is told by what comes of it.

        Args:
            texts: token ids.
            behind: with the cache from elsewhere, too.
        """
        asked = self._exchange
        if asked is None:
            return self._run(texts)
        from gemma_export.errors import NonFiniteError
        from gemma_validation.layered.caches import LayerCache

        more = [(asked.token_ids, LayerCache())]
        if behind:
            more.append((asked.token_ids[asked.split :], asked.given(self.about.dtype)))
        caches = {len(texts) + index: cache for index, (_, cache) in enumerate(more)}
        try:
            states = self._run([*texts, *(ids for ids, _ in more)], caches=caches)
        except NonFiniteError:
            if not behind:
                raise
            return self._run(texts) if texts else []
        _, own = more[0]
        self._exchange = dataclasses.replace(
            asked,
            own=own,
            plain=states[len(texts)][asked.split :].clone(),
            behind=states[len(texts) + 1] if behind else None,
        )
        return states[: len(texts)]

    def logits(self, document: int, first: int, last: int) -> npt.NDArray[np.float32]:
        """Logits of positions [first, last) of a document, float32 [last - first, vocab_size].

        The head is read again for positions beyond those of the last reading: ask in ascending order.
        """
        assert self._states is not None, "prepare() comes first"
        begin, end = self._starts[document] + first, self._starts[document] + last
        assert begin <= end <= self._starts[document + 1], (document, first, last)
        start, block = self._block
        if not start <= begin <= end <= start + len(block):
            # the last block goes before the next one comes
            block = block[:0].copy()
            self._block = (0, block)
            start, block = begin, self._head(self._states[begin : max(end, begin + _LOGIT_ROWS)])
            self._block = (start, block)
        return block[begin - start : end - start]

    def _head(self, states: torch.Tensor) -> npt.NDArray[np.float32]:
        import torch

        from gemma_export.layerwise import row_blocks
        from gemma_validation.layered.products import linear

        logits = np.empty((len(states), self.vocab_size), np.float32)
        with torch.no_grad(), self._threads():
            for first, rows in row_blocks(self._matrix(self.stack.head)):
                block = soft_capped(linear(states, rows), self.stack.final_softcap)
                logits[:, first : first + len(rows)] = block.float().numpy()
        return logits

    def noise(self) -> LayeredReference | None:
        """The same in bfloat16; None where this is that."""
        if self.about.dtype == "bfloat16":
            return None
        return LayeredReference(
            self._config,
            name=self.about.name,
            weights=self._weights,
            dtype="bfloat16",
            progress=self._progress,
        )

    def close(self) -> None:
        """Lets go of hidden states and logits."""
        self._states = self._exchange = None
        self._block = (0, self._block[1][:0].copy())


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Exchange:
    """What `exchange` asks for, and final hidden states once they are there."""

    token_ids: Sequence[int]
    past: Cache
    own: LayerCache | None = None
    plain: torch.Tensor | None = None
    # None: they are no numbers
    behind: torch.Tensor | None = None

    @property
    def split(self) -> int:
        """Tokens of `past`."""
        return int(self.past[0].shape[2])

    def given(self, dtype: str) -> LayerCache:
        """`past` as layers read it."""
        import torch

        from gemma_validation.layered.caches import LayerCache

        parts = [torch.from_numpy(np.array(part)).to(getattr(torch, dtype)) for part in self.past]
        return LayerCache(list(zip(parts[::2], parts[1::2], strict=True)))


def _side_by_side(texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Token ids [texts, tokens of the longest]; the others' last tokens are repeated."""
    import torch

    longest = max(map(len, texts))
    return torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts])


def _show_outputs(run: LayerwiseRun, index: int, observer: Observer | None) -> None:
    from gemma_export.layerwise import Tap

    if observer is not None:
        for batch in range(len(run.hidden)):
            observer(Tap(index, "output", batch), run.hidden[batch])
