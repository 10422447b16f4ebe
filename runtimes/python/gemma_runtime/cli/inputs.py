"""Texts from files and from standard input: UTF-8, or a message that says where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gemma_runtime.errors import PromptError

__all__ = ["read_file", "read_prompt", "reason_of", "stdin_is_terminal"]


def stdin_is_terminal() -> bool:
    """Whether somebody sits there and types."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_prompt(*, asked: bool) -> str:
    """All of standard input; line ends of any system become LF, as in every text stream.

    Args:
        asked: by the PROMPT "-", not for want of one.

    Raises:
        PromptError: nothing there, or not UTF-8.
        click.UsageError: nothing there and not asked.
    """
    text = _standard_input().replace("\r\n", "\n").replace("\r", "\n")
    if not text and not asked:
        raise click.UsageError("PROMPT is missing, and standard input is empty")
    if not text:
        raise PromptError("standard input is empty", hint="Give a text to continue.")
    return text


def read_file(name: str) -> str:
    """A file's text, its line ends kept; "-" is standard input. A byte order mark is no part of the text.

    Raises:
        PromptError: not there, not readable, or not UTF-8.
    """
    if name == "-":
        return _standard_input()
    try:
        content = Path(name).read_bytes()
    except (OSError, ValueError) as error:
        # ValueError: a name with a null character
        raise PromptError(f"{name} cannot be read: {reason_of(error)}", hint="Check the path.") from error
    return _decoded(content, name)


def reason_of(error: Exception) -> str:
    """Why a path cannot be used: the operating system's words, or Python's."""
    return getattr(error, "strerror", None) or str(error)


def _standard_input() -> str:
    return "" if sys.stdin is None else _decoded(sys.stdin.buffer.read(), "standard input")


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{name} is not valid UTF-8 at byte {error.start}", hint="Save it as UTF-8 (without UTF-16)."
        ) from error
