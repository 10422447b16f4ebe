"""Merges of the tokenizers library for a SentencePiece BPE model, and the reasons why there may be none.

SentencePiece joins the adjacent pair of symbols whose union has the best score, the leftmost of equals
(https://github.com/google/sentencepiece/blob/master/src/bpe_model.cc); the tokenizers library joins the pair that
stands first in a list, the leftmost of equals. Every pair of symbols whose union is a piece goes into the list, by the
score of the union. That is exact wherever scores differ, whatever the order of the splits of one piece:
how a stretch of text is joined before its ends are crossed does not depend on the text around it, so each piece
comes about in one way only, and of its splits at most one ever stands side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gemma_export.consumers.sentencepiece_model import PieceType, SentencePieceModel
from gemma_export.errors import UnfaithfulTokenizerError

__all__ = ["derive_merges", "unfaithful"]

# SentencePiece trains pieces of at most 16 characters; the work grows with the square
_MAX_CHARACTERS = 256
_Pair = tuple[str, str]


def unfaithful(reason: str) -> UnfaithfulTokenizerError:
    """The refusal for one reason."""
    return UnfaithfulTokenizerError(
        f"no tokenizer.json can be made from tokenizer.model: {reason}",
        hint="gemma-run reads tokenizer.model itself; other loaders need a tokenizer.json beside the checkpoint.",
    )


def derive_merges(model: SentencePieceModel) -> list[_Pair]:
    """The pairs to join, best first.

    Raises:
        UnfaithfulTokenizerError: no list of merges means the same as these pieces.
    """
    ids = {piece: token for token, piece in enumerate(model.pieces)}
    symbols = {model.pieces[token]: token for token in model.of_type(PieceType.NORMAL, PieceType.UNUSED)}
    _check_characters(model, ids)
    # the library matches user-defined symbols before it merges: their splits are for readers that know no such step
    runs = {model.pieces[token]: token for token in model.of_type(PieceType.USER_DEFINED) if _is_run(model, token)}
    merges = _splits(sorted(runs, key=len), symbols | runs)
    ordered = sorted(symbols, key=lambda piece: -model.scores[symbols[piece]])
    by_piece = {piece: _splits([piece], symbols) for piece in ordered if len(piece) > 1}
    for piece, pairs in by_piece.items():
        if pairs and model.types[symbols[piece]] is PieceType.UNUSED:
            raise unfaithful(f"SentencePiece joins the unused piece {piece!r} and takes it apart again")
    _check_ties(model, symbols, {piece: pairs for piece, pairs in by_piece.items() if pairs})
    for pairs in by_piece.values():
        merges += pairs
    return merges


def _is_run(model: SentencePieceModel, token: int) -> bool:
    piece = model.pieces[token]
    return len(piece) > 1 and piece.count(piece[0]) == len(piece)


def _splits(pieces: Sequence[str], symbols: Mapping[str, int]) -> list[_Pair]:
    """Every way to cut the pieces into two symbols, piece by piece; the older symbols first."""
    found: list[_Pair] = []
    for piece in pieces:
        if len(piece) > _MAX_CHARACTERS:
            raise unfaithful(f"a piece of {len(piece)} characters, expected at most {_MAX_CHARACTERS}")
        pairs = [
            (piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in symbols and piece[cut:] in symbols
        ]
        if len(pairs) > 1:
            pairs.sort(key=lambda pair: (symbols[pair[0]], symbols[pair[1]]))
        found += pairs
    return found


def _check_characters(model: SentencePieceModel, ids: Mapping[str, int]) -> None:
    """SentencePiece starts from characters, known or not; the library only from those that are pieces."""
    longer = [
        piece for token in model.of_type(PieceType.NORMAL, PieceType.UNUSED) if len(piece := model.pieces[token]) > 1
    ]
    if missing := {character for piece in longer for character in piece if character not in ids}:
        piece = next(piece for piece in longer if not missing.isdisjoint(piece))
        character = next(character for character in piece if character in missing)
        raise unfaithful(f"piece {piece!r} holds {character!r}, which is no piece itself")


def _check_ties(model: SentencePieceModel, symbols: Mapping[str, int], by_piece: Mapping[str, Sequence[_Pair]]) -> None:
    """Of different pieces with equal scores SentencePiece joins the leftmost, which no list of pairs can say.

    It makes no difference where such pairs never share a symbol and none of the joined pieces goes on to grow at once.
    """
    if len({model.scores[symbols[piece]] for piece in by_piece}) == len(by_piece):
        return
    by_score: dict[float, list[str]] = {}
    for piece in by_piece:
        by_score.setdefault(model.scores[symbols[piece]], []).append(piece)
    tied = {piece: score for score, pieces in by_score.items() if len(pieces) > 1 for piece in pieces}
    starts: dict[tuple[float, str], set[str]] = {}
    for piece, score in tied.items():
        for left, _ in by_piece[piece]:
            starts.setdefault((score, left), set()).add(piece)
    for piece, pairs in by_piece.items():
        score = model.scores[symbols[piece]]
        for pair in pairs:
            neighbours = starts.get((score, pair[1]), set()) if piece in tied else set()
            grown = {half for half in pair if half in tied and tied[half] <= score}
            if others := grown | (neighbours - {piece}):
                raise unfaithful(f"the pieces {piece!r} and {min(others)!r} have scores that leave their order open")
