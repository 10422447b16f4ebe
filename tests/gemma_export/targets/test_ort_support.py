"""The allow-list of kernels against the kernels of the installed onnxruntime."""

from __future__ import annotations

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

from gemma_export.targets import TARGETS
from gemma_export.targets.ort_support import (
    _FLOAT_KERNELS,
    _INDEX_OPS,
    _INTEGER_PRODUCT_KERNELS,
    _QDQ_KERNELS,
    _WIDENED,
    supported,
)

_TENSORS = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
    "int8": "tensor(int8)",
    "uint8": "tensor(uint8)",
}
_QDQ = sorted((domain, op_type, dtype) for (domain, op_type), dtypes in _QDQ_KERNELS.items() for dtype in dtypes)
_CPU_FLOATS = sorted(
    (domain, op_type, dtype) for (domain, op_type), dtypes in _FLOAT_KERNELS["cpu"].items() for dtype in dtypes
)
# parameters that carry something else than the tensor of the kernel's own type: indices, statistics, a cache's scales
_OTHER = frozenset({"Tind", "tind", "indices", "T_KV_SCALE", "T_CACHE", "M", "U", "T1", "shape", "axes"})


def _installed(domain: str, op_type: str, dtype: str) -> bool:
    """Whether the installed CPU provider has a kernel of a type, in the opset that the target writes."""
    opset = TARGETS["ort"].opset if domain == "" else 1
    for kernel in get_all_opkernel_def():
        if (kernel.domain, kernel.op_name, kernel.provider) != (domain, op_type, "CPUExecutionProvider"):
            continue
        first, last = kernel.version_range
        other = _OTHER - {"T1"} if op_type == "QuantizeLinear" else _OTHER
        main = [types for name, types in kernel.type_constraints.items() if name not in other]
        if first <= opset <= last and any(_TENSORS[dtype] in types for types in main):
            return True
    return False


@pytest.mark.parametrize(("domain", "op_type", "dtype"), _CPU_FLOATS)
def test_every_float_entry_is_a_kernel(domain: str, op_type: str, dtype: str) -> None:
    assert _installed(domain, op_type, dtype)


@pytest.mark.parametrize(("domain", "op_type", "dtype"), _QDQ)
def test_every_kernel_of_the_format_qdq_is_installed(domain: str, op_type: str, dtype: str) -> None:
    # DequantizeLinear's T1 is the integers' type, T2 the scales'
    assert _installed(domain, op_type, dtype)
    assert supported("cpu", domain, op_type, dtype)
    assert (op_type == "Gather") == (dtype in ("int8", "uint8"))


@pytest.mark.parametrize(("domain", "op_type"), sorted(_INTEGER_PRODUCT_KERNELS))
def test_every_kernel_of_integer_products_is_installed_and_the_cpus_alone(domain: str, op_type: str) -> None:
    assert _INTEGER_PRODUCT_KERNELS[domain, op_type] == {"float32"}
    assert _installed(domain, op_type, "float32")
    assert supported("cpu", domain, op_type, "float32")
    assert not supported("cuda", domain, op_type, "float32")


@pytest.mark.parametrize(("domain", "op_type"), sorted(_FLOAT_KERNELS["cpu"]))
def test_every_float16_node_runs_at_least_widened(domain: str, op_type: str) -> None:
    assert supported("cpu", domain, op_type, "float16")
    assert _installed(domain, op_type, "float16") or _installed(domain, op_type, _WIDENED["cpu"]["float16"])


@pytest.mark.parametrize("op_type", sorted(_INDEX_OPS))
def test_every_index_operator_has_an_integer_kernel(op_type: str) -> None:
    assert supported("cpu", "", op_type, "int64")
    assert _installed("", op_type, "int64")


def test_the_comparison_above_can_fail() -> None:
    assert not _installed("", "MatMul", "float16")
    assert not _installed("", "Erf", "int64")
    assert not _installed("com.microsoft", "MatMul", "float32")


def test_cuda_attention_has_half_precision_only_and_the_cpu_no_bfloat16() -> None:
    """Why an fp32 folder does not list CUDA, and a bf16 folder nothing else."""
    assert supported("cuda", "com.microsoft", "GroupQueryAttention", "float16")
    assert not supported("cuda", "com.microsoft", "GroupQueryAttention", "float32")
    assert supported("cuda", "com.microsoft", "GroupQueryAttention", "bfloat16")
    assert not any(supported("cpu", domain, op_type, "bfloat16") for domain, op_type in _FLOAT_KERNELS["cpu"])
    assert not _installed("com.microsoft", "GroupQueryAttention", "bfloat16")
    assert TARGETS["ort"].providers == {
        "float32": ("cpu",),
        "float16": ("cpu", "cuda"),
        "bfloat16": ("cuda",),
    }


def test_only_the_cpu_widens() -> None:
    assert set(_WIDENED) == {"cpu"}
    # both providers know the same operators: a graph is one structure
    assert set(_FLOAT_KERNELS["cpu"]) == set(_FLOAT_KERNELS["cuda"])
    narrow = {name for name, dtypes in _FLOAT_KERNELS["cuda"].items() if not {"float16", "bfloat16"} <= dtypes}
    # of rotary angles, which are float32 whatever the activations are
    assert narrow == {("", "Cos"), ("", "Sin")}
    assert all("float32" in _FLOAT_KERNELS["cuda"][name] for name in narrow)


@pytest.mark.parametrize(
    ("domain", "op_type", "dtype"),
    [
        ("", "Erf", "float32"),
        ("gemma", "RMSNorm", "float32"),
        ("com.microsoft", "MatMul", "float32"),
        ("", "GroupQueryAttention", "float32"),
        ("", "MatMul", "bfloat16"),
        ("", "MatMul", "float64"),
        ("", "MatMul", "int64"),
        ("gemma", "Add", "int64"),
        ("", "NonZero", "int64"),
    ],
)
def test_everything_else_is_refused(domain: str, op_type: str, dtype: str) -> None:
    assert not supported("cpu", domain, op_type, dtype)
    assert not supported("cuda", domain, op_type, dtype)
