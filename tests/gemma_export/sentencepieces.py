"""Small SentencePiece models with Gemma's settings, hand-made ones, and texts that are hard on tokenizers."""

from __future__ import annotations

import argparse
import functools
import io
import random
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from gemma_export.consumers.sentencepiece_model import PieceType, SentencePieceModel

CONTROL = ("<pad>", "<eos>", "<bos>")
SPACE = "\u2581"
# mask, fillers, turns, runs of newlines and spaces, HTML: as in Gemma's own vocabulary, in small
SYMBOLS = (
    *("<mask>", "<unused0>", "<unused1>", "<start_of_turn>", "<end_of_turn>"),
    *("\n" * count for count in range(2, 8)),
    *(SPACE * count for count in range(2, 32)),
    *("<table>", "<td>", "</td>"),
)
_MULTILINGUAL = (
    "日本語のテキスト 漢字とかな",
    "Привет, мир! Как дела?",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "한국어 문장",
    "Grüße, ça va? Señor, łódź",
    "\N{GRINNING FACE} \U0001f1e6\U0001f1f9 e\u0301 a\u0308 \ufb01 \uff21",
)


@functools.lru_cache
def corpus() -> tuple[str, ...]:
    """Lines of the standard library and of other scripts; about 300 kB."""
    library = Path(argparse.__file__).parent
    names = ("argparse.py", "ast.py", "textwrap.py", "inspect.py", "tokenize.py")
    lines = [line for name in names for line in (library / name).read_text(encoding="utf-8").splitlines()]
    return (*lines, *_MULTILINGUAL * 3)


def train(**changes: Any) -> bytes:
    """A tokenizer.model with Gemma's settings, but for the changes."""
    model = io.BytesIO()
    options = {
        "model_type": "bpe",
        "vocab_size": 2000,
        "byte_fallback": True,
        "split_digits": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "allow_whitespace_only_pieces": True,
        "character_coverage": 1.0,
        "user_defined_symbols": list(SYMBOLS),
        **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
        **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>", "unk_piece": "<unk>"},
        **{"num_threads": 1, "minloglevel": 2},
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, **{**options, **changes}
    )
    return model.getvalue()


def varint(value: int) -> bytes:
    """A number in the wire format."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def field(number: int, content: bytes | int) -> bytes:
    """One field: a number, or bytes."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(text: str | bytes, score: float = 0.0, kind: int = PieceType.NORMAL) -> bytes:
    """One piece as a field of the model."""
    raw = text.encode() if isinstance(text, str) else text
    return field(1, field(1, raw) + b"\x15" + struct.pack("<f", score) + field(3, int(kind)))


def model(
    pieces: Sequence[bytes], *, byte_fallback: bool = True, trainer: bytes = b"", normalizer: bytes = b""
) -> bytes:
    """A hand-made model: Gemma's first four pieces, byte pieces, then these."""
    head = [piece(text, kind=PieceType.CONTROL) for text in CONTROL] + [piece("<unk>", kind=PieceType.UNKNOWN)]
    byte_pieces = [piece(f"<0x{byte:02X}>", kind=PieceType.BYTE) for byte in range(256)] if byte_fallback else []
    # BPE, byte_fallback, bos_piece; no dummy prefix, no removal of spaces
    trained = field(3, 2) + field(35, int(byte_fallback)) + field(46, b"<bos>") + trainer
    normal = field(3, 0) + field(4, 0) + normalizer
    return b"".join((*head, *byte_pieces, *pieces)) + field(2, trained) + field(3, normal)


def hard_texts(pieces: Sequence[str], count: int, seed: int = 0) -> Iterator[str]:
    """Mixed scripts, control characters, runs, pieces, special tokens and their beginnings."""
    chance = random.Random(seed)
    alphabets = (
        "abcdefghij =().:_#0123456789",
        "áéüñßçøЖдуиךשلمनक한日本語あ",
        "\U0001f600\U0001f602\U0001f469\u200d\U0001f467\U0001f1e6\U0001f1f9\ufe0f\U000e0100",
        "\u0301\u0308\u0323\u200b\ufeff\ufffd\ue000\uf8ff\U0010ffff\U000f0000",
        "\0\x01\x1b\x7f\t\r\n\x0b\x0c\x85\u2028\u00a0\u3000\u2003",
        f"{SPACE}  ",
    )
    tags = [text for text in pieces if text.startswith("<")]
    for _ in range(count):
        parts = []
        for _ in range(chance.randint(0, 8)):
            kind = chance.randrange(6)
            if kind == 0:
                parts.append(chance.choice(pieces))
            elif kind == 1:
                parts.append("".join(chance.choices(chance.choice(alphabets), k=chance.randint(1, 8))))
            elif kind == 2:
                parts.append(chr(chance.choice((chance.randrange(0xD800), chance.randrange(0xE000, 0x110000)))))
            elif kind == 3:
                run = chance.choice((" ", "\n", "\r\n", SPACE, "a", "-", "ab", "\t"))
                parts.append(run * chance.choice((1, 2, 3, 7, 31, 32, 33, 65)))
            elif kind == 4:
                tag = chance.choice(tags)
                parts.append(tag[: chance.randint(1, len(tag))] if chance.random() < 0.5 else tag)
            else:
                parts.append(chance.choice(pieces).replace(SPACE, " "))
        yield "".join(parts)


class Reference:
    """SentencePiece itself, with control tokens written in a text read as those tokens."""

    def __init__(self, content: bytes, model: SentencePieceModel) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        self._hidden = set(model.of_type(PieceType.CONTROL, PieceType.UNKNOWN))
        control = sorted((model.pieces[token] for token in self._hidden), key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, control)) + ")")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for index, part in enumerate(self._control.split(text)):
            ids += [self.processor.piece_to_id(part)] if index % 2 else self.processor.encode(part)
        return ids

    def visible(self, ids: list[int]) -> list[int]:
        """Without tokens that have no text."""
        return [token for token in ids if token not in self._hidden]
