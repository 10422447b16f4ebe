"""From the command line's words and a precision file to a checked weight scheme. Torch-free."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gemma_export.errors import UsageError
from gemma_export.precision.block_format import BITS, BLOCK_SIZES, BlockFormat
from gemma_export.precision.config_file import read_precision_file
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.scheme import FORMATS, Rule, WeightScheme
from gemma_export.precision.schemes import SCHEMES

__all__ = ["WeightOptions", "check_packing", "check_rules", "undivided_blocks", "weight_scheme"]

# WeightOptions' field -> the flag, for messages
_FLAGS = {
    "scheme": "--int4, --int8 or --int8-dynamic",
    "block_size": "--block-size",
    "symmetric": "--symmetric or --asymmetric",
    "quantiser": "--quantizer",
    "embedding_bits": "--embedding-bits",
    "format": "--format",
    "smoothing": "--smoothing or --no-smoothing",
    "activation_aware": "--activation-aware",
}
# what one scale per output feature and per token leaves nothing to choose of
_BLOCKWISE = ("block_size", "symmetric", "quantiser", "format", "activation_aware")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """What the command line asks of the weights; None leaves the scheme's default."""

    # name in SCHEMES
    scheme: str | None = None
    block_size: int | None = None
    symmetric: bool | None = None
    quantiser: str | None = None
    embedding_bits: int | None = None
    # one of FORMATS; None takes the target's own
    format: str | None = None
    # of --int8-dynamic
    smoothing: bool | None = None
    # of weights in blocks
    activation_aware: bool | None = None
    # TOML
    config: Path | None = None


def weight_scheme(options: WeightOptions) -> WeightScheme | None:
    """The scheme that the options ask for, or None for floating-point weights.

    Raises:
        UsageError: options without a scheme, values that do not exist, flags and file that contradict each other.
        InputError: the precision file is not one.
    """
    asked = {name: value for name in _FLAGS if (value := getattr(options, name)) is not None}
    changes, rules = ({}, ()) if options.config is None else read_precision_file(options.config)
    for name, value in changes.items():
        if asked.get(name, value) != value:
            raise UsageError(
                f"{_FLAGS[name]} contradicts {options.config}: {name} is {value!r} there, {asked[name]!r} here",
                hint="Say it once: leave the option out, or take it from the file.",
            )
    asked |= changes
    scheme = asked.pop("scheme", None)
    if scheme is None:
        if asked or rules:
            first = _FLAGS[next(iter(asked))] if asked else "--precision-config"
            raise UsageError(
                f"{first} is about quantised weights, and neither --int4 nor --int8 is given",
                hint='Add --int4, --int8 or --int8-dynamic; a precision file can say scheme = "int4" itself.',
            )
        return None
    _check("scheme", scheme, SCHEMES)
    _check("block_size", asked.get("block_size"), BLOCK_SIZES)
    _check("embedding_bits", asked.get("embedding_bits"), BITS)
    _check("quantiser", asked.get("quantiser"), QUANTISERS)
    _check("format", asked.get("format"), FORMATS)
    for rule in rules:
        _check("block_size", rule.block_size, BLOCK_SIZES)
        _check("quantiser", rule.quantiser, QUANTISERS)
    _check_dynamic(SCHEMES[scheme], asked, rules)
    return dataclasses.replace(SCHEMES[scheme], **asked, rules=rules)


def check_rules(scheme: WeightScheme, stored: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Holds the rules of a precision file against the tensors they are about.

    Args:
        scheme: the scheme with its rules.
        stored: name and shape of every tensor of the data file.

    Raises:
        UsageError: a pattern matches no matrix.
    """
    names = [name for name, shape in stored if scheme.covers(name, shape)]
    for rule in scheme.rules:
        if not any(rule.matches(name) for name in names):
            near = difflib.get_close_matches(rule.match, names, n=1, cutoff=0.0)
            packed = any("qkv_proj" in name for name in names)
            parts = any(part in rule.match for part in ("q_proj", "k_proj", "v_proj"))
            raise UsageError(
                f"the precision file's pattern {rule.match!r} matches no matrix of this model",
                hint="Query, key and value are stored as one qkv_proj.weight: name that."
                if packed and parts and "qkv_proj" not in rule.match
                else f"A name here is {near[0] if near else 'none'}; * stands for any text.",
            )


def check_packing(scheme: WeightScheme, stored: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Holds the format against the tensors: a look-up in a transposed table takes two rows from each byte.

    Raises:
        UsageError: a 4-bit embedding table of an odd number of rows in the format qdq.
    """
    for name, shape in stored:
        layout = scheme.format_of(name, shape)
        if layout is not None and layout.transposed and layout.bits == 4 and shape[0] % 2 and scheme.is_table(name):
            raise UsageError(
                f"--format qdq packs two tokens of a 4-bit table into a byte, and this vocabulary has {shape[0]}",
                hint="Add --embedding-bits 8.",
            )


def undivided_blocks(scheme: WeightScheme, stored: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[str, ...]:
    """A warning where blocks of the format qdq do not divide the rows that they are of.

    ONNX lets the last block be short, and onnxruntime reads it. OpenVINO 2026.4 does not: "Conversion is failed for
    DequantizeLinear-23", measured with rows of 96 in blocks of 64, 4 and 8 bits, with zero points and without.

    Args:
        scheme: with its format.
        stored: name and shape of every tensor of the data file.
    """
    layouts = [(name, shape, scheme.format_of(name, shape)) for name, shape in stored]
    blocks = [(name, shape[1], layout.block_size) for name, shape, layout in layouts if isinstance(layout, BlockFormat)]
    undivided = [(name, columns, size) for name, columns, size in blocks if columns % size]
    if scheme.format != "qdq" or not undivided:
        return ()
    name, columns, size = undivided[0]
    more = f" and {len(undivided) - 1} more" if len(undivided) > 1 else ""
    dividing = [size for size in BLOCK_SIZES if not any(columns % size for _, columns, _ in blocks)]
    # rules and a checkpoint's own groups are no matter of the option
    own = scheme.checkpoint is None and all(size == scheme.block_size for _, _, size in undivided)
    hint = f"; --block-size {dividing[-1]} divides all" if dividing and own else ""
    return (
        f"blocks of {size} do not divide the {columns} columns of {name}{more}: onnxruntime runs the folder, "
        f"OpenVINO does not load it{hint}",
    )


def _check_dynamic(scheme: WeightScheme, asked: Mapping[str, Any], rules: Iterable[Rule]) -> None:
    """Options that would change nothing are refused."""
    if not scheme.dynamic:
        if "smoothing" in asked:
            raise UsageError(
                f"{_FLAGS['smoothing']} is about 8-bit activations, and --{scheme.name} is given",
                hint="Leave it out, or export with --int8-dynamic.",
            )
        return
    for name in _BLOCKWISE:
        if name in asked:
            raise UsageError(
                f"{_FLAGS[name]} is about weights in blocks: --{scheme.name} has one scale for each output feature",
                hint="Leave it out, or export with --int8.",
            )
    table_bits = asked.get("embedding_bits", scheme.embedding_bits)
    for rule in rules:
        of_tables = rule.concerns_tables and (
            rule.symmetric is not None or rule.quantiser is not None or rule.bits not in (None, table_bits)
        )
        if rule.concerns_tables and rule.bits is not None:
            table_bits = rule.bits
        if rule.bits != 0 and not rule.is_blockwise and not of_tables:
            raise UsageError(
                f"the precision file's rule for {rule.match!r} changes nothing with --{scheme.name}",
                hint='bits = "float", bits = 4 or a block_size takes a matrix out of the integer products.',
            )


def _check(name: str, value: Any, known: Mapping[str, Any] | tuple[object, ...]) -> None:
    if value is not None and value not in known:
        raise UsageError(
            f"unknown {name.replace('_', ' ').replace('quantiser', 'quantizer')} {value!r}, "
            f"expected one of: {', '.join(map(str, known))}",
            hint="See gemma-export --help.",
        )
