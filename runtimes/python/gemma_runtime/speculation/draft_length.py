"""How many guesses pay."""

from __future__ import annotations

__all__ = ["DraftLength"]

# weight of a new observation; about the last ten count
_RECENT = 0.15
# Where nothing has been measured yet: a run of n + 1 tokens costs 1 + 0.17 n runs of one, which is what the 4-bit
# kernels of onnxruntime's CPU provider take (1.6 for four, 2.1 for eight).
_PRIOR_COST = 0.17
# Chance that a guess of kind n (n tokens agree) comes true, before any was checked: 0.4 for two, 0.8 for six.
_PRIOR_CHANCE, _PRIOR_CHANCE_PER_KIND, _MOST_PRIOR_CHANCE = 0.2, 0.1, 0.85
# gain that is worth the risk of being wrong about chance and cost
_MARGIN = 1.05
# A kind of guess that does not pay is tried again, a single one, after a pause that doubles each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 4, 128


class DraftLength:
    """Chooses the number of guesses by what runs cost here and how often guesses of a kind came true.

    With chance p for each guess, n of them give (1 - p^(n+1)) / (1 - p) tokens in one run; the n with the most tokens
    in the time of a run is taken, none where plain steps are as good.

    Args:
        most: guesses in one run.
    """

    def __init__(self, *, most: int = 7) -> None:
        self._most = most
        # seconds that making one guess takes
        self._making = 0.0
        # seconds of a run with that many guesses
        self._seconds: dict[int, float] = {}
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

    def judge(self, kind: int, drafted: int, accepted: int, seconds: float, *, checked: int | None = None) -> None:
        """Takes in what a run took and how many of its guesses came true among those `checked`; None: all."""
        before = self._seconds.get(drafted)
        self._seconds[drafted] = seconds if before is None else before + _RECENT * (min(seconds, 3 * before) - before)
        checked = drafted if checked is None else checked
        if not checked:
            return
        # guesses behind the first wrong one say nothing
        for index in range(min(accepted + 1, checked)):
            chance = self._chance_of(kind)
            self._chance[kind] = chance + _RECENT * ((1.0 if index < accepted else 0.0) - chance)
        if accepted == checked:
            self._pause.pop(kind, None)

    def spent(self, seconds: float) -> None:
        """Takes in what making one guess took."""
        self._making += _RECENT * (seconds - self._making) if self._making else seconds

    def _chance_of(self, kind: int) -> float:
        return self._chance.get(kind, min(_MOST_PRIOR_CHANCE, _PRIOR_CHANCE + _PRIOR_CHANCE_PER_KIND * kind))

    def _gain(self, chance: float, count: int) -> float:
        """Tokens in the time of a plain step."""
        tokens = count + 1 if chance > 0.999 else (1 - chance ** (count + 1)) / (1 - chance)
        making = count * self._making / self._seconds[0] if 0 in self._seconds else 0.0
        return tokens / (self._cost(count) + making)

    def _cost(self, count: int) -> float:
        """Of a run with that many guesses, in plain steps."""
        plain = self._seconds.get(0)
        if plain is None:
            return 1 + _PRIOR_COST * count
        known = [other for other in self._seconds if other]
        if count in known:
            return max(1.0, self._seconds[count] / plain)
        if not known:
            return 1 + _PRIOR_COST * count
        # in proportion to the nearest that has been measured
        nearest = min(known, key=lambda other: abs(other - count))
        extra = max(0.0, self._seconds[nearest] / plain - 1)
        return 1 + extra * count / nearest
