"""Causal attention with rotary embedding, grouped heads, a key-value cache, an optional window and softcap.

The cache of this op keeps the columns of the attention mask; positions count the real tokens before a column,
so padding on either side changes nothing.
Source: https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (GemmaAttention, apply_rotary_emb),
https://onnx.ai/onnx/operators/onnx__Attention.html and https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html.
"""

from __future__ import annotations

import torch
from onnxscript import BOOL, script
from onnxscript import opset23 as op

from gemma_export.ops.semantic import OPSET, SemanticOp, is_tracing
from gemma_export.ops.taps import tap

__all__ = ["ATTENTION", "attention", "rotate"]

# B: batch_size, S: sequence_length, P: past_sequence_length, T: P + S, N: query heads, K: key-value heads, D: head_dim


@script(OPSET, default_opset=op)
def Attention(  # type: ignore[no-untyped-def]
    query_BSM,
    key_BSM,
    value_BSM,
    past_key,
    past_value,
    mask_BT,
    cos_cache,
    sin_cache,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
):
    sequence = op.Shape(query_BSM, start=1, end=2)
    total = op.Shape(mask_BT, start=1, end=2)
    one = op.Constant(value_ints=[1])
    far = op.Constant(value_ints=[9223372036854775807])
    # a token's position is the number of real tokens before it
    position_BT = op.Max(op.Sub(op.CumSum(mask_BT, op.Constant(value_int=1)), one), op.Constant(value_ints=[0]))
    position_BS = op.Slice(position_BT, op.Neg(sequence), far, one)

    query = op.RotaryEmbedding(query_BSM, cos_cache, sin_cache, position_BS, num_heads=num_heads)
    key = op.RotaryEmbedding(key_BSM, cos_cache, sin_cache, position_BS, num_heads=kv_num_heads)

    column_T = op.Range(op.Constant(value_int=0), op.Squeeze(total), op.Constant(value_int=1))
    row_S1 = op.Unsqueeze(op.Slice(column_T, op.Neg(sequence), far), one)
    causal_ST = op.LessOrEqual(column_T, row_S1)
    distance_BST = op.Sub(
        op.Unsqueeze(position_BS, op.Constant(value_ints=[2])), op.Unsqueeze(position_BT, op.Constant(value_ints=[1]))
    )
    limit = op.Constant(value_int=window)
    near_BST = op.Or(op.LessOrEqual(limit, op.Constant(value_int=0)), op.Less(distance_BST, limit))
    real_B1T = op.Unsqueeze(op.Cast(mask_BT, to=BOOL.dtype), op.Constant(value_ints=[1]))
    visible_BST = op.And(op.And(causal_ST, near_BST), real_B1T)
    # a padding row sees itself: an empty row of the softmax would be NaN
    visible_BST = op.Or(visible_BST, op.Equal(column_T, row_S1))
    output, present_key, present_value = op.Attention(
        query,
        key,
        value_BSM,
        op.Unsqueeze(visible_BST, op.Constant(value_ints=[1])),
        past_key,
        past_value,
        q_num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        scale=scale,
        softcap=softcap,
    )
    return output, present_key, present_value


ATTENTION = SemanticOp(name="Attention", function=Attention)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates channel i with channel i + D/2 (the halves layout, not the interleaved one).

    Args:
        x: [batch_size, heads, sequence_length, D].
        cos, sin: [batch_size, sequence_length, D / 2].
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    attention_mask: torch.Tensor,
    cos_cache: torch.Tensor,
    sin_cache: torch.Tensor,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of a chunk over the cache and itself.

    Args:
        query: [batch_size, sequence_length, num_heads * head_dim], before rotary embedding.
        key, value: [batch_size, sequence_length, kv_num_heads * head_dim].
        past_key, past_value: [batch_size, kv_num_heads, past_sequence_length, head_dim].
        attention_mask: int64 [batch_size, past_sequence_length + sequence_length], 1 for a real token.
        cos_cache, sin_cache: [positions, head_dim / 2].
        scale: factor on the query-key products.
        softcap: softcap * tanh(scores / softcap) before the mask; 0 means none.
        window: a token sees the window - 1 positions before it; 0 means all.

    Returns:
        The output [batch_size, sequence_length, num_heads * head_dim] and the grown cache (key, value).
    """
    if is_tracing():
        attributes = {
            "num_heads": num_heads,
            "kv_num_heads": kv_num_heads,
            "scale": scale,
            "softcap": softcap,
            "window": window,
        }
        total = attention_mask.shape[1]
        state_shape = (query.shape[0], kv_num_heads, total, past_key.shape[3])
        inputs = (query, key, value, past_key, past_value, attention_mask, cos_cache, sin_cache)
        output, present_key, present_value = ATTENTION.node_multi(
            inputs, attributes, (query.shape, state_shape, state_shape)
        )
        return output, present_key, present_value

    batch, sequence, _ = query.shape
    position_BT = (attention_mask.cumsum(1) - 1).clamp(min=0)
    position_BS = position_BT[:, -sequence:]
    cos, sin = cos_cache[position_BS], sin_cache[position_BS]
    query_BNSD = rotate(query.view(batch, sequence, num_heads, -1).transpose(1, 2), cos, sin)
    key_BKSD = rotate(key.view(batch, sequence, kv_num_heads, -1).transpose(1, 2), cos, sin)
    value_BKSD = value.view(batch, sequence, kv_num_heads, -1).transpose(1, 2)
    tap("attention.key", key_BKSD)
    tap("attention.value", value_BKSD)
    present_key = torch.cat((past_key, key_BKSD), dim=2)
    present_value = torch.cat((past_value, value_BKSD), dim=2)

    groups = num_heads // kv_num_heads
    scores = query_BNSD @ present_key.repeat_interleave(groups, 1).transpose(2, 3) * scale
    tap("attention.scores", scores)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    column_T = torch.arange(attention_mask.shape[1])
    row_S1 = column_T[-sequence:, None]
    visible = (column_T <= row_S1) & attention_mask[:, None].bool()
    if window > 0:
        visible = visible & (position_BS[:, :, None] - position_BT[:, None] < window)
    visible = visible | (column_T == row_S1)
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    # softmax in float32, as the reference takes it
    weights = torch.softmax(scores.float(), dim=-1).to(query.dtype)
    output = weights @ present_value.repeat_interleave(groups, 1)
    return output.transpose(1, 2).reshape(batch, sequence, -1), present_key, present_value
