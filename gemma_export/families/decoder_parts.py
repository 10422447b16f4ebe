"""Names, shapes and states that the decoders of several families share."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from gemma_export.config import CacheState, DecoderSpec

if TYPE_CHECKING:
    from gemma_export.nn import Decoder, PostNormLayer, PreNormLayer

__all__ = ["build_decoder", "decoder_tensors", "key_value_states"]

# the norm before the MLP in Gemma 1's words, which later families use for the norm behind attention
_MLP_NORM = "post_attention_layernorm"
# norms over the hidden state around attention and around the MLP, in the checkpoint's words
_POST_NORMS = (
    ("input_layernorm",),
    ("post_attention_layernorm", "pre_feedforward_layernorm"),
    ("post_feedforward_layernorm",),
)


def decoder_tensors(spec: DecoderSpec, *, mlp_norm: str = _MLP_NORM) -> dict[str, tuple[int, ...]]:
    """Checkpoint tensor name -> shape, in the order of the computation.

    Args:
        spec: the architecture.
        mlp_norm: what a checkpoint without post-norms calls the norm before the MLP.
    """
    before, between, behind = _POST_NORMS if spec.post_norms else (("input_layernorm",), (mlp_norm,), ())
    hidden, ffn = spec.hidden_size, spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for layer in range(spec.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        own: dict[str, tuple[int, ...]] = {f"{prefix}.{norm}.weight": (hidden,) for norm in before}
        own |= {
            f"{prefix}.self_attn.q_proj.weight": (spec.query_size, hidden),
            f"{prefix}.self_attn.k_proj.weight": (spec.key_value_size, hidden),
            f"{prefix}.self_attn.v_proj.weight": (spec.key_value_size, hidden),
        }
        if spec.qk_norm:
            own |= {f"{prefix}.self_attn.{part}_norm.weight": (spec.head_dim,) for part in "qk"}
        own[f"{prefix}.self_attn.o_proj.weight"] = (hidden, spec.query_size)
        own |= {f"{prefix}.{norm}.weight": (hidden,) for norm in between}
        own |= {
            f"{prefix}.mlp.gate_proj.weight": (ffn, hidden),
            f"{prefix}.mlp.up_proj.weight": (ffn, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, ffn),
        }
        own |= {f"{prefix}.{norm}.weight": (hidden,) for norm in behind}
        shapes |= own
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes


def key_value_states(spec: DecoderSpec) -> tuple[CacheState, ...]:
    """Keys and values of every layer."""
    return tuple(
        CacheState(
            kind="key_value",
            layer=layer,
            past_names=(f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"),
            present_names=(f"present.{layer}.key", f"present.{layer}.value"),
            num_heads=spec.num_key_value_heads,
            head_dim=spec.head_dim,
            window=spec.windows[layer],
        )
        for layer in range(spec.num_hidden_layers)
    )


def build_decoder(spec: DecoderSpec, *, mlp_norm: str = _MLP_NORM) -> Decoder:
    """The torch decoder that a specification describes; parameters are uninitialised.

    Args:
        spec: the architecture.
        mlp_norm: as in `decoder_tensors`.
    """
    from gemma_export.nn import (
        Decoder,
        GatedMLP,
        GroupedQueryAttention,
        PostNormLayer,
        PreNormLayer,
        rotary_tables,
    )

    kind = PostNormLayer if spec.post_norms else functools.partial(PreNormLayer, mlp_norm=mlp_norm)

    def layer(index: int) -> PostNormLayer | PreNormLayer:
        return kind(
            index,
            attention=GroupedQueryAttention(
                hidden_size=spec.hidden_size,
                num_heads=spec.num_attention_heads,
                kv_num_heads=spec.num_key_value_heads,
                head_dim=spec.head_dim,
                scale=spec.attention_scale,
                softcap=spec.attention_softcap,
                window=spec.windows[index],
                qk_norm_epsilon=spec.rms_norm_eps if spec.qk_norm else None,
            ),
            mlp=GatedMLP(spec.hidden_size, spec.intermediate_size),
            hidden_size=spec.hidden_size,
            epsilon=spec.rms_norm_eps,
        )

    return Decoder(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_hidden_layers,
        epsilon=spec.rms_norm_eps,
        tie_word_embeddings=spec.tie_word_embeddings,
        layer=layer,
        rotary={
            suffix: rotary_tables(positions=spec.max_position_embeddings, head_dim=spec.head_dim, rotary=rotary)
            for suffix, rotary in spec.rotary_tables.items()
        },
        softcap=spec.final_softcap,
    )
