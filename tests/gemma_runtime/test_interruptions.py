"""Answers that end before their time: logits that are no numbers, cancelling, Ctrl-C in the caller's loop."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import checkpoints
import numpy as np
import pytest

from gemma_export.pipeline import ExportRequest, export
from gemma_runtime import Gemma, Piece
from gemma_runtime.errors import ModelOutputError
from gemma_runtime.sequence import TokenSequence

PROMPT = "x = [1, 1, 1, 1, 1, 1, 1,"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float16 whose sums overflow after token 700, and after no other: its embedding alone is large."""
    root = tmp_path_factory.mktemp("overflowing")
    weights = checkpoints.tensors(checkpoints.CONFIG)
    embedding = weights["model.embed_tokens.weight"].astype(np.float32)
    embedding[700] *= 1e5
    weights["model.embed_tokens.weight"] = embedding.clip(-6e4, 6e4).astype(weights["model.embed_tokens.weight"].dtype)
    checkpoints.write(root / "model", weights=weights)
    export(ExportRequest(checkpoint=root / "model", precision="fp16", residual_scale="off", output=root / "folder"))
    return root / "folder"


def test_numbers_that_overflow(overflowing: Path) -> None:
    for speculation in ("auto", "off"):
        model = Gemma(overflowing, speculation=speculation, threads=1)
        assert model.generate([2, 300, 301], max_new_tokens=1, stop_ids=()).finish_reason in ("length", "stop")
        for prompts in ([[2, 300, 700]], [[2, 300], [2, 700, 300]]):
            with pytest.raises(ModelOutputError, match="NaN or infinite at new token 0") as caught:
                model.generate_many(prompts, max_new_tokens=4)
            assert caught.value.exit_code == 3


class Spoiled:
    """Makes a number of a model's logits NaN, from a position of the text on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, position: int) -> None:
        step = TokenSequence.step

        def spoiled(sequence: TokenSequence, ids: Sequence[int]) -> np.ndarray:
            rows = step(sequence, ids)
            places = range(len(sequence) - len(rows), len(sequence))
            for row, place in zip(rows, places, strict=True):
                if place >= position:
                    row[17] = np.nan
            return rows

        monkeypatch.setattr(TokenSequence, "step", spoiled)


@pytest.mark.parametrize("name", ["plain", "looking_up"])
def test_not_a_number_in_the_middle_of_a_text(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Gemma = request.getfixturevalue(name)
    whole, length = model.generate(PROMPT, max_new_tokens=30), len(model.encode(PROMPT))
    assert len(whole.token_ids) > 12
    conversation = model.conversation()
    with monkeypatch.context() as patch:
        Spoiled(patch, length + 10 - 1)
        pieces: list[Piece] = []
        with pytest.raises(ModelOutputError, match="1 logits are NaN or infinite at new token 10"):
            pieces.extend(conversation.stream(PROMPT, max_new_tokens=30))
        stream = conversation.stream(PROMPT, max_new_tokens=30)
        # all tokens before it are given out
        given = [next(stream).token_id for _ in range(10)]
        assert given == list(whole.token_ids[:10])
        with pytest.raises(ModelOutputError):
            next(stream)
    assert conversation.tokens == (*model.encode(PROMPT), *whole.token_ids[:9])
    assert conversation.generate(PROMPT, max_new_tokens=30).token_ids == whole.token_ids


def test_not_a_number_in_one_row_of_a_batch(plain: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemma_runtime.state import Buffer

    values = Buffer.float32

    def spoiled(buffer: Buffer) -> np.ndarray:
        found = values(buffer)
        if found.size == 2 * plain.manifest.vocab_size:
            found.reshape(2, -1)[1, 17] = np.inf
        return found

    monkeypatch.setattr(Buffer, "float32", spoiled)
    with pytest.raises(ModelOutputError, match="NaN or infinite at new token 1"):
        plain.generate_many([PROMPT, "y = 2"], max_new_tokens=4)


@pytest.mark.parametrize("name", ["plain", "looking_up"])
def test_cancelled_in_the_middle(name: str, request: pytest.FixtureRequest) -> None:
    model: Gemma = request.getfixturevalue(name)
    whole = model.generate(PROMPT, max_new_tokens=30)
    conversation, cancel = model.conversation(), threading.Event()
    answer = conversation.answer(PROMPT, max_new_tokens=30, cancel=cancel)
    pieces = []
    for piece in answer.pieces():
        pieces.append(piece)
        if len(pieces) == 6:
            cancel.set()
    assert answer.completion.finish_reason == "cancelled"
    assert answer.completion.token_ids == whole.token_ids[:6]
    assert answer.completion.text == "".join(piece.text for piece in pieces)
    assert conversation.generate(PROMPT, max_new_tokens=30).token_ids == whole.token_ids
    # already set: nothing is read, either
    nothing = model.conversation()
    found = nothing.generate(PROMPT, cancel=cancel)
    assert (found.token_ids, found.text, found.finish_reason) == ((), "", "cancelled")
    assert nothing.tokens == ()


@pytest.mark.parametrize("name", ["plain", "looking_up"])
def test_ctrl_c_in_the_callers_loop(name: str, request: pytest.FixtureRequest) -> None:
    model: Gemma = request.getfixturevalue(name)
    whole = model.generate(PROMPT, max_new_tokens=30)
    conversation = model.conversation()

    def interrupted() -> None:
        for number, _ in enumerate(conversation.stream(PROMPT, max_new_tokens=30)):
            if number == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert conversation.generate(PROMPT, max_new_tokens=30).token_ids == whole.token_ids
