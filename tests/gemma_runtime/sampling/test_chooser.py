"""Choosing the next token: who can be chosen, how often, and that nothing overflows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemma_runtime.errors import ModelOutputError, PromptError
from gemma_runtime.sampling import Sampling, TokenChooser

Logits = npt.NDArray[np.float32]
# no two equal; the most likely first, in the middle and last
LOGITS: Logits = np.array([0.5, -1.0, 2.0, 0.0, 1.5, -3.0, 1.0, 0.25], np.float32)


def logits(*values: float) -> Logits:
    return np.array(values, np.float32)


def softmax(values: Logits, temperature: float) -> npt.NDArray[np.float64]:
    weights = [math.exp(float(value) / temperature) for value in values]
    return np.array(weights) / sum(weights)


def chooser(values: Logits, **options: Any) -> TokenChooser:
    return TokenChooser(Sampling(**{"temperature": 1.0} | options), vocab_size=len(values), prompt_ids=[])


def counts(values: Logits, draws: int, **options: Any) -> npt.NDArray[np.int64]:
    one = chooser(values, **options)
    return np.bincount([one.choose(values) for _ in range(draws)], minlength=len(values))


def chosen(values: Logits, **options: Any) -> set[int]:
    """Tokens that 400 draws give; one of probability 0.05 is missing from them once in 10^9."""
    return set(np.flatnonzero(counts(values, 400, **options)).tolist())


@dataclasses.dataclass
class Fixed:
    """A generator of one number."""

    number: float

    def random(self) -> float:
        return self.number


def at(values: Logits, number: float, **options: Any) -> int:
    one = chooser(values, **options)
    one.generator = Fixed(number)  # type: ignore[assignment]
    return one.choose(values)


LAST = math.nextafter(1.0, 0.0)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_greedy_takes_the_largest(place: int) -> None:
    values = np.roll(LOGITS, place - 2)
    assert chooser(values, temperature=0.0).choose(values) == place
    # the other options have nothing to choose from
    assert at(values, LAST, temperature=0.0, top_k=5, top_p=0.9) == place


def test_greedy_ties_go_to_the_smaller_id() -> None:
    assert at(logits(1, 3, 3, 2, 3), 0.5, temperature=0.0) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {},
        {"top_k": 2},
        {"top_p": 0.5},
        {"min_p": 0.5},
        {"temperature": 0.0, "logit_bias": {2: 100.0}},
        {"logit_bias": {2: 100.0, 4: 1.0}},
        {"temperature": 0.0, "repetition_penalty": 1.5},
        {"presence_penalty": -2.0},
    ],
)
def test_banned_tokens_never_come(options: dict[str, Any]) -> None:
    sampling = Sampling(**{"temperature": 1.0} | options)
    one = TokenChooser(sampling, vocab_size=len(LOGITS), prompt_ids=[2], banned=(2, 7, 99))
    found = set()
    for _ in range(100):
        found.add(one.choose(LOGITS))
        one.accept(2)
    assert found
    assert not found & {2, 7}
    assert not {2, 7} & set(one.distribution(LOGITS).ids[one.distribution(LOGITS).probabilities > 0].tolist())
    # nothing is written into what the model gave
    assert LOGITS[2] == 2.0


def test_a_banned_token_that_ends_the_text_comes() -> None:
    sampling = Sampling(temperature=0.0)
    one = TokenChooser(sampling, vocab_size=len(LOGITS), prompt_ids=[], banned=(2, 4), stop_ids={2})
    assert one.choose(LOGITS) == 2
    one = TokenChooser(sampling, vocab_size=len(LOGITS), prompt_ids=[], banned=(2, 4), stop_ids={2}, min_new_tokens=1)
    assert one.choose(LOGITS) == 6


def test_the_models_own_probabilities_know_no_ban() -> None:
    one = TokenChooser(Sampling(), vocab_size=len(LOGITS), prompt_ids=[], banned=(2,), logprobs=1)
    assert one.logprob(LOGITS, 4).alternatives[0][0] == 2


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_one_draw_a_token_and_none_when_greedy(options: dict[str, Any]) -> None:
    expected = np.random.default_rng(5)
    one = chooser(LOGITS, seed=5, **options)
    for _ in range(3):
        one.choose(LOGITS)
        expected.random()
    assert one.generator.bit_generator.state == expected.bit_generator.state
    greedy = chooser(LOGITS, temperature=0.0, seed=5, **options)
    greedy.choose(LOGITS)
    assert greedy.generator.bit_generator.state == np.random.default_rng(5).bit_generator.state


def test_the_seed_decides() -> None:
    def tokens(seed: int) -> list[int]:
        one = chooser(LOGITS, seed=seed)
        return [one.choose(LOGITS) for _ in range(40)]

    assert tokens(7) == tokens(7)
    assert len({tuple(tokens(seed)) for seed in (0, 7, 8, 2**63)}) == 4
    # the documented generator, and the first of its numbers that the cumulative probabilities exceed
    edges = softmax(LOGITS, 1.0).cumsum()
    draws = np.random.Generator(np.random.PCG64(7)).random(40)
    assert tokens(7) == [int((edges > draw).argmax()) for draw in draws]


# chi-squared of these degrees of freedom exceeds the limit once in a million; the seed is fixed
LIMITS = {2: 27.6, 4: 33.4, 7: 40.5}


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, range(8)),
        ({"top_k": 8, "top_p": 1.0}, range(8)),
        ({"top_k": 5}, [0, 2, 4, 6, 7]),
        ({"top_k": 3}, [2, 4, 6]),
    ],
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_distribution_is_softmax_of_what_is_left(temperature: float, options: dict[str, Any], tokens: Any) -> None:
    draws = 10_000
    found = counts(LOGITS, draws, temperature=temperature, seed=1, **options)
    kept = list(tokens)
    expected = draws * softmax(LOGITS[kept], temperature)
    assert found[kept].sum() == draws
    assert (((found[kept] - expected) ** 2) / expected).sum() < LIMITS[len(kept) - 1]


def test_the_distribution_under_top_p_is_softmax_of_the_nucleus() -> None:
    draws = 10_000
    # 0.390, 0.237, 0.144: the third crosses 0.7
    found = counts(LOGITS, draws, top_p=0.7, seed=1)
    kept = [2, 4, 6]
    expected = draws * softmax(LOGITS[kept], 1.0)
    assert found[kept].sum() == draws
    assert (((found[kept] - expected) ** 2) / expected).sum() < LIMITS[2]


@pytest.mark.parametrize(
    ("k", "expected"), [(1, {2}), (2, {2, 4}), (7, {0, 1, 2, 3, 4, 6, 7}), (8, set(range(8))), (9, set(range(8)))]
)
def test_top_k_keeps_the_k_most_likely(k: int, expected: set[int]) -> None:
    # hot, so that each is drawn
    assert chosen(LOGITS, top_k=k, temperature=100.0) == expected


@pytest.mark.parametrize(
    ("k", "expected"), [(1, {1}), (2, {1, 4}), (3, {0, 1, 4}), (4, {0, 1, 2, 4}), (5, {0, 1, 2, 4, 5})]
)
def test_top_k_ties_go_to_the_smaller_ids(k: int, expected: set[int]) -> None:
    assert chosen(logits(2, 3, 2, 1, 3, 2), top_k=k) == expected


def test_top_k_of_equal_logits() -> None:
    assert chosen(np.zeros(8, np.float32), top_k=3) == {0, 1, 2}


@pytest.mark.parametrize(("p", "count"), [(1e-300, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.51, 3), (0.75, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_p(p: float, count: int) -> None:
    # four times exactly a quarter, ties by the smaller id
    assert chosen(logits(1, 1, 1, 1), top_p=p) == set(range(count))


@pytest.mark.parametrize("p", [5e-324, 1e-9, 0.39])
def test_a_small_p_leaves_the_most_likely(p: float) -> None:
    # its probability is 0.3901
    assert chosen(LOGITS, top_p=p) == {2}


def test_top_p_of_one_keeps_all() -> None:
    # ten equal probabilities sum to 0.9999999999999999
    assert sum([0.1] * 10) < 1
    assert chosen(np.zeros(10, np.float32), top_p=1.0) == set(range(10))
    assert chosen(LOGITS, top_p=1.0, temperature=100.0) == set(range(8))


def test_top_p_ties_go_to_the_smaller_ids() -> None:
    # three levels in many places: an unstable sort mixes them
    values = np.random.default_rng(0).integers(0, 3, 1000).astype(np.float32)
    order = sorted(range(1000), key=lambda token: (-values[token], token))
    edges = softmax(values[order], 1.0).cumsum()
    kept = order[: int((edges >= 0.9).argmax()) + 1]
    assert chooser(values, top_p=0.9).distribution(values).ids.tolist() == sorted(kept)


def test_top_p_is_of_what_top_k_left() -> None:
    # 0.622 and 0.378 of the best two, but 0.390 and 0.237 of all eight
    assert chosen(LOGITS, top_k=2, top_p=0.6) == {2}
    assert chosen(LOGITS, top_p=0.6) == {2, 4}


def test_top_p_follows_the_temperature() -> None:
    # cold, the best has 0.864; hot, the best four of eight almost equal ones have 0.5055
    assert chosen(LOGITS, top_p=0.5, temperature=0.25) == {2}
    assert chosen(LOGITS, top_p=0.5, temperature=100.0) == {0, 2, 4, 6}


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e-3])
@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.99}, {"top_k": 4, "top_p": 1.0}])
def test_a_tiny_temperature_is_greedy_and_overflows_nothing(temperature: float, options: dict[str, Any]) -> None:
    largest = np.finfo(np.float32).max
    for values in (LOGITS, 1e4 * LOGITS, logits(-largest, 0, largest, 1), logits(-3e38, -3e38, -2e38)):
        # warnings are errors here
        assert chosen(values, temperature=temperature, **options) == {2}


def test_a_tiny_temperature_shares_between_equals() -> None:
    assert chosen(logits(1, 5, 0, 5), temperature=1e-300) == {1, 3}


@pytest.mark.parametrize("temperature", [1e10, 1e300])
def test_a_huge_temperature_is_uniform(temperature: float) -> None:
    found = counts(LOGITS, 8000, temperature=temperature, seed=1)
    assert (((found - 1000) ** 2) / 1000).sum() < LIMITS[7]


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e38])
def test_logits_of_any_size(scale: float) -> None:
    values = (LOGITS * scale).astype(np.float32)
    assert chosen(values, temperature=scale) == chosen(LOGITS)


def test_the_ends_of_the_draw() -> None:
    # float64 gives the first and the last of these the probability 0
    values = logits(-2000, 0, -2000, 1, -2000)
    assert (at(values, 0.0), at(values, LAST)) == (1, 3)
    assert (at(values, 0.0, top_p=0.999), at(values, LAST, top_p=0.999)) == (1, 3)
    # id order: token 1 has the first 0.2689 of the draws
    assert (at(values, 0.2689), at(values, 0.2690)) == (1, 3)


def test_a_vocabulary_as_large_as_gemmas() -> None:
    """A float32 sum of 256,000 probabilities is off by more than this nucleus' edge."""
    values = np.zeros(256_000, np.float32)
    assert at(values, LAST, top_p=0.5) == 127_999
    assert at(values, LAST) == 255_999
    assert at(values, 0.5) == 128_000


def test_logits_are_left_alone() -> None:
    values = LOGITS.copy()
    values.flags.writeable = False
    assert chosen(values, top_k=3, top_p=0.9)
    assert isinstance(at(values, 0.5), int)
    assert (values == LOGITS).all()


def test_a_view_or_read_only_vocabulary_gives_the_same_tokens() -> None:
    """Logits of one position of several rows, of a transposed array, and in memory that is not ours to write."""
    random = np.random.default_rng(0)
    for size in (50, 20_000):
        values = random.normal(size=size).astype(np.float32)
        rows = np.stack((values, values + 1, values), axis=1)
        locked = values.copy()
        locked.flags.writeable = False
        options: list[dict[str, Any]] = [
            {},
            {"top_p": 0.8},
            {"top_k": 9},
            {"repetition_penalty": 1.5, "logit_bias": {4: 3.0}},
        ]
        for option in options:
            found = []
            for form in (values, locked, rows[:, 0]):
                one = chooser(values, seed=3, **option)
                tokens = []
                for _ in range(10):
                    tokens.append(one.choose(form))
                    one.accept(tokens[-1])
                found.append(tokens)
            assert found[0] == found[1] == found[2]
        assert (locked == rows[:, 2]).all()


def test_choosing_is_a_draw_from_the_distribution() -> None:
    random = np.random.default_rng(1)
    for size in (50, 20_000):
        for option in ({}, {"top_k": 7}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_p": 0.9999, "min_p": 0.001}):
            values = (2 * random.normal(size=size)).astype(np.float32)
            first, second = chooser(values, seed=2, **option), chooser(values, seed=2, **option)
            for _ in range(20):
                assert first.choose(values) == second.draw(second.distribution(values))
    one = chooser(LOGITS, temperature=0.0)
    assert one.greedy
    assert not chooser(LOGITS).greedy
    assert one.distribution(LOGITS).ids.tolist() == [2]
    assert one.distribution(LOGITS).probabilities.tolist() == [1]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.999}, {"min_p": 1e-9}])
def test_ids_beyond_the_allowed_never_come(options: dict[str, Any]) -> None:
    for size in (50, 20_000):
        values = np.arange(size, dtype=np.float32) / size
        sampling = Sampling(
            **{"temperature": 100.0, "repetition_penalty": 1.1, "logit_bias": {size - 1: 9.0}} | options
        )
        # a prompt of images has such ids
        one = TokenChooser(sampling, vocab_size=size, prompt_ids=[size - 2, 1], allowed_size=size - 10)
        assert one.distribution(values).ids.max() < size - 10
        assert max(one.choose(values) for _ in range(200)) < size - 10


def test_min_p_keeps_what_is_near_the_best() -> None:
    # probabilities relative to the best: 1, 1/2, 1/4, 1/8
    values = np.log(np.array([0.25, 1, 0.5, 0.125], np.float32))
    assert chosen(values, min_p=0.51) == {1}
    assert chosen(values, min_p=0.49) == {1, 2}
    assert chosen(values, min_p=0.24) == {0, 1, 2}
    assert chosen(values, min_p=1.0) == {1}
    # the temperature comes first
    assert chosen(values, min_p=0.49, temperature=2.0) == {0, 1, 2}


def test_penalties_follow_the_answer() -> None:
    values = logits(2.0, 1.9, 1.5, -1.0)

    def greedy(steps: int, **options: Any) -> list[int]:
        one = TokenChooser(Sampling(**options), vocab_size=4, prompt_ids=[0, 0])
        tokens = []
        for _ in range(steps):
            tokens.append(one.choose(values))
            one.accept(tokens[-1])
        return tokens

    # of the prompt too, once however often it is there: 2.0 / 1.2 is below 1.9, then 1.9 / 1.2 below 1.667
    assert greedy(4, repetition_penalty=1.2) == [1, 0, 0, 0]
    # of the answer only
    assert greedy(4, presence_penalty=0.3) == [0, 1, 0, 0]
    # again at each use
    assert greedy(5, frequency_penalty=0.3) == [0, 1, 0, 1, 2]


def test_rolling_back_restores_everything() -> None:
    random = np.random.default_rng(4)
    values = random.normal(size=200).astype(np.float32)
    options = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4, "logit_bias": {3: 2.0}}
    one, fresh = (
        TokenChooser(
            Sampling(temperature=1.0, **options),
            vocab_size=200,
            prompt_ids=[5, 6],
            stop_ids={int(values.argmax())},
            min_new_tokens=3,
        )
        for _ in range(2)
    )
    # more tokens than the first memory has room for
    tokens = random.integers(0, 200, 300).tolist()
    for token in tokens[:2]:
        one.accept(token)
        fresh.accept(token)
    for token in tokens:
        one.accept(token)
    one.rollback(len(tokens))
    found, expected = one.distribution(values), fresh.distribution(values)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.probabilities.tolist() == expected.probabilities.tolist()
    one.rollback(0)
    with pytest.raises(ValueError, match="cannot take 3 of 2 tokens back"):
        one.rollback(3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_options_that_leave_no_token(temperature: float) -> None:
    bans = dict.fromkeys(range(4), -math.inf)
    for options in ({"logit_bias": bans}, {"logit_bias": bans, "top_k": 2}, {"logit_bias": bans, "top_p": 0.5}):
        one = TokenChooser(Sampling(temperature=temperature, **options), vocab_size=4, prompt_ids=[])
        for act in (one.choose, one.distribution):
            with pytest.raises(PromptError, match="the options leave no token to choose at new token 0") as caught:
                act(logits(1, 2, 3, 4))
            assert "logit bias" in caught.value.hint
    # by bans, allowed size and least length together
    one = TokenChooser(
        Sampling(temperature=temperature, logit_bias={0: -math.inf}),
        vocab_size=4,
        prompt_ids=[],
        stop_ids={1},
        min_new_tokens=1,
        allowed_size=2,
    )
    with pytest.raises(PromptError, match="leave no token"):
        one.choose(logits(1, 2, 3, 4))
    one.accept(2)
    assert one.choose(logits(1, 2, 3, 4)) == 1


def test_a_large_bias_is_no_ban() -> None:
    values = logits(1, 2, 3, 4)
    assert chosen(values, logit_bias={1: -math.inf, 3: -100.0}) == {0, 2}
    assert chosen(values, logit_bias={0: -math.inf, 1: -math.inf, 2: -math.inf, 3: -1e308}) == {3}
    assert chosen(values, logit_bias={1: 1e308}) == {1}
    one = TokenChooser(Sampling(repetition_penalty=1e300), vocab_size=4, prompt_ids=[0, 1, 2, 3])
    assert one.choose(-values) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_logits(value: float, temperature: float) -> None:
    for options in ({}, {"logit_bias": {0: 1.0}}, {"logit_bias": {2: 1.0}}, {"top_k": 2}):
        values = logits(1, 2, value, 4)
        with pytest.raises(ModelOutputError, match=r"the logit of token 2 is (nan|inf) at new token 0") as caught:
            chooser(values, temperature=temperature, **options).choose(values)
        assert caught.value.exit_code == 3


def test_impossible_tokens_are_never_drawn() -> None:
    assert chosen(logits(-math.inf, 1, -math.inf, 1), temperature=1e300) == {1, 3}
    assert chosen(logits(-math.inf, 1, -math.inf, 1), top_k=3) == {1, 3}


def test_what_is_no_vocabulary() -> None:
    def make(sampling: Sampling, **options: Any) -> None:
        TokenChooser(sampling, vocab_size=4, prompt_ids=[], **options)

    for act, message in (
        (lambda: make(Sampling(logit_bias={4: 1.0})), "logit-bias must be of token ids below 4, found 4"),
        (lambda: make(Sampling(), min_new_tokens=-1), "min-new-tokens must be 0 or above, found -1"),
        (lambda: make(Sampling(), min_new_tokens=True), "min-new-tokens must be 0 or above, found True"),
        (lambda: make(Sampling(), logprobs=-1), "logprobs must be from 0 to 4, found -1"),
        (lambda: make(Sampling(), logprobs=5), "logprobs must be from 0 to 4, found 5"),
    ):
        with pytest.raises(PromptError) as caught:
            act()
        assert caught.value.message == message


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-42])
def test_a_tiny_temperature_over_a_large_vocabulary(temperature: float) -> None:
    """Whose exponentials are float32: these temperatures are 0 or nearly 0 in it."""
    values = np.zeros(20_000, np.float32)
    values[[7, 15_000]] = 1
    for options in ({}, {"top_p": 0.99}, {"min_p": 0.5}, {"top_k": 5}):
        assert chosen(values, temperature=temperature, **options) == {7, 15_000}
