"""The graphs' element types as numpy holds them; numpy has no bfloat16, so its bits travel as uint16."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ELEMENT_TYPES", "ElementType"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElementType:
    """One element type of logits and decoder state."""

    # the manifest's name
    name: str
    # onnxruntime's name
    onnxruntime: str
    # number in ONNX's TensorProto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
    onnx: int
    # what numpy stores: the type itself, or its bits
    storage: Any

    @property
    def is_numpy(self) -> bool:
        """Whether numpy has the type itself."""
        return self.name != "bfloat16"

    def to_float32(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The values of an array in this type's storage; a float32 array itself."""
        if self.is_numpy:
            return array.astype(np.float32, copy=False)
        # bfloat16 is the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)


ELEMENT_TYPES: dict[str, ElementType] = {
    element.name: element
    for element in (
        ElementType(name="float32", onnxruntime="tensor(float)", onnx=1, storage=np.float32),
        ElementType(name="float16", onnxruntime="tensor(float16)", onnx=10, storage=np.float16),
        ElementType(name="int8", onnxruntime="tensor(int8)", onnx=3, storage=np.int8),
        ElementType(name="bfloat16", onnxruntime="tensor(bfloat16)", onnx=16, storage=np.uint16),
    )
}
