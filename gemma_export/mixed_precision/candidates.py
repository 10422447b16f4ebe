"""Which matrices may get more bytes, and what each of them may become. Torch-free, so that plans know the bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from gemma_export.precision import SCHEMES, Precision, WeightScheme
from gemma_export.precision.block_format import BLOCK_SIZES
from gemma_export.precision.scheme import Rule

__all__ = ["Choice", "Matrix", "largest_scheme", "matrices_of", "with_rules", "with_scheme"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to store a matrix."""

    # what the scheme is changed by; None for the scheme's own way
    rule: Rule | None
    bits: int
    block_size: int
    # stored bytes of data, scales and zero points
    nbytes: int

    def __str__(self) -> str:
        return f"{self.bits} bits, block {self.block_size}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """One stored matrix whose precision is to be chosen."""

    # of the data file: query, key and value are one qkv_proj
    name: str
    # ascending bytes, the scheme's own first
    choices: tuple[Choice, ...]


def matrices_of(precision: Precision, stored: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[Matrix, ...]:
    """Every matrix that can be given more bytes; what a rule of the user names stays as the rule says.

    Args:
        precision: with the scheme to start from.
        stored: name and shape of every tensor of the data file.
    """
    scheme = precision.scheme
    assert scheme is not None
    found = []
    for name, shape in stored:
        own = scheme.block_format_of(name, shape)
        if own is None or own.bits > scheme.bits or any(rule.matches(name) for rule in scheme.rules):
            continue
        choices = [_choice(precision, None, name, shape)]
        for rule in _upgrades(scheme, name):
            choice = _choice(precision, rule, name, shape)
            # a table may be bound to another layout than the rule says, at no more bytes
            if choice.nbytes > choices[-1].nbytes:
                choices.append(choice)
        if len(choices) > 1:
            found.append(Matrix(name=name, choices=tuple(choices)))
    return tuple(found)


def largest_scheme(precision: Precision, stored: Iterable[tuple[str, tuple[int, ...]]]) -> WeightScheme:
    """The scheme with everything upgraded that may be: the most bytes, the least loss."""
    assert precision.scheme is not None
    rules = [matrix.choices[-1].rule for matrix in matrices_of(precision, stored)]
    return with_rules(precision.scheme, rules)


def with_rules(scheme: WeightScheme, rules: Iterable[Rule | None]) -> WeightScheme:
    """The scheme with further rules; None adds nothing."""
    return dataclasses.replace(scheme, rules=(*scheme.rules, *(rule for rule in rules if rule is not None)))


def with_scheme(precision: Precision, scheme: WeightScheme) -> Precision:
    """The precision with another scheme under the same name."""
    return dataclasses.replace(precision, scheme=scheme)


def _upgrades(scheme: WeightScheme, name: str) -> list[Rule]:
    """Smaller blocks, which keep the kernel, then 8 bits as --int8 stores them."""
    int8 = SCHEMES["int8"]
    blocks = [
        Rule(match=name, block_size=size) for size in sorted(BLOCK_SIZES, reverse=True) if size < scheme.block_size
    ]
    whole = Rule(
        match=name,
        bits=int8.bits,
        block_size=int8.block_size,
        symmetric=int8.symmetric,
        quantiser=int8.quantiser,
    )
    return [*blocks, whole]


def _choice(precision: Precision, rule: Rule | None, name: str, shape: tuple[int, ...]) -> Choice:
    assert precision.scheme is not None
    changed = with_scheme(precision, with_rules(precision.scheme, [rule]))
    assert changed.scheme is not None
    layout = changed.scheme.block_format_of(name, shape)
    assert layout is not None
    nbytes = sum(size for _, size in changed.stored(name, shape))
    return Choice(rule=rule, bits=layout.bits, block_size=layout.block_size, nbytes=nbytes)
