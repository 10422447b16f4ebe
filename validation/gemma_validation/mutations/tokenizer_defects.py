"""Defects of the tokenizer's files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gemma_validation.errors import ValidationUsageError
from gemma_validation.mutations.defect import Defect
from gemma_validation.mutations.mutant import Mutant

__all__ = ["TOKENIZER_DEFECTS"]

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def _permute_pieces(mutant: Mutant) -> None:
    """Every ordinary piece gets the id of the next one: another tokenizer of the same size, with the same controls."""
    file = mutant.directory / "tokenizer.json"
    if not file.is_file():
        raise ValidationUsageError(f"{file.parent.name} has no tokenizer.json", hint="Export it with a tokenizer.")
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    fixed = {token["id"] for token in content["added_tokens"]}
    ordinary = [i for piece, i in vocabulary.items() if i not in fixed and not _BYTE_PIECE.fullmatch(piece)]
    moved = dict(zip(ordinary, [*ordinary[1:], ordinary[0]], strict=True))
    content["model"]["vocab"] = {piece: moved.get(i, i) for piece, i in vocabulary.items()}
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    sentencepiece = mutant.directory / "tokenizer.model"
    if sentencepiece.is_file():
        _permute_model(sentencepiece, moved)


def _permute_model(file: Path, moved: dict[int, int]) -> None:
    """Pieces move with their scores, so that text is cut as before."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    pieces = list(model.pieces)
    for old, new in moved.items():
        pieces[new] = model.pieces[old]
    del (copy := sentencepiece_model_pb2.ModelProto.FromString(model.SerializeToString())).pieces[:]
    copy.pieces.extend(pieces)
    file.write_bytes(copy.SerializeToString())


TOKENIZER_DEFECTS = (
    Defect(
        name="wrong tokenizer",
        about="another tokenizer's files, of the same vocabulary size",
        where="tokenizer",
        needs="fp32",
        alter=_permute_pieces,
        caught_by=frozenset({"tokens"}),
        shows="tokens",
    ),
)
