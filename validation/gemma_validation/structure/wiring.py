"""Who reads what: weights and caches of a layer in that layer, one residual stream through all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gemma_export.errors import PassError
from gemma_export.targets import TARGETS, Target
from gemma_validation.structure.attention_parts import parts_caches
from gemma_validation.structure.facts import FolderFacts, attribute, layer_of, producers_of, stem

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["caches", "head", "operators", "residual_stream", "weights"]

# (domain, operator) -> past key and value among its inputs; present key and value are outputs 1 and 2
_PAST = {
    ("com.microsoft", "GroupQueryAttention"): (3, 4),
    ("", "Attention"): (4, 5),
    ("gemma", "Attention"): (3, 4),
}
# (domain, operator) -> input -> what says which positions a row sees; {window} is "_window_n" in layers with one
_MASKS = {
    ("com.microsoft", "GroupQueryAttention"): {5: "rows.seqlens_k", 6: "rows.total_sequence_length"},
    ("", "Attention"): {3: "attention.visible{window}"},
    ("gemma", "Attention"): {5: "attention_mask"},
}
# point of the stream -> the module of its layer whose output is added there
_PROJECTIONS = {"attn_residual": "self_attn.o_proj", "mlp_residual": "mlp.down_proj"}
_POST_NORMS = {"attn_residual": "post_attention_layernorm", "mlp_residual": "post_feedforward_layernorm"}
# nodes behind the head
_BETWEEN = ("decoder.SoftCap", "decoder.softcap.")


def operators(facts: FolderFacts) -> Iterator[str]:
    """The target's own check: as many fused operators as the architecture has, and none without a kernel."""
    for graph, model in facts.graphs:
        try:
            _target(facts, model).check(model, facts.spec, facts.manifest.precision.activation_dtype)
        except PassError as error:
            yield f"{graph.file}: {error.message}"


def weights(facts: FolderFacts) -> Iterator[str]:
    """Every node reads the weights of the module that it is named after."""
    for graph, model in facts.graphs:
        for node in model.graph:
            module = stem(node)
            for value in node.inputs:
                name = "" if value is None else str(value.name)
                if name not in model.graph.initializers or not name.startswith(("model.", "lm_head.")):
                    continue
                tied = module == "lm_head" and facts.spec.tie_word_embeddings
                expected = "model.embed_tokens" if tied else module
                if not name.startswith(f"{expected}."):
                    yield f"{graph.file}, {node.name}: reads {name}, expected a weight of {expected}"


def caches(facts: FolderFacts) -> Iterator[str]:
    """Attention of layer i reads and writes keys and values of layer i, and looks at the mask."""
    for graph, model in facts.graphs:
        states = {state.layer: state for state in graph.state}
        producers = producers_of(model) if facts.by_parts else {}
        for layer in facts.by_parts:
            yield from parts_caches(facts, graph.file, producers, states[layer])
        for node in model.graph:
            places = _PAST.get((node.domain, node.op_type))
            layer = layer_of(node.name) or 0
            state = states.get(layer)
            if places is None or state is None:
                continue
            found = [_name(node, place) for place in places]
            if found != list(state.past):
                yield f"{graph.file}, {node.name}: past is {found}, expected {list(state.past)}"
            written = [str(value.name) for value in node.outputs[1:3]]
            if written != list(state.present):
                yield f"{graph.file}, {node.name}: present is {written}, expected {list(state.present)}"
            size = facts.spec.windows[layer]
            if state.window != size:
                yield f"{graph.file}, {node.name}: the manifest's window is {state.window}, expected {size}"
            if bool(attribute(node, "sliding_window_cache", 0)) != state.windowed:
                yield f"{graph.file}, {node.name}: its cache is not as long as its shape {list(state.shape)} says"
            for place, mask in _MASKS[(node.domain, node.op_type)].items():
                expected = mask.format(window=f"_window_{size}" if size else "")
                if _name(node, place) != expected:
                    yield f"{graph.file}, {node.name}: input {place} is {_name(node, place)}, expected {expected}"


def residual_stream(facts: FolderFacts) -> Iterator[str]:
    """Each sum adds a branch of its own layer, the right one, to the sum before it."""
    ends = _POST_NORMS if facts.spec.post_norms else _PROJECTIONS
    for graph, model in facts.graphs:
        producers = producers_of(model)
        stream = "model.embed_tokens.ScaledEmbedding"
        for layer in range(facts.spec.num_hidden_layers):
            for part in ("attn_residual", "mlp_residual"):
                point = f"layers.{layer}.{part}"
                node = producers.get(point)
                found = [_name(node, place) for place in (0, 1)] if node is not None else [None, None]
                branch = producers.get(str(found[1]))
                end = f"model.layers.{layer}.{ends[part]}"
                if found[0] != stream or branch is None or stem(branch) != end:
                    yield f"{graph.file}: {point} is the sum of {found}, expected {stream} and what {end} computes"
                stream = point


def head(facts: FolderFacts) -> Iterator[str]:
    """Logits come from the head and nothing else; a tied head is the embedding table, as `weights` checks."""
    for graph, model in facts.graphs:
        logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
        node = None if logits is None else logits.producer()
        # `soft-capping` looks at what is between
        while node is not None and node.inputs[0] is not None and str(node.name).startswith(_BETWEEN):
            node = node.inputs[0].producer()
        if node is None or stem(node) != "lm_head":
            yield f"{graph.file}: logits come from {node.name if node is not None else 'no node'}, expected lm_head"


def _target(facts: FolderFacts, model: ir.Model) -> Target:
    target = TARGETS[facts.manifest.target]
    if model.functions and target.with_functions is not None:
        return target.with_functions
    stored = facts.manifest.precision.options.get("format")
    return target.with_format(stored if isinstance(stored, str) else None) or target


def _name(node: ir.Node | None, place: int) -> str | None:
    value = node.inputs[place] if node is not None and place < len(node.inputs) else None
    return None if value is None else str(value.name)
