"""Typed architecture specifications: what a config.json says, with no default for an architecture number.

Torch-free, so that `--help`, `variants` and `--dry-run` stay instant.
"""

from __future__ import annotations

import dataclasses

__all__ = ["CacheState", "DecoderSpec", "Rotary"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
    """How positions turn queries and keys: by position / factor * theta ** (-2 i / head_dim) in channel pair i."""

    theta: float
    # of linear scaling; 1 leaves positions as they are
    factor: float


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
    # factor on query-key products (query_pre_attn_scalar ** -0.5); head_dim ** -0.5 in Gemma 1
    attention_scale: float
    # softcap * tanh(products / softcap) before the mask; 0 where the architecture has none
    attention_softcap: float
    # the same of the logits
    final_softcap: float
    # layer -> positions that a token sees, its own counted; 0 means all of them
    windows: tuple[int, ...]
    # rotary embedding of layers that see everything, and of those with a window
    rotary: Rotary
    local_rotary: Rotary
    # each branch is normalised before it is added to the residual stream
    post_norms: bool
    # each query and key head is normalised before it is rotated
    qk_norm: bool
    # contexts so long that steps compute the rows of the rotary tables that they need, where the target allows that
    computes_rotary: bool
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

    def rotary_of(self, layer: int) -> Rotary:
        """The rotary embedding of a layer."""
        return self.local_rotary if self.windows[layer] else self.rotary

    @property
    def rotary_tables(self) -> dict[str, Rotary]:
        """Suffix of the tables' names -> the embedding that they are of: "" and, where layers differ, "_local"."""
        used = {self.rotary_of(layer) for layer in range(self.num_hidden_layers)}
        if len(used) == 1:
            return {"": next(iter(used))}
        return {"": self.rotary, "_local": self.local_rotary}


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
    # positions that a token of this layer sees, its own counted; 0 means all of them
    window: int
