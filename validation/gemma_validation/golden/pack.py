"""The golden pack file: what a reference said at chosen positions, for machines that have neither it nor torch.

    8 bytes    "GEMMAGLD"
    u32        format version, little-endian like every number here
    u32        length of the header
    header     JSON: identity, reference, documents with their tokens, rows of each document, top
    arrays     positions i64 [rows], ids i32 [rows, top], logits f32 [rows, top], log_sum f64 [rows],
               log_tail f64 [rows], next_logit f32 [rows], mean f64 [rows], squares f64 [rows]
    32 bytes   SHA-256 of everything before

Logits are float32 as the reference computed them, so that log-probabilities, logits minus log_sum, are exact; as
float32 log-probabilities their rounding alone would be a KL of 1e-8, a thousand times what float32 exports drift.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_validation.errors import GoldenPackError
from gemma_validation.files import replace_file
from gemma_validation.golden.header import HINT, Header, header_json, parse_header

__all__ = ["FORMAT_VERSION", "GoldenRows", "read_pack", "write_pack"]

FORMAT_VERSION = 2
_MAGIC = b"GEMMAGLD"
_START = struct.Struct("<8sII")
_HASH_BYTES = 32
# 512 rows are 1 MB: far above any use, far below what would trouble a machine
_LARGEST_FILE = 256 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldenRows:
    """The reference at `rows` positions, those of the first document first; `top` tokens of each are known."""

    # [rows], in the document
    positions: npt.NDArray[np.int64]
    # [rows, top], best first
    ids: npt.NDArray[np.int32]
    logits: npt.NDArray[np.float32]
    # [rows], log of the sum of exp(logit) over the vocabulary, and over all tokens but those of `ids`
    log_sum: npt.NDArray[np.float64]
    log_tail: npt.NDArray[np.float64]
    # [rows], of the token that follows in the text
    next_logit: npt.NDArray[np.float32]
    # [rows], mean of the logits over the vocabulary, sum of squares of their distances from it
    mean: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]


_COLUMNS: dict[str, tuple[str, bool]] = {
    "positions": ("<i8", False),
    "ids": ("<i4", True),
    "logits": ("<f4", True),
    "log_sum": ("<f8", False),
    "log_tail": ("<f8", False),
    "next_logit": ("<f4", False),
    "mean": ("<f8", False),
    "squares": ("<f8", False),
}


def write_pack(file: Path, header: Header, rows: GoldenRows) -> None:
    """Writes the file, whole or not at all.

    Raises:
        GoldenPackError: it cannot be written.
    """
    text = header_json(header)
    arrays = [np.ascontiguousarray(getattr(rows, name), dtype).tobytes() for name, (dtype, _) in _COLUMNS.items()]
    content = b"".join([_START.pack(_MAGIC, FORMAT_VERSION, len(text)), text, *arrays])
    try:
        replace_file(file, content + hashlib.sha256(content).digest())
    except OSError as error:
        raise GoldenPackError(
            f"{file}: {error.strerror or error}", hint="Name a file in a folder that can be written."
        ) from error


def read_pack(file: Path) -> tuple[Header, GoldenRows]:
    """Reads and checks the file: nothing of it is believed before its hash is right.

    Raises:
        GoldenPackError: it is no golden pack, of a foreign version, damaged, or says what cannot be.
    """
    content = _content(file)
    if len(content) < _START.size + _HASH_BYTES or content[:8] != _MAGIC:
        raise GoldenPackError(f"{file}: no golden pack", hint="gemma-validate --make-golden FILE makes one.")
    _, version, header_length = _START.unpack_from(content)
    if version != FORMAT_VERSION:
        raise GoldenPackError(
            f"{file}: golden pack of format version {version}, expected {FORMAT_VERSION}",
            hint="Make it again with this release, or use the release that made it.",
        )
    body = content[:-_HASH_BYTES]
    if hashlib.sha256(body).digest() != content[-_HASH_BYTES:]:
        raise GoldenPackError(f"{file}: the SHA-256 of its content is another: it is damaged", hint=HINT)
    start = _START.size + header_length
    if start > len(body):
        raise GoldenPackError(f"{file}: a header of {header_length} bytes does not fit into it", hint=HINT)
    header = parse_header(file, body[_START.size : start])
    rows = _rows(file, header, body, start)
    _check(file, header, rows)
    return header, rows


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise GoldenPackError(f"{file}: {error.strerror or error}", hint="Name a golden pack.") from error
    if len(content) > _LARGEST_FILE:
        raise GoldenPackError(f"{file}: larger than {_LARGEST_FILE} bytes, which no golden pack is", hint=HINT)
    return content


def _rows(file: Path, header: Header, body: bytes, start: int) -> GoldenRows:
    count = sum(header.rows)
    shapes = {name: (count, header.top) if wide else (count,) for name, (_, wide) in _COLUMNS.items()}
    sizes = {name: math.prod(shapes[name]) * np.dtype(dtype).itemsize for name, (dtype, _) in _COLUMNS.items()}
    if start + sum(sizes.values()) != len(body):
        raise GoldenPackError(
            f"{file}: {len(body) - start} bytes of arrays, expected {sum(sizes.values())} for {count} rows", hint=HINT
        )
    arrays: dict[str, Any] = {}
    for name, (dtype, _) in _COLUMNS.items():
        flat = np.frombuffer(body, dtype, count=math.prod(shapes[name]), offset=start)
        arrays[name] = flat.reshape(shapes[name])
        start += sizes[name]
    return GoldenRows(**arrays)


def _check(file: Path, header: Header, rows: GoldenRows) -> None:
    """A right hash says who made it made it so, not that it makes sense."""
    if not all(
        np.isfinite(getattr(rows, name)).all() for name in ("logits", "log_sum", "next_logit", "mean", "squares")
    ):
        raise GoldenPackError(f"{file}: a value is not finite", hint=HINT)
    if np.isnan(rows.log_tail).any() or (rows.log_tail == np.inf).any():
        raise GoldenPackError(f"{file}: a tail is no number", hint=HINT)
    ordered = np.sort(rows.ids, axis=1)
    if (
        (ordered < 0).any()
        or (ordered >= header.identity.vocab_size).any()
        or (ordered[:, 1:] == ordered[:, :-1]).any()
    ):
        raise GoldenPackError(f"{file}: token ids that repeat or are outside the vocabulary", hint=HINT)
    if (rows.logits[:, 1:] > rows.logits[:, :-1]).any():
        raise GoldenPackError(f"{file}: tokens that are not in the order of their logits", hint=HINT)
    end = 0
    for document, count in zip(header.documents, header.rows, strict=True):
        positions = rows.positions[end : end + count]
        end += count
        # the last token of a document is followed by none
        if (np.diff(positions) <= 0).any() or positions[0] < 0 or positions[-1] >= len(document.token_ids) - 1:
            raise GoldenPackError(f"{file}: positions of {document.name} that it does not have", hint=HINT)
