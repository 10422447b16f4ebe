"""An export's drift from a golden pack: what can be known without the tail's single tokens.

With the known tokens as cells and all others as one more, KL over the cells is at most KL over the vocabulary (data
processing; Cover & Thomas, Elements of Information Theory, 2.8), and the same holds of squared and largest differences,
which are taken over the known tokens only. Likelihood of the text, most likely tokens and margins are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_validation.documents import Document
from gemma_validation.errors import MismatchError
from gemma_validation.golden.pack import GoldenRows
from gemma_validation.golden.reference import GoldenReference
from gemma_validation.metrics.accumulate import following_tokens, ranked
from gemma_validation.metrics.collected import ALTERNATIVES, Collected, FlipCandidate
from gemma_validation.metrics.finite import require_finite
from gemma_validation.metrics.rows import POSITION
from gemma_validation.metrics.rows import TOP as OVERLAP
from gemma_validation.metrics.top import top_tokens

__all__ = ["measure_golden"]

# token ids of one sequence -> (first position, float32 [n, vocab_size]), in order: ArtifactRunner.logits
RunnerLogits = Callable[[Sequence[int]], Iterable[tuple[int, npt.NDArray[np.float32]]]]


def measure_golden(pack: GoldenReference, runner_logits: RunnerLogits, *, tau: float) -> Collected:
    """Runs the pack's documents and compares the chosen positions.

    Args:
        pack: whose model was checked (`GoldenReference.require`).
        runner_logits: logits of all positions of a sequence.
        tau: margin above which a changed token is a decisive flip, logits.

    Returns:
        What `DriftMeter` gives: drifts, positions, flips; KL, normalised_mse and max_difference are lower bounds.

    Raises:
        NotFinite: the export computes what is no number.
        MismatchError: the export's vocabulary is another.
    """
    collected = Collected(tau=tau, lower_bound=True)
    for document, rows in pack.each():
        done = 0
        # what follows the last position is known, and its own logits are nobody's
        for first, logits in runner_logits(document.token_ids[: int(rows.positions[-1]) + 1]):
            if logits.shape[1] != pack.identity.vocab_size:
                raise MismatchError(
                    f"the export has {logits.shape[1]} logits, the golden pack is of {pack.identity.vocab_size}",
                    hint="Make a golden pack of this model with gemma-validate --make-golden FILE.",
                )
            last = int(np.searchsorted(rows.positions, first + len(logits)))
            if last > done:
                part = _part(rows, done, last)
                _compare(collected, document, part, logits[part.positions - first])
                done = last
            if done == len(rows.positions):
                break
        if done < len(rows.positions):
            raise ValueError(f"the runner ended before position {rows.positions[done]} of {document.name}")
    return collected


def _part(rows: GoldenRows, first: int, last: int) -> GoldenRows:
    return GoldenRows(**{name: array[first:last] for name, array in vars(rows).items()})


def _compare(collected: Collected, document: Document, rows: GoldenRows, test: npt.NDArray[np.float32]) -> None:
    require_finite(test, rows.positions, side="test", document=document.name)
    found = np.empty(len(test), POSITION)
    following = following_tokens(document, rows.positions, vocab_size=test.shape[1])
    for row in range(len(test)):
        _compare_row(rows, row, test[row].astype(np.float64), int(following[row]), found[row : row + 1])
    best = top_tokens(test, OVERLAP)
    found["position"] = rows.positions
    found["same_top1"] = best[:, 0] == rows.ids[:, 0]
    known = rows.ids[:, :OVERLAP]
    found["overlap"] = (known[:, :, None] == best[:, None, :]).any(axis=2).mean(axis=1)
    wide = rows.logits[:, :2].astype(np.float64)
    found["margin"] = wide[:, 0] - wide[:, 1] if wide.shape[1] > 1 else np.inf
    collected.extend(document, found)
    for row in np.flatnonzero(~found["same_top1"]).tolist():
        margin = float(found["margin"][row])
        if collected.wants(margin):
            logprobs = rows.logits[row, :ALTERNATIVES] - rows.log_sum[row]
            candidate = FlipCandidate(
                document=document,
                position=int(rows.positions[row]),
                margin=margin,
                reference=tuple(zip(rows.ids[row, :ALTERNATIVES].tolist(), logprobs.tolist(), strict=True)),
                test=ranked(test[row]),
            )
            collected.offer(candidate)


def _compare_row(rows: GoldenRows, row: int, test: npt.NDArray[np.float64], following: int, found: Any) -> None:
    """One position; `test` [vocab_size] is consumed."""
    ids = rows.ids[row]
    known = test[ids]
    difference = known - rows.logits[row]
    next_logit = test[following]
    largest = test.max()
    exponentials = np.exp(np.subtract(test, largest, out=test), out=test)
    log_sum = largest + np.log(exponentials.sum())
    exponentials[ids] = 0
    # a tail that underflows is still larger than this
    log_tail = largest + np.log(max(float(exponentials.sum()), np.finfo(np.float64).tiny))
    logprobs = rows.logits[row] - rows.log_sum[row]
    kl = float((np.exp(logprobs) * (logprobs - known + log_sum)).sum())
    if np.isfinite(rows.log_tail[row]):
        tail = rows.log_tail[row] - rows.log_sum[row]
        kl += float(np.exp(tail) * (tail - log_tail + log_sum))
    found["kl"] = max(kl, 0.0)
    found["logprob_reference"] = rows.next_logit[row] - rows.log_sum[row]
    found["logprob_test"] = next_logit - log_sum
    found["shift"] = np.exp(found["logprob_test"]) - np.exp(found["logprob_reference"])
    # about their own mean, which is the least that any shift leaves
    found["squared_difference"] = np.square(difference - difference.mean()).sum()
    found["squared_reference"] = rows.squares[row]
    found["largest"] = np.abs(difference).max()
    found["mean_reference"] = rows.mean[row]
    found["vocab_size"] = len(test)
