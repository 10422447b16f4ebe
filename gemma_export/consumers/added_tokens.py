"""Tokens that a fine-tune put on top of a SentencePiece model: added_tokens.json and tokenizer_config.json.

Formats: https://huggingface.co/docs/transformers/main_classes/tokenizer (`added_tokens_decoder`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gemma_export.consumers.merges import unfaithful
from gemma_export.consumers.sentencepiece_model import SentencePieceModel
from gemma_export.errors import ConfigError

__all__ = ["AddedToken", "tokens_on_top"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A text that is one token, found before anything else is cut."""

    content: str
    # left out of decoded text
    special: bool
    # found in normalized text rather than in the raw one
    normalized: bool
    single_word: bool = False
    # takes the white space on that side along
    lstrip: bool = False
    rstrip: bool = False

    def to_json(self) -> dict[str, Any]:
        """As tokenizer.json writes it, without the id."""
        return dataclasses.asdict(self)


def tokens_on_top(
    model: SentencePieceModel, added: Mapping[str, Any] | None, tokenizer_config: Mapping[str, Any] | None
) -> tuple[AddedToken, ...]:
    """Tokens with ids beyond the pieces, in order.

    Args:
        model: gives the pieces.
        added: added_tokens.json, parsed: text -> id.
        tokenizer_config: tokenizer_config.json, parsed; its `added_tokens_decoder` knows flags too.

    Raises:
        ConfigError: an entry is malformed, or gives the id of another piece.
        UnfaithfulTokenizerError: ids have gaps, which no tokenizer.json can say.
    """
    tokens: dict[int, AddedToken] = {}
    for content, token in (added or {}).items():
        # as transformers reads this file
        tokens[_id(token, "added_tokens.json", content)] = AddedToken(content=content, special=False, normalized=True)
    decoder = (tokenizer_config or {}).get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise _malformed("added_tokens_decoder", decoder)
    for token, entry in decoder.items():
        tokens[_id(token, "added_tokens_decoder", entry)] = _token(entry)
    for token, found in tokens.items():
        if token < len(model.pieces) and model.pieces[token] != found.content:
            raise ConfigError(
                f"token {token} is {model.pieces[token]!r} in tokenizer.model, {found.content!r} as an added token",
                hint="These tokenizer files belong to different models: fetch them again from one place.",
            )
    on_top = sorted(token for token in tokens if token >= len(model.pieces))
    if on_top != list(range(len(model.pieces), len(model.pieces) + len(on_top))):
        raise unfaithful(f"the added tokens' ids have gaps after {len(model.pieces) - 1}, found {on_top[:5]}")
    contents = [tokens[token].content for token in on_top]
    known = set(model.pieces)
    for index, content in enumerate(contents):
        if not content or content in known:
            raise ConfigError(
                f"added token {on_top[index]} is {content!r}, which is empty or a token already",
                hint="Correct added_tokens.json or tokenizer_config.json, or fetch them again.",
            )
        known.add(content)
    return tuple(tokens[token] for token in on_top)


def _id(value: Any, where: str, what: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise _malformed(where, what)


def _token(entry: Any) -> AddedToken:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise _malformed("added_tokens_decoder", entry)
    special = entry.get("special") is True
    return AddedToken(
        content=entry["content"],
        special=special,
        normalized=bool(entry.get("normalized", not special)),
        single_word=bool(entry.get("single_word", False)),
        lstrip=bool(entry.get("lstrip", False)),
        rstrip=bool(entry.get("rstrip", False)),
    )


def _malformed(where: str, what: Any) -> ConfigError:
    return ConfigError(
        f"{where}: expected texts with ids, found {str(what)[:80]!r}", hint="Correct the file, or fetch it again."
    )
