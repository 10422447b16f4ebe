"""How a checkpoint that is already quantised stores its matrices, read from config.json. Torch-free.

Source: https://github.com/AutoGPTQ/AutoGPTQ (quantization/config.py, nn_modules/qlinear),
https://github.com/ModelCloud/GPTQModel, https://github.com/casper-hansen/AutoAWQ (models/_config.py, modules/linear).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gemma_export.errors import ConfigError

__all__ = ["QUANTISATION_KEY", "Quantisation", "read_quantisation"]

QUANTISATION_KEY = "quantization_config"
_BITS = {"gptq": (4, 8), "awq": (4,)}
_ORIGINAL = "Export the checkpoint that it was made from: --int4 and --int8 quantise it here."
_HINTS = {
    "bitsandbytes": "bitsandbytes quantises while it loads: export the checkpoint that it was made from.",
    "compressed-tensors": f"{_ORIGINAL} llm-compressor can also decompress it into plain safetensors.",
}
# keys that change what the tensors mean, and the values under which they do not
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_marlin_format": (False,),
    "pack_dtype": ("int32",),
    "rotation": (),
    "adapter": ({},),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantisation:
    """One scheme for all matrices that have integer codes; which have them, the tensors' names say."""

    # "gptq" or "awq": the order of the codes in their words
    method: str
    bits: int
    # input features that share a scale; -1: all of a row
    group_size: int
    # every zero point is the middle of the codes
    symmetric: bool
    # groups are not neighbouring input features: g_idx says which feature is in which
    ordered: bool
    # what is added to stored zero points: GPTQ's first format stores them less one
    zero_point_offset: int
    # what wrote it, where that is known: "gptqmodel" and so on
    writer: str | None

    @property
    def middle(self) -> int:
        """The zero point where the codes are symmetric."""
        return 1 << (self.bits - 1)

    def stated(self) -> str:
        """For refusals: that there is nothing left to choose."""
        return f"the checkpoint is quantised already: {self.describe()}"

    def describe(self) -> str:
        """For messages: GPTQ, 4 bits, groups of 128, symmetric."""
        groups = "one group a row" if self.group_size == -1 else f"groups of {self.group_size}"
        kind = "symmetric" if self.symmetric else "with zero points"
        order = ", by activation order" if self.ordered else ""
        return f"{self.method.upper()}, {self.bits} bits, {groups}, {kind}{order}"


def read_quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """What a config.json says of its checkpoint's integers, None for one in floating point.

    Raises:
        ConfigError: a method, format or value that cannot be read exactly.
    """
    found = config.get(QUANTISATION_KEY)
    if found is None:
        return None
    if not isinstance(found, dict):
        raise _wrong("", "an object", found)
    method = found.get("quant_method")
    if not isinstance(method, str) or method not in _BITS:
        named = repr(method)[:60] if method is not None else "no quant_method"
        raise ConfigError(
            f"config.json: {QUANTISATION_KEY}: this checkpoint is quantised by {named}, expected one of: "
            f"{', '.join(_BITS)}",
            hint=_HINTS.get(str(method), _ORIGINAL),
        )
    for key, values in _NEUTRAL.items():
        if found.get(key) not in (None, *values):
            raise ConfigError(
                f"config.json: {QUANTISATION_KEY}.{key} is {found[key]!r}, which changes what the tensors mean and is "
                "not implemented",
                hint=_ORIGINAL,
            )
    bits = found.get("bits", found.get("w_bit"))
    if type(bits) is not int or bits not in _BITS[method]:
        raise _wrong("bits", " or ".join(map(str, _BITS[method])), bits)
    group_size = found.get("group_size", found.get("q_group_size"))
    if type(group_size) is not int or not (group_size == -1 or 1 <= group_size < 1 << 20):
        raise _wrong("group_size", "-1 or a number of input features", group_size)
    read = _awq if method == "awq" else _gptq
    return read(found, bits, group_size)


def _gptq(found: Mapping[str, Any], bits: int, group_size: int) -> Quantisation:
    layout = found.get("checkpoint_format", found.get("format"))
    if layout not in (None, "gptq", "gptq_v2"):
        raise _wrong("checkpoint_format", "gptq or gptq_v2", layout)
    return Quantisation(
        method="gptq",
        bits=bits,
        group_size=group_size,
        # the defaults of transformers' GPTQConfig
        symmetric=_boolean(found, "sym", default=True),
        # static groups are of neighbours, in whatever order they were quantised; so is a single one
        ordered=_boolean(found, "desc_act", default=False)
        and not _boolean(found, "static_groups", default=False)
        and group_size != -1,
        zero_point_offset=0 if layout == "gptq_v2" else 1,
        writer=_writer(found),
    )


def _awq(found: Mapping[str, Any], bits: int, group_size: int) -> Quantisation:
    layout = found.get("version", found.get("checkpoint_format", found.get("format")))
    if not isinstance(layout, str) or layout.lower() != "gemm":
        raise _wrong("version", "gemm: the other packings (gemv, gemv_fast, marlin, ...) differ", layout)
    return Quantisation(
        method="awq",
        bits=bits,
        group_size=group_size,
        # zero points are stored, and subtracted by every reader, also where the quantiser used none
        symmetric=False,
        ordered=False,
        zero_point_offset=0,
        writer=_writer(found),
    )


def _writer(found: Mapping[str, Any]) -> str | None:
    """GPTQModel notes itself as meta.quantizer: ["gptqmodel:2.1.0"]."""
    meta = found.get("meta")
    names = meta.get("quantizer") if isinstance(meta, dict) else None
    name = names[0] if isinstance(names, list) and names else names
    return name.split(":")[0].lower() if isinstance(name, str) else None


def _boolean(found: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = found.get(key)
    if value is not None and not isinstance(value, bool):
        raise _wrong(key, "true or false", value)
    return default if value is None else value


def _wrong(key: str, expected: str, value: Any) -> ConfigError:
    name = f"{QUANTISATION_KEY}.{key}" if key else QUANTISATION_KEY
    return ConfigError(f"config.json: {name} must be {expected}, found {repr(value)[:80]}", hint=_ORIGINAL)
