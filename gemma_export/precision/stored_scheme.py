"""The weight scheme of a checkpoint that is quantised already, and what may be asked beside it. Torch-free."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable

from gemma_export.checkpoint import Quantisation
from gemma_export.errors import CheckpointError, UsageError
from gemma_export.precision.block_format import BLOCK_SIZES
from gemma_export.precision.options import WeightOptions
from gemma_export.precision.scheme import CHECKPOINT, Rule, WeightScheme, unpacked_names
from gemma_export.precision.schemes import SCHEMES

__all__ = ["stored_scheme", "with_stored_tensors"]

_AS_IT_IS = (
    "Leave the option out: the checkpoint's integers are taken as they are. To quantise anew, export the checkpoint "
    "that it was made from."
)


def stored_scheme(quantisation: Quantisation, options: WeightOptions) -> WeightScheme:
    """The scheme that the checkpoint has; embedding and head, which it leaves alone, stay in floating point.

    Args:
        quantisation: of the checkpoint.
        options: of the command line; only bits of embedding and head, and the format, are open.

    Raises:
        UsageError: the options ask for other integers than there are.
        CheckpointError: no kernel has blocks of which these groups are made.
    """
    defaults = SCHEMES[f"int{quantisation.bits}"]
    _check_options(quantisation, options, defaults.name)
    return dataclasses.replace(
        defaults,
        block_size=_block_size(quantisation),
        symmetric=quantisation.symmetric,
        quantiser=CHECKPOINT,
        embedding_bits=options.embedding_bits or 0,
        format=options.format,
        checkpoint=quantisation.describe(),
        ordered=quantisation.ordered,
    )


def with_stored_tensors(
    scheme: WeightScheme, quantised: Collection[str], stored: Iterable[tuple[str, tuple[int, ...]]]
) -> WeightScheme:
    """The scheme with a rule for each matrix that the checkpoint does not have as integers.

    Args:
        scheme: from `stored_scheme`.
        quantised: names of the checkpoint's quantised matrices.
        stored: name and shape of every tensor of the data file.

    Raises:
        CheckpointError: a packed matrix of which a part is in floating point.
    """
    rules = []
    for name, shape in stored:
        if not scheme.covers(name, shape):
            continue
        parts = unpacked_names(name)
        taken = [part for part in parts if part in quantised]
        if taken and len(taken) < len(parts):
            other = next(part for part in parts if part not in quantised)
            raise CheckpointError(
                f"{taken[0]} is quantised and {other} is not, but this target stores the two as one matrix",
                hint="Export with --target portable, which keeps them apart, or with --fp32.",
            )
        if taken and scheme.is_table(name):
            raise CheckpointError(
                f"{name} is quantised: look-ups in the checkpoint's own integers are not implemented",
                hint="Export with --fp32, which multiplies the integers out exactly.",
            )
        # a pattern that means this name alone
        match = re.sub(r"([\[*?])", r"[\1]", name)
        if scheme.is_head(name):
            rules.append(_head_rule(scheme, match, taken=bool(taken)))
        elif not taken:
            rules.append(Rule(match=match, bits=0))
    return dataclasses.replace(scheme, rules=tuple(rule for rule in rules if rule is not None))


def _head_rule(scheme: WeightScheme, match: str, *, taken: bool) -> Rule | None:
    """Of the embedding or the head: the checkpoint's own integers, those asked for, or none."""
    if taken:
        return Rule(match=match, bits=scheme.bits)
    if scheme.embedding_bits == 0:
        return None
    defaults = SCHEMES[f"int{scheme.embedding_bits}"]
    return Rule(match=match, block_size=defaults.block_size, symmetric=defaults.symmetric, quantiser=defaults.quantiser)


def _check_options(quantisation: Quantisation, options: WeightOptions, scheme: str) -> None:
    has = quantisation.stated()
    if options.smoothing is not None:
        raise UsageError(f"--smoothing and --no-smoothing are about --int8-dynamic; {has}", hint=_AS_IT_IS)
    if options.scheme not in (None, scheme):
        raise UsageError(f"--{options.scheme} contradicts the checkpoint; {has}", hint=_AS_IT_IS)
    group = quantisation.group_size
    if options.block_size is not None and options.block_size != (_block_size(quantisation) if group == -1 else group):
        raise UsageError(f"--block-size {options.block_size} contradicts the checkpoint; {has}", hint=_AS_IT_IS)
    if options.symmetric not in (None, quantisation.symmetric):
        flag = "--symmetric" if options.symmetric else "--asymmetric"
        raise UsageError(f"{flag} contradicts the checkpoint; {has}", hint=_AS_IT_IS)
    if options.quantiser is not None:
        raise UsageError(f"--quantizer {options.quantiser} has nothing to choose; {has}", hint=_AS_IT_IS)
    if options.activation_aware is not None:
        raise UsageError(f"--activation-aware has nothing to choose; {has}", hint=_AS_IT_IS)
    if options.config is not None:
        raise UsageError(f"--precision-config has nothing to choose; {has}", hint=_AS_IT_IS)


def _block_size(quantisation: Quantisation) -> int:
    """The largest block that divides the groups."""
    size = quantisation.group_size
    if size == -1:
        # every block of a row repeats its one scale
        return BLOCK_SIZES[-1]
    fitting = [block for block in BLOCK_SIZES if size % block == 0]
    if not fitting:
        raise CheckpointError(
            f"config.json: quantization_config.group_size is {size}, expected a multiple of {BLOCK_SIZES[0]}: no "
            "kernel has smaller or other blocks",
            hint="Export with --fp32, which multiplies the integers out exactly.",
        )
    return fitting[-1]
