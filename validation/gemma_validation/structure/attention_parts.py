"""Attention that is written out in elementary operators, where a provider's kernel would drop softcap or window.

What it should be is a table: each value of a layer, the operator that computes it, what that reads, its attributes.
B: batch_size, S: sequence_length, N: query heads, K: key-value heads, G: N / K, D: head_dim, C: columns of present.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_export.config import DecoderSpec
from gemma_runtime.manifest import State
from gemma_validation.structure.facts import FolderFacts, attribute, scalar_of
from gemma_validation.structure.masks import compacted_causal, mask_window

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PRODUCTS", "parts_caches", "parts_numbers"]

# products of two activations in a layer's attention: of queries and keys, of weights and values
PRODUCTS = ("self_attn.products", "self_attn.mixed")
_FLOAT32, _ELEMENT_TYPES = 1, {"float32": 1, "float16": 10, "bfloat16": 16}
# of attributes that a node may leave out; 0 of the others
_DEFAULTS: Mapping[str, float] = {"alpha": 1.0, "axis": -1}
_PLAIN = {"transA": 0, "transBatchA": 0, "transBatchB": 0}
# what the softmax makes 0
_LOWEST = float(np.finfo(np.float32).min)

# a value's name; a constant's number; a shape, None for what is known at run time; None for what is looked at elsewhere
_Input = str | float | tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """How one value should be computed."""

    op_type: str
    inputs: tuple[_Input, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def parts_numbers(facts: FolderFacts, file: str, producers: Mapping[str, ir.Node], layer: int) -> Iterator[str]:
    """What is wrong with a layer's attention: heads, scale, softcap, window, the order of its operators.

    Args:
        facts: the folder.
        file: of the graph, for messages.
        producers: value of the graph -> its node.
        layer: one of `facts.by_parts`.
    """
    spec, prefix = facts.spec, f"model.layers.{layer}.self_attn"
    dtype = _ELEMENT_TYPES[facts.manifest.precision.activation_dtype]
    parts = {**_heads(spec, prefix), **_scores(spec, prefix, layer, dtype), **_mixed(spec, prefix, layer, dtype)}
    yield from _compared(file, producers, parts)
    node = producers.get(f"{prefix}.seen")
    mask = node.inputs[0] if node is not None else None
    window = mask_window(mask)
    if node is not None and window != spec.windows[layer]:
        yield f"{file}, {node.name}: window is {window}, expected {spec.windows[layer]}"
    if node is not None and not compacted_causal(mask):
        told = "" if mask is None else mask.name
        yield f"{file}, {node.name}: its mask {told} is not of columns up to a token's position"


def parts_caches(facts: FolderFacts, file: str, producers: Mapping[str, ir.Node], state: State) -> Iterator[str]:
    """What is wrong with the keys and values that a layer reads and writes, and with the name of its mask.

    Args:
        facts: the folder.
        file: of the graph, for messages.
        producers: value of the graph -> its node.
        state: of one of `facts.by_parts`.
    """
    prefix, size = f"model.layers.{state.layer}.self_attn", facts.spec.windows[state.layer]
    parts = {
        f"{prefix}.seen": _Part(op_type="Where", inputs=(f"attention.visible{f'_window_{size}' if size else ''}",))
    }
    for name, past, present in zip(("key", "value"), state.past, state.present, strict=True):
        both = f"{prefix}.{name}_both"
        # old tokens before new ones: `attention.sources` counts on it
        parts[both] = _Part(op_type="Concat", inputs=(past, f"{prefix}.{name}_heads"), attributes={"axis": 2})
        parts[present] = _Part(op_type="GatherND", inputs=(both, "attention.sources"), attributes={"batch_dims": 2})
    yield from _compared(file, producers, parts)


def _heads(spec: DecoderSpec, prefix: str) -> dict[str, _Part]:
    """[B, K, S, D] of new keys and values, [B, K, S * G, D] of queries; keys and queries are rotated."""
    kv_heads, head_dim = spec.num_key_value_heads, spec.head_dim
    group = spec.num_attention_heads // kv_heads
    heads, grouped = (0, 0, kv_heads, head_dim), (0, 0, kv_heads, group * head_dim)
    return {
        f"{prefix}.key_split": _Part(op_type="Reshape", inputs=(f"{prefix}.key_rotary", heads)),
        f"{prefix}.key_heads": _transposed(f"{prefix}.key_split"),
        # `modules` looks at what it reads
        f"{prefix}.value_split": _Part(op_type="Reshape", inputs=(None, heads)),
        f"{prefix}.value_heads": _transposed(f"{prefix}.value_split"),
        f"{prefix}.query_groups": _Part(op_type="Reshape", inputs=(f"{prefix}.query_rotary", grouped)),
        f"{prefix}.query_heads": _transposed(f"{prefix}.query_groups"),
        f"{prefix}.query": _Part(op_type="Reshape", inputs=(f"{prefix}.query_heads", (0, 0, -1, head_dim))),
    }


def _scores(spec: DecoderSpec, prefix: str, layer: int, dtype: int) -> dict[str, _Part]:
    """From products to the softmax, in float32: [B, K, S * G, C]."""
    last, cap = f"{prefix}.products", float(np.float32(spec.attention_softcap))
    alpha = {**_PLAIN, "transB": 1, "alpha": float(np.float32(spec.attention_scale))}
    found = {last: _Part(op_type="FusedMatMul", inputs=(f"{prefix}.query", f"present.{layer}.key"), attributes=alpha)}
    if dtype != _FLOAT32:
        wide = f"{prefix}.products_float32"
        found[wide], last = _Part(op_type="Cast", inputs=(last,), attributes={"to": _FLOAT32}), wide
    if cap:
        for name, op_type, inputs in (("shares", "Div", (cap,)), ("bent", "Tanh", ()), ("capped", "Mul", (cap,))):
            found[f"{prefix}.{name}"] = _Part(op_type=op_type, inputs=(last, *inputs))
            last = f"{prefix}.{name}"
    group = spec.num_attention_heads // spec.num_key_value_heads
    by_token, seen, by_row = (f"{prefix}.{name}" for name in ("by_token", "seen", "by_row"))
    return found | {
        by_token: _Part(op_type="Reshape", inputs=(last, (0, 0, -1, group, None))),
        seen: _Part(op_type="Where", inputs=(None, by_token, _LOWEST)),
        by_row: _Part(op_type="Reshape", inputs=(seen, (0, 0, -1, None))),
        f"{prefix}.weights": _Part(op_type="Softmax", inputs=(by_row,), attributes={"axis": -1}),
    }


def _mixed(spec: DecoderSpec, prefix: str, layer: int, dtype: int) -> dict[str, _Part]:
    """Values by their weights, back to [B, S, N * D]."""
    found, weights = {}, f"{prefix}.weights"
    if dtype != _FLOAT32:
        found[f"{prefix}.weights_cast"] = _Part(op_type="Cast", inputs=(weights,), attributes={"to": dtype})
        weights = f"{prefix}.weights_cast"
    mixed, groups, heads = (f"{prefix}.{name}" for name in ("mixed", "mixed_groups", "mixed_heads"))
    size = spec.num_attention_heads * spec.head_dim
    plain = {**_PLAIN, "transB": 0, "alpha": 1.0}
    by_token = (0, 0, -1, size // spec.num_key_value_heads)
    return found | {
        mixed: _Part(op_type="FusedMatMul", inputs=(weights, f"present.{layer}.value"), attributes=plain),
        groups: _Part(op_type="Reshape", inputs=(mixed, by_token)),
        heads: _transposed(groups),
        f"{prefix}.Attention": _Part(op_type="Reshape", inputs=(heads, (0, 0, size))),
    }


def _transposed(name: str) -> _Part:
    return _Part(op_type="Transpose", inputs=(name,), attributes={"perm": (0, 2, 1, 3)})


def _compared(file: str, producers: Mapping[str, ir.Node], parts: Mapping[str, _Part]) -> Iterator[str]:
    for name, part in parts.items():
        node = producers.get(name)
        if node is None or node.op_type != part.op_type:
            found = "nothing" if node is None else node.op_type
            yield f"{file}: {name} is computed by {found}, expected {part.op_type}"
            continue
        for key, value in part.attributes.items():
            stored = attribute(node, key, _DEFAULTS.get(key, 0))
            if (tuple(stored) if isinstance(value, tuple) else stored) != value:
                yield f"{file}, {node.name}: {key} is {stored}, expected {value}"
        for place, expected in enumerate(part.inputs):
            told = None if expected is None else _input(node.inputs[place], expected)
            if told != expected:
                yield f"{file}, {node.name}: input {place} is {told}, expected {expected}"


def _input(value: ir.Value | None, like: _Input) -> _Input:
    """An input as the table has it: a name, a number or a shape."""
    if isinstance(like, tuple):
        return _sizes(value)
    number = scalar_of(value) if isinstance(like, float) else None
    return number if number is not None or value is None else value.name


def _sizes(value: ir.Value | None) -> tuple[int | None, ...]:
    """Elements of a shape that is a constant, or joined of one and of what is known at run time."""
    if value is not None and value.const_value is not None:
        return tuple(int(size) for size in np.asarray(value.const_value.numpy()).reshape(-1))
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Concat":
        return (None,)
    return tuple(size for part in node.inputs for size in _sizes(part))
