"""One sequence of tokens and its cache."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_runtime.errors import ProviderError
from gemma_runtime.session import OpenedGraph
from gemma_runtime.state import Buffer, InPlaceState
from gemma_runtime.static_decode import StateBuffer, StaticDecoder, StaticGraph

__all__ = ["Logits", "TokenSequence"]

# float32 [positions, vocab_size]
Logits: TypeAlias = "npt.NDArray[np.float32]"

# A prompt goes through in parts, which bounds the memory of activations and attention scores. A 2B in 4 bits on two
# cores read 4,096 tokens at 79, 81 and 78 tokens/s in parts of 512, 256 and 128, with peaks of 1,964, 1,838, 1,789 MiB.
PREFILL_TOKENS = 256
# A cache is a multiple of this many tokens, and grows by half: copying it costs less than one step, and a full context
# of a 2B (302 MB in float32) is only there where it is used.
_ROOM = 256


class TokenSequence:
    """Tokens of one row whose keys and values are in the cache; it can be extended and cut back.

    Args:
        opened: the graph; may be shared, a sequence may not: one thread at a time.
        capacity: tokens to make room for at first; the cache grows up to the context's length.
    """

    def __init__(self, opened: OpenedGraph, capacity: int = 0) -> None:
        self.opened = opened
        self.tokens: list[int] = []
        self._binding = opened.binding()
        # the cache
        self.state = opened.state(self._rounded(capacity))
        self._mask = np.ones((1, opened.context_length), np.int64)
        self._logits: Buffer | None = None
        self._static: StaticDecoder | None = None
        # gives a captured graph back, at the latest when the sequence is forgotten
        self._released: weakref.finalize[..., TokenSequence] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def step(self, ids: Sequence[int]) -> Logits:
        """Appends tokens in one run.

        Args:
            ids: at least one; with what is there they fit the context.

        Returns:
            Logits after each of the last tokens, at least one, at most as many as the graph gives: a view that the next
            step overwrites.

        Raises:
            ModelOutputError: onnxruntime refuses.
            ProviderError: several tokens after others, where the kernels take a prompt whole.
        """
        total = len(self.tokens) + len(ids)
        assert 0 < len(ids) <= total <= self.opened.context_length
        if len(ids) > 1 and self.tokens and not self.opened.chunked:
            raise ProviderError(
                f"{self.opened.graph.file} takes a prompt whole: its attention would read a step of {len(ids)} tokens "
                "as new",
                hint="Give all tokens of a prompt in one step, or use a folder of --target ort.",
            )
        if not self.state.goes_back(len(self.tokens)):
            self._read_again()
        if total > self.state.capacity:
            self.state.grow(self._rounded(max(total, self.state.capacity * 3 // 2)), len(self.tokens))
        if len(ids) == 1 and self.tokens and self.opened.static is not None:
            return self._static_step(ids[0], self.opened.static)
        self._binding.bind_cpu_input("input_ids", np.asarray([ids], np.int64))
        self._binding.bind_cpu_input("attention_mask", self._mask[:, :total])
        # the logits first, so that they are the binding's output 0
        logits, positions = self._bind_logits(len(ids))
        self.state.bind(self._binding, len(self.tokens), total)
        self.opened.run(self._binding)
        self.state.advance(self._binding, total)
        self.tokens.extend(ids)
        # only what this step has written: of fewer positions than the buffer holds no others are widened
        written = logits.memory.reshape(-1)[: positions * self.opened.vocab_size]
        return self.opened.element.to_float32(written).reshape(positions, -1)

    def _read_again(self) -> None:
        """Fills the cache anew: window-sized buffers have forgotten what the last of these tokens see."""
        tokens = self.tokens
        try:
            self.tokens = []
            self.extend(tokens)
        except BaseException:
            # the tokens below are not those that the buffers hold
            self.state.forget()
            raise
        finally:
            self.tokens = tokens

    def _static_step(self, token: int, static: StaticGraph) -> Logits:
        assert isinstance(self.state, InPlaceState)
        with self.opened.lock:
            if self._static is None or self._static.capacity != self.state.capacity:
                # other addresses need a capture of their own
                if self._released is not None:
                    self._released()
                buffers = [
                    StateBuffer(past=past, present=present, value=buffer.value)
                    for past, present, buffer in self.state.named()
                ]
                self._static = static.decoder(buffers, capacity=self.state.capacity, length=len(self.tokens))
                self._released = weakref.finalize(self, self._static.release)
            elif self._static.length != len(self.tokens):
                self._static.set_length(len(self.tokens))
            logits = self._static.step(token)
        self.tokens.append(token)
        return logits[None]

    def extend(self, ids: Sequence[int], stopped: Callable[[], bool] = lambda: False) -> Logits | None:
        """Appends any number of tokens, in parts where the kernels can.

        Args:
            ids: at least one.
            stopped: asked between parts; when true the rest is left out.

        Returns:
            What `step` returns for the last part; None if stopped before it.
        """
        size = PREFILL_TOKENS if self.opened.chunked else len(ids)
        logits: Logits | None = None
        for start in range(0, len(ids), size):
            if stopped():
                return None
            logits = self.step(ids[start : start + size])
        return logits

    def truncate(self, length: int) -> None:
        """Forgets the tokens beyond the first `length`.

        Window-sized caches that cannot go back so far (`reversible`) are filled anew by the next step.
        """
        del self.tokens[length:]

    def reversible(self, length: int, wanted: int) -> int:
        """How many of `wanted` tokens behind the first `length` can be taken back without reading any again."""
        end = self.state.next_eviction(length)
        return wanted if end is None else min(wanted, end - 1 - length)

    def keep_prefix_of(self, ids: Sequence[int]) -> int:
        """Forgets what is not a beginning of `ids`, and at least the last of them, whose logits are wanted.

        Returns:
            Tokens that are kept: `ids` from there on have to be appended.
        """
        most = min(len(self.tokens), len(ids) - 1)
        kept = next((index for index in range(most) if self.tokens[index] != ids[index]), most)
        if (not self.opened.chunked and len(ids) - kept > 1) or not self.state.goes_back(kept):
            kept = 0
        self.truncate(kept)
        return kept

    def _rounded(self, capacity: int) -> int:
        return min(self.opened.context_length, -(-max(1, capacity) // _ROOM) * _ROOM)

    def _bind_logits(self, sequence: int) -> tuple[Buffer, int]:
        """A buffer for the logits of a step and how many there will be; the beginning of one buffer serves fewer."""
        most = self.opened.positions
        positions = sequence if most is None else min(most, sequence)
        size = self.opened.vocab_size
        if self._logits is None or self._logits.shape[1] < positions * size:
            # flat, so that a beginning of it is contiguous
            self._logits = Buffer(self.opened.onnxruntime, (1, (most or positions) * size), self.opened.element, "cpu")
        self._logits.bind_output(self._binding, "logits", (1, positions, size))
        return self._logits, positions
