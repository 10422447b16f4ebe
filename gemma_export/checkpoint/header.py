"""Reads a safetensors header without trusting it. Torch-free.

Source: https://github.com/huggingface/safetensors (Format). Stricter than the library where a file can lie: duplicate
keys, holes between tensors and trailing bytes are refused too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any

from gemma_export.checkpoint.json_file import unique_keys
from gemma_export.errors import CheckpointError
from gemma_export.tensors import StoredTensor

__all__ = ["PREFIX_BYTES", "HeaderEntry", "header_length", "parse_header", "read_header"]

# the header's length, little-endian
PREFIX_BYTES = 8
# a 27B's header has 60 kB; parsing must not be where a hostile file spends the memory
_MAX_HEADER_BYTES = 16 << 20
_MAX_RANK = 8
_HINT = "The file is damaged or not fully downloaded: fetch it again."
# name in the file -> (our name, bytes)
_DTYPES = {
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeaderEntry:
    """One tensor of a file; `start` is its first byte, counted from the start of the file."""

    tensor: StoredTensor
    start: int


def read_header(path: Path) -> dict[str, HeaderEntry]:
    """The tensors of a safetensors file; only the header is read.

    Raises:
        CheckpointError: names the file, the tensor, what was expected and what was found.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = header_length(path.name, file.read(PREFIX_BYTES), size)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error.strerror}", hint="Check the file's rights."
        ) from error
    return parse_header(path.name, text, size)


def header_length(name: str, prefix: bytes, size: int) -> int:
    """Bytes of JSON that follow the prefix.

    Args:
        name: of the file, for errors.
        prefix: its first bytes, at least PREFIX_BYTES where it has as many.
        size: of the whole file, in bytes.

    Raises:
        CheckpointError: the file is too short, or has no room for the header that it claims.
    """
    if len(prefix) < PREFIX_BYTES:
        raise _error(name, f"expected at least {PREFIX_BYTES} bytes, found {size}")
    (length,) = struct.unpack("<Q", prefix[:PREFIX_BYTES])
    if length > min(_MAX_HEADER_BYTES, size - PREFIX_BYTES):
        raise _error(name, f"its header claims {length} bytes, the file has {size}")
    return int(length)


def parse_header(name: str, text: bytes, size: int) -> dict[str, HeaderEntry]:
    """The tensors that a header describes.

    Args:
        name: of the file, for errors.
        text: the header's JSON, whole.
        size: of the whole file, in bytes; the header must account for each of them.

    Raises:
        CheckpointError: as `read_header`.
    """
    return _entries(name, _parse(name, text), PREFIX_BYTES + len(text), size)


def _parse(file: str, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise _error(file, f"its header is not the JSON of a safetensors file ({error})") from error
    if not isinstance(content, dict):
        raise _error(file, "its header is not a JSON object")
    content.pop("__metadata__", None)
    return content


def _entries(file: str, content: dict[str, Any], data_start: int, size: int) -> dict[str, HeaderEntry]:
    entries, ranges = {}, []
    for name, fields in content.items():
        tensor, begin, end = _entry(file, name, fields)
        entries[name] = HeaderEntry(tensor=tensor, start=data_start + begin)
        ranges.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(ranges):
        if begin != position:
            raise _error(file, f"tensor {name[:80]!r} starts at byte {begin} of the data, expected {position}")
        position = end
    if data_start + position != size:
        raise _error(file, f"its header describes {data_start + position} bytes, the file has {size}")
    return entries


def _entry(file: str, name: str, fields: Any) -> tuple[StoredTensor, int, int]:
    where = f"tensor {name[:80]!r}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise _error(file, f"{where} needs exactly dtype, shape and data_offsets")
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _error(file, f"{where} has the unknown dtype {str(dtype)[:40]!r}")
    shape, offsets = _numbers(fields["shape"]), _numbers(fields["data_offsets"])
    if shape is None or len(shape) > _MAX_RANK:
        raise _error(file, f"{where} has the impossible shape {str(fields['shape'])[:80]}")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _error(file, f"{where} has the impossible data_offsets {str(fields['data_offsets'])[:80]}")
    ours, width = _DTYPES[dtype]
    if math.prod(shape) * width != offsets[1] - offsets[0]:
        raise _error(
            file,
            f"{where} of shape {list(shape)} needs {math.prod(shape) * width} bytes, its offsets say "
            f"{offsets[1] - offsets[0]}",
        )
    return StoredTensor(ours, shape), offsets[0], offsets[1]


def _numbers(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    if any(isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 1 << 48 for item in value):
        return None
    return tuple(value)


def _error(file: str, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is truncated or corrupt: {what}", hint=_HINT)
