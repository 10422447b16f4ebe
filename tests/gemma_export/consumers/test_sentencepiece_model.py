"""The reader of tokenizer.model: equal to protobuf's, and typed errors for what SentencePiece would not load."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from sentencepieces import field, model, piece, train, varint

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.consumers import sentencepiece_model
from gemma_export.consumers.sentencepiece_model import ModelType, PieceType, parse_sentencepiece
from gemma_export.errors import TokenizerError

TINY = (BUILTIN_DIRECTORY / "tokenizer.model").read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        TINY,
        train(normalization_rule_name="nmt_nfkc", treat_whitespace_as_suffix=True),
        train(model_type="unigram", add_dummy_prefix=True, byte_fallback=False),
        train(remove_extra_whitespaces=True, bos_piece="<start>"),
    ],
    ids=["tiny", "charsmap", "unigram", "spaces"],
)
def test_equal_to_protobuf(content: bytes) -> None:
    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(content)
    found = parse_sentencepiece(content)
    assert found.pieces == tuple(entry.piece for entry in proto.pieces)
    assert found.scores == tuple(entry.score for entry in proto.pieces)
    assert found.types == tuple(PieceType(entry.type) for entry in proto.pieces)
    assert found.model_type == ModelType(proto.trainer_spec.model_type)
    for name in ("byte_fallback", "treat_whitespace_as_suffix", "bos_piece", "eos_piece", "pad_piece"):
        assert getattr(found, name) == getattr(proto.trainer_spec, name)
    for name in ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"):
        assert getattr(found, name) == getattr(proto.normalizer_spec, name)
    assert found.charsmap == proto.normalizer_spec.precompiled_charsmap
    assert found.decoding_charsmap == proto.denormalizer_spec.precompiled_charsmap
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    assert found.unknown_id == processor.unk_id()


def test_any_order_of_fields_and_unknown_ones() -> None:
    score = b"\x15" + struct.pack("<f", -2.5)
    shuffled = [
        field(1, field(3, 4) + score + field(1, b"abc")),
        field(1, field(200, 7) + field(1, b"d") + b"\xa1\x06" + bytes(8) + score),
        field(1, field(1, b"e") + b"\x18\x81\x00"),
        field(1, field(1, b"never") + score + field(1, b"f")),
    ]
    found = parse_sentencepiece(model(shuffled) + field(99, b"later"))
    assert found.pieces[-4:] == ("abc", "d", "e", "f")
    assert found.scores[-4:] == (-2.5, -2.5, 0.0, -2.5)
    assert found.types[-4:] == (PieceType.USER_DEFINED, PieceType.NORMAL, PieceType.NORMAL, PieceType.NORMAL)


def refused(content: bytes) -> str:
    with pytest.raises(TokenizerError) as caught:
        parse_sentencepiece(content)
    assert type(caught.value) is TokenizerError
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value.message


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "specification missing after 0 pieces: the file is cut off"),
    "text": (b"<!DOCTYPE html><title>404</title>", "wire type 4 at byte"),
    "cut": (TINY[: len(TINY) // 2], "the file is cut off"),
    "cut within a piece": (TINY[: len(TINY) // 2 + 3], "bytes expected at byte"),
    "one byte short": (TINY[:-1], "16 bytes expected at byte 44938, 15 found"),
    "no unknown": (field(1, field(1, b"a")) + field(2, field(3, 2)) + field(3, b""), "type UNKNOWN, found 0"),
    "duplicate": (model([piece("ab"), piece("cd"), piece("ab")]), "piece 'ab' is there twice: 260 and 262"),
    "empty piece": (model([piece("")]), "piece 260 is empty"),
    "two unknown": (model([piece("<u>", kind=2)]), "expected one piece of type UNKNOWN, found 2"),
    "bytes missing": (model([], byte_fallback=False, trainer=field(35, 1)), "expected 256 byte pieces, found 0"),
    "bytes unwanted": (model([], trainer=field(35, 0)), "expected 0 byte pieces, found 256"),
    "unknown type": (model([piece("a", kind=9)]), "piece 260 has the unknown type 9"),
    "huge type": (model([field(1, field(1, b"a") + field(3, 1 << 40))]), "has the unknown type 1099511627776"),
    "no UTF-8": (model([piece(b"\xff\xfe")]), "piece 260 is not UTF-8"),
    "not a number": (model([piece("a", float("nan"))]), "the score of piece 260 is nan"),
    "infinite": (model([piece("a", float("inf"))]), "the score of piece 260 is inf"),
    "wide score": (model([field(1, b"\x11" + b"\xff" * 8)]), "is not a 32-bit number"),
    "piece is a number": (field(1, 5), "a piece is a number, expected bytes"),
    "text is a number": (field(1, field(1, 5)), "the text of piece 0 is a number, expected bytes"),
    "type is bytes": (field(1, field(3, b"a")), "the type of piece 0 is bytes, expected a number"),
    "trainer is a number": (field(2, 5), "a specification is a number, expected bytes"),
    "model type": (model([], trainer=field(3, 77)), "unknown model_type 77"),
    "flag is bytes": (model([], normalizer=field(3, b"x")), "field 3 is bytes, expected a number"),
    "charsmap is a number": (model([], normalizer=field(2, 9)), "field 2 is a number, expected bytes"),
    "hostile length": (varint(1 << 3 | 2) + varint(1 << 62) + b"x", "4611686018427387904 bytes expected at byte"),
    "endless number": (b"\xff" * 50, "a number of more than ten bytes"),
    "field zero": (b"\x00\x00", "field number 0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_models(name: str) -> None:
    content, phrase = BROKEN[name]
    message = refused(content)
    assert message.startswith("tokenizer.model cannot be read: ")
    assert phrase in message
    assert "\n" not in message


def test_too_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece_model, "_MAX_PIECES", 300)
    assert "more than 300 pieces" in refused(model([piece(f"p{index}") for index in range(100)]))


ALTERATIONS: list[Callable[[random.Random, bytearray], None]] = [
    lambda chance, content: content.__delitem__(slice(chance.randrange(len(content)), None)),
    lambda chance, content: content.__setitem__(chance.randrange(len(content)), chance.randrange(256)),
    lambda chance, content: content.insert(chance.randrange(len(content)), chance.randrange(256)),
]


def test_altered_models_give_a_model_or_a_typed_error() -> None:
    chance, refusals = random.Random(0), 0
    content = model([piece(f"piece{index}", -index) for index in range(40)])
    for _ in range(600):
        altered = bytearray(content)
        chance.choice(ALTERATIONS)(chance, altered)
        try:
            parse_sentencepiece(bytes(altered))
        except TokenizerError:
            refusals += 1
    assert refusals > 300
