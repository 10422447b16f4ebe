"""Guesses of every kind leave greedy text as it is; only the number of runs changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from code_prompts import prompts

from gemma_runtime import Gemma, Sampling
from gemma_runtime.decoding import Decoding
from gemma_runtime.sampling import TokenChooser
from gemma_runtime.speculation import Draft, KernelDifference

PROMPTS = prompts(10, seed=1)
TOKENS = 40

Guess = Callable[[list[int], int], Sequence[int]]


@pytest.fixture(scope="module", autouse=True)
def _compared(plain: Gemma) -> None:
    """Runs of several are believed: without a measurement the first ones would be compared, which ends their use."""
    assert not plain._kernel_difference().could_turn(0.1)


class Scripted:
    """Guesses by a function of the tokens chosen so far and the number that may be guessed; remembers what came."""

    def __init__(self, prompt: Sequence[int], guess: Guess) -> None:
        self._prompt, self._guess = len(prompt), guess
        self.most: list[int] = []
        self.judged: list[tuple[int, int, int]] = []

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        self.most.append(most)
        return Draft(tokens=tuple(self._guess(list(tokens[self._prompt :]), most)))

    def judge(self, draft: Draft, accepted: int, *, checked: int) -> None:
        self.judged.append((len(draft.tokens), checked, accepted))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    tokens: list[int]
    reason: str | None
    steps: int
    held: list[int]
    drafter: Scripted | None


def run(model: Gemma, prompt: Sequence[int], guess: Guess | None, *, room: int = TOKENS) -> Run:
    drafter = None if guess is None else Scripted(prompt, guess)
    sequence = model.sequence()
    chooser = TokenChooser(
        Sampling(), vocab_size=model.manifest.vocab_size, prompt_ids=prompt, allowed_size=model.tokenizer.size
    )
    decoding = Decoding(
        sequence,
        chooser,
        stop_ids=model.stop_ids,
        room=room,
        drafter=drafter,
        difference=model._kernel_difference,
    )
    given = [chosen.token for chosen in decoding.run(prompt)]
    assert given == decoding.tokens
    return Run(
        tokens=given,
        reason=decoding.finish_reason,
        steps=decoding.steps,
        held=list(sequence.tokens),
        drafter=drafter,
    )


def oracle(text: Sequence[int]) -> Guess:
    return lambda tokens, most: text[len(tokens) : len(tokens) + most]


def wrong(text: Sequence[int]) -> Guess:
    """Never what comes."""
    return lambda tokens, most: [(token + 1) % 3000 for token in (*text, *text)[len(tokens) : len(tokens) + most]]


def right_then_wrong(text: Sequence[int]) -> Guess:
    def guess(tokens: list[int], most: int) -> list[int]:
        ahead = list(text[len(tokens) : len(tokens) + most])
        return [*ahead[:2], *((token + 1) % 3000 for token in ahead[2:])]

    return guess


def random_ones() -> Guess:
    generator = np.random.default_rng(0)
    return lambda tokens, most: generator.integers(0, 3000, generator.integers(0, most + 1)).tolist()


@pytest.mark.parametrize("kind", ["wrong", "oracle", "right then wrong", "random", "empty", "stop tokens"])
def test_same_text_in_as_many_runs_as_guesses_leave(kind: str, plain: Gemma) -> None:
    for prompt in map(plain.encode, PROMPTS):
        expected = run(plain, prompt, None)
        text = [*expected.tokens, *([min(plain.stop_ids)] if expected.reason == "stop" else [])]
        stops = sorted(plain.stop_ids) * 4
        guesses: dict[str, Guess] = {
            "wrong": wrong(text),
            "oracle": oracle(text),
            "right then wrong": right_then_wrong(text),
            "random": random_ones(),
            "empty": lambda tokens, most: [],
            "stop tokens": lambda tokens, most, stops=stops: stops[:most],
        }
        found = run(plain, prompt, guesses[kind])
        assert (found.tokens, found.reason) == (expected.tokens, expected.reason)
        # what a conversation goes on from, whatever was guessed behind it: all but the last token, which no run has
        # read unless a stop token was chosen behind it
        read = len(found.tokens) if found.reason == "stop" else max(0, len(found.tokens) - 1)
        assert found.held == expected.held == [*prompt, *expected.tokens[:read]]
        made = len(text) - 1
        slack = kind in ("oracle", "right then wrong", "random")
        tokens_in_a_run = {"oracle": 8, "right then wrong": 3}.get(kind, 1)
        assert -(-made // tokens_in_a_run) <= found.steps <= -(-made // tokens_in_a_run) + slack
        assert found.drafter is not None
        assert max(found.drafter.most, default=0) <= 7
        assert (kind != "empty") <= len(found.drafter.judged) <= found.steps * (kind != "empty")


def test_guesses_end_where_the_room_ends(plain: Gemma) -> None:
    prompt = plain.encode("x = 1\n")
    text = run(plain, prompt, None, room=30).tokens
    for room in range(1, 20):
        found = run(plain, prompt, oracle(text), room=room)
        assert found.tokens == text[:room]
        assert found.reason == "length"
        assert found.drafter is not None
        # the token after the guesses is one of the answer, too
        assert all(most <= room - 2 for most in found.drafter.most)


def test_guesses_end_where_the_context_ends(plain: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = plain.encode("x = 1\n")
    text = run(plain, prompt, None, room=30).tokens
    for left in range(1, 12):
        monkeypatch.setattr(plain._opened, "context_length", len(prompt) + left)
        # the last token of a full context needs no place
        found = run(plain, prompt, oracle(text), room=left + 1)
        assert found.tokens == text[: left + 1]
        assert len(found.held) <= len(prompt) + left


def test_what_is_judged_is_what_was_looked_at(plain: Gemma) -> None:
    prompt = plain.encode("x = 1\n")
    text = run(plain, prompt, None).tokens
    found = run(plain, prompt, right_then_wrong(text)).drafter
    assert found is not None
    assert set(found.judged[:8]) == {(7, 7, 2)}
    wrongly = run(plain, prompt, wrong(text)).drafter
    assert wrongly is not None
    assert all(accepted == 0 for _, _, accepted in wrongly.judged)


def test_guesses_behind_a_choice_made_alone_are_neither_right_nor_wrong(
    plain: Gemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run of them all is still what they cost."""
    prompt = plain.encode("x = 1\n")
    text = run(plain, prompt, None).tokens
    monkeypatch.setattr(KernelDifference, "could_turn", lambda self, margin: True)
    found = run(plain, prompt, oracle(text))
    assert found.tokens == text
    assert found.drafter is not None
    assert set(found.drafter.judged[:8]) == {(7, 1, 1)}
