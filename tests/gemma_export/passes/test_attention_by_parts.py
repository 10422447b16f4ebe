"""AttentionByParts: the parts of attention that a kernel would drop, over rows that are compacted."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from graphs import (
    LAYERS,
    PADDINGS,
    Unoptimised,
    apply,
    assert_same,
    assert_unchanged,
    batch,
    count,
    deviation,
    find,
    run_steps,
    semantic_model,
    set_attribute,
    value,
)

from gemma_export.errors import PassError
from gemma_export.passes import AlignRows, AttentionByParts, FuseAttentionRotaryOutside, SelectLogits
from gemma_export.precision import PRECISIONS
from gemma_export.targets import TARGETS

_ATTENTION = "model.layers.1.self_attn.Attention"
_REFUSES = f"AttentionByParts refuses {_ATTENTION} \\(Attention\\): "


def limited(*, scale: float = 0.25, softcap: float = 0.5, window: int = 3) -> ir.Model:
    model = semantic_model()
    for name, number in (("scale", scale), ("softcap", softcap), ("window", window)):
        set_attribute(model, "Attention", name, number)
    return model


def _by_parts(model: ir.Model) -> ir.Model:
    return apply(model, AlignRows(), AttentionByParts(), SelectLogits(0))


@pytest.mark.parametrize("padding", sorted(PADDINGS))
@pytest.mark.parametrize(
    ("scale", "softcap", "window"), [(0.25, 0.5, 0), (0.75, 0.0, 3), (0.25, 0.5, 1), (0.3, 0.7, 4), (0.25, 0.0, 100)]
)
def test_same_numbers(padding: str, scale: float, softcap: float, window: int) -> None:
    semantic = limited(scale=scale, softcap=softcap, window=window)
    assert_same(_by_parts(semantic.clone()), semantic, padding)


@pytest.mark.parametrize(("name", "number"), [("window", 4), ("softcap", 0.6), ("scale", 0.3)])
def test_the_comparison_above_notices_another_attribute(name: str, number: float) -> None:
    models = (limited(), limited(**{name: number}))
    found, expected = (run_steps(_by_parts(model)).real("none") for model in models)
    assert deviation(found, expected) > 100 * tolerances.FP32_LOGITS


@pytest.mark.parametrize("other", [0, 1])
def test_a_layer_without_limits_keeps_the_kernel(other: int) -> None:
    """Whichever of the two comes first: positions are computed before the first."""
    semantic = limited()
    node = find(semantic, f"model.layers.{other}.self_attn.Attention")
    node.attributes["softcap"], node.attributes["window"] = ir.AttrFloat32("softcap", 0.0), ir.AttrInt64("window", 0)
    model = apply(semantic.clone(), AlignRows(), FuseAttentionRotaryOutside(unlimited=True), AttentionByParts())
    assert count(model, "GroupQueryAttention", "com.microsoft") == count(model, "Softmax") == 1
    apply(model, SelectLogits(0))
    for padding in ("left", "mixed"):
        assert_same(model, semantic, padding)


def test_index_arithmetic_and_masks_are_made_once() -> None:
    semantic = limited()
    model = apply(semantic, AlignRows(), AttentionByParts())
    assert count(model, "Softmax") == LAYERS
    assert count(model, "FusedMatMul", "com.microsoft") == count(model, "GatherND") == 2 * LAYERS
    assert count(model, "Expand") == count(model, "LessOrEqual") == 1
    # rows before the first layer, sources and the window
    assert count(model, "Less") == 2
    assert count(model, "RotaryEmbedding", "com.microsoft") == 2 * LAYERS


def test_outputs_keep_their_names_and_shapes() -> None:
    semantic = limited()
    names = [output.name for output in semantic.graph.outputs]
    model = apply(semantic, AlignRows(), AttentionByParts())
    assert [output.name for output in model.graph.outputs] == names
    assert str(value(model, "present.1.key").shape) == "[batch_size,2,total_sequence_length,16]"


def test_chunks_after_a_padded_batch() -> None:
    """Several tokens at once for rows of different lengths, some of which have none."""
    semantic = limited()
    model = _by_parts(semantic.clone())
    ids, mask = batch("right")
    more = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    mask = np.concatenate((mask, more), axis=1)
    tokens = np.arange(5, 17).reshape(3, 4)
    found = []
    for graph in (Unoptimised(model), Unoptimised(semantic)):
        _, present = graph.step(ids, mask[:, :7])
        logits, _ = graph.step(tokens, mask, present)
        found.append(logits[more == 1])
    assert deviation(*found) <= tolerances.FP32_LOGITS


def test_a_buffer_of_full_capacity_is_past_and_present() -> None:
    """As runtimes bind it: longer than the mask, what lies behind the tokens does not matter."""
    graph = Unoptimised(_by_parts(limited()))
    ids, mask = batch("mixed")
    expected, grown = graph.step(ids, mask)
    junk = [np.full((3, *tensor.shape[1:2], 20, *tensor.shape[3:]), 3.0, np.float32) for tensor in grown]
    found, buffers = graph.step(ids, mask, junk)
    assert {buffer.shape[2] for buffer in buffers} == {20}
    real = mask == 1
    assert deviation(found[real], expected[real]) <= tolerances.FP32_LOGITS
    for buffer, tensor in zip(buffers, grown, strict=True):
        for row, length in enumerate(mask.sum(1)):
            assert np.array_equal(buffer[row, :, :length], tensor[row, :, :length])
    token, mask = np.array([[5], [6], [7]]), np.concatenate((mask, np.ones((3, 1), int)), axis=1)
    assert deviation(graph.step(token, mask, buffers)[0], graph.step(token, mask, grown)[0]) <= tolerances.FP32_LOGITS


def test_softmax_is_float32_whatever_the_activations_are() -> None:
    target = TARGETS["directml"]
    model = limited()
    target.lower(model)
    PRECISIONS["fp16"].apply(model)
    apply(model, AttentionByParts())
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}.self_attn"
        widened, narrowed = (find(model, f"{prefix}.{name}.Cast") for name in ("products_float32", "weights_cast"))
        casts = [node.attributes["to"].value for node in (widened, narrowed)]
        assert casts == [ir.DataType.FLOAT, ir.DataType.FLOAT16]
        assert [use.node.name for use in widened.outputs[0].uses()] == [f"{prefix}.shares.Div"]
        assert narrowed.inputs[0] is find(model, f"{prefix}.weights.Softmax").outputs[0]
    products = [node for node in model.graph if node.op_type == "FusedMatMul"]
    assert {tensor.dtype for node in products for tensor in node.inputs if tensor} == {ir.DataType.FLOAT16}
    constants = [tensor for name, tensor in model.graph.initializers.items() if name.startswith("attention.")]
    assert {tensor.dtype for tensor in constants} == {ir.DataType.FLOAT, ir.DataType.INT64}


def test_a_node_without_limits_is_left() -> None:
    model = apply(semantic_model(), AlignRows())
    assert_unchanged(model, AttentionByParts())
    assert count(model, "Attention", "gemma") == LAYERS


def test_second_run_changes_nothing() -> None:
    assert_unchanged(_by_parts(limited()), AttentionByParts())


def _refused(model: ir.Model, reason: str) -> None:
    with pytest.raises(PassError, match=_REFUSES + reason):
        AttentionByParts()(model)


def test_refuses_layers_of_different_heads() -> None:
    model = apply(limited(), AlignRows())
    find(model, _ATTENTION).attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", 1)
    _refused(model, r"its heads are \(4, 1\), another layer's \(4, 2\)")


def test_refuses_another_mask() -> None:
    model = apply(limited(), AlignRows())
    find(model, _ATTENTION).replace_input_with(5, model.graph.inputs[0])
    _refused(model, "its mask is input_ids, expected attention_mask")


def test_refuses_an_unknown_attribute() -> None:
    model = apply(limited(), AlignRows())
    find(model, _ATTENTION).attributes["causal"] = ir.AttrInt64("causal", 0)
    with pytest.raises(PassError, match="unknown attribute causal = 0"):
        AttentionByParts()(model)


def test_needs_aligned_rows() -> None:
    with pytest.raises(PassError, match=r"no value called 'rows\.seqlens_k'"):
        AttentionByParts()(limited())


def test_ensures_that_none_is_left() -> None:
    with pytest.raises(PassError, match=f"{LAYERS} Attention nodes left"):
        AttentionByParts().ensures(limited())
