"""Holds a made tokenizer.json against SentencePiece itself before it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from gemma_export.consumers.added_tokens import AddedToken
from gemma_export.consumers.merges import unfaithful
from gemma_export.consumers.sentencepiece_model import PieceType, SentencePieceModel
from gemma_export.errors import TokenizerError

__all__ = ["check_agreement", "probes"]

# a few hundred texts take milliseconds, whatever the vocabulary
_PIECES_PROBED = 256
_PLAIN = (
    *("", " ", "  x ", " " * 33, "\u2581", "a\u2581 b", "\t\tx\r\n", "\n" * 40, "\0", "e\u0301\u0323 \ufb01 \uff21"),
    *("Hello, world! 1234567890", "def f(x):\n    return x ** 2\n", "<0x41><0xe9>", "a" * 100, "ab" * 60, "-" * 70),
    *("日本語 한국어 Привет עברית العربية हिन्दी", "\N{GRINNING FACE}\u200d\ufe0f\U000e0100"),
    *("\ue000\U0010ffff", "\ufeff\u2028\xa0\u3000"),
)


def probes(model: SentencePieceModel) -> Iterator[str]:
    """Texts that show a difference where there is one: every kind of piece, whole, doubled, cut and run together."""
    yield from _PLAIN
    stride = max(1, len(model.pieces) // _PIECES_PROBED)
    chosen = [piece.replace("\u2581", " ") for piece in model.pieces[::stride]]
    chosen += [model.pieces[token] for token in model.of_type(PieceType.CONTROL, PieceType.UNKNOWN)]
    chosen += [model.pieces[token] for token in model.of_type(PieceType.USER_DEFINED)[:_PIECES_PROBED]]
    for index, piece in enumerate(chosen):
        yield f"{piece}{chosen[index - 1]} {piece}{piece[:-1]}{chosen[index - 7][1:]}\n{piece}"


def check_agreement(content: bytes, model: SentencePieceModel, made: bytes, added: Sequence[AddedToken] = ()) -> None:
    """Encodes and decodes the probes with both libraries, where both are installed.

    Args:
        content: tokenizer.model.
        model: the same, parsed.
        made: the tokenizer.json.
        added: tokens on top, which SentencePiece does not know.

    Raises:
        TokenizerError: SentencePiece cannot load the model.
        UnfaithfulTokenizerError: the two differ.
    """
    try:
        import sentencepiece
        import tokenizers
    except ImportError:
        return
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, ValueError) as error:
        raise TokenizerError(
            f"tokenizer.model cannot be read by SentencePiece: {error}", hint="Fetch the tokenizer files again."
        ) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(made.decode())
    # the library raises bare Exception
    except Exception as error:
        raise unfaithful(f"the tokenizers library cannot load it: {error}") from error
    for index, token in enumerate(added):
        if tokenizer.token_to_id(token.content) != len(model.pieces) + index:
            raise unfaithful(f"the added token {token.content!r} would get another id")
    control = [model.pieces[token] for token in model.of_type(PieceType.CONTROL, PieceType.UNKNOWN)]
    pattern = re.compile("(" + "|".join(re.escape(piece) for piece in sorted(control, key=len, reverse=True)) + ")")
    hidden = set(model.of_type(PieceType.CONTROL, PieceType.UNKNOWN))
    for text in probes(model):
        if any(token.content in text for token in added):
            continue
        expected = _encode(processor, pattern, text)
        found = tokenizer.encode(text, add_special_tokens=False).ids
        if found != expected:
            raise unfaithful(f"it would cut {text!r} into {found}, SentencePiece into {expected}")
        visible = [token for token in expected if token not in hidden]
        if tokenizer.decode(visible, skip_special_tokens=False) != processor.decode(visible):
            raise unfaithful(f"it would decode {visible} to other text than SentencePiece does")


def _encode(processor: Any, control: re.Pattern[str], text: str) -> list[int]:
    """Ids as the runtime's SentencePiece reader gives them: control tokens written in a text are those tokens."""
    ids: list[int] = []
    for index, part in enumerate(control.split(text)):
        ids += [processor.piece_to_id(part)] if index % 2 else processor.encode(part)
    return ids
