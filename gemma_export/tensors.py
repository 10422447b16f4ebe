"""What a source of checkpoint tensors provides. Torch-free, so that plans and `--dry-run` can check one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Protocol

__all__ = ["DTYPE_BYTES", "StoredTensor", "TensorSource"]

# element types that weights may have, and their sizes in bytes
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor as the checkpoint stores it."""

    # a key of DTYPE_BYTES, or another name for a type that weights may not have
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Stored bytes of a tensor that weights may have."""
        return DTYPE_BYTES[self.dtype] * math.prod(self.shape)


class TensorSource(Protocol):
    """Where tensors come from: safetensors files, the synthetic generator."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by name."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fills `buffer` with the tensor's little-endian bytes from byte `offset` on.

        Raises:
            CheckpointError: the bytes cannot be read.
        """
