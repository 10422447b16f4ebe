"""What the invariances share: one opened graph, a prompt, a few rows, and what each gives by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemma_validation.artifact import ArtifactRunner, Cache, Step
from gemma_validation.documents import Document
from gemma_validation.errors import FolderUnreadableError
from gemma_validation.invariances.bounds import Bounds, bounds_for
from gemma_validation.invariances.differences import Difference, cache_difference, logits_difference, row_cache

__all__ = ["SIZES", "Asked", "Scene", "Size", "padded"]

Integers = npt.NDArray[np.int64]
# tokens of a step of several behind a cache: fewer than any graph of the last positions gives
_CHUNK = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much text a suite takes."""

    # tokens of the prompt that goes through in parts
    prompt: int
    # of them at its beginning: those that go through in small parts, with other ends and through the other graphs
    beginning: int
    # tokens of each row of a batch, one more each for the step after it
    rows: tuple[int, ...]


# quick: few tokens, which a 2B pays for, and more than one part of 64
SIZES = {
    "quick": Size(prompt=67, beginning=17, rows=(11, 6, 3)),
    "full": Size(prompt=300, beginning=300, rows=(65, 64, 21, 8, 1)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One step, and what the graph of all positions gives for it."""

    # [batch_size, sequence_length]
    input_ids: Integers
    # [batch_size, total_sequence_length]
    attention_mask: Integers
    past: Cache | None
    step: Step

    @property
    def is_chunk(self) -> bool:
        """Several tokens behind a cache, which not every graph takes."""
        return self.past is not None and self.input_ids.shape[1] > 1

    @property
    def is_padded_prompt(self) -> bool:
        """Rows of different lengths from their first tokens on."""
        return self.past is None and not self.attention_mask.all()


class Scene:
    """A graph that gives logits of all positions, and texts for it.

    Args:
        runner: of the graph of role "all".
        documents: the texts; without any, ids that are spread over the vocabulary.
        size: how much of them.
    """

    def __init__(self, runner: ArtifactRunner, documents: Sequence[Document], size: Size) -> None:
        self.runner = runner
        self.bounds: Bounds = bounds_for(runner.manifest)
        self._batches: dict[str, Step] = {}
        # one more token comes after a prompt
        most = runner.context_length - 1
        documents = _long_first(documents, min(size.prompt, most))
        self.prompt = _tokens(documents, 0, min(size.prompt, most), runner.vocab_size)
        self.beginning = self.prompt[: size.beginning]
        # one row more than tokens: the token of the step after the batch
        self.rows = tuple(
            _tokens(documents, index, min(length, most) + 1, runner.vocab_size)
            for index, length in enumerate(size.rows)
        )

    @property
    def few(self) -> tuple[tuple[int, ...], ...]:
        """The shorter rows, where the longest would tell no more."""
        return self.rows[1:]

    @functools.cached_property
    def whole(self) -> Step:
        """The prompt in one run; of a text that the comparison with the reference has run, that run's beginning."""
        if self._held is None:
            return self.run(self.prompt)
        # a copy: the rest of that run is as long again
        return dataclasses.replace(self._held, logits=self._held.logits.copy())

    @functools.cached_property
    def begun(self) -> Step:
        """The prompt's beginning in one run."""
        return self.whole if self.beginning == self.prompt and self._held is None else self.run(self.beginning)

    @property
    def _held(self) -> Step | None:
        """The prompt as the beginning of a longer run, if the runner has one."""
        longest = self.runner.longest
        if longest is None or longest.token_ids[: len(self.prompt)] != self.prompt:
            return None
        return _first(longest.step, len(self.prompt))

    @functools.cached_property
    def alone(self) -> tuple[Step, ...]:
        """Each row by itself, its next token included; the first is the beginning of the prompt."""
        return tuple(
            _first(self.whole, len(row)) if row == self.prompt[: len(row)] else self.run(row) for row in self.rows
        )

    def after(self, side: str) -> Step:
        """The step behind `batch`: one token more for each row."""
        name = f"after {side}"
        if name not in self._batches:
            ids, mask = _next(self.rows, side)
            self._batches[name] = self.runner.step(ids, mask, self.batch(side).present)
        return self._batches[name]

    @functools.cached_property
    def asked(self) -> tuple[Asked, ...]:
        """Steps for the other graphs: a prompt, tokens behind its cache, padded rows, and tokens behind theirs.

        To be asked for while the runner is open. A step that it refuses is left out: an invariance of its own tells.
        """
        found = [self._behind(0)]
        counts = (1, _CHUNK) if self._chunked else (1,)
        found += [self._behind(max(1, len(self.beginning) - count)) for count in counts]
        for side in ("left", "right"):
            with contextlib.suppress(FolderUnreadableError):
                ids, mask = padded([row[:-1] for row in self.few], side)
                batch = self.batch_of_few(side)
                found.append(Asked(input_ids=ids, attention_mask=mask, past=None, step=batch))
                ids, mask = _next(self.few, side)
                after = self.runner.step(ids, mask, batch.present)
                found.append(Asked(input_ids=ids, attention_mask=mask, past=batch.present, step=after))
        return tuple(one for one in found if one is not None)

    @property
    def _chunked(self) -> bool:
        return self.runner.chunked and len(self.beginning) > _CHUNK

    def _behind(self, read: int) -> Asked | None:
        """The beginning's tokens from `read` on, behind the cache of those before."""
        ids, mask = np.array([self.beginning[read:]], np.int64), np.ones((1, len(self.beginning)), np.int64)
        if not read:
            return Asked(input_ids=ids, attention_mask=mask, past=None, step=self.begun)
        past = _first(self.begun, read).present
        try:
            step = self.runner.step(ids, mask, past)
        except FolderUnreadableError:
            return None
        return Asked(input_ids=ids, attention_mask=mask, past=past, step=step)

    def run(self, tokens: Sequence[int]) -> Step:
        """One row in one run."""
        return self.runner.step(np.array([tokens], np.int64), np.ones((1, len(tokens)), np.int64))

    def batch(self, side: str) -> Step:
        """All rows in one run, padded with id 0, without their next tokens."""
        if side not in self._batches:
            self._batches[side] = self.runner.step(*padded([row[:-1] for row in self.rows], side))
        return self._batches[side]

    def batch_of_few(self, side: str) -> Step:
        """`batch` of the shorter rows."""
        name = f"few {side}"
        if name not in self._batches:
            self._batches[name] = self.runner.step(*padded([row[:-1] for row in self.few], side))
        return self._batches[name]

    def real_cache(self, step: Step, row: int, mask: Integers) -> list[npt.NDArray[np.float32]]:
        """See `row_cache`."""
        return row_cache(self.runner.manifest, self.runner.graph, step.present, row, mask)

    def compare(self, found: Step, row: int, mask: Integers, expected: Step, length: int) -> Difference:
        """One row of a run against the same tokens alone.

        Args:
            found: logits [batch_size, sequence_length, vocab_size].
            row: of it.
            mask: [sequence_length] of that row.
            expected: the tokens alone.
            length: of the row; `expected` may have more.
        """
        cache = [tensor[:, :length] for tensor in self.real_cache(expected, 0, np.ones(length, np.int64))]
        return Difference(
            logits=logits_difference(found.logits[row][mask == 1], expected.logits[0, :length]),
            cache=cache_difference(self.real_cache(found, row, mask), cache),
        )


def padded(rows: Sequence[Sequence[int]], side: str, pad: int = 0) -> tuple[Integers, Integers]:
    """Rows of different lengths as a batch.

    Args:
        rows: token ids.
        side: "left" or "right": where the padding goes.
        pad: its id.

    Returns:
        input_ids and attention_mask [rows, longest].
    """
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), pad, np.int64), np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, columns], mask[index, columns] = row, 1
    return ids, mask


def _next(rows: Sequence[Sequence[int]], side: str) -> tuple[Integers, Integers]:
    """Each row's last token, behind a batch of those before it, and the mask of both."""
    _, mask = padded([row[:-1] for row in rows], side)
    longer = np.concatenate((mask, np.ones((len(mask), 1), np.int64)), axis=1)
    return np.array([row[-1:] for row in rows], np.int64), longer


def _first(step: Step, length: int) -> Step:
    """The first tokens of a run of one row: those behind them change nothing, which `later_tokens` looks at."""
    return Step(logits=step.logits[:, :length], present=tuple(array[:, :, :length] for array in step.present), taps={})


def _long_first(documents: Sequence[Document], length: int) -> list[Document]:
    """From the first one on that has so many tokens, if one has."""
    first = next((index for index, document in enumerate(documents) if len(document.token_ids) >= length), 0)
    return [*documents[first:], *documents[:first]]


def _tokens(documents: Sequence[Document], first: int, length: int, vocab_size: int) -> tuple[int, ...]:
    """The beginning of a text, continued by the next ones where it is short."""
    if not documents:
        # a stride that no vocabulary's size is a multiple of
        return tuple((7 + 7919 * (first + index)) % vocab_size for index in range(length))
    start = first % len(documents)
    texts = itertools.cycle([*documents[start:], *documents[:start]])
    tokens = itertools.chain.from_iterable(document.token_ids for document in texts)
    return tuple(itertools.islice(tokens, length))
