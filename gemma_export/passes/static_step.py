"""One row and one position over a cache of full capacity: the graph that a CUDA graph is captured from."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.errors import PassError
from gemma_export.passes.align_rows import ALIGNED_IDS, FIRST, POSITION_IDS, QUERY_LENGTHS, SEQLENS_K, SEQUENCE
from gemma_export.passes.drop_query_lengths import DropQueryLengths
from gemma_export.passes.semantic_nodes import (
    attributes_of,
    drop_unused_initializers,
    insert_before,
    int64_constant,
    nodes_of,
    refuse,
    remove_unused,
    value_named,
)

__all__ = ["StaticStep"]

_NAME = "StaticStep"
# a step is one token of one sequence
_SIZES = {"batch_size": 1, "sequence_length": 1}


class StaticStep(ir.passes.InPlacePass):
    """Takes out what only several rows or several positions need, and fixes both numbers to one.

    Before: Gather(weight, GatherElements(input_ids, ...)), GroupQueryAttention(..., query_seqlens),
            LastTokens(hidden, mask)
    After:  Gather(weight, input_ids), GroupQueryAttention(...), hidden; input_ids [1, 1], attention_mask
            [1, total_sequence_length], past [1, kv_heads, past_sequence_length, head_dim], logits [1, 1, vocab_size]

    What stays of the prelude is seqlens_k = max(ReduceSum(mask), 1) - 1, computed where the mask lies, and
    total_sequence_length = Shape(mask)[1], which sessions compute on the CPU from the shape alone. So with a mask as
    long as the cache's buffer, ones for the tokens so far and for the new one, every shape and every number that
    the CPU sees is the same in every step, and no step waits for a number from the device. The operator
    takes a total_sequence_length beyond seqlens_k + 1: rows end at seqlens_k, the rest of the buffer is not read.

    Preconditions: `AlignRows` and `FuseGroupQueryAttention` ran, `SelectLogits` did not.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (GroupQueryAttention);
    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html (CUDA graphs: fixed shapes, no copies).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites ids, attention and LastTokens; raises PassError where one of them is not as expected."""
        graph = model.graph
        ids = value_named(graph, "input_ids")
        if ids.shape is not None and list(ids.shape) == [1, 1]:
            return ir.passes.PassResult(model, modified=False)
        _keep_the_only_position(model)
        aligned = value_named(graph, ALIGNED_IDS)
        ir.convenience.replace_all_uses_with(aligned, ids)
        remove_unused(graph, aligned)
        _number_the_only_position(graph)
        DropQueryLengths()(model)
        drop_unused_initializers(graph)
        _fix_sizes(graph)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """No semantic LastTokens is left, nor anything that aligned rows."""
        left = {FIRST, QUERY_LENGTHS, SEQUENCE} & {value.name for node in model.graph for value in node.outputs}
        if left or nodes_of(model, "LastTokens"):
            raise PassError(
                f"{_NAME}: {', '.join(sorted(map(str, left))) or 'LastTokens'} left in a graph of one position",
                hint="A pass that this one does not know reads it. Report this with --debug.",
            )


def _keep_the_only_position(model: ir.Model) -> None:
    nodes = nodes_of(model, "LastTokens")
    if len(nodes) != 1:
        raise PassError(
            f"{_NAME}: expected one LastTokens, found {len(nodes)}",
            hint="A pass ran out of order. Report this with --debug.",
        )
    keep = attributes_of(nodes[0], {"keep": 0}, _NAME)["keep"]
    if keep not in (0, 1):
        raise refuse(nodes[0], _NAME, f"keep is {keep}, expected 0 (all) or 1")
    hidden = nodes[0].inputs[0]
    assert hidden is not None
    ir.convenience.replace_all_uses_with(list(nodes[0].outputs), [hidden], replace_graph_outputs=True)
    model.graph.remove(nodes[0], safe=True)


def _number_the_only_position(graph: ir.Graph) -> None:
    """Where rotary embedding is a node of its own, it takes seqlens_k: the number of tokens before this one."""
    for node in graph:
        for value in node.outputs:
            if value.name == POSITION_IDS:
                tape = ir.tape.Tape()
                wide = tape.op("Cast", [value_named(graph, SEQLENS_K)], {"to": int(ir.DataType.INT64)})
                position = tape.op("Unsqueeze", [wide, int64_constant(graph, "constant.[1]", [1])])
                position.shape = ir.Shape([1, 1])
                insert_before(graph, node, tape, "rows.static_position")
                ir.convenience.replace_all_uses_with(value, position)
                remove_unused(graph, value)
                position.name = POSITION_IDS
                return


def _fix_sizes(graph: ir.Graph) -> None:
    """Declares one row and one position wherever a shape has their symbols."""
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None:
            dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            value.shape = ir.Shape([_SIZES.get(dim, dim) if isinstance(dim, str) else dim for dim in dims])
