"""Defects of positions, padding, masks and cache: every layer has them alike."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from gemma_validation.errors import ValidationUsageError
from gemma_validation.mutations.defect import Defect
from gemma_validation.mutations.mutant import Mutant

__all__ = ["ROW_DEFECTS"]


def _ignore_padding(mutant: Mutant) -> None:
    """Everything that reads the mask reads ones of its shape."""
    for model in mutant.models.values():
        readers = [node for node in model.graph.node if "attention_mask" in node.input and node.op_type != "Shape"]
        equal = helper.make_node("Equal", ["attention_mask"] * 2, ["all_real.equal"], name="all_real.equal")
        ones = helper.make_node("Cast", ["all_real.equal"], ["all_real"], name="all_real", to=TensorProto.INT64)
        for node in readers:
            _replace_input(node, "attention_mask", "all_real")
        mutant.insert(model, model.graph.node[0], [equal, ones])


def _drop_alignment(mutant: Mutant) -> None:
    """A row's first real token is taken to be in column 0, wherever it is."""
    for model, node in mutant.producers("rows.first"):
        node.output[0] = "rows.found"
        readers = [other for other in model.graph.node if "rows.first" in other.input]
        zero = helper.make_node("Sub", ["rows.found", "rows.found"], ["rows.first"], name="unaligned")
        mutant.insert(model, readers[0], [zero])


def _cache_off_by_one(mutant: Mutant) -> None:
    """With tokens in the cache, a step counts one fewer: min(columns of the mask - columns of the step, 1)."""
    for model, node in mutant.producers("rows.seqlens_k"):
        late = [
            helper.make_node("Shape", ["attention_mask"], ["late.columns"], name="late.columns", start=1, end=2),
            helper.make_node("Shape", ["input_ids"], ["late.step"], name="late.step", start=1, end=2),
            helper.make_node("Sub", ["late.columns", "late.step"], ["late.past"], name="late.past"),
            helper.make_node("Min", ["late.past", "constant.1"], ["late.any"], name="late.any"),
            helper.make_node("Sub", [node.input[0], "late.any"], ["late.length"], name="late.length"),
        ]
        node.input[0] = "late.length"
        mutant.insert(model, node, late)


def _see_the_future(mutant: Mutant) -> None:
    """Only padding is hidden."""
    for model in mutant.models.values():
        causal = _causal(model).output[0]
        node = next(node for node in model.graph.node if causal in node.input)
        padding = next(name for name in node.input if name != causal)
        _replace_input(node, causal, padding)


def _see_one_ahead(mutant: Mutant) -> None:
    """key <= query + 1"""
    for model in mutant.models.values():
        node = _causal(model)
        ahead = helper.make_node("Add", [node.input[1], "constant.1"], ["ahead.position"], name="ahead.position")
        node.input[1] = "ahead.position"
        mutant.insert(model, node, [ahead])


def _causal(model: onnx.ModelProto) -> onnx.NodeProto:
    found: onnx.NodeProto
    for found in model.graph.node:
        if found.op_type == "LessOrEqual":
            return found
    raise ValidationUsageError("no node compares positions: the kernels hide the future", hint="Use target portable.")


def _replace_input(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


ROW_DEFECTS = (
    Defect(
        name="padding mask ignored",
        about="padding is attended to and takes up positions",
        where="graph",
        needs="fp32",
        alter=_ignore_padding,
        caught_by=frozenset({"structure", "invariance"}),
        shows="padding",
    ),
    Defect(
        name="wrong pad side",
        about="rows padded on the left are not moved to where the kernel expects them",
        where="graph",
        needs="fp32",
        alter=_drop_alignment,
        caught_by=frozenset({"invariance"}),
        shows="padding",
    ),
    Defect(
        name="cache position off by one",
        about="a step with a cache overwrites its last entry and counts its positions from there",
        where="graph",
        needs="fp32",
        alter=_cache_off_by_one,
        caught_by=frozenset({"structure", "invariance", "gates"}),
        shows="decode",
    ),
    Defect(
        name="causal mask dropped",
        about="every token sees the tokens behind it",
        where="graph",
        needs="portable",
        alter=_see_the_future,
        caught_by=frozenset({"invariance", "gates"}),
    ),
    Defect(
        name="causal mask off by one",
        about="every token sees the next one",
        where="graph",
        needs="portable",
        alter=_see_one_ahead,
        caught_by=frozenset({"invariance", "gates"}),
    ),
    Defect(
        name="padding mask ignored, portable",
        about="padding is attended to and takes up positions",
        where="graph",
        needs="portable",
        alter=_ignore_padding,
        caught_by=frozenset({"invariance"}),
        shows="padding",
    ),
)
