"""What a program may do wrong with the library, and what must stay right all the same."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_runtime import Constraint, Gemma, Sampling
from gemma_runtime.cli.line_input import LineInput
from gemma_runtime.cli.repl import Session
from gemma_runtime.cli.repl_commands import run_command
from gemma_runtime.constraints import _KEPT_VOCABULARIES, _VOCABULARIES
from gemma_runtime.element_types import ElementType
from gemma_runtime.errors import PromptError, ProviderError
from gemma_runtime.speculation.draft_model import DraftModel
from gemma_runtime.static_decode import StaticDecoder

PROMPT = "def read_file(path):\n"


@pytest.fixture(scope="module")
def model(tiny_fp32: Path) -> Gemma:
    return Gemma(tiny_fp32, speculation="off")


@pytest.mark.parametrize("provider", ["tpu", "CUDA", ""])
def test_an_unknown_provider(provider: str, tiny_fp32: Path) -> None:
    with pytest.raises(ProviderError, match="there are auto, cpu, cuda, directml"):
        Gemma(tiny_fp32, provider=provider)


@pytest.mark.parametrize("speculation", ["off", "lookup"])
def test_a_draft_model_that_would_guess_nothing(speculation: str, tiny_fp32: Path, tmp_path: Path) -> None:
    """Refused before either folder is opened."""
    for folder in (tiny_fp32, tmp_path / "none"):
        with pytest.raises(PromptError, match=f"guesses nothing with speculation '{speculation}'") as caught:
            Gemma(folder, draft=tmp_path / "none", speculation=speculation)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("prompt", [b"def f", bytearray(b"def f")])
def test_bytes_are_no_prompt(prompt: Any, model: Gemma) -> None:
    with pytest.raises(PromptError, match="found bytes"):
        model.generate(prompt)


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"stop": None}, "stop must be strings"),
        ({"stop_ids": (-5,)}, "stop-ids must be ids from 0 to 3071, found -5"),
        ({"stop_ids": (3072,), "min_new_tokens": 2}, "found 3072"),
        ({"stop_ids": None}, "stop-ids must be token ids, found None"),
        ({"stop_ids": 5}, "stop-ids must be token ids, found 5"),
        ({"stop_ids": [[1]]}, r"stop-ids must be token ids, found \[1\]"),
        ({"stop_ids": (True,)}, "stop-ids must be token ids, found True"),
        ({"stop_ids": "ab"}, "stop-ids must be token ids, found a"),
        ({"max_new_tokens": -(10**5000)}, "max-new-tokens must be 1 or above, found a number of thousands of digits"),
        ({"sampling": {}}, "sampling must be"),
        ({"constraint": "a+"}, "constraint must be"),
        ({"cancel": True}, "cancel must be"),
        ({"max_new_tokens": 1.5}, "max-new-tokens must be"),
    ],
)
def test_options_of_a_wrong_type(options: dict[str, Any], phrase: str, model: Gemma) -> None:
    with pytest.raises(PromptError, match=phrase):
        model.generate(PROMPT, **options)
    with pytest.raises(PromptError, match=phrase):
        model.generate_many([PROMPT, PROMPT], **options)


def test_numbers_of_numpy_and_iterators_do(model: Gemma) -> None:
    expected = model.generate(PROMPT, max_new_tokens=40, stop=["\n\n"])
    found = model.generate(PROMPT, max_new_tokens=np.int64(40), stop=(text for text in ["\n\n"]))
    assert (found.text, found.stop) == (expected.text, expected.stop) == (expected.text, "\n\n")


def test_one_text_is_not_several_prompts(model: Gemma) -> None:
    with pytest.raises(PromptError, match="found one text"):
        model.generate_many("abc")


def test_an_answer_is_given_once(model: Gemma) -> None:
    answer = model.answer(PROMPT, max_new_tokens=8)
    with pytest.raises(PromptError, match="has not been given yet"):
        _ = answer.completion
    answer.finish()
    with pytest.raises(PromptError, match="has been given"):
        answer.finish()


def test_an_answer_left_early_has_the_text_of_its_tokens(model: Gemma) -> None:
    # its beginning is held back: it could be the stop string's
    answer = model.answer(PROMPT, max_new_tokens=30, stop=["\n\nnever"])
    pieces = answer.pieces()
    shown = ""
    for piece in pieces:
        shown += piece.text
        if piece.token_id is not None and model.tokenizer.decode([piece.token_id]) == "\n\n":
            break
    pieces.close()
    assert answer.completion.text == shown + "\n\n"
    assert answer.completion.finish_reason == "cancelled"
    assert answer.completion.text == model.tokenizer.decode(answer.completion.token_ids)


def test_a_constraint_that_ends_at_once_has_no_speed(model: Gemma) -> None:
    found = model.generate(PROMPT, constraint=Constraint.regex("a"))
    assert (found.text, found.finish_reason, found.decode_tokens_per_second) == ("a", "stop", 0)


def test_a_constraint_that_allows_only_the_end_may_end_early(model: Gemma) -> None:
    assert model.generate(PROMPT, constraint=Constraint.regex("(abc)?x"), min_new_tokens=10).text.endswith("x")
    assert model.generate(PROMPT, constraint=Constraint.lark('start: "a"'), min_new_tokens=5).text == "a"
    assert model.generate(PROMPT, constraint=Constraint.regex(""), min_new_tokens=3).text == ""


def test_reading_a_batch_ends_when_it_is_cancelled(model: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = threading.Event()
    step = type(model.sequence()).step
    steps: list[int] = []

    def counted(self: Any, ids: list[int]) -> Any:
        steps.append(len(ids))
        cancel.set()
        return step(self, ids)

    monkeypatch.setattr(type(model.sequence()), "step", counted)
    found = model.generate_many([[2] + [300 + index] * 1200 for index in range(3)], cancel=cancel)
    assert [each.finish_reason for each in found] == ["cancelled"] * 3
    assert len(steps) == 1


def test_a_chat_that_is_answering_cannot_be_changed(model: Gemma) -> None:
    chat = model.chat()
    first, second = chat.stream("a", max_new_tokens=4), chat.stream("b", max_new_tokens=4)
    list(first)
    list(second)
    begun = chat.stream("c", max_new_tokens=8)
    next(begun)
    with pytest.raises(PromptError, match="is giving an answer"):
        chat.reset()
    list(begun)
    # every prompt held all that was said before it
    said = [message.content for message in chat.messages if message.role == "user"]
    assert said == ["a", "b", "c"]
    ids = chat._exchanges[-1].ids
    assert ids is not None
    text = "".join(model.tokenizer._library.piece(token) for token in ids)
    assert text.count("<start_of_turn>user") == 3


def test_a_conversation_keeps_what_its_draft_model_has_read(tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guessing = Gemma(tiny_fp32, draft=tiny_fp32)
    kept: list[int] = []
    propose = DraftModel.propose

    def counted(self: DraftModel, tokens: Any, most: int) -> Any:
        kept.append(len(tokens) - len(self._sequence))
        return propose(self, tokens, most)

    monkeypatch.setattr(DraftModel, "propose", counted)
    conversation = guessing.conversation()
    prompt = PROMPT * 20
    answer = conversation.generate(prompt, max_new_tokens=8)
    kept.clear()
    conversation.generate(prompt + answer.text + "\n", max_new_tokens=8)
    assert kept[0] < 20


def test_captured_graphs_are_given_back(tmp_path: Path, tiny_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, released = [], []
    release, begin = StaticDecoder.release, StaticDecoder.__init__

    def counted(self: StaticDecoder, *arguments: Any, **options: Any) -> None:
        made.append(1)
        begin(self, *arguments, **options)

    monkeypatch.setattr(StaticDecoder, "__init__", counted)
    monkeypatch.setattr(StaticDecoder, "release", lambda self: (released.append(1), release(self)))
    static = Gemma(tiny_fp16, speculation="off", cuda_graphs=True)
    for _ in range(3):
        static.generate(PROMPT, max_new_tokens=4)
    gc.collect()
    assert len(made) == len(released) == 3


def test_vocabularies_of_constraints_are_not_kept_for_ever(model: Gemma) -> None:
    for token in range(300, 310):
        model.generate(PROMPT, constraint=Constraint.regex("a+"), stop_ids=(token,), max_new_tokens=2)
    assert len(_VOCABULARIES[model.tokenizer]._vocabularies) <= _KEPT_VOCABULARIES


def test_sampling_leaves_no_token(model: Gemma) -> None:
    banned = Sampling(logit_bias=dict.fromkeys(range(3072), -np.inf))
    with pytest.raises(PromptError, match="leave no token"):
        model.generate(PROMPT, sampling=banned)


def test_regenerating_in_vain_keeps_the_old_answer(model: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"min_new_tokens": 4, "max_new_tokens": 6, "sampling": Sampling()}
    session = Session(model, settings, chat=model.chat(), lines=LineInput(None))
    session.say("Hi")
    assert session.chat is not None
    before = session.chat.messages
    settings["max_new_tokens"] = 0
    with pytest.raises(PromptError, match="max-new-tokens"):
        run_command(session, "/regenerate")
    assert session.chat.messages == before
    settings["max_new_tokens"] = 8
    run_command(session, "/regenerate")
    assert len(session.chat.messages) == 2
    assert session.chat.messages != before


def test_only_the_logits_of_a_step_are_widened(tiny_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    widen = ElementType.to_float32

    def counted(self: ElementType, array: Any) -> Any:
        sizes.append(array.size)
        return widen(self, array)

    monkeypatch.setattr(ElementType, "to_float32", counted)
    sequence = Gemma(tiny_fp16).sequence()
    assert sequence.step([2, 5, 6]).shape == (3, 3072)
    assert sequence.step([7]).shape == (1, 3072)
    assert sizes == [3 * 3072, 3072]
