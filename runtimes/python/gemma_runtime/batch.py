"""Several prompts at once: each is read alone, then one run of the model gives each of them a token."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gemma_runtime.answer_text import AnswerText
from gemma_runtime.decoding import check_finite
from gemma_runtime.errors import PromptError
from gemma_runtime.results import Completion
from gemma_runtime.sampling import Sampling
from gemma_runtime.sampling.options import is_integer, require
from gemma_runtime.sequence import Logits, TokenSequence
from gemma_runtime.state import Buffer, InPlaceState

if TYPE_CHECKING:
    from gemma_runtime.answer import AnswerOptions
    from gemma_runtime.model import Gemma
    from gemma_runtime.prompts import Prompt
    from gemma_runtime.session import OpenedGraph

__all__ = ["generate_many"]


def generate_many(
    model: Gemma, prompts: Sequence[Prompt], *, samples: int, batch_size: int, options: AnswerOptions
) -> list[Completion]:
    """See Gemma.generate_many.

    Raises:
        PromptError: see Gemma.generate; samples or batch_size below 1.
    """
    for name, value in (("samples", samples), ("batch-size", batch_size)):
        require(is_integer(value) and value >= 1, name, "1 or above", value)
    if isinstance(prompts, str):
        raise PromptError("prompts are several, found one text", hint="Put it into a list.")
    sampling = options.sampling or Sampling()
    jobs = [
        _Job(ids=ids, options=dataclasses.replace(options, sampling=_seeded(sampling, number)))
        for ids in [model.encode(prompt) for prompt in prompts]
        for number in range(samples)
    ]
    reader = model.sequence()
    if isinstance(reader.state, InPlaceState) and reader.opened.device == "cpu" and min(len(jobs), batch_size) > 1:
        return _Batch(model, reader, rows=min(len(jobs), batch_size)).run(jobs)
    # A single row, kernels that make their caches anew, or caches on a device: one after the other. Without guesses, as
    # in rows: another way to add up could turn a close draw.
    conversation = model.conversation()
    return [conversation.begin(job.ids, job.options, guesses=False).finish() for job in jobs]


def _seeded(sampling: Sampling, number: int) -> Sampling:
    return dataclasses.replace(sampling, seed=sampling.seed + number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    ids: list[int]
    options: AnswerOptions


class _Row:
    """One answer in the making."""

    def __init__(self, model: Gemma, job: _Job, number: int) -> None:
        self.number, self._job = number, job
        options = job.options
        self._text = AnswerText(model.tokenizer, options.stops, logprobs=options.logprobs is not None)
        self._chooser = options.chooser(job.ids, model.tokenizer, model.stop_ids, model.manifest.vocab_size)
        self._stop_ids = options.all_stop_ids(model.stop_ids)
        self._room, self._full = options.room(len(job.ids), model.manifest.context_length)
        self.tokens: list[int] = []
        self._began = time.perf_counter()
        self._first = 0.0
        self.cached_tokens = 0
        self.completion: Completion | None = None

    @property
    def length(self) -> int:
        """Tokens in the cache: all but the last one chosen."""
        return len(self._job.ids) + len(self.tokens) - 1

    def take(self, logits: Logits) -> None:
        """Chooses the next token after a row of logits; afterwards there may be a completion."""
        check_finite(logits, len(self.tokens))
        token = self._chooser.choose(logits)
        self._first = self._first or time.perf_counter() - self._began
        if token in self._stop_ids:
            self.end("stop", stop_token=True)
            return
        logprob = self._chooser.logprob(logits, token) if self._job.options.logprobs is not None else None
        self._chooser.accept(token)
        self.tokens.append(token)
        self._text.push(token, logprob)
        if self._text.stopped or self._chooser.finished:
            self.end("stop")
        elif len(self.tokens) == self._room:
            self.end(self._full)

    def end(self, reason: str, *, stop_token: bool = False) -> None:
        """Makes the completion."""
        self._text.flush()
        self.completion = self._text.complete(
            reason,
            stop_token=stop_token,
            tokens=self.tokens,
            prompt_tokens=len(self._job.ids),
            cached_tokens=self.cached_tokens,
            first_token_seconds=self._first,
            seconds=time.perf_counter() - self._began,
        )


class _Batch:
    """Rows side by side in one cache; a row that ends is replaced by the next prompt or by the last row.

    Args:
        model: the folder.
        reader: an empty sequence, which reads prompts; those that start alike are read from there on.
        rows: at most.
    """

    def __init__(self, model: Gemma, reader: TokenSequence, *, rows: int) -> None:
        self._model, self._reader, self._opened = model, reader, reader.opened
        self._most = rows
        self._rows: list[_Row] = []
        self._state = _state_of(self._opened, rows)
        self._binding = self._opened.binding()
        shape = (1, rows * self._opened.vocab_size)
        self._logits = Buffer(self._opened.onnxruntime, shape, self._opened.element, "cpu")

    def run(self, jobs: Sequence[_Job]) -> list[Completion]:
        """Completions in the order of the jobs."""
        waiting = deque(enumerate(jobs))
        done: dict[int, Completion] = {}
        cancel = jobs[0].options.cancel
        while waiting or self._rows:
            cancelled = cancel is not None and cancel.is_set()
            while waiting and len(self._rows) < self._most:
                number, job = waiting.popleft()
                row = _Row(self._model, job, number)
                if cancelled:
                    row.end("cancelled")
                else:
                    self._read(row, job)
                if row.completion is None:
                    self._add(row)
                else:
                    done[number] = row.completion
            if cancelled:
                for row in self._rows:
                    row.end("cancelled")
            elif self._rows:
                self._step()
            self._collect(done)
        return [done[number] for number in range(len(jobs))]

    def _read(self, row: _Row, job: _Job) -> None:
        row.cached_tokens = self._reader.keep_prefix_of(job.ids)
        cancel = job.options.cancel
        stopped = (lambda: False) if cancel is None else cancel.is_set
        logits = self._reader.extend(job.ids[row.cached_tokens :], stopped)
        if logits is None:
            row.end("cancelled")
        else:
            row.take(logits[-1])

    def _add(self, row: _Row) -> None:
        self._make_room(row.length + 1)
        source = self._reader.state
        assert isinstance(source, InPlaceState)
        self._state.copy_row(source, 0, len(self._rows), row.length)
        self._rows.append(row)

    def _step(self) -> None:
        """One token for every row."""
        rows, size = len(self._rows), self._opened.vocab_size
        self._make_room(max(row.length for row in self._rows) + 1)
        self._state.rows = rows
        # each row's tokens at the right end, whatever the others' lengths: the sum says where the next one goes
        lengths = np.array([row.length + 1 for row in self._rows])
        columns = np.arange(lengths.max())
        mask = (columns >= lengths.max() - lengths[:, None]).astype(np.int64)
        ids = np.array([[row.tokens[-1]] for row in self._rows], np.int64)
        self._binding.bind_cpu_input("input_ids", ids)
        self._binding.bind_cpu_input("attention_mask", mask)
        self._logits.bind_output(self._binding, "logits", (rows, 1, size))
        # rows have lengths of their own, and none goes back
        self._state.bind(self._binding, 0, 0)
        self._opened.run(self._binding)
        logits = self._logits.float32().reshape(-1, size)
        for index, row in enumerate(self._rows):
            row.take(logits[index])

    def _collect(self, done: dict[int, Completion]) -> None:
        """Takes out the rows that have ended; the last one moves into each gap."""
        for index in reversed(range(len(self._rows))):
            row = self._rows[index]
            if row.completion is None:
                continue
            done[row.number] = row.completion
            last = self._rows.pop()
            if last is not row:
                self._state.copy_row(self._state, len(self._rows), index, last.length)
                self._rows[index] = last

    def _make_room(self, tokens: int) -> None:
        if tokens > self._state.capacity:
            capacity = min(self._opened.context_length, max(tokens, self._state.capacity * 3 // 2))
            self._state.grow(capacity, self._state.capacity)


def _state_of(opened: OpenedGraph, rows: int) -> InPlaceState:
    capacity = min(opened.context_length, 256)
    return InPlaceState(opened.onnxruntime, opened.graph, capacity=capacity, device=opened.device, rows=rows)
