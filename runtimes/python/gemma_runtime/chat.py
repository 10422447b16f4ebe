"""Gemma's turns around a prompt.

Source: https://ai.google.dev/gemma/docs/core/prompt-structure.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gemma_runtime.errors import PromptError
from gemma_runtime.tokenizer import Tokenizer

__all__ = ["END_OF_TURN", "chat_prompt"]

START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"


def chat_prompt(tokenizer: Tokenizer, message: str) -> str:
    """One user turn and the start of the model's.

    Raises:
        PromptError: the tokenizer has no turn tokens: this is no chat model.
    """
    missing = [token for token in (START_OF_TURN, END_OF_TURN) if tokenizer.find(token) is None]
    if missing:
        raise PromptError(
            f"--chat needs the tokens {START_OF_TURN} and {END_OF_TURN}; this tokenizer has no {missing[0]}",
            hint="Leave --chat out: this folder's model completes text.",
        )
    # the published template trims a message's white space
    return f"{START_OF_TURN}user\n{message.strip()}{END_OF_TURN}\n{START_OF_TURN}model\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


def chat_ids(messages: Any, *, tokenizer: Tokenizer) -> list[int]:
    """Ids of a conversation."""
    [message] = messages
    content = message.content if isinstance(message, Message) else message["content"]
    return tokenizer.encode(chat_prompt(tokenizer, content))
