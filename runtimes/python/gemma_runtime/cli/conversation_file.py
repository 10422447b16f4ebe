"""Conversations in files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from gemma_runtime.chat import Message, read_messages
from gemma_runtime.errors import PromptError

__all__ = ["load_messages", "save_messages"]


def save_messages(path: Path, messages: Sequence[Message]) -> None:
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
