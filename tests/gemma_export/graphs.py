"""Small traced decoders with weights that need no file, and their graphs run unoptimised: shared by the graph tests."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
import tolerances
from decoders import STATE_DTYPES, Graph

from gemma_export.base_checkpoint import released_config
from gemma_export.checkpoint import SyntheticSource
from gemma_export.config import DecoderSpec, Rotary
from gemma_export.families import FAMILIES
from gemma_export.tensors import StoredTensor, TensorSource
from gemma_export.tracing import bind_weights, trace_decoder
from gemma_export.variants import VARIANTS
from gemma_export.weights import WeightTensor

GEMMA = FAMILIES["gemma"]
# head_dim differs from hidden / heads, kv_heads from heads, and the rotary base turns far within a few positions
SPEC = DecoderSpec(
    family="gemma",
    vocab_size=40,
    hidden_size=24,
    intermediate_size=36,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-3,
    attention_scale=0.25,
    attention_softcap=0.0,
    final_softcap=0.0,
    windows=(0, 0),
    rotary=Rotary(theta=100.0, factor=1.0),
    local_rotary=Rotary(theta=100.0, factor=1.0),
    post_norms=False,
    qk_norm=False,
    computes_rotary=False,
    max_position_embeddings=64,
    tie_word_embeddings=True,
    bos_token_id=2,
    eos_token_ids=(1,),
    pad_token_id=0,
)
# windows shorter than the texts below, bounds and gains that bend, two rotary bases, one of them scaled
POST_NORM = dataclasses.replace(
    SPEC,
    family="gemma2",
    attention_scale=0.2,
    attention_softcap=3.0,
    final_softcap=2.0,
    windows=(3, 0),
    post_norms=True,
)
QK_NORM = dataclasses.replace(
    POST_NORM,
    family="gemma3",
    attention_softcap=0.0,
    final_softcap=0.0,
    rotary=Rotary(theta=1000.0, factor=8.0),
    qk_norm=True,
    computes_rotary=True,
)
UNTIED = dataclasses.replace(SPEC, tie_word_embeddings=False)
LAYERS = SPEC.num_hidden_layers
# where the real tokens of each row of a batch stand among its columns
PADDINGS: dict[str, tuple[slice, ...]] = {
    "none": (slice(0, 7), slice(0, 7), slice(0, 7)),
    "left": (slice(3, 7), slice(0, 7), slice(6, 7)),
    "right": (slice(0, 4), slice(0, 7), slice(0, 1)),
    "mixed": (slice(3, 7), slice(0, 5), slice(2, 6)),
}


@functools.cache
def _traced(spec: DecoderSpec) -> ir.Model:
    return trace_decoder(FAMILIES[spec.family], spec)


def traced_model(spec: DecoderSpec = SPEC) -> ir.Model:
    """A copy of the traced graph, without weights; each specification is traced once."""
    return _traced(spec).clone()


def semantic_model(spec: DecoderSpec = SPEC, source: TensorSource | None = None) -> ir.Model:
    """The traced graph with lazy weights, synthetic ones unless given."""
    model = traced_model(spec)
    family = FAMILIES[spec.family]
    bind_weights(model, family, spec, source or SyntheticSource(family.tensor_shapes(spec), 0))
    return model


def released_spec(name: str) -> DecoderSpec:
    """A released variant's specification."""
    variant = VARIANTS[name]
    return FAMILIES[variant.family].parse_config(released_config(variant))[0]


class ArraySource:
    """Checkpoint tensors held in memory, as float32."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._bytes = {name: np.ascontiguousarray(array, "<f4").tobytes() for name, array in arrays.items()}
        self.tensors = {name: StoredTensor("float32", array.shape) for name, array in arrays.items()}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._bytes[name][offset : offset + len(buffer)]


def random_arrays(spec: DecoderSpec = SPEC) -> dict[str, np.ndarray]:
    """A checkpoint whose values neither float16 nor bfloat16 holds exactly."""
    generator = np.random.default_rng(3)
    return {
        name: generator.normal(size=shape).astype(np.float32) * np.float32(0.3)
        for name, shape in FAMILIES[spec.family].tensor_shapes(spec).items()
    }


class UnreadableSource(SyntheticSource):
    """Has the tensors' names and shapes; reading one is an error."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        raise AssertionError(f"{name} was read")


def count(model: ir.Model, op_type: str, domain: str = "") -> int:
    """Nodes of one operator."""
    return sum(node.op_type == op_type and node.domain == domain for node in model.graph)


def find(model: ir.Model, name: str) -> ir.Node:
    """The one node of this name."""
    (node,) = [node for node in model.graph if node.name == name]
    return node


def value(model: ir.Model, name: str) -> ir.Value:
    """The one node output of this name."""
    (found,) = [output for node in model.graph for output in node.outputs if output.name == name]
    return found


def set_attribute(model: ir.Model, op_type: str, name: str, number: float) -> None:
    """Gives every semantic node of a type an attribute, int or float as `number` is."""
    make = ir.AttrInt64 if isinstance(number, int) else ir.AttrFloat32
    for node in model.graph:
        if (node.domain, node.op_type) == ("gemma", op_type):
            node.attributes[name] = make(name, number)


def serialize(model: ir.Model) -> bytes:
    """The whole model in memory; a half-lowered one gets the contrib domain that finishing would declare."""
    whole = model.clone()
    if any(node.domain == "com.microsoft" for node in whole.graph):
        whole.graph.opset_imports["com.microsoft"] = 1
    for initializer in whole.graph.initializers.values():
        if isinstance(initializer.const_value, WeightTensor):
            initializer.const_value = ir.tensor(initializer.const_value.numpy())
    return ir.serde.serialize_model(whole).SerializeToString(deterministic=True)


def apply(model: ir.Model, *rewrites: ir.passes.PassBase) -> ir.Model:
    """Runs passes in order, in place."""
    for rewrite in rewrites:
        assert rewrite(model).modified, rewrite
    return model


def assert_unchanged(model: ir.Model, rewrite: ir.passes.PassBase) -> None:
    """The pass finds nothing to do, says so, and leaves every byte as it is."""
    before = serialize(model)
    assert not rewrite(model).modified
    assert serialize(model) == before


def tap(model: ir.Model, *names: str) -> ir.Model:
    """Makes values of the graph outputs, in place."""
    model.graph.outputs.extend(value(model, name) for name in names)
    return model


class Unoptimised(Graph):
    """A graph on onnxruntime exactly as it is written: no graph optimisation."""

    def __init__(self, model: ir.Model) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])
        past = self.session.get_inputs()[2:]
        self.past_names = [tensor.name for tensor in past]
        self.dtype = STATE_DTYPES[past[0].type]
        self.state_shape = past[0].shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """What two steps of a padded batch gave: prefill, then one decoded token for each row."""

    # [batch_size, positions, vocab_size]
    prefill: np.ndarray
    # [batch_size, vocab_size]
    decode: np.ndarray

    def real(self, padding: str) -> np.ndarray:
        """The logits of every real token, [tokens, vocab_size]; the prefill must have those of all positions."""
        rows = [self.prefill[row, columns] for row, columns in enumerate(PADDINGS[padding])]
        return np.concatenate([*rows, self.decode])


def run_steps(model: ir.Model, padding: str = "none") -> Steps:
    """Runs a padded prefill and a decode step, each on the cache of the one before."""
    ids, mask = batch(padding)
    graph = Unoptimised(model)
    prefill, present = graph.step(ids, mask)
    token = np.arange(5, 5 + len(ids))[:, None]
    mask = np.concatenate((mask, np.ones_like(token)), axis=1)
    decode, _ = graph.step(token, mask, present[: len(graph.past_names)])
    return Steps(prefill=prefill, decode=decode[:, -1])


def batch(padding: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, int64 [3, 7]; a row's real tokens are the same wherever they stand."""
    tokens = np.random.default_rng(2).integers(4, SPEC.vocab_size, (3, 7))
    ids, mask = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, columns in enumerate(PADDINGS[padding]):
        ids[row, columns], mask[row, columns] = tokens[row, : columns.stop - columns.start], 1
    return ids, mask


def run_outputs(model: ir.Model, names: Sequence[str], ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """The named outputs of one step over a cache of zeros; the mask is longer than the ids by the cache's length."""
    graph = Unoptimised(model)
    _, heads, _, head_dim = graph.state_shape
    zeros = np.zeros((len(ids), heads, mask.shape[1] - ids.shape[1], head_dim), graph.dtype)
    feeds = {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}
    return graph.session.run(list(names), feeds | dict.fromkeys(graph.past_names, zeros))


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the expectation's standard deviation."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    return float(np.abs(found - expected).max() / expected.std())


def assert_same(found: ir.Model, expected: ir.Model, padding: str) -> None:
    """Both graphs give every real token the same logits, in a padded prefill and in the decode step after it."""
    real = (run_steps(model, padding).real(padding) for model in (found, expected))
    assert deviation(*real) <= tolerances.FP32_LOGITS
