"""Projections around the attention operator."""

from __future__ import annotations

import dataclasses

import torch

from gemma_export import ops
from gemma_export.nn.norm import HeadNorm
from gemma_export.nn.projection import Projection

__all__ = ["Context", "GroupedQueryAttention"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What every layer of one step shares."""

    # int64 [batch_size, total_sequence_length], 1 for a real token
    attention_mask: torch.Tensor
    # (cosine, sine), [positions, head_dim / 2] each: of layers that see everything, and of those with a window
    rotary: tuple[torch.Tensor, torch.Tensor]
    local_rotary: tuple[torch.Tensor, torch.Tensor]


class GroupedQueryAttention(torch.nn.Module):
    """Query, key and value projections, norms of their heads where there are any, attention, output projection."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        kv_num_heads: int,
        head_dim: int,
        scale: float,
        softcap: float = 0.0,
        window: int = 0,
        # of the norms of query and key heads; None: there are none
        qk_norm_epsilon: float | None = None,
    ) -> None:
        super().__init__()
        self.q_proj = Projection(hidden_size, num_heads * head_dim)
        self.k_proj = Projection(hidden_size, kv_num_heads * head_dim)
        self.v_proj = Projection(hidden_size, kv_num_heads * head_dim)
        self.o_proj = Projection(num_heads * head_dim, hidden_size)
        self.num_heads, self.kv_num_heads = num_heads, kv_num_heads
        self.scale, self.softcap, self.window = scale, softcap, window
        if qk_norm_epsilon is not None:
            self.q_norm = HeadNorm(head_dim, num_heads, epsilon=qk_norm_epsilon)
            self.k_norm = HeadNorm(head_dim, kv_num_heads, epsilon=qk_norm_epsilon)
        self.normalises = qk_norm_epsilon is not None

    def forward(
        self, x: torch.Tensor, context: Context, past_key: torch.Tensor, past_value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attends; shapes as in gemma_export.ops.attention.

        Returns:
            The branch's output [batch_size, sequence_length, hidden_size], present key, present value.
        """
        query, key = self.q_proj(x), self.k_proj(x)
        if self.normalises:
            query, key = self.q_norm(query), self.k_norm(key)
        output, present_key, present_value = ops.attention(
            query,
            key,
            self.v_proj(x),
            past_key,
            past_value,
            context.attention_mask,
            *(context.local_rotary if self.window else context.rotary),
            num_heads=self.num_heads,
            kv_num_heads=self.kv_num_heads,
            scale=self.scale,
            softcap=self.softcap,
            window=self.window,
        )
        return self.o_proj(output), present_key, present_value
