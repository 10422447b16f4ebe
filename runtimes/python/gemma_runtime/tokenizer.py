"""Text to token ids and back, by the `tokenizers` library or by SentencePiece: whichever files the folder has.

Both give the same ids and the same text: special tokens written in a prompt are recognised by both, and decoding
joins the pieces' bytes here, because the two libraries disagree about invalid UTF-8 and neither can stream it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from gemma_runtime.errors import ManifestError, MissingPackageError, MissingTokenizerError

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]

# SentencePiece writes a space as this character (https://github.com/google/sentencepiece)
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# tokens that steer the model and are never text, in every Gemma tokenizer that has them
_STEERING = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|file_separator|>",
)
# What only ever stands in a prompt of a model that knows images: where one goes, the start of a sequence and filling.
# Unused tokens are not among them: fine-tunes give them a meaning (MedGemma writes its thoughts between <unused94> and
# <unused95>). Earlier families are left with the choice that their reference makes.
_IMAGE = "<image_soft_token>"
_IMAGE_TOKENS = ("<start_of_image>", "<end_of_image>", _IMAGE)
_PROMPT_TOKENS = ("<pad>", "<bos>")
# reserved for training and for images: text only when nothing better is left
_RESERVED = re.compile(r"<unk>|<mask>|<unused\d+>|\[multimodal\]|<start_of_image>|<end_of_image>|<image_soft_token>")
_HINT = "Put the original model's tokenizer files beside the checkpoint and export it again."
# special tokens that a text may hold by chance, as the source of a program that handles them does
_NEVER_TEXT = re.compile("|".join((*map(re.escape, _STEERING), _RESERVED.pattern)))


class _Library(Protocol):
    """What the two libraries have in common here."""

    size: int

    def ids(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""

    def piece(self, token: int) -> str:
        """The piece of an id."""

    def find(self, piece: str) -> int | None:
        """The id of a piece, if it is one token."""

    def special(self) -> set[int]:
        """The ids that the file itself marks as special."""


class Tokenizer:
    """A Gemma tokenizer.

    Args:
        library: the loaded files.
        bos: text of the token that starts every sequence.
    """

    def __init__(self, library: _Library, bos: str = "<bos>") -> None:
        self._library = library
        self.size = library.size
        self.bos_id = library.find(bos)
        # what a part of an image stands for: the reference never reads its row, an image's features go there
        self.image_id = library.find(_IMAGE)
        self._silent = {token for name in _STEERING if (token := library.find(name)) is not None}
        # ids that no answer has, however likely the model finds them
        images = self._found(_IMAGE_TOKENS)
        self.never_chosen = images | self._found(_PROMPT_TOKENS) if images else images

    def _found(self, names: Iterable[str]) -> frozenset[int]:
        return frozenset(token for name in names if (token := self._library.find(name)) is not None)

    def encode(self, text: str) -> list[int]:
        """Ids with exactly one BOS in front, also where the text already starts with one."""
        ids = self._library.ids(text)
        if self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which no special token is recognised, nothing added: `<eos>` in it is five characters.

        Such a name is cut after its first character, because neither library can be told to read every one of its
        tokens as text; `decode` gives the text back.
        """
        ids: list[int] = []
        begin = 0
        for match in _NEVER_TEXT.finditer(text):
            ids += self._library.ids(text[begin : match.start() + 1])
            begin = match.start() + 1
        return ids + self._library.ids(text[begin:])

    def find(self, piece: str) -> int | None:
        """The id of a special token by its text, or None."""
        return self._library.find(piece)

    def special_tokens(self) -> dict[int, str]:
        """Ids and pieces of the tokens that are no text: steering, reserved and image tokens."""
        special = self._library.special()
        return {
            token: piece
            for token in range(self.size)
            if _RESERVED.fullmatch(piece := self._library.piece(token)) or token in self._silent or token in special
        }

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; tokens that steer the model (turns, fill-in-the-middle) are left out."""
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of one token; a byte token is a part of a character."""
        if token in self._silent:
            return b""
        piece = self._library.piece(token)
        byte = _BYTE.fullmatch(piece)
        return bytes((int(byte[1], 16),)) if byte else piece.replace(_SPACE, " ").encode()


class StreamDecoder:
    """Text of a growing sequence; characters whose bytes are not all there yet wait. The parts join to `decode`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """What one more token adds."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What is left at the end: a character that never got its last byte."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(directory: Path, library: str | None = None, *, listed: Collection[str] | None = None) -> Tokenizer:
    """Loads tokenizer.json, or tokenizer.model where there is none.

    Args:
        directory: an exported folder or a checkpoint.
        library: "tokenizers" or "sentencepiece" to insist on one.
        listed: names of the files that may be read; None allows all.

    Raises:
        MissingTokenizerError: the folder has neither file.
        MissingPackageError: the library for the file is not installed.
        ManifestError: the file is broken.
    """
    choices: dict[str, tuple[str, Callable[[Path], _Library]]] = {
        "tokenizers": ("tokenizer.json", _Tokenizers),
        "sentencepiece": ("tokenizer.model", _SentencePiece),
    }
    for name, (file, load) in choices.items():
        path = Path(directory) / file
        if library in (None, name) and (listed is None or file in listed) and path.is_file():
            try:
                return Tokenizer(load(path))
            except ImportError as error:
                raise MissingPackageError(
                    f"{file} needs the package {name}: {error}", hint=f"pip install {name}"
                ) from error
            except BaseException as error:
                # both libraries raise bare Exception or RuntimeError for a broken file; a panic inside tokenizers
                # (https://pyo3.rs/main/doc/pyo3/panic/struct.panicexception) is not even an Exception
                if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                    raise
                raise ManifestError(f"{file} cannot be read as a tokenizer: {error}", hint=_HINT) from error
    raise MissingTokenizerError(
        f"{directory}: no tokenizer: neither tokenizer.json nor tokenizer.model is there", hint=_HINT
    )


class _Tokenizers:
    def __init__(self, path: Path) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        # a file may ask for both, as saved from a training run: prompts are never cut or filled up silently
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def piece(self, token: int) -> str:
        return str(self._tokenizer.id_to_token(token) or "")

    def find(self, piece: str) -> int | None:
        token: int | None = self._tokenizer.token_to_id(piece)
        return token

    def special(self) -> set[int]:
        return {token for token, added in self._tokenizer.get_added_tokens_decoder().items() if added.special}


class _SentencePiece:
    def __init__(self, path: Path) -> None:
        import sentencepiece

        self._processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.size = self._processor.get_piece_size()
        # SentencePiece never reads its control tokens from text; the tokenizers library does, and so do users' prompts
        control = [
            self._processor.id_to_piece(token)
            for token in range(self.size)
            if self._processor.is_control(token) or self._processor.is_unknown(token)
        ]
        # where one is the start of another the longer is meant, as in the other library
        control.sort(key=len, reverse=True)
        self._control = re.compile("(" + "|".join(re.escape(piece) for piece in control) + ")") if control else None

    def ids(self, text: str) -> list[int]:
        parts = self._control.split(text) if self._control else [text]
        ids: list[int] = []
        for index, part in enumerate(parts):
            ids += [self._processor.piece_to_id(part)] if index % 2 else self._processor.encode(part)
        return ids

    def piece(self, token: int) -> str:
        return str(self._processor.id_to_piece(token)) if token < self.size else ""

    def find(self, piece: str) -> int | None:
        token: int = self._processor.piece_to_id(piece)
        return token if self._processor.id_to_piece(token) == piece else None

    def special(self) -> set[int]:
        return {
            token
            for token in range(self.size)
            if self._processor.is_control(token) or self._processor.is_unknown(token)
        }
