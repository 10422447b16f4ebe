"""Weights of the true shapes from a seed: any byte of any tensor on demand, the same on every machine. Torch-free."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from gemma_export.tensors import StoredTensor

__all__ = ["GENERATOR_VERSION", "SyntheticSource"]

# change it when the numbers change: manifests name it
GENERATOR_VERSION = 1

# elements that one value of the counter stands for
_BLOCK = 1 << 16
# uniform integers from -127 to 127 have this standard deviation
_UNIFORM_DEVIATION = math.sqrt((255**2 - 1) / 12)


class SyntheticSource:
    """bfloat16 tensors: uniform, of standard deviation near fan_in ** -0.5 (0.1 for vectors).

    Every value is an integer up to 127 times a power of two, so bfloat16 and float16 hold it exactly. Philox is a
    counter-based generator: element i of a tensor depends on seed, name and i alone.
    Source: https://numpy.org/doc/stable/reference/random/bit_generators/philox.html.

    Args:
        shapes: tensor name -> shape.
        seed: from 0 to 2^63 - 1.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        self.seed = seed
        self.tensors: Mapping[str, StoredTensor] = {
            name: StoredTensor("bfloat16", shape) for name, shape in shapes.items()
        }
        self._tables: dict[int, npt.NDArray[np.uint16]] = {}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See TensorSource; offset and size are whole elements."""
        key, table = self._key(name), self._table(self.tensors[name].shape)
        out = np.frombuffer(buffer, dtype="<u2")
        first, done = offset // 2, 0
        while done < len(out):
            block, inside = divmod(first + done, _BLOCK)
            count = min(_BLOCK - inside, len(out) - done)
            draws = np.random.Philox(key=key, counter=block << 64).random_raw(_BLOCK // 8).astype("<u8", copy=False)
            np.take(table, draws.view(np.uint8)[inside : inside + count], out=out[done : done + count], mode="clip")
            done += count

    def _key(self, name: str) -> int:
        digest = hashlib.sha256(f"{GENERATOR_VERSION}/{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:16], "little")

    def _table(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
        """bfloat16 bits of each random byte."""
        deviation = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        exponent = round(math.log2(deviation / _UNIFORM_DEVIATION))
        if exponent not in self._tables:
            # byte 128 would be -128, one more than the positive side: it counts as 0
            integers = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
            integers[128] = 0
            # the upper half of a float32 is the bfloat16; integers up to 127 have no lower half
            bits = (integers * np.float32(2.0**exponent)).view(np.uint32) >> 16
            self._tables[exponent] = bits.astype("<u2")
        return self._tables[exponent]
