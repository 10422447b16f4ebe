"""The weight schemes' defaults: what --int4, --int8 and --int8-dynamic mean without further options.

Measured on the built-in model, see the README's table of precisions.

int4: blocks of 128, which the kernels run as fast as any and which cost a quarter of the scales of 32; searched scales
and zero points win most of the accuracy back. The table at 4 bits keeps a 2B within 1.35 GB; at 8 it would add 0.26.
int8: blocks of 128 too (the 8-bit kernel is half as fast at 32); 8 bits need neither search nor zero points.
int8-dynamic: projections have one scale per output feature; block size, symmetry and quantiser are those of table and
head, the same as int8's: one token at a time they are read faster that way, and both read the same bytes.
"""

from __future__ import annotations

import dataclasses

from gemma_export.precision.scheme import WeightScheme

__all__ = ["SCHEMES"]

INT4 = WeightScheme(
    name="int4", suffix="_q4", bits=4, block_size=128, symmetric=False, quantiser="search", embedding_bits=4
)
INT8 = WeightScheme(
    name="int8", suffix="_int8", bits=8, block_size=128, symmetric=True, quantiser="rtn", embedding_bits=8
)
INT8_DYNAMIC = dataclasses.replace(INT8, name="int8-dynamic", suffix="_int8dyn", dynamic=True)

SCHEMES: dict[str, WeightScheme] = {scheme.name: scheme for scheme in (INT4, INT8, INT8_DYNAMIC)}
