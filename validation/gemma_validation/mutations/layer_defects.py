"""Defects inside one layer of a float32 graph: what the layer computes is wrong, its weights are right."""

from __future__ import annotations

import math

import numpy as np
from onnx import helper, numpy_helper

from gemma_validation.mutations.defect import Defect
from gemma_validation.mutations.mutant import Mutant, set_attribute

__all__ = ["LAYER_DEFECTS"]

# Each in a layer of its own choice: a localiser that always names the same one must not pass.
_EPSILON, _GELU, _SCALE, _ROTARY, _WINDOW, _NORM, _RESIDUAL, _MAIN_ONLY = 1, 2, 1, 2, 3, 1, 2, 1
# the default of batch norms elsewhere; Gemma's is 1e-6
_WRONG_EPSILON = 1e-3
# keys that stay visible; Gemma 1 sees all of them
_WRONG_WINDOW = 16


def _epsilon(mutant: Mutant) -> None:
    for norm in ("input_layernorm", "post_attention_layernorm"):
        mutant.set_attribute(f"model.layers.{_EPSILON}.{norm}.RMSNorm", "epsilon", _WRONG_EPSILON)


def _erf_gelu(mutant: Mutant) -> None:
    mutant.set_attribute(f"model.layers.{_GELU}.mlp.Gelu", "approximate", "none")


def _scale_by_hidden_size(mutant: Mutant) -> None:
    mutant.set_attribute(_attention(_SCALE), "scale", _hidden_size_scale(mutant))


def _hidden_size_scale(mutant: Mutant) -> float:
    """hidden_size / num_heads taken for the head size, which Gemma's config states by itself."""
    heads = next(a.i for a in mutant.producer(mutant.main, _attention(_SCALE)).attribute if a.name == "num_heads")
    hidden_size = len(mutant.tensor("model.norm.gain"))
    return 1 / math.sqrt(hidden_size / heads)


def _rotary_interleaved(mutant: Mutant) -> None:
    mutant.set_attribute(_attention(_ROTARY), "rotary_interleaved", 1)


def _window(mutant: Mutant) -> None:
    mutant.set_attribute(_attention(_WINDOW), "local_window_size", _WRONG_WINDOW)


def _skip_norm(mutant: Mutant) -> None:
    mutant.skip(f"model.layers.{_NORM}.post_attention_layernorm.RMSNorm", f"layers.{_NORM}.attn_residual")


def _drop_residual(mutant: Mutant) -> None:
    """The stream before the sum is multiplied by zero: the sum is the branch alone."""
    for model, node in mutant.producers(f"layers.{_RESIDUAL}.attn_residual"):
        zero, dropped = "dropped.zero", "dropped.stream"
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), zero))
        product = helper.make_node("Mul", [node.input[0], zero], [dropped], name=dropped)
        node.input[0] = dropped
        mutant.insert(model, node, [product])


def _main_graph_only(mutant: Mutant) -> None:
    node = mutant.producer(mutant.main, _attention(_MAIN_ONLY))
    set_attribute(node, "scale", _hidden_size_scale(mutant))


def _attention(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.Attention"


LAYER_DEFECTS = (
    Defect(
        name="epsilon wrong",
        about=f"both norms of a layer add {_WRONG_EPSILON:g}",
        where="graph",
        needs="fp32",
        alter=_epsilon,
        caught_by=frozenset({"structure", "gates"}),
        layer=_EPSILON,
    ),
    Defect(
        name="erf gelu",
        about="a layer's GELU is the exact one, the model was trained with the tanh form",
        where="graph",
        needs="fp32",
        alter=_erf_gelu,
        caught_by=frozenset({"structure", "gates"}),
        layer=_GELU,
    ),
    Defect(
        name="scale by another head size",
        about="a layer's scores are divided by sqrt(hidden_size / heads)",
        where="graph",
        needs="fp32",
        alter=_scale_by_hidden_size,
        caught_by=frozenset({"structure", "gates"}),
        layer=_SCALE,
    ),
    Defect(
        name="rotary interleaved",
        about="a layer rotates neighbouring channels, the weights are laid out in halves",
        where="graph",
        needs="fp32",
        alter=_rotary_interleaved,
        caught_by=frozenset({"structure", "gates"}),
        layer=_ROTARY,
    ),
    Defect(
        name="window on a full layer",
        about=f"a layer sees {_WRONG_WINDOW} keys",
        where="graph",
        needs="fp32",
        alter=_window,
        caught_by=frozenset({"structure", "gates"}),
        layer=_WINDOW,
    ),
    Defect(
        name="norm skipped",
        about="a layer's MLP reads the stream without its norm",
        where="graph",
        needs="fp32",
        alter=_skip_norm,
        caught_by=frozenset({"structure", "gates"}),
        layer=_NORM,
    ),
    Defect(
        name="residual dropped",
        about="behind a layer's attention the stream is the attention's output alone",
        where="graph",
        needs="fp32",
        alter=_drop_residual,
        caught_by=frozenset({"structure", "gates"}),
        layer=_RESIDUAL,
    ),
    Defect(
        name="main graph differs from its twin",
        about="the main graph has another attention scale in one layer, the graph with all positions is right",
        where="graph",
        needs="fp32",
        alter=_main_graph_only,
        caught_by=frozenset({"structure", "invariance"}),
        shows="main",
    ),
)
