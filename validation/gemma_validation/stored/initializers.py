"""Reading a graph's initializers from its data files, a few rows at a time. Nothing is mapped or kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gemma_validation.errors import FolderUnreadableError

if TYPE_CHECKING:
    import onnx

__all__ = ["POST_NORMS", "Initializers", "has_post_norms"]

# ONNX element type -> numpy's; https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_NUMPY: dict[int, Any] = {
    1: np.dtype("<f4"),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    10: np.dtype("<f2"),
    16: np.dtype(ml_dtypes.bfloat16),
}
# two in a byte, the lower half first
_UINT4, _INT4 = 21, 22
# norms behind a layer's branches, in families that have them; Gemma 1 calls its norm before the MLP by the first name
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


def has_post_norms(model: onnx.ModelProto) -> bool:
    """Whether the branches of a graph's layers end in norms."""
    return any(f".{POST_NORMS[1]}." in tensor.name for tensor in model.graph.initializer)


class Initializers:
    """The initializers of a graph that was loaded without its data.

    Args:
        model: the graph.
        folder: holds its data files.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._folder = folder

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one initializer."""
        return tuple(self._tensors[name].dims)

    def is_signed(self, name: str) -> bool:
        """Whether its integers are."""
        return self._tensors[name].data_type in (3, _INT4)

    def bits(self, name: str) -> int:
        """Of an element."""
        kind = self._tensors[name].data_type
        return 4 if kind in (_UINT4, _INT4) else 8 * int(_NUMPY[kind].itemsize)

    def place(self, name: str) -> tuple[str, int]:
        """Data file and first byte: two initializers with one place are the same bytes."""
        tensor = self._tensors[name]
        entries = {entry.key: entry.value for entry in tensor.external_data}
        return (entries["location"], int(entries.get("offset", "0"))) if entries else (f"inline {name}", 0)

    def rows(self, name: str, first: int, last: int) -> npt.NDArray[Any]:
        """Rows [first, last) of the first dimension, of an element type that fills bytes.

        Raises:
            FolderUnreadableError: the data file ends before them.
        """
        tensor = self._tensors[name]
        dtype = _NUMPY[tensor.data_type]
        row_bytes = dtype.itemsize * math.prod(tensor.dims[1:])
        content = self._bytes(tensor, first * row_bytes, (last - first) * row_bytes)
        return np.frombuffer(content, dtype).reshape(last - first, *tensor.dims[1:])

    def whole(self, name: str) -> npt.NDArray[Any]:
        """All of it; 4-bit elements as uint8 or int8.

        Raises:
            FolderUnreadableError: the data file ends too early.
        """
        tensor = self._tensors[name]
        if tensor.data_type not in (_UINT4, _INT4):
            dims = tuple(tensor.dims)
            return self.rows(name, 0, dims[0]) if dims else self._scalar(tensor)
        count = math.prod(tensor.dims)
        packed = np.frombuffer(self._bytes(tensor, 0, -(-count // 2)), np.uint8)
        codes = np.stack((packed & 15, packed >> 4), axis=-1).reshape(-1)[:count].reshape(tuple(tensor.dims))
        # two's complement of 4 bits
        return ((codes ^ 8).astype(np.int8) - 8) if tensor.data_type == _INT4 else codes

    def _scalar(self, tensor: onnx.TensorProto) -> npt.NDArray[Any]:
        dtype = _NUMPY[tensor.data_type]
        return np.frombuffer(self._bytes(tensor, 0, dtype.itemsize), dtype).reshape(())

    def _bytes(self, tensor: onnx.TensorProto, offset: int, count: int) -> bytes:
        import onnx

        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries:
            content: bytes = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
            return content[offset : offset + count]
        try:
            with (self._folder / entries["location"]).open("rb") as file:
                file.seek(int(entries.get("offset", "0")) + offset)
                content = file.read(count)
        except OSError as error:
            raise FolderUnreadableError(
                f"{entries['location']} cannot be read: {error.strerror}",
                hint="`gemma-export verify` checks the folder.",
            ) from error
        if len(content) != count:
            raise FolderUnreadableError(
                f"tensor {tensor.name}: expected {count} bytes in {entries['location']}, found {len(content)}",
                hint="`gemma-export verify` checks the folder.",
            )
        return content
