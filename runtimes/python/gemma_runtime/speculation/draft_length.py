"""How many guesses pay."""

from __future__ import annotations

__all__ = ["DraftLength"]

# weight of a new observation; about the last ten count
_RECENT = 0.15
# Chance that a guess of kind n (n tokens agree) comes true, before any was checked: 0.4 for two, 0.8 for six.
_PRIOR_CHANCE, _PRIOR_CHANCE_PER_KIND, _MOST_PRIOR_CHANCE = 0.2, 0.1, 0.85
# gain that is worth the risk of being wrong about chance and cost
_MARGIN = 1.05
# A kind of guess that does not pay is tried again, a single one, after a pause that doubles each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 4, 128


class DraftLength:
    """Chooses the number of guesses by what they cost and how often guesses of a kind came true.

    With chance p for each guess, n of them give (1 - p^(n+1)) / (1 - p) tokens in one run of cost 1 + n e, in plain
    steps; the n with the most tokens in the time of a run is taken, none where plain steps are as good. No clock is
    read: the same text always gets the same guesses, so it gets the same answer, although kernels round otherwise for
    another number of rows.

    Args:
        cost: e, what a guess adds to a run and takes to make.
        most: guesses in one run.
    """

    def __init__(self, cost: float, *, most: int = 7) -> None:
        self._cost, self._most = cost, most
        self._chance: dict[int, float] = {}
        self._pause: dict[int, int] = {}
        self._waiting: dict[int, int] = {}

    def best(self, kind: int, most: int) -> int:
        """Guesses to check in the next run."""
        if most < 1:
            return 0
        if self._waiting.get(kind, 0):
            self._waiting[kind] -= 1
            return 0
        chance = self._chance_of(kind)
        gain, count = max((self._gain(chance, count), count) for count in range(1, min(most, self._most) + 1))
        if gain >= _MARGIN:
            return count
        tried = kind in self._pause
        self._pause[kind] = min(_LONGEST_PAUSE, 2 * self._pause[kind]) if tried else _FIRST_PAUSE
        self._waiting[kind] = self._pause[kind]
        return 1 if tried else 0

    def judge(self, kind: int, checked: int, accepted: int) -> None:
        """Takes in how many guesses were looked at and how many of them came true."""
        if not checked:
            return
        # guesses behind the first wrong one say nothing
        for index in range(min(accepted + 1, checked)):
            before = self._chance_of(kind)
            self._chance[kind] = before + _RECENT * ((index < accepted) - before)
        if accepted == checked:
            self._pause.pop(kind, None)

    def _chance_of(self, kind: int) -> float:
        return self._chance.get(kind, min(_MOST_PRIOR_CHANCE, _PRIOR_CHANCE + _PRIOR_CHANCE_PER_KIND * kind))

    def _gain(self, chance: float, count: int) -> float:
        """Tokens in the time of a plain step."""
        tokens = count + 1 if chance > 0.999 else (1 - chance ** (count + 1)) / (1 - chance)
        return tokens / (1 + count * self._cost)
