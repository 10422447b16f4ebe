"""A conversation with a model, turn by turn; what was said is read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from gemma_runtime.chat import Message, chat_ids, read_messages, turn_ids
from gemma_runtime.errors import PromptError

if TYPE_CHECKING:
    from gemma_runtime.answer import AnswerKeywords
    from gemma_runtime.model import Gemma
    from gemma_runtime.results import Completion, Piece

__all__ = ["Chat"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Exchange:
    """What the user said, and what the model answered."""

    user: str
    answer: str
    # the whole text up to the answer's end, as generated; None where it has to be rendered again
    ids: tuple[int, ...] | None


class Chat:
    """Grows by exchanges. A prompt starts with the last one and its answer, token for token as the model chose them:
    rendered again, an answer would be trimmed and could be other tokens, and the cache of little use. One thread at a
    time; made by `Gemma.chat`.

    Args:
        model: a chat model.
        system: instructions before the first turn; empty for none.
        escape: special tokens written in the user's messages stay text.

    Raises:
        PromptError: no chat model, or one without a system role for `system`.
    """

    def __init__(self, model: Gemma, *, system: str = "", escape: bool = False) -> None:
        self._model, self._escape = model, escape
        self._conversation = model.conversation()
        self._exchanges: list[_Exchange] = []
        self._system = ""
        self._answering = False
        # of the last answer that came to an end
        self.completion: Completion | None = None
        self.set_system(system)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that was said, the system's message first if there is one."""
        found = [Message(role="system", content=self._system)] if self._system else []
        for each in self._exchanges:
            found += [Message(role="user", content=each.user), Message(role="model", content=each.answer)]
        return tuple(found)

    def send(self, text: str, **options: Unpack[AnswerKeywords]) -> Completion:
        """The answer to the user's next message.

        Args:
            text: the message.
            options: the fields of AnswerOptions.

        Raises:
            PromptError: an empty message, a full context, or an option outside its range.
            ModelOutputError: logits that are NaN or infinite.
        """
        for _ in self.stream(text, **options):
            pass
        assert self.completion is not None
        return self.completion

    def stream(self, text: str, **options: Unpack[AnswerKeywords]) -> Iterator[Piece]:
        """The same, piece by piece; `completion` has the whole afterwards.

        An answer that is left early, or cancelled, is kept as far as it came, if it began.
        """
        # refused at once; the prompt itself is made when the answer begins, of what was said until then
        self._conversation.answer(self._prompt(text), **options)
        return self._pieces(text, options)

    def undo(self) -> str | None:
        """Takes the last exchange away and returns what the user said; None where there is none."""
        self._require_rest()
        return self._exchanges.pop().user if self._exchanges else None

    def reset(self) -> None:
        """Forgets every exchange; the system's message stays."""
        self._require_rest()
        self._exchanges.clear()

    def set_system(self, text: str) -> None:
        """Puts a text before the first turn, or nothing where it is empty.

        Raises:
            PromptError: this model has no chat, or no system role.
        """
        self._require_rest()
        system = [Message(role="system", content=text)] if text else []
        self._rendered([*system, Message(role="user", content="x")])
        self._system = text
        self._exchanges = [dataclasses.replace(each, ids=None) for each in self._exchanges]

    def load(self, messages: Sequence[Message | Mapping[str, Any]]) -> None:
        """Puts another conversation in this one's place.

        Raises:
            PromptError: messages that this model's turns cannot hold, or no answer at the end.
        """
        self._require_rest()
        read = read_messages(messages)
        self._rendered(read)
        system = read[0].content if read[0].role == "system" else ""
        turns = read[1:] if system else read
        if len(turns) % 2:
            raise PromptError("the conversation ends with the user's turn", hint="Its last message is the model's.")
        self._system = system
        self._exchanges = [
            _Exchange(user=user.content, answer=model.content, ids=None)
            for user, model in zip(turns[::2], turns[1::2], strict=True)
        ]

    def _prompt(self, text: str) -> list[int]:
        held = self._exchanges[-1].ids if self._exchanges else None
        if held is not None:
            return [*held, *turn_ids(self._model.tokenizer, text, first=False, escape=self._escape)]
        return self._rendered([*self.messages, Message(role="user", content=text)])

    def _require_rest(self) -> None:
        if self._answering:
            raise PromptError("this chat is giving an answer", hint="Go through the answer, or close it, first.")

    def _pieces(self, text: str, options: AnswerKeywords) -> Iterator[Piece]:
        self._require_rest()
        prompt = self._prompt(text)
        answer = self._conversation.answer(prompt, **options)
        self._answering = True
        try:
            yield from answer.pieces()
        except GeneratorExit:
            self._keep(text, prompt, answer.completion)
            raise
        finally:
            self._answering = False
        self._keep(text, prompt, answer.completion)

    def _keep(self, text: str, prompt: list[int], completion: Completion) -> None:
        self.completion = completion
        # an answer that was cancelled before it began was never given
        if completion.token_ids or completion.finish_reason != "cancelled":
            # the tokens hold the stop string, which is no part of what was said
            said = (
                completion.token_ids if completion.stop is None else self._model.tokenizer.encode_plain(completion.text)
            )
            ids = (*prompt, *said)
            self._exchanges.append(_Exchange(user=text, answer=completion.text, ids=ids))

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        model = self._model
        return chat_ids(messages, tokenizer=model.tokenizer, folds_system=model.folds_system, escape=self._escape)
