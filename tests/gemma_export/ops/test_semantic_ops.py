"""Each semantic operator: its function body on onnxruntime equals its eager torch function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
import tolerances
import torch

from gemma_export import ops
from gemma_export.config import Rotary
from gemma_export.nn import rotary_tables
from gemma_export.ops import DOMAIN, SEMANTIC_OPS


def run_body(
    name: str, inputs: Sequence[torch.Tensor], attributes: Mapping[str, object], num_outputs: int = 1
) -> list[np.ndarray]:
    """Runs a one-node model of a semantic operator with its function body attached."""
    arrays = [tensor.numpy() for tensor in inputs]
    names = [f"x{index}" for index in range(len(arrays))]
    outputs = [f"y{index}" for index in range(num_outputs)]
    node = onnx.helper.make_node(name, names, outputs, domain=DOMAIN, **attributes)
    float_type = onnx.helper.np_dtype_to_tensor_dtype(next(a for a in arrays if a.dtype.kind == "f").dtype)
    graph = onnx.helper.make_graph(
        [node],
        "one node",
        [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
            for n, a in zip(names, arrays, strict=True)
        ],
        # every operator's outputs have the rank of its first input, the cache has four dimensions
        [onnx.helper.make_tensor_value_info(n, float_type, [None] * (4 if n != "y0" else 3)) for n in outputs],
    )
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, 1)]
    function = SEMANTIC_OPS[name].function.to_function_proto()
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, arrays, strict=True)))


def assert_equal(found: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=tolerances.ONE_OPERATOR)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_rms_norm() -> None:
    x, weight = torch.randn(2, 3, 24) * 5, torch.randn(24)
    expected = ops.rms_norm(x, weight, epsilon=1e-2)
    assert_equal(run_body("RMSNorm", (x, weight), {"epsilon": 1e-2})[0], expected)
    by_hand = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * (1 + weight)
    assert_equal(by_hand.numpy(), expected)


def test_rms_norm_is_float32_inside() -> None:
    """Squares of half-precision values beyond 256 overflow in half precision."""
    x, weight = (torch.randn(1, 2, 32) * 2000).half(), torch.randn(32).half()
    found = run_body("RMSNorm", (x, weight), {"epsilon": 1e-6})[0]
    expected = ops.rms_norm(x.float(), weight.float(), epsilon=1e-6)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32), expected.numpy(), rtol=2**-10, atol=2**-10)


def test_head_norm() -> None:
    x, weight = torch.randn(2, 3, 24) * 5, torch.randn(8)
    expected = ops.head_norm(x, weight, num_heads=3, epsilon=1e-2)
    assert_equal(run_body("HeadNorm", (x, weight), {"num_heads": 3, "epsilon": 1e-2})[0], expected)
    second = ops.rms_norm(x[..., 8:16], weight, epsilon=1e-2)
    assert_equal(expected[..., 8:16].numpy(), second)


def test_head_norm_is_float32_inside() -> None:
    x, weight = (torch.randn(1, 2, 32) * 2000).half(), torch.randn(16).half()
    found = run_body("HeadNorm", (x, weight), {"num_heads": 2, "epsilon": 1e-6})[0]
    expected = ops.head_norm(x.float(), weight.float(), num_heads=2, epsilon=1e-6)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32), expected.numpy(), rtol=2**-10, atol=2**-10)


def test_soft_cap() -> None:
    x = torch.linspace(-90, 90, 61).view(1, 1, -1)
    expected = ops.soft_cap(x, cap=30.0)
    assert_equal(run_body("SoftCap", (x,), {"cap": 30.0})[0], expected)
    assert float(expected.abs().max()) < 30
    # nearly the identity in the middle
    assert float((expected - x)[..., 29:32].abs().max()) < 0.01


def test_geglu_is_the_tanh_approximation() -> None:
    gate, up = torch.linspace(-6, 6, 97).view(1, 1, -1), torch.randn(1, 1, 97)
    expected = ops.geglu(gate, up)
    assert_equal(run_body("GeGLU", (gate, up), {})[0], expected)
    erf = torch.nn.functional.gelu(gate) * up
    assert (erf - expected).abs().max() > 10 * tolerances.ONE_OPERATOR


def test_linear() -> None:
    x, weight = torch.randn(2, 3, 8), torch.randn(5, 8)
    assert_equal(run_body("Linear", (x, weight), {})[0], ops.linear(x, weight))


def test_residual_add() -> None:
    stream, branch = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    assert_equal(
        run_body("ResidualAdd", (stream, branch), {})[0],
        ops.residual_add(stream, branch, point="layers.0.attn_residual"),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scaled_embedding_casts_the_scale(dtype: torch.dtype) -> None:
    ids, table = torch.randint(0, 11, (2, 5)), torch.randn(11, 6).to(dtype)
    scale = 3072**0.5
    expected = ops.scaled_embedding(ids, table, scale=scale)
    found = run_body("ScaledEmbedding", (ids, table), {"scale": scale})[0]
    np.testing.assert_array_equal(found, expected.numpy())
    np.testing.assert_array_equal(expected.numpy(), (table[ids] * torch.tensor(scale).to(dtype)).numpy())


@pytest.mark.parametrize("keep", [0, 1, 3, 9])
def test_last_tokens(keep: int) -> None:
    hidden = torch.randn(4, 5, 2)
    # a cache of three columns before; padded left, right, not at all, and everywhere
    mask = torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0], [1] * 8, [1, 1, 1, 0, 0, 0, 0, 0]])
    expected = ops.last_tokens(hidden, mask, keep=keep)
    assert_equal(run_body("LastTokens", (hidden, mask), {"keep": keep})[0], expected)
    if keep == 1:
        assert torch.equal(expected[:, 0], hidden[range(4), [4, 1, 4, 4]])
    if keep == 0:
        assert torch.equal(expected, hidden)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_attention(softcap: float, window: int, padding: str) -> None:
    batch, sequence, past, heads, kv_heads, head_dim = 2, 6, 4, 4, 2, 16
    query = torch.randn(batch, sequence, heads * head_dim) * 2
    key, value = (torch.randn(batch, sequence, kv_heads * head_dim) for _ in range(2))
    past_key, past_value = (torch.randn(batch, kv_heads, past, head_dim) for _ in range(2))
    mask = torch.ones(batch, past + sequence, dtype=torch.int64)
    if padding == "left":
        mask[1, :3] = 0
    if padding == "right":
        mask[1, -2:] = 0
    cos, sin = rotary_tables(positions=32, head_dim=head_dim, rotary=Rotary(theta=100.0, factor=1.0))
    attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": 0.3, "softcap": softcap, "window": window}
    inputs = (query, key, value, past_key, past_value, mask, cos, sin)
    expected = ops.attention(*inputs, **attributes)
    found = run_body("Attention", inputs, attributes, 3)
    real = mask[:, -sequence:].bool()
    assert_equal(found[0][real.numpy()], expected[0][real])
    assert_equal(found[1], expected[1])
    assert_equal(found[2], expected[2])


def test_attention_by_hand() -> None:
    """One head, no rotation (position 0 only differs), against a loop over keys."""
    query, key, value = torch.randn(1, 1, 4), torch.randn(1, 1, 4), torch.randn(1, 1, 4)
    past_key, past_value = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2, 4)
    cos, sin = torch.ones(8, 2), torch.zeros(8, 2)
    mask = torch.tensor([[0, 1, 1]])
    output, _, _ = ops.attention(
        query, key, value, past_key, past_value, mask, cos, sin, num_heads=1, kv_num_heads=1, scale=0.5, softcap=2.0
    )
    scores = torch.stack([(query[0, 0] * k).sum() * 0.5 for k in (past_key[0, 0, 1], key[0, 0])])
    weights = torch.softmax(2.0 * torch.tanh(scores / 2.0), 0)
    expected = weights[0] * past_value[0, 0, 1] + weights[1] * value[0, 0]
    torch.testing.assert_close(output[0, 0], expected)


def test_every_semantic_op_has_a_registry_line() -> None:
    assert set(SEMANTIC_OPS) == {
        "Attention",
        "GeGLU",
        "HeadNorm",
        "LastTokens",
        "Linear",
        "RMSNorm",
        "ResidualAdd",
        "ScaledEmbedding",
        "SoftCap",
    }
    for name, op in SEMANTIC_OPS.items():
        assert op.function.to_function_proto().name == name
