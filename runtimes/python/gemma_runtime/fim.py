"""Fill in the middle, as CodeGemma does it: the model writes what belongs between a prefix and a suffix.

Source of the format: https://ai.google.dev/gemma/docs/codegemma/prompt-structure (prefix, suffix, middle; no white
space added around the tokens; either part may be empty).
"""

from __future__ import annotations

import dataclasses

from gemma_runtime.errors import PromptError
from gemma_runtime.tokenizer import Tokenizer

__all__ = ["FimParts", "fim_prompt", "fim_stop_ids", "fit_to_context", "split_at"]

_PREFIX, _SUFFIX, _MIDDLE, _SEPARATOR = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>"
# BOS and the three tokens of the format
_FORMAT_TOKENS = 4
# What comes before the cursor says more about what belongs there: of a context that cannot hold both, three quarters
# are the prefix's, and what one part does not need is the other's. The share is a choice, measured on nothing.
_PREFIX_SHARE = 0.75


@dataclasses.dataclass(frozen=True, kw_only=True)
class FimParts:
    """What surrounds the cursor, as far as the context holds it."""

    prefix: str
    suffix: str
    # lines left out at the start of the prefix and at the end of the suffix
    lines_before: int = 0
    lines_after: int = 0


def fim_prompt(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """Token ids of the prompt, its BOS included. Special tokens written in the parts stay text.

    Raises:
        PromptError: no fill-in-the-middle model, or a part that is not valid UTF-8.
    """
    before, after, middle = _format_ids(tokenizer)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [*bos, before, *_ids(tokenizer, prefix), after, *_ids(tokenizer, suffix), middle]


def fim_stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end the middle besides the model's own: the format's and the file separator.

    Raises:
        PromptError: no fill-in-the-middle model.
    """
    separator = tokenizer.find(_SEPARATOR)
    return frozenset(_format_ids(tokenizer)) | (frozenset() if separator is None else {separator})


def split_at(text: str, line: int, column: int) -> tuple[str, str]:
    """The text before and after a position.

    Args:
        text: a file's; its line ends (LF or CRLF) are kept.
        line: from 1, as editors and compilers count.
        column: from 1, in characters; one past a line's last character is its end, before the line end.

    Raises:
        PromptError: a position that the text does not have.
    """
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        raise PromptError(f"line {line} is outside the file, which has {len(lines)}", hint="Lines are counted from 1.")
    found = lines[line - 1]
    width = len(found.removesuffix("\r")) if line < len(lines) else len(found)
    if not 1 <= column <= width + 1:
        raise PromptError(
            f"column {column} is outside line {line}, which has {width} characters",
            hint="Columns are characters counted from 1; one more than the line has is its end.",
        )
    offset = sum(len(each) + 1 for each in lines[: line - 1]) + column - 1
    return text[:offset], text[offset:]


def fit_to_context(tokenizer: Tokenizer, prefix: str, suffix: str, *, context_length: int, new_tokens: int) -> FimParts:
    """Leaves out whole lines, the farthest from the cursor first, until prompt and new tokens fit.

    Args:
        tokenizer: of the folder.
        prefix: what comes before the cursor.
        suffix: what comes after it.
        context_length: of the folder, in tokens.
        new_tokens: how many the middle may have.

    Raises:
        PromptError: no room, or the cursor's own line is longer than its share.
    """
    room = context_length - new_tokens - _FORMAT_TOKENS
    if room < 0:
        raise PromptError(
            f"{new_tokens} new tokens leave no room for a prompt in this folder's context of {context_length}",
            hint="Ask for fewer, or export with a larger --context.",
        )
    needed = len(_ids(tokenizer, prefix)), len(_ids(tokenizer, suffix))
    if sum(needed) <= room:
        return FimParts(prefix=prefix, suffix=suffix)
    kept_prefix = _near_lines(tokenizer, prefix, max(int(room * _PREFIX_SHARE), room - needed[1]), last=True)
    left = room - len(_ids(tokenizer, kept_prefix))
    kept_suffix = _near_lines(tokenizer, suffix, left, last=False)
    return FimParts(
        prefix=kept_prefix,
        suffix=kept_suffix,
        lines_before=prefix.count("\n") - kept_prefix.count("\n"),
        lines_after=suffix.count("\n") - kept_suffix.count("\n"),
    )


def _near_lines(tokenizer: Tokenizer, text: str, room: int, *, last: bool) -> str:
    """As many lines of the end at the cursor as `room` tokens hold; the cursor's own line is always one of them."""
    if len(_ids(tokenizer, text)) <= room:
        return text
    *whole, rest = text.split("\n")
    lines = [*(line + "\n" for line in whole), rest]
    if last:
        lines.reverse()
    kept: list[str] = []
    # apart they are at least as many tokens as together: no token of Gemma's holds a line end and something else
    for line in lines:
        size = len(_ids(tokenizer, line))
        if size > room:
            break
        room -= size
        kept.append(line)
    if not kept:
        raise PromptError(
            f"the line at the cursor has {size} tokens {'before' if last else 'after'} it, there is room for {room}",
            hint="Ask for fewer new tokens, export with a larger --context, or break the line.",
        )
    return "".join(reversed(kept) if last else kept)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"the text is not valid UTF-8 at character {error.start}", hint="Re-encode it.") from error
    return tokenizer.encode_plain(text)


def _format_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    found = {piece: tokenizer.find(piece) for piece in (_PREFIX, _SUFFIX, _MIDDLE)}
    missing = [piece for piece, token in found.items() if token is None]
    if missing:
        raise PromptError(
            f"fill-in-the-middle needs the tokens {_PREFIX}, {_SUFFIX} and {_MIDDLE}; this tokenizer has no "
            f"{missing[0]}",
            hint="Use a CodeGemma model: https://ai.google.dev/gemma/docs/codegemma.",
        )
    before, after, middle = (token for token in found.values() if token is not None)
    return before, after, middle
