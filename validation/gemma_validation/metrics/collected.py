"""What a comparison keeps: a few numbers of every position, and the worst flips."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from gemma_validation.documents import Document
from gemma_validation.findings import Alternative, Drift, Flip, PositionDrift
from gemma_validation.metrics.summary import summarise

__all__ = ["ALTERNATIVES", "Collected", "FlipCandidate", "Ranked"]

# most likely tokens that a flip shows of each side
ALTERNATIVES = 5
_FLIPS = 20
# tokens before a flip that are shown
_CONTEXT = 48
_CHART_POINTS = 1024

# (token id, log-probability), best first
Ranked = tuple[tuple[int, float], ...]
Decode = Callable[[Sequence[int]], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlipCandidate:
    """A flip before its text is decoded."""

    document: Document
    position: int
    margin: float
    reference: Ranked
    test: Ranked


class Collected:
    """Positions of all documents, in the order in which they came.

    Args:
        tau: margin above which a changed token is a decisive flip, logits.
        lower_bound: the reference knows only its most likely tokens.
    """

    def __init__(self, *, tau: float, lower_bound: bool = False) -> None:
        self.tau = tau
        self._lower_bound = lower_bound
        self._documents: dict[str, tuple[Document, list[npt.NDArray[np.void]]]] = {}
        # margin, minus the order of arrival (among equals the first stays), flip
        self._worst: list[tuple[float, int, FlipCandidate]] = []
        self._offered = 0

    def extend(self, document: Document, found: npt.NDArray[np.void]) -> None:
        """Adds positions ([n] of `POSITION`) behind those that the document has."""
        self._documents.setdefault(document.name, (document, []))[1].append(found)

    def wants(self, margin: float) -> bool:
        """Whether a flip of this margin would be among the worst."""
        return margin > self.tau and (len(self._worst) < _FLIPS or margin > self._worst[0][0])

    def offer(self, candidate: FlipCandidate) -> None:
        """Keeps a flip if it is among the worst."""
        if self.wants(candidate.margin):
            self._offered += 1
            heapq.heappush(self._worst, (candidate.margin, -self._offered, candidate))
            if len(self._worst) > _FLIPS:
                heapq.heappop(self._worst)

    def drifts(self) -> tuple[Drift, ...]:
        """Over everything first, then each slice in the order of its first document.

        Raises:
            ValueError: nothing was added, or a slice has no position with a token after it.
        """
        if not self._documents:
            raise ValueError("nothing was compared")
        slices: dict[str, list[npt.NDArray[np.void]]] = {"all": []}
        for document, parts in self._documents.values():
            joined = np.concatenate(parts)
            slices["all"].append(joined)
            slices.setdefault(document.slice, []).append(joined)
        return tuple(
            summarise(name, found, tau=self.tau, lower_bound=self._lower_bound) for name, found in slices.items()
        )

    def positions(self) -> tuple[PositionDrift, ...]:
        """The longest document of each slice, its first 1,024 positions."""
        longest: dict[str, tuple[Document, npt.NDArray[np.void]]] = {}
        for document, parts in self._documents.values():
            joined = np.concatenate(parts)
            if document.slice not in longest or len(joined) > len(longest[document.slice][1]):
                longest[document.slice] = document, joined
        return tuple(
            PositionDrift(
                slice=name,
                document=document.name,
                first=int(found["position"][0]),
                kl=tuple(float(value) for value in found["kl"][:_CHART_POINTS]),
            )
            for name, (document, found) in longest.items()
        )

    def flips(self, decode: Decode) -> tuple[Flip, ...]:
        """The 20 decisive flips of the largest margin, worst first.

        Args:
            decode: token ids to text.
        """
        ordered = sorted(self._worst, key=lambda entry: entry[:2], reverse=True)
        return tuple(_flip(candidate, decode) for _, _, candidate in ordered)


def _flip(candidate: FlipCandidate, decode: Decode) -> Flip:
    end = candidate.position + 1
    return Flip(
        slice=candidate.document.slice,
        document=candidate.document.name,
        position=candidate.position,
        context=decode(candidate.document.token_ids[max(0, end - _CONTEXT) : end]),
        margin=candidate.margin,
        reference=_alternatives(candidate.reference, decode),
        test=_alternatives(candidate.test, decode),
    )


def _alternatives(ranked: Ranked, decode: Decode) -> tuple[Alternative, ...]:
    return tuple(Alternative(token_id=token, text=decode([token]), logprob=logprob) for token, logprob in ranked)
