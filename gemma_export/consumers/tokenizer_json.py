"""tokenizer.json for a SentencePiece BPE model: the same ids for every text, or a refusal with its reason.

Text is read as the runtime reads it: control tokens written in a text are those tokens, and what stands between them
goes to SentencePiece. The file's two passes over added tokens mean just that: those of the first are found in the raw
text (`normalized: false`), those of the second in the normalized one, where SentencePiece looks for its user-defined
symbols; both take the leftmost, then the longest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from gemma_export.consumers.added_tokens import AddedToken
from gemma_export.consumers.merges import derive_merges, unfaithful
from gemma_export.consumers.sentencepiece_model import ModelType, PieceType, SentencePieceModel

__all__ = ["SPACE", "is_plain", "tokenizer_json"]

# SentencePiece writes a space as this character (https://github.com/google/sentencepiece)
SPACE = "\u2581"
# user-defined symbols that steer the model and are no text: https://ai.google.dev/gemma/docs/core/prompt-structure,
# https://ai.google.dev/gemma/docs/codegemma/prompt-structure
_STEERING = frozenset(
    ("<start_of_turn>", "<end_of_turn>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>")
)
# the library's decoder takes any piece of this form for a byte
_LIKE_A_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_MOST_SPACES = 1 << 31


def is_plain(model: SentencePieceModel) -> bool:
    """Whether normalization is Gemma's: a space becomes `SPACE`, and that is all."""
    return model.escape_whitespaces and not model.add_dummy_prefix and not model.remove_extra_whitespaces


def tokenizer_json(model: SentencePieceModel, *, bos: str | None, added: Sequence[AddedToken] = ()) -> bytes:
    """The file.

    Args:
        model: what SentencePiece would load.
        bos: the piece that starts every sequence.
        added: tokens beyond the pieces, ids ascending without a gap.

    Raises:
        UnfaithfulTokenizerError: no tokenizer.json gives the same ids for every text.
    """
    _check_model(model)
    _check_normalizer(model)
    vocabulary = {piece: token for token, piece in enumerate(model.pieces)}
    merges = derive_merges(model)
    # the older form, which every reader knows, cannot say a space, nor this word, which it takes for a comment
    pairs = any(" " in left or " " in right or left.startswith("#version") for left, right in merges)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(model, added),
        "normalizer": _normalizer(model),
        "pre_tokenizer": None,
        "post_processor": _post_processor(bos, vocabulary),
        "decoder": _decoder(model),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[model.unknown_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.byte_fallback,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges if pairs else [f"{left} {right}" for left, right in merges],
        },
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _check_model(model: SentencePieceModel) -> None:
    if model.model_type is ModelType.UNIGRAM:
        raise unfaithful("it is a unigram model, whose sums of scores the tokenizers library rounds differently")
    if model.model_type is not ModelType.BPE:
        raise unfaithful(f"it is a {model.model_type.name.lower()} model, expected byte pair encoding")
    if model.charsmap or model.decoding_charsmap:
        raise unfaithful(
            "it rewrites text by a compiled table, which the tokenizers library applies otherwise to combining marks"
        )
    if model.byte_fallback:
        for token in model.of_type(PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED):
            if _LIKE_A_BYTE.fullmatch(model.pieces[token]):
                raise unfaithful(f"the piece {model.pieces[token]!r} would be decoded as a byte")


def _check_normalizer(model: SentencePieceModel) -> None:
    symbols = [model.pieces[token] for token in model.of_type(PieceType.USER_DEFINED)]
    if model.add_dummy_prefix and symbols:
        raise unfaithful(f"the space before a text (add_dummy_prefix) has no place beside the symbol {symbols[0]!r}")
    if model.add_dummy_prefix and model.treat_whitespace_as_suffix:
        raise unfaithful("a space is added at the end of a text (treat_whitespace_as_suffix)")
    if not model.escape_whitespaces and (model.add_dummy_prefix or model.remove_extra_whitespaces):
        raise unfaithful("spaces are added or removed, yet not escaped (escape_whitespaces)")
    if model.remove_extra_whitespaces:
        for symbol in symbols:
            if " " in symbol or SPACE in symbol:
                raise unfaithful(f"extra spaces are removed, also from the symbol {symbol!r}")


def _added_tokens(model: SentencePieceModel, added: Sequence[AddedToken]) -> list[dict[str, Any]]:
    """Control tokens, then what SentencePiece finds in normalized text, then what was added on top; by id."""
    tokens = {
        token: AddedToken(content=model.pieces[token], special=True, normalized=False)
        for token in model.of_type(PieceType.CONTROL, PieceType.UNKNOWN)
    }
    for token in model.of_type(PieceType.USER_DEFINED):
        piece = model.pieces[token]
        # escaped text holds no space: SentencePiece never finds such a symbol
        if not (model.escape_whitespaces and " " in piece):
            tokens[token] = AddedToken(content=piece, special=piece in _STEERING, normalized=True)
    tokens |= {len(model.pieces) + index: token for index, token in enumerate(added)}
    return [{"id": token, **tokens[token].to_json()} for token in sorted(tokens)]


def _normalizer(model: SentencePieceModel) -> dict[str, Any] | None:
    """Identity but for spaces, as in SentencePiece's normalizer.cc."""
    steps: list[dict[str, Any]] = []
    if model.remove_extra_whitespaces:
        steps += [_replace({"Regex": r"\A +"}, ""), _replace({"Regex": " {2,}"}, " ")]
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    if model.escape_whitespaces:
        steps.append(_replace({"String": " "}, SPACE))
    if model.remove_extra_whitespaces:
        steps.append(_replace({"Regex": SPACE + r"+\z"}, ""))
    return {"type": "Sequence", "normalizers": steps} if len(steps) > 1 else next(iter(steps), None)


def _decoder(model: SentencePieceModel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [_replace({"String": SPACE}, " ")]
    if model.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if model.remove_extra_whitespaces or model.add_dummy_prefix:
        start = _MOST_SPACES if model.remove_extra_whitespaces else 1
        steps.append({"type": "Strip", "content": " ", "start": start, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _post_processor(bos: str | None, vocabulary: dict[str, int]) -> dict[str, Any] | None:
    """Puts the token that starts a sequence in front of each text."""
    if bos is None:
        return None
    first: list[dict[str, Any]] = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {bos: {"id": bos, "ids": [vocabulary[bos]], "tokens": [bos]}},
    }
