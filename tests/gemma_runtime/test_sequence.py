"""Tokens and their cache: growing, going back, and what an exception leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemma_runtime import Gemma
from gemma_runtime.errors import ModelOutputError
from gemma_runtime.sequence import TokenSequence
from gemma_runtime.state import Buffer, GrowingState, InPlaceState

# summation order differs between one row and several
NEAR = 1e-4


@pytest.fixture(scope="module", params=["ort", "portable"])
def model(request: pytest.FixtureRequest, plain: Gemma, tiny_portable: Path) -> Gemma:
    return plain if request.param == "ort" else Gemma(tiny_portable, speculation="off", threads=1)


def tokens_of(count: int, seed: int = 0) -> list[int]:
    return [2, *np.random.default_rng(seed).integers(300, 3000, count - 1).tolist()]


def last(sequence: TokenSequence, ids: list[int]) -> np.ndarray:
    logits = sequence.extend(ids)
    assert logits is not None
    return logits[-1].copy()


def fresh(model: Gemma, ids: list[int]) -> np.ndarray:
    return last(model.sequence(), ids)


def test_growing_keeps_the_numbers(model: Gemma) -> None:
    """From 256 to 512 and to 768 tokens, in steps that cross the borders by one and by many."""
    ids = tokens_of(700)
    sequence = model.sequence()
    last(sequence, ids[:250])
    assert sequence.state.capacity == 256
    for begin, end in ((250, 255), (255, 256), (256, 257), (257, 260), (260, 509), (509, 520), (520, 700)):
        found = last(sequence, ids[begin:end])
        np.testing.assert_allclose(found, fresh(model, ids[:end]), atol=NEAR)
        assert sequence.state.capacity >= end
    assert sequence.state.capacity == 768
    assert sequence.tokens == ids


@pytest.mark.slow
def test_the_whole_context_of_the_built_in_model(plain: Gemma) -> None:
    """All 8,192 tokens of the built-in model: read in parts, then one by one to the end, as in a single run."""
    limit = plain.manifest.context_length
    assert limit == 8192
    prompt = tokens_of(limit - 40)
    conversation = plain.conversation()
    answer = conversation.generate(prompt, max_new_tokens=100, min_new_tokens=100)
    # the last token needs no place
    assert (len(answer.token_ids), answer.finish_reason) == (41, "context")
    text = (*prompt, *answer.token_ids[:-1])
    assert conversation.tokens == text
    sequence = plain.sequence()
    last(sequence, prompt)
    for token in answer.token_ids[:-2]:
        sequence.step([token])
    found = sequence.step(answer.token_ids[-2:-1])[-1].copy()
    assert sequence.state.capacity == limit
    np.testing.assert_allclose(found, plain.sequence().step(text)[-1], atol=NEAR)
    # stop tokens were banned, what has no text too
    allowed = np.delete(found, [*plain.stop_ids, *range(plain.tokenizer.size, len(found))])
    assert found[answer.token_ids[-1]] == allowed.max()


@pytest.mark.parametrize("length", [1, 2, 37, 255, 256, 257, 299])
def test_what_was_taken_back_leaves_no_trace(model: Gemma, length: int) -> None:
    ids, others = tokens_of(300), tokens_of(300, seed=1)
    sequence = model.sequence()
    last(sequence, ids)
    sequence.truncate(length)
    assert len(sequence) == length
    np.testing.assert_allclose(last(sequence, others[:20]), fresh(model, ids[:length] + others[:20]), atol=NEAR)
    sequence.truncate(0)
    np.testing.assert_allclose(last(sequence, others[:5]), fresh(model, others[:5]), atol=NEAR)


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [([5, 6, 7, 8, 9], 4), ([5, 6, 7, 8], 3), ([5, 6], 1), ([5, 6, 9, 8], 2), ([9], 0), ([5], 0), ([6, 6, 7], 0)],
)
def test_the_beginning_in_common_is_kept(plain: Gemma, wanted: list[int], kept: int) -> None:
    """But for the last token, whose logits are wanted."""
    sequence = plain.sequence()
    last(sequence, [5, 6, 7, 8])
    assert sequence.keep_prefix_of(wanted) == kept == len(sequence)
    np.testing.assert_allclose(last(sequence, wanted[kept:]), fresh(plain, wanted), atol=NEAR)


@pytest.mark.parametrize("when", ["before the run", "after the run"])
def test_an_exception_in_a_step_changes_nothing(model: Gemma, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokens_of(40)
    sequence = model.sequence()
    last(sequence, ids[:20])
    opened_run = type(sequence.opened).run

    def interrupted(self: object, binding: object) -> None:
        if when == "after the run":
            opened_run(self, binding)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(type(sequence.opened), "run", interrupted)
    for count in (1, 5):
        with pytest.raises(KeyboardInterrupt):
            sequence.step([7] * count)
    monkeypatch.undo()
    assert sequence.tokens == ids[:20]
    np.testing.assert_allclose(last(sequence, ids[20:]), fresh(model, ids), atol=NEAR)


def test_no_memory_for_a_longer_cache(plain: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tensors have grown by then: kernels must not write where the short ones were."""
    ids = tokens_of(280)
    sequence = plain.sequence()
    last(sequence, ids[:250])
    state, longer = sequence.state, Buffer.longer
    assert isinstance(state, InPlaceState)
    third = state.buffers[3]

    def failing(self: Buffer, capacity: int, used: int) -> Buffer:
        if self is third:
            raise MemoryError
        return longer(self, capacity, used)

    monkeypatch.setattr(Buffer, "longer", failing)
    with pytest.raises(MemoryError):
        sequence.extend(ids[250:])
    monkeypatch.undo()
    assert len(sequence) == 250
    # it still fits into the short ones; all are made the longer size first
    np.testing.assert_allclose(last(sequence, ids[250:253]), fresh(plain, ids[:253]), atol=NEAR)
    assert {buffer.shape[2] for buffer in state.buffers} == {state.capacity} == {512}
    assert all(buffer.memory[:, :, 250:253].any() for buffer in state.buffers)
    np.testing.assert_allclose(last(sequence, ids[253:]), fresh(plain, ids), atol=NEAR)


def test_onnxruntime_refuses(plain: Gemma) -> None:
    sequence = plain.sequence()
    last(sequence, [2, 300, 301])
    with pytest.raises(ModelOutputError, match="could not run onnx/model") as caught:
        sequence.step([10**6])
    assert caught.value.exit_code == 3
    assert sequence.tokens == [2, 300, 301]
    np.testing.assert_allclose(last(sequence, [302]), fresh(plain, [2, 300, 301, 302]), atol=NEAR)


def test_a_full_context(plain: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokens_of(300)
    monkeypatch.setattr(plain._opened, "context_length", 300)
    sequence = plain.sequence()
    found = last(sequence, ids)
    assert sequence.state.capacity == 300
    with pytest.raises(AssertionError):
        sequence.step([5])
    monkeypatch.undo()
    np.testing.assert_allclose(found, fresh(plain, ids), atol=NEAR)


def test_stopped_between_parts_of_a_prompt(plain: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_runtime.sequence.PREFILL_TOKENS", 16)
    ids, sequence = tokens_of(50), plain.sequence()
    answers = iter([False, False, True])
    assert sequence.extend(ids, lambda: next(answers)) is None
    assert sequence.tokens == ids[:32]
    assert sequence.keep_prefix_of(ids) == 32
    np.testing.assert_allclose(last(sequence, ids[32:]), fresh(plain, ids), atol=NEAR)


def test_several_positions_of_a_step(plain: Gemma) -> None:
    """At most as many as the graph gives, whatever the steps before."""
    ids, sequence = tokens_of(30), plain.sequence()
    assert sequence.step(ids[:20]).shape == (8, 3072)
    rows = sequence.step(ids[20:24]).copy()
    assert rows.shape == (4, 3072)
    for index in range(4):
        np.testing.assert_allclose(rows[index], fresh(plain, ids[: 21 + index]), atol=NEAR)
    assert sequence.step(ids[24:25]).shape == (1, 3072)


def test_states_of_the_two_layouts(plain: Gemma, tiny_portable: Path) -> None:
    assert isinstance(plain.sequence().state, InPlaceState)
    assert isinstance(Gemma(tiny_portable, threads=1).sequence().state, GrowingState)
