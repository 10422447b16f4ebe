"""Captures a family's decoder as an ir.Model of semantic nodes, without weights."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gemma_export.config import CacheState, DecoderSpec
from gemma_export.errors import TracingError
from gemma_export.families import Family
from gemma_export.nn import Decoder
from gemma_export.ops import DOMAIN, SEMANTIC_OPS
from gemma_export.tracing.naming import name_values

__all__ = ["IR_VERSION", "SEMANTIC_OPSET", "trace_decoder"]

IR_VERSION = 10
SEMANTIC_OPSET = 23


class _Step(torch.nn.Module):
    """The graph's interface: flat tensors in, flat tensors out."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        pairs = list(zip(past[::2], past[1::2], strict=True))
        logits, present = self.decoder(input_ids, attention_mask, pairs)
        return (logits, *(tensor for pair in present for tensor in pair))


def trace_decoder(family: Family, spec: DecoderSpec) -> ir.Model:
    """Traces one decoder step in float32, with logits for every position.

    Returns:
        A model of semantic nodes with their function bodies, opset 23. Initializers have names, shapes and dtypes but
        no values (`bind_weights` gives them lazy ones); the interface is the one of the folder contract.

    Raises:
        TracingError: torch could not capture the decoder, or the graph is not made of semantic nodes.
    """
    states = family.cache_states(spec)
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = _Step(family.build(spec))
        arguments, dynamic = _example(states)
        with _quiet():
            try:
                exported = torch.export.export(step, arguments, dynamic_shapes=dynamic, strict=False)
                # every operator is a semantic node already; decomposing would trace all of it a second time
                exported.run_decompositions = lambda *_, **__: exported
                program = torch.onnx.export(
                    exported,
                    dynamo=True,
                    optimize=False,
                    verbose=False,
                    dynamic_shapes=dynamic,
                    opset_version=SEMANTIC_OPSET,
                    input_names=["input_ids", "attention_mask", *(n for s in states for n in s.past_names)],
                    output_names=["logits", *(n for s in states for n in s.present_names)],
                )
            except Exception as error:
                # torch explains itself over many lines: the cause keeps them
                reason = str(error).partition("\n")[0]
                raise TracingError(
                    f"torch {torch.__version__} could not capture the {spec.family} decoder: {reason}",
                    hint="Run again with --debug and report the traceback; this is a bug of gemma-export.",
                ) from error
    if program is None:
        raise TracingError("torch.onnx.export returned nothing", hint="Run again with --debug and report this.")
    model = program.model
    _finish(model, states)
    return model


def _example(states: Sequence[CacheState]) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Fake inputs of one step and their dynamic dimensions."""
    batch, sequence, past = 2, 3, 5
    ids = torch.zeros(batch, sequence, dtype=torch.int64)
    mask = torch.ones(batch, past + sequence, dtype=torch.int64)
    cache = [torch.zeros(batch, state.num_heads, past, state.head_dim) for state in states for _ in state.past_names]
    dim = torch.export.Dim
    batch_size = dim("batch_size")
    names = {0: batch_size, 2: dim("past_sequence_length")}
    dynamic = (
        {0: batch_size, 1: dim("sequence_length")},
        {0: batch_size, 1: dim("total_sequence_length")},
        [dict(names) for _ in cache],
    )
    return (ids, mask, cache), dynamic


def _finish(model: ir.Model, states: Sequence[CacheState]) -> None:
    """Names, symbols, function bodies: what the exporter leaves to us."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "gemma-export", None
    model.graph.name = "decoder"
    model.graph.opset_imports[DOMAIN] = 1
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for name in sorted(used):
        function = SEMANTIC_OPS[name].function_ir()
        model.functions[function.identifier()] = function
    name_values(model)
    _declare_interface(model, states)


def _declare_interface(model: ir.Model, states: Sequence[CacheState]) -> None:
    """The contract's dimension symbols on inputs and outputs."""
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    values["input_ids"].shape = ir.Shape(["batch_size", "sequence_length"])
    values["attention_mask"].shape = ir.Shape(["batch_size", "total_sequence_length"])
    logits = values["logits"]
    assert logits.shape is not None
    logits.shape = ir.Shape(["batch_size", "sequence_length", logits.shape[2]])
    for state in states:
        for name in state.past_names:
            values[name].shape = ir.Shape(["batch_size", state.num_heads, "past_sequence_length", state.head_dim])
        for name in state.present_names:
            values[name].shape = ir.Shape(["batch_size", state.num_heads, "total_sequence_length", state.head_dim])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints progress, warns about its own internals and dumps them; none is for our users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
