"""Defects of the stored weights of floating-point folders."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from gemma_validation.errors import ValidationUsageError
from gemma_validation.mutations.defect import Defect
from gemma_validation.mutations.mutant import Array, Mutant, set_attribute

__all__ = ["WEIGHT_DEFECTS"]

_GAIN, _KEYS_VALUES, _SWAPPED, _NAN, _SHUFFLED, _FLIPPED = 2, 1, (1, 2), 3, 2, 1
_EMBEDDING_SCALE = "model.embed_tokens.scale"
_TABLE = "model.embed_tokens.weight"
# of later families' global layers; Gemma 1 has 1e4
_WRONG_BASE = 1e6
_ROTARY_BASE = 1e4


def _gain_without_one(mutant: Mutant) -> None:
    mutant.write_without_one(f"model.layers.{_GAIN}.input_layernorm")


def _embedding_scale_missing(mutant: Mutant) -> None:
    mutant.write(_EMBEDDING_SCALE, np.ones_like(mutant.tensor(_EMBEDDING_SCALE)))


def _embedding_scale_rounded(mutant: Mutant) -> None:
    """To bfloat16, as models that compute in it have it; these are compared in float32."""
    mutant.write(_EMBEDDING_SCALE, mutant.tensor(_EMBEDDING_SCALE).astype(ml_dtypes.bfloat16))


def _rotary_base(mutant: Mutant) -> None:
    """Tables [positions, head_dim / 2]: angle = position * base^(-2i / head_dim)."""
    positions, half = mutant.tensor("cos_cache").shape
    angles = np.outer(np.arange(positions), _WRONG_BASE ** (-np.arange(half) / half))
    mutant.write("cos_cache", np.cos(angles))
    mutant.write("sin_cache", np.sin(angles))


def _swap_keys_and_values(mutant: Mutant) -> None:
    """Rows of the packed projection: queries, keys, values."""
    name = f"model.layers.{_KEYS_VALUES}.self_attn.qkv_proj.weight"
    weight = mutant.tensor(name)
    _, heads, _, head_dim = mutant.manifest.graph().state[_KEYS_VALUES].shape
    size = int(heads) * int(head_dim)
    mutant.write(name, np.concatenate([weight[: -2 * size], weight[-size:], weight[-2 * size : -size]]))


def _swap_layers(mutant: Mutant) -> None:
    first, second = (f"model.layers.{layer}." for layer in _SWAPPED)
    names = [tensor.name for tensor in mutant.main.graph.initializer if tensor.name.startswith(first)]
    for name in names:
        other = name.replace(first, second)
        one, two = mutant.tensor(name), mutant.tensor(other)
        mutant.write(name, two)
        mutant.write(other, one)


def _head_transposed(mutant: Mutant) -> None:
    """The tied table's bytes in column order under the dims of row order."""
    table = mutant.tensor(_TABLE)
    _untie(mutant, np.ascontiguousarray(table.T).reshape(table.shape))


def _head_off_by_one(mutant: Mutant) -> None:
    _untie(mutant, np.roll(mutant.tensor(_TABLE), 1, axis=0))


def _untie(mutant: Mutant, head: Array) -> None:
    mutant.append("lm_head.weight", head)
    for _, node in mutant.producers("logits"):
        (index,) = (index for index, name in enumerate(node.input) if name == _TABLE)
        node.input[index] = "lm_head.weight"


def _nan(mutant: Mutant) -> None:
    name = f"model.layers.{_NAN}.mlp.down_proj.weight"
    weight = mutant.tensor(name)
    weight[len(weight) // 2] = np.nan
    mutant.write(name, weight)


def _shuffle_rows(mutant: Mutant) -> None:
    name = f"model.layers.{_SHUFFLED}.mlp.up_proj.weight"
    weight = mutant.tensor(name)
    mutant.write(name, weight[np.random.default_rng(0).permutation(len(weight))])


def _flip_bit(mutant: Mutant) -> None:
    """The lowest bit of one weight: little-endian, so in its first byte."""
    path, offset = mutant.offset(f"model.layers.{_FLIPPED}.mlp.gate_proj.weight")
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def _drop_residual_scale(mutant: Mutant) -> None:
    """What writes to the stream, and the epsilons of what reads it, are as without the rescaling; so is the manifest.

    Source: gemma_export/passes/rescale_residual.py.
    """
    precision = mutant.manifest.precision
    shift = precision.options.get("residual_scale", {}).get("shift", 0)
    if not shift:
        raise ValidationUsageError("the folder's residual stream is not rescaled", hint="Use a float16 folder.")
    factor = 2.0**shift
    writers = (f"model.layers.{layer}." for layer in range(mutant.num_layers))
    names = [name + part for name in writers for part in ("self_attn.o_proj.weight", "mlp.down_proj.weight")]
    for name in (_EMBEDDING_SCALE, *names):
        mutant.write(name, mutant.tensor(name).astype(np.float32) * factor)
    for model in mutant.models.values():
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "epsilon":
                    set_attribute(node, "epsilon", attribute.f * factor**2)
    off = {"option": "off", "shift": 0, "reason": "off"}
    options = {**precision.options, "residual_scale": off}
    mutant.manifest = dataclasses.replace(mutant.manifest, precision=dataclasses.replace(precision, options=options))


WEIGHT_DEFECTS = (
    Defect(
        name="gain without +1",
        about="a norm multiplies by w, stored relative to one",
        where="data",
        needs="fp32",
        alter=_gain_without_one,
        caught_by=frozenset({"stored", "gates"}),
        layer=_GAIN,
    ),
    Defect(
        name="embedding scale missing",
        about="embeddings are not multiplied by sqrt(hidden_size)",
        where="graph",
        needs="fp32",
        alter=_embedding_scale_missing,
        caught_by=frozenset({"structure", "gates"}),
    ),
    Defect(
        name="embedding scale rounded",
        about="sqrt(hidden_size) rounded to bfloat16, where that changes it",
        where="graph",
        needs="fp32 odd",
        alter=_embedding_scale_rounded,
        caught_by=frozenset({"structure", "gates"}),
    ),
    Defect(
        name="rotary base wrong",
        about=f"{_WRONG_BASE:g} for {_ROTARY_BASE:g}",
        where="data",
        needs="fp32",
        alter=_rotary_base,
        caught_by=frozenset({"structure", "gates"}),
    ),
    Defect(
        name="K and V swapped",
        about="keys and values of a layer change places in the packed projection",
        where="data",
        needs="fp32",
        alter=_swap_keys_and_values,
        caught_by=frozenset({"gates"}),
        layer=_KEYS_VALUES,
    ),
    Defect(
        name="two layers swapped",
        about="all weights of two layers change places",
        where="data",
        needs="fp32",
        alter=_swap_layers,
        caught_by=frozenset({"stored", "gates"}),
        layer=_SWAPPED[0],
        also=_SWAPPED[1:],
    ),
    Defect(
        name="tied head transposed",
        about="the head reads the table's bytes in the other order",
        where="data",
        needs="fp32",
        alter=_head_transposed,
        caught_by=frozenset({"structure", "gates"}),
    ),
    Defect(
        name="tied head off by one row",
        about="each logit is of the token before",
        where="data",
        needs="fp32",
        alter=_head_off_by_one,
        caught_by=frozenset({"structure", "gates"}),
    ),
    Defect(
        name="NaN in one row",
        about="of a projection",
        where="data",
        needs="fp32",
        alter=_nan,
        caught_by=frozenset({"finite", "invariance"}),
        layer=_NAN,
    ),
    Defect(
        name="rows shuffled",
        about="a projection's output channels in another order",
        where="data",
        needs="fp32",
        alter=_shuffle_rows,
        caught_by=frozenset({"gates"}),
        layer=_SHUFFLED,
    ),
    Defect(
        name="one bit flipped",
        about="the lowest bit of one weight, and the manifest does not know",
        where="data",
        needs="fp32",
        alter=_flip_bit,
        caught_by=frozenset({"files"}),
        layer=None,
        shows="bytes",
        rehash=False,
    ),
    Defect(
        name="float16 overflow",
        about="a stream above 65504 without its rescaling",
        where="data",
        needs="fp16 grown",
        alter=_drop_residual_scale,
        caught_by=frozenset({"finite", "invariance"}),
    ),
)
