"""Which matrices are quantised, and how: a weight scheme, as data. Torch-free."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.row_format import RowFormat

__all__ = ["CHECKPOINT", "FORMATS", "Rule", "WeightScheme", "packed_name", "unpacked_names"]

# how graphs read integer weights: onnxruntime's MatMulNBits, or standard DequantizeLinear
FORMATS = ("nbits", "qdq")
# the manifest's quantizer of matrices whose integers the checkpoint brings along
CHECKPOINT = "checkpoint"

_T = TypeVar("_T")

_UNPACKED = re.compile(r"\.[qkv]_proj\.")
# projections of the same activations -> where these come from
_INPUTS = ((re.compile(r"\.(?:[qkv]|qkv)_proj\."), ".attention."), (re.compile(r"\.(?:gate|up)_proj\."), ".mlp."))
_TABLES = ("embed_tokens.weight", "lm_head.weight")


def packed_name(name: str) -> str:
    """A tensor's name where a target stores query, key and value as one matrix."""
    return _UNPACKED.sub(".qkv_proj.", name)


def unpacked_names(name: str) -> tuple[str, ...]:
    """The checkpoint's tensors that a stored one is made of."""
    if ".qkv_proj." not in name:
        return (name,)
    return tuple(name.replace(".qkv_proj.", f".{part}_proj.") for part in "qkv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What one rule of a precision file changes for the tensors it matches; None leaves it as it is."""

    # shell-style pattern of a stored tensor's name, query, key and value also as qkv_proj; * crosses dots too
    match: str
    # None, 4 or 8; 0 keeps the floating-point type
    bits: int | None = None
    block_size: int | None = None
    symmetric: bool | None = None
    quantiser: str | None = None

    def matches(self, name: str) -> bool:
        """Whether the rule is about a tensor, by its own name or the packed one; case-sensitive on every system."""
        return any(fnmatch.fnmatchcase(spelling, self.match) for spelling in (name, packed_name(name)))

    @property
    def concerns_tables(self) -> bool:
        """Whether the rule is about the embedding table or the head."""
        return any(self.matches(name) for name in (f"model.{_TABLES[0]}", _TABLES[1]))

    @property
    def is_blockwise(self) -> bool:
        """Whether the rule asks for weights in blocks, whatever the scheme does with the rest."""
        return self.bits == 4 or self.block_size is not None

    def as_json(self) -> dict[str, Any]:
        """The rule in the words of the precision file."""
        content = {
            "match": self.match,
            "bits": "float" if self.bits == 0 else self.bits,
            "block_size": self.block_size,
            "symmetric": self.symmetric,
            "quantizer": self.quantiser,
        }
        return {key: value for key, value in content.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightScheme:
    """A quantisation of all projections, the head and the embedding table: in blocks, unless `dynamic`."""

    # int4, int8 or int8-dynamic: the flag, and the base of the manifest's name
    name: str
    # of file names: _q4, _int8
    suffix: str
    bits: int
    block_size: int
    symmetric: bool
    # name in gemma_export.precision.quantisers.QUANTISERS
    quantiser: str
    # of the embedding table and the head, which are one where the model ties them
    embedding_bits: int
    # one of FORMATS, None until the target is known; the numbers are the same, their places in the file are not
    format: str | None = None
    # later rules win
    rules: tuple[Rule, ...] = ()
    # projections in int8 with one scale per output feature, for integer products with activations of 8 bits; table and
    # head stay in blocks
    dynamic: bool = False
    # dynamic: outliers move from activations into weights, as calibrated; None: unless the weights are random
    smoothing: bool | None = None
    # in blocks: channels are scaled so that the products on calibration text lose least
    activation_aware: bool = False
    # what the numbers were chosen by, where a checkpoint brings them: for people and the manifest
    checkpoint: str | None = None
    # columns of the checkpoint's own matrices lie in another order than the activations they multiply
    ordered: bool = False

    def covers(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a stored tensor is a matrix that quantisation is about; norms and rotary tables are not."""
        return len(shape) == 2 and name.endswith(".weight")

    def format_of(self, name: str, shape: tuple[int, ...]) -> BlockFormat | RowFormat | None:
        """The layout of a stored tensor, or None where it stays in floating point."""
        if not self.covers(name, shape):
            return None
        rules = [rule for rule in self.rules if rule.matches(name)]
        bits = _last([rule.bits for rule in rules], self.embedding_bits if name.endswith(_TABLES) else self.bits)
        if bits == 0:
            return None
        if self.dynamic and not name.endswith(_TABLES) and not any(rule.is_blockwise for rule in rules):
            return RowFormat()
        layout = BlockFormat(
            bits=bits,
            block_size=_last([rule.block_size for rule in rules], self.block_size),
            symmetric=_last([rule.symmetric for rule in rules], self.symmetric),
            transposed=self.format == "qdq",
        )
        if self.is_table(name) and bits < 8 and layout.blocks(shape[1]) % 2:
            # With an odd number of blocks a row's packed zero points end in half a byte. MatMulNBits and the CPU's
            # GatherBlockQuantized start the next row at a whole byte, CUDA's does not: a table without them is
            # read alike by all. In the other format too, so that both compute the same.
            # https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/contrib_ops/cuda/quantization/gather_block_quantized.cu
            return dataclasses.replace(layout, symmetric=True)
        return layout

    def block_format_of(self, name: str, shape: tuple[int, ...]) -> BlockFormat | None:
        """The same where nothing is dynamic."""
        layout = self.format_of(name, shape)
        assert not isinstance(layout, RowFormat)
        return layout

    def calibrates(self, source_kind: str) -> bool:
        """Whether channels' scales are calibrated: outliers by default unless the weights are random."""
        smooths = source_kind != "synthetic" if self.smoothing is None else self.smoothing
        return self.activation_aware or (self.dynamic and smooths)

    def orders(self, stored: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[tuple[str, int], ...]:
        """Name and bytes of each order of columns that graphs gather activations by, int32: one for each input.

        That of a down projection is folded into gate and up where these have integers too.
        """
        if not self.ordered:
            return ()
        columns = {
            name: shape[1]
            for name, shape in stored
            if self.format_of(name, shape) is not None and self.quantiser_of(name) == CHECKPOINT
        }
        inputs = {
            _input_of(name): 4 * count
            for name, count in columns.items()
            if ".down_proj." not in name
            or not all(name.replace(".down_proj.", f".{part}_proj.") in columns for part in ("gate", "up"))
        }
        return tuple((f"{name}.order", nbytes) for name, nbytes in inputs.items())

    def is_head(self, name: str) -> bool:
        """Whether a stored tensor has a row for each token: the embedding's and the head's."""
        return name.endswith(_TABLES)

    def is_table(self, name: str) -> bool:
        """Whether a stored tensor is looked up in: the embedding's."""
        return name.endswith(_TABLES[0])

    def quantiser_of(self, name: str) -> str:
        """Name of the quantiser of a stored tensor."""
        return _last([rule.quantiser for rule in self.rules if rule.matches(name)], self.quantiser)

    def options(self) -> Mapping[str, Any]:
        """What was asked for, in the manifest's words; `format_of` says what a tensor gets."""
        dynamic = {"activations": "int8, a scale per token", "projections": "int8, a scale per output feature"}
        return {
            "scheme": self.name,
            **(dynamic if self.dynamic else {}),
            "bits": self.bits,
            "block_size": self.block_size,
            "symmetric": self.symmetric,
            "quantizer": self.quantiser,
            "embedding_bits": self.embedding_bits or "float",
            "format": self.format,
            "rules": [rule.as_json() for rule in self.rules],
        } | ({} if self.checkpoint is None else {"checkpoint": self.checkpoint})


def _input_of(name: str) -> str:
    for pattern, meaning in _INPUTS:
        name = pattern.sub(meaning, name)
    return name


def _last(values: list[_T | None], default: _T) -> _T:
    given = [value for value in values if value is not None]
    return given[-1] if given else default
