"""The decoder that all families share: embedding, layers, final norm, last positions, head."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from gemma_export import ops
from gemma_export.nn.attention import Context, GroupedQueryAttention
from gemma_export.nn.mlp import GatedMLP
from gemma_export.nn.norm import RMSNorm
from gemma_export.nn.projection import Projection

__all__ = ["Decoder", "LayerFactory", "PostNormLayer", "PreNormLayer"]

# builds layer i
LayerFactory = Callable[[int], torch.nn.Module]
# (key, value), each [batch_size, kv_heads, sequence, head_dim]
KeyValue = tuple[torch.Tensor, torch.Tensor]


class PreNormLayer(torch.nn.Module):
    """Gemma 1's layer: norm, attention, add; norm, MLP, add."""

    def __init__(
        self,
        index: int,
        *,
        attention: GroupedQueryAttention,
        mlp: GatedMLP,
        hidden_size: int,
        epsilon: float,
        # checkpoints differ in what they call the norm before the MLP
        mlp_norm: str = "post_attention_layernorm",
    ) -> None:
        super().__init__()
        self.index = index
        self.self_attn = attention
        self.mlp = mlp
        self.mlp_norm = mlp_norm
        self.input_layernorm = RMSNorm(hidden_size, epsilon=epsilon)
        self.add_module(mlp_norm, RMSNorm(hidden_size, epsilon=epsilon))

    def forward(self, x: torch.Tensor, context: Context, past: KeyValue) -> tuple[torch.Tensor, KeyValue]:
        """[batch_size, sequence_length, hidden_size] -> the same, and the grown cache."""
        branch, key, value = self.self_attn(self.input_layernorm(x), context, *past)
        x = ops.residual_add(x, branch, point=f"layers.{self.index}.attn_residual")
        branch = self.mlp(self.get_submodule(self.mlp_norm)(x))
        return ops.residual_add(x, branch, point=f"layers.{self.index}.mlp_residual"), (key, value)


class PostNormLayer(torch.nn.Module):
    """Gemma 2's layer: norm, attention, norm, add; norm, MLP, norm, add."""

    def __init__(
        self, index: int, *, attention: GroupedQueryAttention, mlp: GatedMLP, hidden_size: int, epsilon: float
    ) -> None:
        super().__init__()
        self.index = index
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = RMSNorm(hidden_size, epsilon=epsilon)
        self.post_attention_layernorm = RMSNorm(hidden_size, epsilon=epsilon)
        self.pre_feedforward_layernorm = RMSNorm(hidden_size, epsilon=epsilon)
        self.post_feedforward_layernorm = RMSNorm(hidden_size, epsilon=epsilon)

    def forward(self, x: torch.Tensor, context: Context, past: KeyValue) -> tuple[torch.Tensor, KeyValue]:
        """[batch_size, sequence_length, hidden_size] -> the same, and the grown cache."""
        branch, key, value = self.self_attn(self.input_layernorm(x), context, *past)
        branch = self.post_attention_layernorm(branch)
        x = ops.residual_add(x, branch, point=f"layers.{self.index}.attn_residual")
        branch = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return ops.residual_add(x, branch, point=f"layers.{self.index}.mlp_residual"), (key, value)


class Embedding(torch.nn.Module):
    """Scaled token embedding; its table is also the tied head's weight."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(vocab_size, hidden_size), requires_grad=False)
        self.scale = float(hidden_size) ** 0.5

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int64 [batch_size, sequence_length] -> [batch_size, sequence_length, hidden_size]."""
        return ops.scaled_embedding(input_ids, self.weight, scale=self.scale)


class Backbone(torch.nn.Module):
    """Everything below the head; exists so that parameter names equal the checkpoints' (`model.*`)."""

    def __init__(
        self, *, vocab_size: int, hidden_size: int, num_layers: int, epsilon: float, layer: LayerFactory
    ) -> None:
        super().__init__()
        self.embed_tokens = Embedding(vocab_size, hidden_size)
        self.layers = torch.nn.ModuleList(layer(index) for index in range(num_layers))
        self.norm = RMSNorm(hidden_size, epsilon=epsilon)

    def forward(
        self, input_ids: torch.Tensor, context: Context, past: list[KeyValue]
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        """Token ids -> normalised hidden states of every position, and the grown cache."""
        x = self.embed_tokens(input_ids)
        present = []
        for layer, layer_past in zip(self.layers, past, strict=True):
            x, layer_present = layer(x, context, layer_past)
            present.append(layer_present)
        return self.norm(x), present


class Decoder(torch.nn.Module):
    """A decoder with a key-value cache going in and coming out."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        num_layers: int,
        epsilon: float,
        tie_word_embeddings: bool,
        layer: LayerFactory,
        # suffix -> (cosine, sine), as DecoderSpec.rotary_tables names them
        rotary: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
        # of the logits; 0 means none
        softcap: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = Backbone(
            vocab_size=vocab_size, hidden_size=hidden_size, num_layers=num_layers, epsilon=epsilon, layer=layer
        )
        self.lm_head = Projection(hidden_size, vocab_size)
        if tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.softcap = softcap
        for suffix, (cos, sin) in rotary.items():
            self.register_buffer(f"cos_cache{suffix}", cos, persistent=False)
            self.register_buffer(f"sin_cache{suffix}", sin, persistent=False)
        self.local_suffix = "_local" if "_local" in rotary else ""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: list[KeyValue], keep: int = 0
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        """One step: prefill, a chunk of it, or one decoded token.

        Args:
            input_ids: int64 [batch_size, sequence_length].
            attention_mask: int64 [batch_size, past_sequence_length + sequence_length], 1 for a real token.
            past: per layer (key, value), each [batch_size, kv_heads, past_sequence_length, head_dim].
            keep: number of last real positions that get logits; 0 means all.

        Returns:
            logits [batch_size, min(keep, sequence_length) or sequence_length, vocab_size] and the grown cache.
        """
        context = Context(
            attention_mask=attention_mask,
            rotary=self._tables(""),
            local_rotary=self._tables(self.local_suffix),
        )
        hidden, present = self.model(input_ids, context, past)
        logits = self.lm_head(ops.last_tokens(hidden, attention_mask, keep=keep))
        return ops.soft_cap(logits, cap=self.softcap) if self.softcap else logits, present

    def _tables(self, suffix: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.get_buffer(f"cos_cache{suffix}"), self.get_buffer(f"sin_cache{suffix}")

    def empty_cache(self, batch_size: int) -> list[KeyValue]:
        """The cache before the first token: [batch_size, kv_heads, 0, head_dim] per layer."""
        cache = []
        for layer in self.model.layers:
            attention = layer.get_submodule("self_attn")
            assert isinstance(attention, GroupedQueryAttention)
            head_dim = attention.k_proj.weight.shape[0] // attention.kv_num_heads
            empty = attention.k_proj.weight.new_empty(batch_size, attention.kv_num_heads, 0, head_dim)
            cache.append((empty, empty.clone()))
        return cache
