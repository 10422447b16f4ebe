"""How far the logits of a run of several tokens are off from those of runs of one.

Kernels add up in another order for several rows. How much that moves a logit is measured, once for a loaded folder and
always on the same tokens. Each answer starts from that and notes what it meets itself: with what other answers met, its
text would depend on what had been asked before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_runtime.sequence import TokenSequence

if TYPE_CHECKING:
    from gemma_runtime.session import OpenedGraph
    from gemma_runtime.tokenizer import Tokenizer

__all__ = ["KernelDifference", "measure_difference"]

# comparisons before the largest difference is believed: until then every first guess is checked by a run of its own
_COMPARISONS = 8
# what is read before runs are compared, and what they read: its first sixteen tokens
_TEXT = "def add(a, b):\n    return a + b  # the sum of two numbers: 1 + 2 = 3\n\n\nThe river rises in the hills.\n"
_BEFORE = 8


@dataclasses.dataclass(kw_only=True)
class KernelDifference:
    """What comparisons of both kinds of runs have shown so far."""

    # the least difference to reckon with, as a share of the logits' deviation
    turned_tie: float = 0.0
    # largest difference seen, and the largest of those to reckon with
    largest: float = 0.0
    expected: float = 0.0
    comparisons: int = 0

    def note(self, one: npt.NDArray[np.float32], several: npt.NDArray[np.float32]) -> None:
        """Takes in the logits of one position by a run of one token and by a run of several.

        Args:
            one: float32 [vocab_size], finite.
            several: the same.
        """
        self.largest = max(float(np.abs(one - several).max()), self.largest)
        self.expected = max(self.turned_tie * float(one.std()) if self.turned_tie else 0.0, self.expected)
        self.comparisons += 1

    def could_turn(self, margin: float) -> bool:
        """Whether a run of one token may choose otherwise than one of several, whose best two logits are this close.

        Always true before there are enough comparisons.
        """
        # two logits may each be off by the largest difference seen
        return self.comparisons < _COMPARISONS or margin <= max(2 * self.largest, self.expected)


def measure_difference(opened: OpenedGraph, tokenizer: Tokenizer) -> KernelDifference:
    """Compares a run of as many tokens as are checked at once with runs of one of them each.

    Takes a prompt of eight tokens twice, one run of several and as many of one.

    Args:
        opened: a graph that takes several tokens behind others.
        tokenizer: of the folder.

    Raises:
        ModelOutputError: onnxruntime refuses.
    """
    difference = KernelDifference(turned_tie=opened.turned_tie)
    ids = [token for token in tokenizer.encode(_TEXT) if token < opened.vocab_size][: opened.context_length]
    checked = ids[_BEFORE : _BEFORE + (opened.positions or _COMPARISONS)]
    if len(checked) > 1:
        several = _behind(opened, ids[:_BEFORE]).step(checked)
        ones = _behind(opened, ids[:_BEFORE])
        for token, row in zip(checked, several, strict=True):
            one = ones.step([token])[-1]
            # an overflow says nothing of rounding, and the answer will tell of its own
            if np.isfinite(one).all() and np.isfinite(row).all():
                difference.note(one, row)
    return difference


def _behind(opened: OpenedGraph, ids: Sequence[int]) -> TokenSequence:
    sequence = TokenSequence(opened)
    sequence.extend(ids)
    return sequence
