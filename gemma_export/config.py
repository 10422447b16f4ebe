"""Typed architecture specifications: what a config.json says, with no default for an architecture number.

Torch-free, so that `--help`, `variants` and `--dry-run` stay instant.
"""

from __future__ import annotations

import dataclasses
import math

__all__ = ["CacheState", "DecoderSpec"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """One decoder-only Gemma checkpoint, as its config.json describes it."""

    # name in gemma_export.families.FAMILIES
    family: str
    # rows of the embedding table: [vocab_size, hidden_size]
    vocab_size: int
    # width of the residual stream
    hidden_size: int
    # width of ONE of the two feed-forward projections: gate_proj is [intermediate_size, hidden_size]
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    # independent of hidden_size / num_attention_heads (7B: 16 x 256 = 4096 != 3072)
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    # longest sequence, in tokens, that the rotary tables cover
    max_position_embeddings: int
    # the output head is the embedding table itself
    tie_word_embeddings: bool
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    @property
    def query_size(self) -> int:
        """Width of the concatenated query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of the concatenated key (or value) heads."""
        return self.num_key_value_heads * self.head_dim

    @property
    def attention_scale(self) -> float:
        """Factor on query-key products; Gemma 1 uses head_dim ** -0.5.

        Source: https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (GemmaAttention.scaling).
        """
        return 1 / math.sqrt(self.head_dim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheState:
    """One layer's state between two decoder steps.

    Shapes use the symbols of the graph's interface: `batch_size`, `past_sequence_length`, `total_sequence_length`.
    """

    kind: str
    layer: int
    # interface names of the tensors that go in and come out, in the order (key, value)
    past_names: tuple[str, ...]
    present_names: tuple[str, ...]
    # [num_key_value_heads, head_dim]: the static part of [batch_size, heads, sequence, head_dim]
    num_heads: int
    head_dim: int
