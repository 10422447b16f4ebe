"""The last real positions of each row: logits nobody reads are never computed.

"Last" honours the attention mask, so it is right for rows padded on either side.
"""

from __future__ import annotations

import torch
from onnxscript import INT64, script
from onnxscript import opset23 as op

from gemma_export.ops.semantic import OPSET, SemanticOp, is_tracing

__all__ = ["LAST_TOKENS", "last_tokens"]

# B: batch_size, S: sequence_length, T: total_sequence_length, N: positions kept


@script(OPSET, default_opset=op)
def LastTokens(hidden_BSH, mask_BT, keep: int):  # type: ignore[no-untyped-def]
    one = op.Constant(value_ints=[1])
    sequence = op.Shape(hidden_BSH, start=1, end=2)
    wanted = op.Reshape(op.Constant(value_int=keep), one)
    count = op.Where(op.Greater(wanted, op.Constant(value_ints=[0])), op.Min(wanted, sequence), sequence)
    # the chunk's own columns are the last S of the mask
    own_BS = op.Slice(mask_BT, op.Neg(sequence), op.Constant(value_ints=[9223372036854775807]), one)
    last_B1 = op.ArgMax(op.Cast(own_BS, to=INT64.dtype), axis=1, keepdims=1, select_last_index=1)
    # keep = 0 keeps every column in place
    end_B1 = op.Where(op.Greater(wanted, op.Constant(value_ints=[0])), last_B1, op.Sub(sequence, one))
    zero_scalar = op.Constant(value_int=0)
    offsets_N = op.Sub(op.Range(zero_scalar, op.Squeeze(count), op.Constant(value_int=1)), op.Sub(count, one))
    index_BN = op.Max(op.Add(end_B1, offsets_N), op.Constant(value_ints=[0]))
    return op.GatherND(hidden_BSH, op.Unsqueeze(index_BN, op.Constant(value_ints=[2])), batch_dims=1)


LAST_TOKENS = SemanticOp(name="LastTokens", function=LastTokens)


def last_tokens(hidden: torch.Tensor, attention_mask: torch.Tensor, *, keep: int) -> torch.Tensor:
    """The last min(keep, sequence_length) real positions of each row, right-aligned; keep = 0 keeps all in place.

    Args:
        hidden: [batch_size, sequence_length, hidden_size].
        attention_mask: int64 [batch_size, total_sequence_length].
        keep: number of positions, or 0. Slots before a row's first real token are unspecified.

    Returns:
        [batch_size, min(keep, sequence_length) or sequence_length, hidden_size].
    """
    sequence = hidden.shape[1]
    if is_tracing():
        # the traced shape says "all": one trace serves every choice, which only changes the attribute
        return LAST_TOKENS.node((hidden, attention_mask), {"keep": keep}, hidden.shape)
    if keep == 0:
        return hidden
    own = attention_mask[:, -sequence:]
    positions = torch.arange(sequence)
    last = torch.where(own.bool().any(1), (own * (positions + 1)).argmax(1), sequence - 1)
    count = min(keep, sequence)
    index = (last[:, None] + torch.arange(count) - (count - 1)).clamp(min=0)
    return torch.gather(hidden, 1, index[:, :, None].expand(-1, -1, hidden.shape[2]))
