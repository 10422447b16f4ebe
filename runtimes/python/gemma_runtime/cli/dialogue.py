"""A conversation as a session keeps it: the model's answers as the tokens that it generated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from gemma_runtime.chat import Message, chat_ids, read_messages, turn_ids
from gemma_runtime.errors import PromptError
from gemma_runtime.tokenizer import Tokenizer

__all__ = ["Dialogue", "load_messages", "save_messages"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Exchange:
    """What the user said, and what the model answered."""

    user: str
    answer: str
    # the whole text up to the answer's end; None where it has to be rendered again
    ids: tuple[int, ...] | None


class Dialogue:
    """Grows by exchanges; each prompt starts with the last one and its answer, token for token.

    Args:
        tokenizer: of the folder.
        folds_system: whether the model's template has room for a system message.
    """

    def __init__(self, tokenizer: Tokenizer, *, folds_system: bool) -> None:
        self._tokenizer, self._folds_system = tokenizer, folds_system
        self._system = ""
        self._exchanges: list[_Exchange] = []

    def messages(self) -> list[Message]:
        """All of it."""
        found = [Message(role="system", content=self._system)] if self._system else []
        for each in self._exchanges:
            found += [Message(role="user", content=each.user), Message(role="model", content=each.answer)]
        return found

    def prompt(self, user: str) -> list[int]:
        """Token ids of the conversation with the user's next message.

        Raises:
            PromptError: an empty message.
        """
        held = self._exchanges[-1].ids if self._exchanges else None
        if held is not None:
            return [*held, *turn_ids(self._tokenizer, user, first=False)]
        return self._rendered([*self.messages(), Message(role="user", content=user)])

    def add(self, user: str, prompt: list[int], answer: str, answer_ids: tuple[int, ...]) -> None:
        """Keeps an exchange: `prompt` is what `prompt(user)` gave."""
        self._exchanges.append(_Exchange(user=user, answer=answer, ids=(*prompt, *answer_ids)))

    def undo(self) -> str | None:
        """Takes the last exchange away and returns what the user said; None where there is none."""
        return self._exchanges.pop().user if self._exchanges else None

    def reset(self) -> None:
        """Forgets every exchange; the system message stays."""
        self._exchanges.clear()

    def set_system(self, text: str) -> None:
        """Puts a text before the first turn, or nothing where it is empty.

        Raises:
            PromptError: this model has no system role.
        """
        if text:
            self._rendered([Message(role="system", content=text), Message(role="user", content="x")])
        self._system = text
        self._exchanges = [dataclasses.replace(each, ids=None) for each in self._exchanges]

    def load(self, messages: list[Message]) -> None:
        """Takes another conversation's place.

        Raises:
            PromptError: messages that this model's turns cannot hold, or no answer at the end.
        """
        self._rendered(messages)
        system = messages[0].content if messages[0].role == "system" else ""
        turns = messages[1:] if system else messages
        if len(turns) % 2:
            raise PromptError("the conversation ends with the user's turn", hint="Its last message is the model's.")
        self._system = system
        self._exchanges = [
            _Exchange(user=user.content, answer=model.content, ids=None)
            for user, model in zip(turns[::2], turns[1::2], strict=True)
        ]

    def _rendered(self, messages: list[Message]) -> list[int]:
        return chat_ids(messages, tokenizer=self._tokenizer, folds_system=self._folds_system)


def save_messages(path: Path, messages: list[Message]) -> None:
    """Writes a conversation as JSON: {"messages": [{"role": ..., "content": ...}, ...]}.

    Raises:
        PromptError: the file is there and is no conversation, or cannot be written.
    """
    if path.exists():
        # never another file of the user's
        load_messages(path)
    content = json.dumps({"messages": [dataclasses.asdict(each) for each in messages]}, ensure_ascii=False, indent=2)
    try:
        path.write_text(content + "\n", encoding="utf-8")
    except OSError as error:
        raise PromptError(f"{path} cannot be written: {error.strerror}", hint="Check the path.") from error


def load_messages(path: Path) -> list[Message]:
    """Reads what `save_messages` wrote.

    Raises:
        PromptError: not there, or no conversation.
    """
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
        if not isinstance(messages, list):
            raise TypeError("messages is no list")
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}", hint="Check the path.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PromptError(f"{path} is no conversation: {error}", hint="It was not written by /save.") from error
    return list(read_messages(messages))
