"""Several prompts at once give what each gives alone."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_runtime import Completion, Gemma, Sampling, batch
from gemma_runtime.errors import PromptError
from gemma_runtime.state import InPlaceState

# summation order differs between one row and several
NEAR = 1e-4


@pytest.fixture(scope="module")
def prompts(plain: Gemma) -> list[list[int]]:
    """Of 1 to 60 tokens, some with a beginning in common."""
    ids = plain.encode("def read_file(path):\n    with open(path) as stream:\n        return stream.read()\n" * 3)
    assert len(ids) > 60
    lengths = [1, 60, 2, 33, 7, 59, 12, 5, 21, 40, 3]
    return [ids[:1] + ids[offset + 1 : offset + length] for offset, length in enumerate(lengths)]


def alone(model: Gemma, prompts: Sequence[Any], **options: Any) -> list[Completion]:
    return [model.generate(prompt, **options) for prompt in prompts]


def same(found: Sequence[Completion], expected: Sequence[Completion]) -> None:
    def shown(each: Completion) -> tuple[object, ...]:
        return each.token_ids, each.text, each.finish_reason, each.stop, each.prompt_tokens

    assert list(map(shown, found)) == list(map(shown, expected))


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_as_alone(rows: int, plain: Gemma, prompts: list[list[int]]) -> None:
    """Eleven prompts: more than rows, so that rows end and are taken over."""
    found = plain.generate_many(prompts, batch_size=rows, max_new_tokens=24)
    same(found, alone(plain, prompts, max_new_tokens=24))
    # some end before others
    assert len({len(each.token_ids) for each in found}) > 1
    assert all(each.speculation is None for each in found)


def test_runs_of_the_model(plain: Gemma, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    runs, run = [], type(plain._opened).run
    monkeypatch.setattr(type(plain._opened), "run", lambda self, binding: (runs.append(1), run(self, binding))[1])
    # not even a stop token ends one
    plain.generate_many(prompts[:8], batch_size=8, max_new_tokens=10, min_new_tokens=10)
    # each prompt once, then nine more tokens for all of them together
    assert len(runs) == 8 + 9


def test_samples_are_those_of_their_seeds(plain: Gemma, prompts: list[list[int]]) -> None:
    sampling = Sampling(temperature=1.2, top_k=40, seed=11)
    found = plain.generate_many(prompts[:4], samples=3, batch_size=5, max_new_tokens=16, sampling=sampling)
    expected = [
        plain.generate(prompt, max_new_tokens=16, sampling=Sampling(temperature=1.2, top_k=40, seed=11 + number))
        for prompt in prompts[:4]
        for number in range(3)
    ]
    same(found, expected)
    assert len({each.token_ids for each in found[3:6]}) == 3
    # the prompt is read once: for the other samples only its last token again
    assert [each.cached_tokens for each in found[4:6]] == [59, 59]


@pytest.mark.parametrize(
    "options",
    [
        {"stop": ("\n", "re")},
        {"stop_ids": (108, 235, 300)},
        {"min_new_tokens": 20},
        {"sampling": Sampling(repetition_penalty=1.3, presence_penalty=0.5)},
        {"max_new_tokens": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_mean_the_same(options: dict[str, Any], plain: Gemma, prompts: list[list[int]]) -> None:
    chosen = {"max_new_tokens": 20} | options
    same(plain.generate_many(prompts, batch_size=3, **chosen), alone(plain, prompts, **chosen))


def test_logprobs(plain: Gemma, prompts: list[list[int]]) -> None:
    found = plain.generate_many(prompts, batch_size=4, max_new_tokens=10, logprobs=2)
    for one, other in zip(alone(plain, prompts, max_new_tokens=10, logprobs=2), found, strict=True):
        assert one.logprobs is not None
        assert other.logprobs is not None
        assert len(other.logprobs) == len(other.token_ids)
        for expected, got in zip(one.logprobs, other.logprobs, strict=True):
            assert got.token == expected.token
            assert got.logprob == pytest.approx(expected.logprob, abs=NEAR)
            assert [token for token, _ in got.alternatives] == [token for token, _ in expected.alternatives]


def test_the_cache_grows_in_the_middle(plain: Gemma, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """From 16 tokens a row: with prompts that fit and prompts that do not."""
    sizes: list[int] = []
    grow = InPlaceState.grow

    def small(opened: Any, rows: int) -> InPlaceState:
        return InPlaceState(opened.onnxruntime, opened.graph, capacity=16, device="cpu", rows=rows)

    def counted(state: InPlaceState, capacity: int, used: int) -> None:
        sizes.append(capacity)
        grow(state, capacity, used)

    monkeypatch.setattr(batch, "_state_of", small)
    monkeypatch.setattr(InPlaceState, "grow", counted)
    some = [prompts[index] for index in (0, 4, 6, 9, 2, 1)]
    same(
        plain.generate_many(some, batch_size=3, max_new_tokens=40, min_new_tokens=40),
        alone(plain, some, max_new_tokens=40, min_new_tokens=40),
    )
    assert sizes == sorted(sizes)
    assert len(sizes) >= 2


def test_the_context_ends_in_one_row(plain: Gemma, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12}
    expected = alone(plain, prompts, **options)
    monkeypatch.setattr(plain._opened, "context_length", 62)
    monkeypatch.setattr(plain, "manifest", dataclasses.replace(plain.manifest, context_length=62))
    found = plain.generate_many(prompts, batch_size=4, **options)
    for prompt, each, whole in zip(prompts, found, expected, strict=True):
        # the last token of a full context needs no place
        room = 62 - len(prompt) + 1
        assert each.finish_reason == ("context" if room < 12 else "length")
        assert each.token_ids == whole.token_ids[:room]
    assert {each.finish_reason for each in found} == {"context", "length"}


def test_cancelled(plain: Gemma, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    expected, cancel = alone(plain, prompts, max_new_tokens=20), threading.Event()
    steps = []

    def step(self: Any, original: Any = batch._Batch._step) -> None:
        original(self)
        steps.append(1)
        if len(steps) == 5:
            cancel.set()

    monkeypatch.setattr(batch._Batch, "_step", step)
    found = plain.generate_many(prompts, batch_size=3, max_new_tokens=20, cancel=cancel)
    assert len(steps) == 5
    assert sum(each.finish_reason == "cancelled" for each in found) >= len(prompts) - 5
    for each, whole in zip(found, expected, strict=True):
        assert each.token_ids == whole.token_ids[: len(each.token_ids)]
    assert [len(each.token_ids) for each in found[5:]] == [0] * (len(prompts) - 5)


def test_kernels_that_make_their_caches_anew_run_one_after_the_other(
    tiny_portable: Path, prompts: list[list[int]]
) -> None:
    model = Gemma(tiny_portable, threads=1, speculation="off")
    sampling = Sampling(temperature=1.0, seed=3)
    found = model.generate_many(prompts[:3], samples=2, batch_size=4, max_new_tokens=8, sampling=sampling)
    expected = [
        model.generate(prompt, max_new_tokens=8, sampling=Sampling(temperature=1.0, seed=3 + number))
        for prompt in prompts[:3]
        for number in range(2)
    ]
    same(found, expected)


@pytest.mark.parametrize("kind", ["looking up", "draft model"])
def test_nothing_is_guessed_whatever_the_number_of_rows(
    kind: str, plain: Gemma, tiny_fp32: Path, tiny_int4: Path, prompts: list[list[int]]
) -> None:
    """A draft model would draw other tokens with the same seed."""
    model = Gemma(tiny_fp32, draft=tiny_int4 if kind == "draft model" else None, threads=1)
    options: dict[str, Any] = {"max_new_tokens": 20, "sampling": Sampling(temperature=1.0, seed=5)}
    one, two = (model.generate_many(prompts[:5], batch_size=rows, **options) for rows in (1, 2))
    same(one, two)
    same(one, alone(plain, prompts[:5], **options))
    same(model.generate_many(prompts[1:2], batch_size=2, **options), one[1:2])
    assert all(each.speculation is None for each in (*one, *two))
    # it would make a difference
    assert any(each.speculation.drafted for each in alone(model, prompts[:5], **options))


def test_texts_and_messages(plain: Gemma) -> None:
    several: list[Any] = ["import os", [{"role": "user", "content": "Hi"}], [2, 300]]
    same(plain.generate_many(several, max_new_tokens=6), alone(plain, several, max_new_tokens=6))
    assert plain.generate_many([], max_new_tokens=6) == []


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "2"])
@pytest.mark.parametrize("name", ["samples", "batch_size"])
def test_impossible_numbers(name: str, value: Any, plain: Gemma) -> None:
    with pytest.raises(PromptError, match=f"{name.replace('_', '-')} must be 1 or above") as caught:
        plain.generate_many(["x", "y"], **{name: value})
    assert caught.value.exit_code == 2


def test_one_impossible_prompt_is_refused_before_any_runs(plain: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(plain._opened), "run", lambda self, binding: pytest.fail("ran"))
    with pytest.raises(PromptError, match="the prompt is empty"):
        plain.generate_many(["x", ""])
    with pytest.raises(PromptError, match="logit-bias"):
        plain.generate_many(["x", "y"], sampling=Sampling(logit_bias={10**6: 1.0}))


def test_seeds_of_many_samples(plain: Gemma) -> None:
    found = plain.generate_many(
        ["x"],
        samples=20,
        max_new_tokens=4,
        sampling=Sampling(temperature=3.0, seed=np.int64(5)),  # type: ignore[arg-type]
    )
    assert len({each.token_ids for each in found}) > 15
