"""The tensors of a quantised checkpoint under the names that the architecture has for them. Torch-free.

A matrix X.weight [out, in] is stored as X.qweight, X.qzeros, X.scales and, in GPTQ's layouts, X.g_idx; int32 words of
32 / bits codes each, the lowest bits first (AWQ: in the order 0 2 4 6 1 3 5 7):

    gptq  qweight [in * bits / 32, out]   qzeros [groups, out * bits / 32]   scales [groups, out]   g_idx [in]
    awq   qweight [in, out * bits / 32]   qzeros [groups, out * bits / 32]   scales [groups, out]

A weight is (code - zero point) * scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gemma_export.checkpoint.quantisation import Quantisation
from gemma_export.errors import CheckpointError
from gemma_export.tensors import DTYPE_BYTES, StoredTensor, TensorSource

__all__ = ["QuantisedSource", "QuantisedTensor", "architecture_view"]

_HINT = "The file is not what its quantization_config says: fetch it again, or correct the configuration."
_PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")
_INTEGERS = ("int32", "int64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantisedTensor:
    """A matrix whose stored parts have the right shapes and types."""

    # the module, which the parts' names begin with
    module: str
    quantisation: Quantisation
    # [out, in]
    shape: tuple[int, int]
    has_g_idx: bool
    has_bias: bool

    @property
    def group_size(self) -> int:
        """Input features that share a scale."""
        size = self.quantisation.group_size
        return self.shape[1] if size == -1 else size

    @property
    def groups(self) -> int:
        """Of a row; the last may be smaller."""
        return -(-self.shape[1] // self.group_size)

    @property
    def packed_bytes(self) -> int:
        """Of all codes."""
        return self.shape[0] * self.shape[1] * self.quantisation.bits // 8


class QuantisedSource:
    """A source whose quantised matrices are float32 tensors like any other; only their parts can be read.

    Args:
        source: the checkpoint's tensors.
        quantised: name of the matrix -> its parts.
    """

    def __init__(self, source: TensorSource, quantised: Mapping[str, QuantisedTensor]) -> None:
        self.source, self.quantised = source, quantised
        hidden = {f"{tensor.module}.{part}" for tensor in quantised.values() for part in _PARTS}
        self.tensors: Mapping[str, StoredTensor] = {
            name: tensor for name, tensor in source.tensors.items() if name not in hidden
        } | {name: StoredTensor("float32", tensor.shape) for name, tensor in quantised.items()}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See TensorSource: bytes of a tensor as it is stored."""
        self.source.read_into(name, offset, buffer)

    def part(self, name: str, part: str) -> tuple[StoredTensor, bytearray]:
        """One part of a quantised matrix, whole."""
        stored = f"{self.quantised[name].module}.{part}"
        tensor = self.source.tensors[stored]
        width = DTYPE_BYTES.get(tensor.dtype) or (8 if tensor.dtype == "int64" else 4)
        content = bytearray(width * _count(tensor.shape))
        self.source.read_into(stored, 0, memoryview(content))
        return tensor, content


def architecture_view(
    source: TensorSource, quantisation: Quantisation | None, expected: Mapping[str, tuple[int, ...]]
) -> TensorSource:
    """The same tensors by the architecture's names; their own where nothing is quantised.

    Args:
        source: the checkpoint's tensors.
        quantisation: from its config.json.
        expected: tensor name -> shape, from the configuration.

    Raises:
        CheckpointError: a part is missing, or of another shape or type than the scheme says.
    """
    if quantisation is None:
        return source
    quantised = {}
    for name, shape in expected.items():
        module = name.removesuffix(".weight")
        parts = [part for part in _PARTS[:4] if f"{module}.{part}" in source.tensors]
        if len(shape) != 2 or not parts:
            continue
        if name in source.tensors:
            raise CheckpointError(
                f"tensor {name} is stored twice: in floating point and as {module}.{parts[0]}",
                hint="Keep the one that the model was evaluated with.",
            )
        quantised[name] = _checked(source, quantisation, module, (shape[0], shape[1]))
    if not quantised:
        raise CheckpointError(
            f"config.json says {quantisation.describe()}, but no matrix has a qweight",
            hint="Remove quantization_config from config.json if the weights are in floating point.",
        )
    return QuantisedSource(source, quantised)


def _checked(source: TensorSource, quantisation: Quantisation, module: str, shape: tuple[int, int]) -> QuantisedTensor:
    rows, columns = shape
    tensor = QuantisedTensor(
        module=module,
        quantisation=quantisation,
        shape=shape,
        has_g_idx=f"{module}.g_idx" in source.tensors,
        has_bias=f"{module}.bias" in source.tensors,
    )
    words = 32 // quantisation.bits
    packed, along = (columns, "input") if quantisation.method == "gptq" else (rows, "output")
    if packed % words or rows % words:
        number = packed if packed % words else rows
        raise CheckpointError(
            f"tensor {module}.qweight: {number} {along if packed % words else 'output'} features do not fill int32 "
            f"words of {words} codes",
            hint=_HINT,
        )
    qweight = (columns // words, rows) if quantisation.method == "gptq" else (columns, rows // words)
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
        "qweight": (qweight, ("int32",)),
        "qzeros": ((tensor.groups, rows // words), ("int32",)),
        "scales": ((tensor.groups, rows), tuple(DTYPE_BYTES)),
    }
    if tensor.has_g_idx:
        expected["g_idx"] = ((columns,), _INTEGERS)
    elif quantisation.ordered:
        raise _missing(module, "g_idx", quantisation)
    if tensor.has_bias:
        expected["bias"] = ((rows,), tuple(DTYPE_BYTES))
    for part, (part_shape, dtypes) in expected.items():
        _check_part(source, quantisation, f"{module}.{part}", part_shape, dtypes)
    return tensor


def _check_part(
    source: TensorSource, quantisation: Quantisation, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]
) -> None:
    found = source.tensors.get(name)
    if found is None:
        module, _, part = name.rpartition(".")
        raise _missing(module, part, quantisation)
    if found.shape != shape:
        raise CheckpointError(
            f"tensor {name}: expected shape {list(shape)} ({quantisation.describe()}), found {list(found.shape)}",
            hint=_HINT,
        )
    if found.dtype not in dtypes:
        raise CheckpointError(f"tensor {name}: expected {' or '.join(dtypes)}, found {found.dtype}", hint=_HINT)


def _missing(module: str, part: str, quantisation: Quantisation) -> CheckpointError:
    return CheckpointError(f"tensor {module}.{part} is missing ({quantisation.describe()})", hint=_HINT)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
