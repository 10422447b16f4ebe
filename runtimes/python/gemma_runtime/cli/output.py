"""What goes to stdout, what goes to stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gemma_runtime.results import Completion

__all__ = ["JSON_VERSION", "ReaderGoneError", "figures", "notice", "print_json", "print_text"]

# of everything that --json prints: schemas/*.schema.json
JSON_VERSION = 1


class ReaderGoneError(Exception):
    """Nobody reads stdout any more: not our failure. click would turn a BrokenPipeError into exit code 1."""


def print_text(text: str, *, newline: bool = True) -> None:
    """Writes to stdout at once.

    Raises:
        ReaderGoneError: the other end of the pipe is closed.
    """
    try:
        click.echo(text, nl=newline)
    except BrokenPipeError as error:
        raise ReaderGoneError from error


def notice(text: str) -> None:
    """What is not part of the answer: on stderr, if that takes it; the answer and the exit code count."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def print_json(completion: Completion) -> None:
    """One line, as schemas/generation.schema.json describes it."""
    # ASCII: a console that cannot show a character must not change the text
    print_text(json.dumps({"schema_version": JSON_VERSION, **dataclasses.asdict(completion)}))


def figures(completion: Completion) -> str:
    """How much and how fast, in one line."""
    cached = f" ({completion.cached_tokens} cached)" if completion.cached_tokens else ""
    guessed = completion.speculation
    ahead = f", {guessed.accepted} of {guessed.drafted} guessed tokens kept" if guessed and guessed.drafted else ""
    return (
        f"{completion.prompt_tokens} prompt tokens{cached} at {completion.prefill_tokens_per_second:.0f} tokens/s, "
        f"{len(completion.token_ids)} new tokens at {completion.decode_tokens_per_second:.1f} tokens/s{ahead} "
        f"({completion.finish_reason})"
    )
