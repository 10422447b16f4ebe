"""Reads a tokenizer.model (SentencePiece's ModelProto) without protobuf and without trusting it.

Message and field numbers: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto,
wire format: https://protobuf.dev/programming-guides/encoding/. What SentencePiece itself refuses to load is refused
here too: truncated files, duplicate or empty pieces, no unknown piece, byte pieces that are not all there.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
from collections.abc import Iterator
from typing import NoReturn

from gemma_export.errors import TokenizerError

__all__ = ["ModelType", "PieceType", "SentencePieceModel", "byte_piece", "parse_sentencepiece"]

# four times the largest Gemma vocabulary; a file of millions of empty pieces would otherwise cost minutes
_MAX_PIECES = 1 << 20
_HINT = "This is not the tokenizer.model of a released checkpoint: fetch it again."
_FLOAT = struct.Struct("<f")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class PieceType(enum.IntEnum):
    """What SentencePiece does with a piece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_TYPES = {int(kind): kind for kind in PieceType}


class ModelType(enum.IntEnum):
    """How text is cut into pieces."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """The parts of a model that decide ids and text."""

    # by id
    pieces: tuple[str, ...]
    # float32 values; the larger is merged first
    scores: tuple[float, ...]
    types: tuple[PieceType, ...]
    model_type: ModelType
    byte_fallback: bool
    treat_whitespace_as_suffix: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    # compiled rewriting rules of text before encoding and after decoding; empty means identity
    charsmap: bytes
    decoding_charsmap: bytes
    # texts of the roles; the piece may not exist
    bos_piece: str
    eos_piece: str
    pad_piece: str

    def of_type(self, *types: PieceType) -> list[int]:
        """Ids of these types, ascending."""
        return [token for token, kind in enumerate(self.types) if kind in types]

    @property
    def unknown_id(self) -> int:
        """The one piece for what no other piece covers."""
        return self.types.index(PieceType.UNKNOWN)


def byte_piece(byte: int) -> str:
    """The text of a byte's piece."""
    return f"<0x{byte:02X}>"


def parse_sentencepiece(content: bytes) -> SentencePieceModel:
    """Parses and checks a serialized ModelProto.

    Raises:
        TokenizerError: the bytes are no ModelProto, or one that SentencePiece would not load.
    """
    pieces: list[str] = []
    scores: list[float] = []
    types: list[PieceType] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    denormalizer: dict[int, int | bytes] = {}
    # a message that stands twice is merged, the later value wins
    specs = {2: trainer, 3: normalizer, 5: denormalizer}
    seen: set[int] = set()
    for field, value in _fields(content, 0, len(content)):
        if field == 1:
            if len(pieces) == _MAX_PIECES:
                _broken(f"more than {_MAX_PIECES} pieces")
            start, end = _span(value, "a piece")
            piece, score, kind = _piece(content[start:end], len(pieces))
            pieces.append(piece)
            scores.append(score)
            types.append(kind)
        elif field in specs:
            start, end = _span(value, "a specification")
            seen.add(field)
            specs[field].update(
                (number, content[slice(*item)] if isinstance(item, tuple) else item)
                for number, item in _fields(content, start, end)
            )
    # they follow the pieces; defaults in their place would be those of another kind of model
    if not {2, 3} <= seen:
        _broken(f"trainer or normalizer specification missing after {len(pieces)} pieces: the file is cut off")
    model = SentencePieceModel(
        pieces=tuple(pieces),
        scores=tuple(scores),
        types=tuple(types),
        model_type=_model_type(trainer),
        byte_fallback=_flag(trainer, 35, False),
        treat_whitespace_as_suffix=_flag(trainer, 24, False),
        add_dummy_prefix=_flag(normalizer, 3, True),
        remove_extra_whitespaces=_flag(normalizer, 4, True),
        escape_whitespaces=_flag(normalizer, 5, True),
        charsmap=_bytes(normalizer, 2, b""),
        decoding_charsmap=_bytes(denormalizer, 2, b""),
        bos_piece=_text(_bytes(trainer, 46, b"<s>"), "bos_piece"),
        eos_piece=_text(_bytes(trainer, 47, b"</s>"), "eos_piece"),
        pad_piece=_text(_bytes(trainer, 48, b"<pad>"), "pad_piece"),
    )
    _check(model)
    return model


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """(number, value) of each field: an integer (fixed ones as their bits) or the span of its bytes."""
    position = start
    while position < end:
        tag, position = _varint(content, position, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            _broken(f"field number 0 at byte {position}")
        if wire == _VARINT:
            value, position = _varint(content, position, end)
            yield number, value
            continue
        if wire == _BYTES:
            length, position = _varint(content, position, end)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            _broken(f"wire type {wire} at byte {position}")
        if length > end - position:
            _broken(f"{length} bytes expected at byte {position}, {end - position} found")
        if wire == _BYTES:
            yield number, (position, position + length)
        else:
            yield number, int.from_bytes(content[position : position + length], "little")
        position += length


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    if position < end and content[position] < 0x80:
        return content[position], position + 1
    value, shift = 0, 0
    while position < end:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift == 70:
            _broken(f"a number of more than ten bytes at byte {position}")
    return _broken(f"a number is cut off at byte {position}")


def _piece(message: bytes, token: int) -> tuple[str, float, PieceType]:
    """Text, score and type; the layout that SentencePiece writes is read without the general reader's cost."""
    size = len(message)
    end = message[1] + 2 if size > 1 and message[0] == 0x0A and message[1] < 0x80 else size
    if size in (end + 5, end + 7) and message[end] == 0x15 and (size == end + 5 or message[end + 5] == 0x18):
        text, bits = message[2:end], message[end + 1 : end + 5]
        kind = message[end + 6] if size == end + 7 else int(PieceType.NORMAL)
    else:
        text, bits, kind = _any_piece(message, token)
    score: float = _FLOAT.unpack(bits)[0]
    if not math.isfinite(score):
        _broken(f"the score of piece {token} is {score}")
    if kind not in _TYPES:
        _broken(f"piece {token} has the unknown type {kind}")
    try:
        return text.decode(), score, _TYPES[kind]
    except UnicodeDecodeError:
        _broken(f"piece {token} is not UTF-8")


def _any_piece(message: bytes, token: int) -> tuple[bytes, bytes, int]:
    """The same for any order of fields, with unknown ones between them."""
    text, bits, kind = b"", 0, int(PieceType.NORMAL)
    for number, value in _fields(message, 0, len(message)):
        if number == 1:
            text = message[slice(*_span(value, f"the text of piece {token}"))]
        elif number == 2:
            bits = _integer(value, f"the score of piece {token}")
        elif number == 3:
            kind = _integer(value, f"the type of piece {token}")
    if bits >> 32:
        _broken(f"the score of piece {token} is not a 32-bit number")
    return text, bits.to_bytes(4, "little"), kind


def _check(model: SentencePieceModel) -> None:
    """What SentencePiece checks when it loads a model (src/model_interface.cc, InitializePieces)."""
    if "" in model.pieces:
        _broken(f"piece {model.pieces.index('')} is empty")
    ids: dict[str, int] = {}
    for token, piece in enumerate(model.pieces):
        if ids.setdefault(piece, token) != token:
            _broken(f"piece {piece[:40]!r} is there twice: {ids[piece]} and {token}")
    unknown = model.of_type(PieceType.UNKNOWN)
    if len(unknown) != 1:
        _broken(f"expected one piece of type UNKNOWN, found {len(unknown)}")
    found = {model.pieces[token] for token in model.of_type(PieceType.BYTE)}
    expected = {byte_piece(byte) for byte in range(256)} if model.byte_fallback else set()
    if found != expected:
        _broken(f"byte_fallback is {model.byte_fallback}, expected {len(expected)} byte pieces, found {len(found)}")


def _model_type(trainer: dict[int, int | bytes]) -> ModelType:
    value = trainer.get(3, int(ModelType.UNIGRAM))
    try:
        return ModelType(_integer(value, "model_type"))
    except ValueError:
        _broken(f"unknown model_type {value!r}")


def _flag(fields: dict[int, int | bytes], number: int, default: bool) -> bool:
    return bool(_integer(fields.get(number, int(default)), f"field {number}"))


def _bytes(fields: dict[int, int | bytes], number: int, default: bytes) -> bytes:
    value = fields.get(number, default)
    return value if isinstance(value, bytes) else _broken(f"field {number} is a number, expected bytes")


def _integer(value: object, what: str) -> int:
    return value if isinstance(value, int) else _broken(f"{what} is bytes, expected a number")


def _span(value: int | tuple[int, int], what: str) -> tuple[int, int]:
    return value if isinstance(value, tuple) else _broken(f"{what} is a number, expected bytes")


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        _broken(f"{what} is not UTF-8")


def _broken(what: str) -> NoReturn:
    raise TokenizerError(f"tokenizer.model cannot be read: {what}", hint=_HINT)
