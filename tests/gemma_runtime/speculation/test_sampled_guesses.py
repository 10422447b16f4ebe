"""What is drawn with guesses is distributed as what is drawn without."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from speculation.tables import SIZE, TableSequence

from gemma_runtime import Sampling
from gemma_runtime.decoding import Decoding
from gemma_runtime.sampling import TokenChooser
from gemma_runtime.speculation import Draft, Drafter, DraftLength, DraftModel

MODEL, SMALLER = (np.random.default_rng(seed).normal(0, 1.5, (SIZE, SIZE)).astype(np.float32) for seed in (1, 2))
SAMPLING = Sampling(temperature=0.8, top_k=3)
DRAWS = 6000
# 27 triples of three tokens: chi-square with 26 degrees of freedom is above this once in a million draws of the seed
BOUND = 76.0


class Eager(DraftLength):
    """As many guesses as there is room for."""

    def best(self, kind: int, most: int) -> int:
        return most


class Fixed:
    """The same guesses whatever the text: certain, and often wrong."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self._tokens = tokens

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        return Draft(tokens=self._tokens[:most])

    def judge(self, draft: Draft, accepted: int, *, checked: int) -> None:
        assert 0 <= accepted <= checked == len(draft.tokens)


def chooser(sampling: Sampling) -> TokenChooser:
    return TokenChooser(sampling, vocab_size=SIZE, prompt_ids=())


def draft_model(table: np.ndarray) -> Callable[[Sampling], Drafter]:
    # a fake sequence has what a draft model asks of it
    return lambda sampling: DraftModel(TableSequence(table), chooser(sampling.for_draft(SIZE)), Eager(0.1))  # type: ignore[arg-type]


def certain(*tokens: int) -> Callable[[Sampling], Drafter]:
    return lambda sampling: Fixed(tokens)


def expected() -> dict[tuple[int, ...], float]:
    """Probabilities of all triples after token 0."""
    rows = [chooser(SAMPLING).distribution(row) for row in MODEL]
    found = {}
    for triple in itertools.product(range(SIZE), repeat=3):
        chances = [rows[last].probability(token) for last, token in itertools.pairwise((0, *triple))]
        if np.prod(chances):
            found[triple] = float(np.prod(chances))
    assert len(found) == 27
    return found


def chi_square(drafter: Callable[[Sampling], Drafter] | None) -> tuple[float, int]:
    """Of triples drawn with different seeds, and how many guesses were kept."""
    counts: Counter[tuple[int, ...]] = Counter()
    kept = 0
    for seed in range(DRAWS):
        sampling = dataclasses.replace(SAMPLING, seed=seed)
        decoding = Decoding(
            TableSequence(MODEL),  # type: ignore[arg-type]
            chooser(sampling),
            stop_ids=frozenset(),
            # one more than is looked at: the third token is a guessed one, too
            room=5,
            drafter=None if drafter is None else drafter(sampling),
        )
        counts[tuple(chosen.token for chosen in itertools.islice(decoding.run([0]), 3))] += 1
        statistics = decoding.statistics()
        kept += 0 if statistics is None else statistics.accepted
    chances = expected()
    assert set(counts) <= set(chances)
    return sum((counts[triple] - DRAWS * p) ** 2 / (DRAWS * p) for triple, p in chances.items()), kept


# the most likely and the second of what follows 0 twice over, and one that never comes
LIKELY = [int(token) for token in np.argsort(-MODEL[int(MODEL[0].argmax())])]


@pytest.mark.parametrize(
    ("drafter", "kept"),
    [
        (None, 0),
        (certain(LIKELY[0], LIKELY[0]), 500),
        (certain(LIKELY[1], LIKELY[1]), 500),
        (certain(LIKELY[-1]), 0),
        (draft_model(MODEL), 11_000),
        (draft_model(SMALLER), 500),
    ],
    ids=["no guesses", "likely", "second", "impossible", "the model itself", "another model"],
)
def test_distribution(drafter: Callable[[Sampling], Drafter] | None, kept: int) -> None:
    found, accepted = chi_square(drafter)
    assert found < BOUND
    assert accepted >= kept


def test_wrong_rules_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Always keeping the guess, or replacing it from the whole distribution, is off by far."""
    from gemma_runtime.sampling import chooser as module

    monkeypatch.setattr(module, "residual", lambda target, draft: target)
    assert chi_square(draft_model(SMALLER))[0] > 3 * BOUND
    monkeypatch.undo()
    monkeypatch.setattr(Sampling, "for_draft", lambda self, vocab_size: self)
    assert chi_square(draft_model(SMALLER))[0] > 3 * BOUND
