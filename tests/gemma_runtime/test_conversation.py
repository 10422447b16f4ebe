"""Prompts that share a cache, one after the other and from several threads."""

from __future__ import annotations

import threading

import pytest
from code_prompts import prompts

from gemma_runtime import Gemma
from gemma_runtime.errors import PromptError

PROMPT = "def read_file(path):\n"


@pytest.fixture(params=["plain", "looking_up"])
def model(request: pytest.FixtureRequest) -> Gemma:
    found: Gemma = request.getfixturevalue(request.param)
    return found


def test_only_what_is_new_is_read(model: Gemma) -> None:
    conversation, text = model.conversation(), model.encode(PROMPT)
    first = conversation.generate(text, max_new_tokens=12)
    assert first.cached_tokens == 0
    text += [*first.token_ids, *model.encode("\n# then\n")[1:]]
    second = conversation.generate(text, max_new_tokens=12)
    # the last token of the answer was never read
    assert second.cached_tokens == first.prompt_tokens + len(first.token_ids) - 1
    assert second.prompt_tokens == len(text)
    assert second.token_ids == model.generate(text, max_new_tokens=12).token_ids
    # the same again: all but the last token, whose logits are wanted
    again = conversation.generate(text, max_new_tokens=12)
    assert (again.cached_tokens, again.token_ids) == (len(text) - 1, second.token_ids)


def test_texts_with_other_beginnings(model: Gemma) -> None:
    conversation = model.conversation()
    for prompt in prompts(15, seed=6):
        assert (
            conversation.generate(prompt, max_new_tokens=16).token_ids
            == model.generate(prompt, max_new_tokens=16).token_ids
        )


def test_leaving_a_stream_and_going_on(model: Gemma) -> None:
    conversation, prompt = model.conversation(), "x = [1, 1, 1, 1, 1, 1,"
    whole = model.generate(prompt, max_new_tokens=30).token_ids
    for count in (1, 2, 5, 9):
        stream = conversation.stream(prompt, max_new_tokens=30)
        given = [next(stream).token_id for _ in range(count)]
        stream.close()  # type: ignore[attr-defined]
        assert given == list(whole[:count])
        # what the last run also agreed with is not part of the text
        assert conversation.tokens == (*model.encode(prompt), *whole[: count - 1])
        assert conversation.generate(prompt, max_new_tokens=30).token_ids == whole


def test_two_answers_at_once_are_refused(model: Gemma) -> None:
    conversation = model.conversation()
    stream = conversation.stream(PROMPT, max_new_tokens=20)
    first = next(stream)
    caught: list[PromptError] = []

    def other() -> None:
        try:
            conversation.generate("another", max_new_tokens=2)
        except PromptError as error:
            caught.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert caught
    assert "giving another answer" in caught[0].message
    assert "model.conversation()" in caught[0].hint
    rest = list(stream)
    text = "".join(piece.text for piece in (first, *rest))
    assert text == model.generate(PROMPT, max_new_tokens=20).text
    assert conversation.generate("another", max_new_tokens=2).token_ids


def test_an_answer_that_never_starts_holds_nothing(model: Gemma) -> None:
    conversation = model.conversation()
    conversation.stream(PROMPT, max_new_tokens=20)
    conversation.answer(PROMPT, max_new_tokens=20)
    assert conversation.tokens == ()
    assert conversation.generate(PROMPT, max_new_tokens=3).token_ids
