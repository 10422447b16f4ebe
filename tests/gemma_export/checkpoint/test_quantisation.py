"""quantization_config: what is read, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from gemma_export.checkpoint import Quantisation, read_quantisation
from gemma_export.errors import ConfigError

_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def _read(section: Any) -> Quantisation | None:
    return read_quantisation({"model_type": "gemma", "quantization_config": section})


def test_floating_point() -> None:
    assert read_quantisation({"model_type": "gemma"}) is None
    assert _read(None) is None


def test_gptq() -> None:
    found = _read(_GPTQ | {"damp_percent": 0.01, "dataset": "c4", "meta": {"quantizer": ["gptqmodel:2.1.0"]}})
    assert found == Quantisation(
        method="gptq",
        bits=4,
        group_size=128,
        symmetric=True,
        ordered=False,
        zero_point_offset=1,
        writer="gptqmodel",
    )
    assert found.describe() == "GPTQ, 4 bits, groups of 128, symmetric"


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"checkpoint_format": "gptq_v2"}, "zero_point_offset", 0),
        ({"format": "gptq_v2"}, "zero_point_offset", 0),
        ({"checkpoint_format": "gptq"}, "zero_point_offset", 1),
        ({"sym": False}, "symmetric", False),
        ({"bits": 8}, "bits", 8),
        ({"desc_act": True}, "ordered", True),
        # groups of neighbours, in whatever order they were rounded
        ({"desc_act": True, "static_groups": True}, "ordered", False),
        ({"desc_act": True, "group_size": -1}, "ordered", False),
        ({"pack_dtype": "int32", "is_marlin_format": False, "adapter": {}}, "method", "gptq"),
    ],
)
def test_gptq_variants(changes: dict[str, Any], field: str, value: object) -> None:
    assert getattr(_read(_GPTQ | changes), field) == value


def test_awq() -> None:
    found = _read(_AWQ | {"version": "GEMM", "modules_to_not_convert": None})
    assert found is not None
    assert (found.method, found.zero_point_offset, found.symmetric) == ("awq", 0, False)
    # as the authors' own repository calls them
    assert _read({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "gemm"}) is not None


@pytest.mark.parametrize(
    ("section", "phrases"),
    [
        ([1], ["must be an object, found [1]"]),
        ({"bits": 4}, ["quantised by no quant_method, expected one of: gptq, awq"]),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ["'bitsandbytes'", "while it loads"]),
        ({"quant_method": "compressed-tensors"}, ["'compressed-tensors'", "decompress"]),
        ({"quant_method": "fp8"}, ["quantised by 'fp8'", "Export the checkpoint that it was made from"]),
        ({"quant_method": {"x": 1}}, ["quantised by {'x': 1}"]),
        (_GPTQ | {"bits": 3}, ["bits must be 4 or 8, found 3"]),
        (_GPTQ | {"bits": True}, ["bits must be 4 or 8, found True"]),
        (_GPTQ | {"bits": "4"}, ["bits must be 4 or 8, found '4'"]),
        (_AWQ | {"bits": 8}, ["bits must be 4, found 8"]),
        (_GPTQ | {"group_size": 0}, ["group_size must be -1 or", "found 0"]),
        (_GPTQ | {"group_size": None}, ["group_size must be -1 or", "found None"]),
        (_GPTQ | {"sym": 1}, ["sym must be true or false, found 1"]),
        (_GPTQ | {"desc_act": "yes"}, ["desc_act must be true or false"]),
        (_GPTQ | {"checkpoint_format": "marlin"}, ["checkpoint_format must be gptq or gptq_v2, found 'marlin'"]),
        (_GPTQ | {"is_marlin_format": True}, ["is_marlin_format is True, which changes what the tensors mean"]),
        (_GPTQ | {"pack_dtype": "int16"}, ["pack_dtype is 'int16'"]),
        (_GPTQ | {"rotation": "hadamard"}, ["rotation is 'hadamard'"]),
        (_AWQ | {"version": "gemv"}, ["version must be gemm", "found 'gemv'"]),
        (_AWQ | {"version": None}, ["version must be gemm", "found None"]),
    ],
)
def test_refusals(section: Any, phrases: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        _read(section)
    for phrase in phrases:
        assert phrase in f"{error.value.message} {error.value.hint}"
