"""Calibration text and its token ids. Torch-free.

The built-in text was written for this project and is under its licence: prose, other scripts, and its own sources.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma_export.checkpoint import Checkpoint
from gemma_export.checkpoint.text import encode_texts
from gemma_export.config import DecoderSpec
from gemma_export.errors import InputError, MissingResourceError

__all__ = ["CalibrationText", "Sequences", "read_calibration", "token_sequences"]

_BUILTIN = Path(__file__).with_name("text.txt")
# text beyond it would only be cut
_MAX_BYTES = 16 << 20
# Tokens of a sequence, and how many sequences are taken: 32,768 tokens keep the second moments of 16,384 inputs full
# rank, and their hidden states in 256 MiB for a 2B.
_SEQUENCE_TOKENS, _MAX_SEQUENCES = 256, 128
# Below the first number nothing is learnt about any column; below the second the built-in text is better.
_FEWEST_TOKENS, _FEW_TOKENS = 64, 4096
_RANDOM_SEQUENCES = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """A text and what the manifest says about it."""

    # "built-in", "random token ids", or the file's own name
    name: str
    text: str
    # of its bytes
    sha256: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequences:
    """Token ids, each sequence with BOS in front."""

    token_ids: tuple[tuple[int, ...], ...]
    # the manifest's words: source, sha256, tokens
    options: Mapping[str, Any]
    warnings: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Of all sequences, BOS included."""
        return sum(map(len, self.token_ids))


def read_calibration(path: Path | None) -> CalibrationText:
    """The text of a file, or the built-in one.

    Raises:
        MissingResourceError: the file cannot be read.
        InputError: it is empty, too large, or no UTF-8 text.
    """
    try:
        with (path or _BUILTIN).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise MissingResourceError(
            f"calibration file {path} cannot be read: {error.strerror}", hint="--calibration takes a text file."
        ) from error
    if len(content) > _MAX_BYTES:
        raise _no_text(path, f"more than {_MAX_BYTES >> 20} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _no_text(path, f"byte {content[error.start]:#04x} at {error.start}, which is no UTF-8") from error
    if "\0" in text:
        raise _no_text(path, f"a NUL character at {text.index(chr(0))}")
    if not text.strip():
        raise _no_text(path, "nothing but white space" if text else "an empty file")
    name = "built-in" if path is None else path.name
    # a file that git checks out with other line ends is the same text
    text = text.replace("\r\n", "\n")
    return CalibrationText(name=name, text=text, sha256=hashlib.sha256(text.encode()).hexdigest())


def token_sequences(
    calibration: CalibrationText, checkpoint: Checkpoint, spec: DecoderSpec, *, most: int = _MAX_SEQUENCES
) -> Sequences:
    """The text by the checkpoint's tokenizer; random ids for synthetic weights or where it has none.

    Args:
        calibration: the text.
        checkpoint: has the tokenizer.
        spec: the architecture.
        most: sequences that are taken, spread over the text.

    Raises:
        InputError: the text has too few tokens.
        MissingResourceError, ConfigError: the tokenizer cannot be used.
    """
    length = min(_SEQUENCE_TOKENS, spec.max_position_embeddings)
    body = max(1, length - 1)
    warnings: tuple[str, ...] = ()
    name, sha256 = calibration.name, calibration.sha256
    if checkpoint.kind == "synthetic" or not checkpoint.has_tokenizer:
        ids = np.random.default_rng(0).integers(0, spec.vocab_size, _RANDOM_SEQUENCES * body).tolist()
        name, sha256 = "random token ids", None
    else:
        ids = encode_texts(checkpoint.tokenizer_files, [calibration.text], vocab_size=spec.vocab_size)[0]
        if len(ids) < _FEWEST_TOKENS:
            raise InputError(
                f"calibration text {name} has {len(ids)} tokens, expected at least {_FEWEST_TOKENS}",
                hint=f"Give some {_FEW_TOKENS} tokens of the kind of text the model will see, or leave it out.",
            )
        if len(ids) < _FEW_TOKENS:
            warnings = (f"calibration text {name} has only {len(ids)} tokens; {_FEW_TOKENS} and more quantise better",)
    # what is left over at the end is no sequence, unless there is no other
    whole = max(1, len(ids) // body)
    taken = range(whole) if whole <= most else [number * whole // most for number in range(most)]
    sequences = tuple((spec.bos_token_id, *ids[number * body : (number + 1) * body]) for number in taken)
    options = {"source": name, "sha256": sha256, "tokens": sum(map(len, sequences))}
    return Sequences(token_ids=sequences, options=options, warnings=warnings)


def _no_text(path: Path | None, found: str) -> InputError:
    return InputError(
        f"calibration file {path}: expected UTF-8 text, found {found}",
        hint="Give a plain text file of a few thousand words, or leave --calibration out.",
    )
