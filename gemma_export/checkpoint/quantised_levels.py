"""Codes, scales, zero points and order of a quantised matrix, unpacked and checked. numpy, torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gemma_export.checkpoint.quantised_source import QuantisedSource, QuantisedTensor
from gemma_export.errors import CheckpointError, NonFiniteError
from gemma_export.tensors import TensorSource

__all__ = ["Levels", "check_levels", "code_rows", "input_order", "read_levels"]

_DAMAGED = "The file is damaged: fetch it again, or export the checkpoint that it was made from."
# where each output's code lies in an AWQ word: codes are packed in the order 0 2 4 6 1 3 5 7
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
# codes in memory at a time, unpacked
_PIECE = 1 << 18

_Codes = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """What turns codes into weights."""

    # float32 [out, groups], exactly as stored
    scales: npt.NDArray[np.float32]
    # uint8 [out, groups]
    zero_points: _Codes
    # int64 [in]: the group of each input feature
    group_of: npt.NDArray[np.int64]


def read_levels(source: QuantisedSource, name: str) -> Levels:
    """Reads and checks everything of a matrix but its codes.

    Raises:
        CheckpointError, NonFiniteError: name the tensor, and the value that cannot be.
    """
    tensor = source.quantised[name]
    _check_bias(source, name)
    return Levels(
        scales=_scales(source, name), zero_points=_zero_points(source, name), group_of=_groups(source, name, tensor)
    )


def check_levels(source: TensorSource) -> None:
    """Reads everything of all quantised matrices but their codes, so that damage shows before anything slow begins.

    Raises:
        CheckpointError, NonFiniteError: as `read_levels`.
    """
    if isinstance(source, QuantisedSource):
        for name in source.quantised:
            read_levels(source, name)


def input_order(source: QuantisedSource, name: str) -> npt.NDArray[np.int32] | None:
    """The input features in the order of their groups, int32 [in]; None where groups are of neighbours.

    Raises:
        CheckpointError: g_idx is not what the scheme says, or its groups are not of one size.
    """
    tensor = source.quantised[name]
    if not tensor.quantisation.ordered:
        return None
    groups, neighbours = _groups(source, name, tensor), np.arange(tensor.shape[1]) // tensor.group_size
    sizes, expected = (np.bincount(index, minlength=tensor.groups) for index in (groups, neighbours))
    if (sizes != expected).any():
        group = int((sizes != expected).argmax())
        raise CheckpointError(
            f"tensor {tensor.module}.g_idx: group {group} has {sizes[group]} features, expected {expected[group]}: "
            "blocks of integers are of one size",
            hint="Export with --fp32, which multiplies the integers out exactly.",
        )
    return np.argsort(groups, kind="stable").astype(np.int32)


def code_rows(source: QuantisedSource, name: str, order: npt.NDArray[np.int32] | None = None) -> Iterator[_Codes]:
    """uint8 codes [rows, in], some rows at a time; the packed matrix is in memory meanwhile.

    Args:
        source: the checkpoint's tensors.
        name: of the matrix.
        order: the rows to give, where not all in their own order; of GPTQ's layout only.
    """
    tensor = source.quantised[name]
    rows, columns = tensor.shape
    per_word = 32 // tensor.quantisation.bits
    words = _words(source, name, "qweight")
    step = max(1, _PIECE // columns // per_word) * per_word
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if tensor.quantisation.method == "gptq":
            piece = words[:, start:stop] if order is None else words[:, order[start:stop]]
            yield _unpack(np.ascontiguousarray(piece.T), tensor).reshape(stop - start, columns)
        else:
            assert order is None
            piece = np.ascontiguousarray(words[:, start // per_word : stop // per_word].T)
            # [words, in, codes of a word] -> [words * codes, in]
            yield np.ascontiguousarray(_unpack(piece, tensor).swapaxes(1, 2)).reshape(stop - start, columns)


def _words(source: QuantisedSource, name: str, part: str) -> npt.NDArray[np.uint32]:
    stored, content = source.part(name, part)
    return np.frombuffer(content, "<u4").reshape(stored.shape)


def _unpack(words: npt.NDArray[np.uint32], tensor: QuantisedTensor) -> _Codes:
    """Words [..., n] as codes [..., n, 32 / bits], in the order of the features."""
    # little-endian bytes whatever the machine is; nibbles as pairs of bytes, seven times faster than shifts of words
    codes = words.astype("<u4", copy=False).view(np.uint8)
    if tensor.quantisation.bits == 4:
        pairs = codes.astype("<u2")
        codes = ((pairs | (pairs << 4)) & 0x0F0F).astype("<u2", copy=False).view(np.uint8)
    codes = codes.reshape(*words.shape, -1)
    return codes[..., _AWQ_PLACES] if tensor.quantisation.method == "awq" else codes


def _scales(source: QuantisedSource, name: str) -> npt.NDArray[np.float32]:
    stored, content = source.part(name, "scales")
    if stored.dtype == "bfloat16":
        # the upper half of a float32
        scales = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        scales = np.frombuffer(content, {"float16": "<f2", "float32": "<f4"}[stored.dtype]).astype(np.float32)
    scales = scales.reshape(stored.shape)
    finite = np.isfinite(scales)
    if not finite.all():
        position = np.argwhere(~finite)[0].tolist()
        raise NonFiniteError(
            f"tensor {source.quantised[name].module}.scales, position {position}: {scales[tuple(position)]}, expected "
            "a finite number",
            hint=_DAMAGED,
        )
    return np.ascontiguousarray(scales.T)


def _zero_points(source: QuantisedSource, name: str) -> _Codes:
    tensor, words = source.quantised[name], _words(source, name, "qzeros")
    quantisation, where = tensor.quantisation, f"tensor {source.quantised[name].module}.qzeros"
    top = (1 << quantisation.bits) - 1
    if quantisation.zero_point_offset:
        if quantisation.writer != "gptqmodel" and (_unpack(words, tensor) == top).any():
            raise CheckpointError(
                f"{where}: a stored zero point of {top} means {top} + 1, which no code has: loaders read it as 0, as "
                f"{top + 1}, or carry into its neighbour",
                hint='Load and save it with GPTQModel as "checkpoint_format": "gptq_v2", which stores zero points as '
                "they are.",
            )
        # GPTQModel writes and reads whole words: what it borrowed from a neighbour it gives back
        words = words + np.uint32(sum(1 << shift for shift in range(0, 32, quantisation.bits)))
    zero_points = _unpack(words, tensor).reshape(len(words), -1)
    if quantisation.symmetric and (zero_points != quantisation.middle).any():
        group, row = np.argwhere(zero_points != quantisation.middle)[0].tolist()
        raise CheckpointError(
            f"{where}: zero point {zero_points[group, row]} of group {group}, output {row}; a symmetric checkpoint has "
            f"{quantisation.middle} everywhere",
            hint='Set "sym": false in quantization_config; where every zero point is off by one, checkpoint_format is '
            "wrong.",
        )
    return np.ascontiguousarray(zero_points.T)


def _groups(source: QuantisedSource, name: str, tensor: QuantisedTensor) -> npt.NDArray[np.int64]:
    neighbours = np.arange(tensor.shape[1]) // tensor.group_size
    if not tensor.has_g_idx:
        return neighbours
    where = f"tensor {tensor.module}.g_idx"
    stored, content = source.part(name, "g_idx")
    groups = np.frombuffer(content, {"int32": "<i4", "int64": "<i8"}[stored.dtype]).astype(np.int64)
    outside = (groups < 0) | (groups >= tensor.groups)
    if outside.any():
        position = int(outside.argmax())
        raise CheckpointError(
            f"{where}, position {position}: group {groups[position]}, expected 0 to {tensor.groups - 1}", hint=_DAMAGED
        )
    if not tensor.quantisation.ordered and (groups != neighbours).any():
        raise CheckpointError(
            f"{where}: groups are not of neighbouring features, but config.json says desc_act: false or one group",
            hint='Set "desc_act": true and "static_groups": false in quantization_config.',
        )
    return groups


def _check_bias(source: QuantisedSource, name: str) -> None:
    """Some writers store zeros for modules without a bias."""
    tensor = source.quantised[name]
    if tensor.has_bias and any(source.part(name, "bias")[1]):
        raise CheckpointError(
            f"tensor {tensor.module}.bias is not zero, and this architecture's projections have no bias",
            hint="The checkpoint is of another architecture than config.json says.",
        )
