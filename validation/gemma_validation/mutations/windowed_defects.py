"""Defects of families with windows, soft-capping, norms behind branches and two rotary embeddings.

Source of the first four: what published exporters of Gemma 2 and 3 did.
"""

from __future__ import annotations

import dataclasses

import onnx

from gemma_runtime.manifest import WINDOW_CAPACITY, Graph
from gemma_validation.errors import ValidationUsageError
from gemma_validation.mutations.defect import Defect
from gemma_validation.mutations.mutant import Mutant

__all__ = ["WINDOWED_DEFECTS"]

# Each in a layer of its own choice, for the localiser; 5 is the only layer of the folder that sees everything.
_SOFTCAP, _POST_NORM = 3, 1
_OFF_BY_ONE, _GLOBAL, _QUERY_NORM, _KEY_NORM, _SCALE = 1, 5, 2, 3, 4
_FACTOR = 8
_HINT = "Defect.needs names the kind of folder that a defect goes into."


def _drop_attention_softcap(mutant: Mutant) -> None:
    mutant.set_attribute(_attention(_SOFTCAP), "softcap", 0.0)


def _drop_final_softcap(mutant: Mutant) -> None:
    """The product, cap * tanh(x / cap), becomes x."""
    for model, node in mutant.producers("logits"):
        bend = mutant.producer(model, node.input[0])
        if bend.op_type != "Tanh":
            raise ValidationUsageError("the folder's logits are not soft-capped", hint=_HINT)
        divide = mutant.producer(model, bend.input[0])
        node.op_type = "Identity"
        node.input[:] = divide.input[:1]
        for gone in (divide, bend):
            model.graph.node.remove(gone)


def _swap_windows(mutant: Mutant) -> None:
    """Layers with a window see everything, the others get the window."""
    (window,) = {_window(mutant, layer) for layer in range(mutant.num_layers)} - {-1}
    for layer in range(mutant.num_layers):
        mutant.set_attribute(_attention(layer), "local_window_size", -1 if _window(mutant, layer) == window else window)
    graphs = [_swap_caches(mutant, graph, window) if graph.windowed else graph for graph in mutant.manifest.graphs]
    mutant.manifest = dataclasses.replace(mutant.manifest, graphs=tuple(graphs))


def _swap_caches(mutant: Mutant, graph: Graph, window: int) -> Graph:
    """Window-sized caches go with the windows, as in a graph that an exporter with this defect makes."""
    model, states = mutant.models[graph.file], []
    values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    for state in graph.state:
        node = mutant.producer(model, _attention(state.layer))
        lengths = (WINDOW_CAPACITY, WINDOW_CAPACITY)
        if state.windowed:
            lengths = ("past_sequence_length", "total_sequence_length")
            kept = [attribute for attribute in node.attribute if attribute.name != "sliding_window_cache"]
            del node.attribute[:]
            node.attribute.extend(kept)
        else:
            node.attribute.append(onnx.helper.make_attribute("sliding_window_cache", 1))
        for names, length in zip((state.past, state.present), lengths, strict=True):
            for name in names:
                values[name].type.tensor_type.shape.dim[2].dim_param = length
        shape = (*state.shape[:2], lengths[0], *state.shape[3:])
        states.append(dataclasses.replace(state, shape=shape, window=0 if state.windowed else window))
    return dataclasses.replace(graph, state=tuple(states))


def _window_off_by_one(mutant: Mutant) -> None:
    mutant.set_attribute(_attention(_OFF_BY_ONE), "local_window_size", _window(mutant, _OFF_BY_ONE) + 1)


def _local_rotary_on_a_global_layer(mutant: Mutant) -> None:
    for part in ("query", "key"):
        for _, node in mutant.producers(f"model.layers.{_GLOBAL}.self_attn.{part}_rotary"):
            for index, name in enumerate(node.input):
                if name.startswith("rotary."):
                    node.input[index] = name.replace("rotary.", "rotary_local.", 1)


def _scale_local_positions(mutant: Mutant) -> None:
    name = "rotary.frequencies_local"
    mutant.write(name, mutant.tensor(name) / _FACTOR)


def _query_norm_without_one(mutant: Mutant) -> None:
    mutant.write_without_one(f"model.layers.{_QUERY_NORM}.self_attn.q_norm")


def _key_norm_without_one(mutant: Mutant) -> None:
    mutant.write_without_one(f"model.layers.{_KEY_NORM}.self_attn.k_norm")


def _skip_post_norm(mutant: Mutant) -> None:
    """The sum behind attention adds the projection's output as it is."""
    normed = f"model.layers.{_POST_NORM}.post_attention_layernorm.RMSNorm"
    for model, node in mutant.producers(f"layers.{_POST_NORM}.attn_residual"):
        node.input[1] = mutant.producer(model, normed).input[0]


def _scale_by_head_dim(mutant: Mutant) -> None:
    head_dim = int(mutant.manifest.graph().state[_SCALE].shape[3])
    mutant.set_attribute(_attention(_SCALE), "scale", head_dim**-0.5)


def _attention(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.Attention"


def _window(mutant: Mutant, layer: int) -> int:
    node: onnx.NodeProto = mutant.producer(mutant.main, _attention(layer))
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == "local_window_size")


WINDOWED_DEFECTS = (
    Defect(
        name="attention softcap dropped",
        about="a layer's scores are not soft-capped",
        where="graph",
        needs="gemma2",
        alter=_drop_attention_softcap,
        caught_by=frozenset({"structure", "gates"}),
        layer=_SOFTCAP,
    ),
    Defect(
        name="final softcap dropped",
        about="logits are the head's own",
        where="graph",
        needs="gemma2",
        alter=_drop_final_softcap,
        caught_by=frozenset({"structure", "gates"}),
    ),
    Defect(
        name="window on the odd layers",
        about="every other layer has a window, beginning with the second instead of the first",
        where="graph",
        needs="gemma2",
        alter=_swap_windows,
        caught_by=frozenset({"structure", "gates"}),
    ),
    Defect(
        name="window off by one",
        about="a layer sees one key more",
        where="graph",
        needs="gemma3",
        alter=_window_off_by_one,
        caught_by=frozenset({"structure", "invariance", "gates"}),
        layer=_OFF_BY_ONE,
    ),
    Defect(
        name="local rotary base on a global layer",
        about="a layer that sees everything rotates as those with a window do",
        where="graph",
        needs="gemma3",
        alter=_local_rotary_on_a_global_layer,
        caught_by=frozenset({"structure", "gates"}),
        layer=_GLOBAL,
    ),
    Defect(
        name="global rotary factor on local layers",
        about=f"positions of layers with a window are divided by {_FACTOR}",
        where="graph",
        needs="gemma3",
        alter=_scale_local_positions,
        caught_by=frozenset({"structure", "gates"}),
    ),
    Defect(
        name="query norm's gain without +1",
        about="of a layer's query heads",
        where="graph",
        needs="gemma3",
        alter=_query_norm_without_one,
        caught_by=frozenset({"stored", "gates"}),
        layer=_QUERY_NORM,
    ),
    Defect(
        name="key norm's gain without +1",
        about="of a layer's key heads",
        where="graph",
        needs="gemma3",
        alter=_key_norm_without_one,
        caught_by=frozenset({"stored", "gates"}),
        layer=_KEY_NORM,
    ),
    Defect(
        name="post-norm skipped",
        about="a layer adds what its attention projects without the norm behind it",
        where="graph",
        needs="gemma2",
        alter=_skip_post_norm,
        caught_by=frozenset({"structure", "gates"}),
        layer=_POST_NORM,
    ),
    Defect(
        name="scale by head_dim",
        about="a layer's scores are multiplied by head_dim^-0.5 instead of query_pre_attn_scalar^-0.5",
        where="graph",
        needs="gemma3",
        alter=_scale_by_head_dim,
        caught_by=frozenset({"structure", "gates"}),
        layer=_SCALE,
    ),
)
