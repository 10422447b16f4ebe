"""Conversations in files."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gemma_runtime.chat import Message, read_messages
from gemma_runtime.cli.inputs import reason_of
from gemma_runtime.errors import PromptError

__all__ = ["load_messages", "save_messages"]

# what paths that a user types raise: a home directory of nobody's is a RuntimeError, a null character a ValueError
_WRONG_PATH = (OSError, RuntimeError, ValueError)


def save_messages(name: str, messages: Sequence[Message]) -> None:
    """Writes a conversation as JSON: {"messages": [{"role": ..., "content": ...}, ...]}.

    Args:
        name: of the file; ~ is a home directory.
        messages: all that was said.

    Raises:
        PromptError: the file is there and is no conversation, or cannot be written.
    """
    content = json.dumps({"messages": [dataclasses.asdict(each) for each in messages]}, ensure_ascii=False, indent=2)
    try:
        encoded = (content + "\n").encode("utf-8")
        path = Path(name).expanduser()
        if path.exists():
            # never another file of the user's
            load_messages(name)
        _replace(path.resolve(), encoded)
    except _WRONG_PATH as error:
        raise PromptError(f"{name} cannot be written: {reason_of(error)}", hint="Check the path.") from error


def _replace(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: what was saved before outlives a full disk."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def load_messages(name: str) -> list[Message]:
    """Reads what `save_messages` wrote.

    Args:
        name: of the file; ~ is a home directory.

    Raises:
        PromptError: not there, or no conversation.
    """
    try:
        content = Path(name).expanduser().read_bytes()
    except _WRONG_PATH as error:
        raise PromptError(f"{name} cannot be read: {reason_of(error)}", hint="Check the path.") from error
    try:
        messages = json.loads(content.decode("utf-8"))["messages"]
        if not isinstance(messages, list):
            raise TypeError("messages is no list")
        return list(read_messages(messages))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PromptError(f"{name} is no conversation: {error}", hint="It was not written by /save.") from error
