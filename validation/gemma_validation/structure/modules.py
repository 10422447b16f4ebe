"""What each module of a layer reads: the one before it, and nothing that was left out or comes later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from gemma_export.families import FAMILIES
from gemma_validation.structure.facts import FolderFacts, stem

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["inputs"]

_ATTENTION = frozenset({"Attention", "GroupQueryAttention"})
_POINTS = ("attn_residual", "mlp_residual")
# the gated product is one node, or two: the gate's half and the product
_GATED = {"FastGelu": ("gate",), "Gelu": ("gate",), "Mul": ("up",)}


def inputs(facts: FolderFacts) -> Iterator[str]:
    """Each norm, projection, attention and gated product reads what the architecture has in front of it."""
    expected = _expected(facts)
    known = {*expected, "model.embed_tokens"}
    for graph, model in facts.graphs:
        for node in model.graph:
            module = stem(node)
            if module not in expected:
                continue
            found = [source for source in _sources(node, known) if source != module]
            wanted = _wanted(node, expected[module], packed=len(found) == 1)
            # what only unfolds the module's own weight reads nothing
            if found and found != wanted:
                yield f"{graph.file}, {node.name}: reads {', '.join(found)}, expected {', '.join(wanted)}"


def _wanted(node: ir.Node, expected: tuple[str, ...], *, packed: bool) -> list[str]:
    """Of the modules that a module reads, those that one of its nodes does."""
    if node.op_type in _GATED and len(expected) == len(("gate", "up")):
        return [source for source in expected if source.endswith(f".{_GATED[node.op_type][0]}_proj")]
    if node.op_type in _ATTENTION and packed:
        return [f"{stem(node)}.qkv_proj"]
    return list(expected)


def _sources(node: ir.Node, known: set[str]) -> list[str]:
    """What a node computes from: weights, caches, masks and tables are looked at elsewhere."""
    values: list[ir.Value | None] = list(node.inputs)
    if node.op_type in _ATTENTION:
        values = values[:3]
    elif node.op_type == "SkipSimplifiedLayerNormalization":
        # the sum that it makes itself
        values = [node.outputs[3]]
    # a tied head's weight may be unfolded by a node of the table
    tied = stem(node) == "lm_head"
    found = [_source(value, known) for value in values if value is not None and not value.is_initializer()]
    return [source for source in found if source is not None and not (tied and source == "model.embed_tokens")]


def _source(value: ir.Value | None, known: set[str]) -> str | None:
    """The first known module or point of the stream above a value, along what is computed from it."""
    while value is not None:
        if str(value.name).rpartition(".")[2] in _POINTS:
            return str(value.name)
        node = value.producer()
        if node is None:
            return None
        if stem(node) in known:
            return stem(node)
        value = next((one for one in node.inputs if one is not None and not one.is_initializer()), None)
    return None


def _expected(facts: FolderFacts) -> Mapping[str, tuple[str, ...]]:
    """Module -> the modules, or points of the stream, that it reads."""
    spec = facts.spec
    shapes = FAMILIES[spec.family].tensor_shapes(spec)
    found: dict[str, tuple[str, ...]] = {}
    stream = "model.embed_tokens"
    for layer in range(spec.num_hidden_layers):
        own = f"model.layers.{layer}"
        attention, mlp = f"{own}.self_attn", f"{own}.mlp"
        middle, end = (f"layers.{layer}.{point}" for point in _POINTS)
        before_mlp = f"{own}.pre_feedforward_layernorm"
        if f"{before_mlp}.weight" not in shapes:
            before_mlp = f"{own}.post_attention_layernorm"
        found[f"{own}.input_layernorm"] = (stream,)
        found |= {f"{attention}.{part}_proj": (f"{own}.input_layernorm",) for part in ("q", "k", "v", "qkv")}
        found |= _attention(attention, normalised=spec.qk_norm, by_parts=layer in facts.by_parts)
        found[before_mlp] = (middle,)
        found |= {f"{mlp}.{part}_proj": (before_mlp,) for part in ("gate", "up")}
        found |= {mlp: (f"{mlp}.gate_proj", f"{mlp}.up_proj"), f"{mlp}.down_proj": (mlp,)}
        if spec.post_norms:
            found[f"{own}.post_attention_layernorm"] = (f"{attention}.o_proj",)
            found[f"{own}.post_feedforward_layernorm"] = (f"{mlp}.down_proj",)
        stream = end
    return found | {"model.norm": (stream,), "lm_head": ("model.norm",)}


def _attention(module: str, *, normalised: bool, by_parts: bool) -> dict[str, tuple[str, ...]]:
    queries, keys = (f"{module}.{part}_{'norm' if normalised else 'proj'}" for part in "qk")
    found = {module: (queries, keys, f"{module}.v_proj"), f"{module}.o_proj": (module,)}
    if by_parts:
        # its first operators and its last; `attention` and `caches` look at those between
        found = {f"{module}.query_groups": (queries,), f"{module}.key_split": (keys,)}
        found |= {f"{module}.value_split": (f"{module}.v_proj",)}
        found |= {f"{module}.joined": (), f"{module}.o_proj": (f"{module}.joined",)}
    return found | ({f"{module}.{part}_norm": (f"{module}.{part}_proj",) for part in "qk"} if normalised else {})
