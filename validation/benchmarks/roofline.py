"""How near decoding comes to what the matrix products alone reach: the same kernels on the same weights, bare.

A throwaway graph holds nothing but the folder's matrix products with weights, over the folder's own data file: each
reads an input of its width and nothing waits for anything. Steps of it and of the whole decoder take turns in one
process, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.machine import describe_machine, one_line
from gemma_export.errors import UsageError
from gemma_runtime.bench.engine import Engine
from gemma_runtime.bench.weight_bytes import weight_bytes
from gemma_runtime.session import thread_count

if TYPE_CHECKING:
    import onnx

__all__ = ["bare_matmuls", "main"]

# operator -> type of its activations where that is not float32
_TYPES = {"MatMulIntegerToFloat": "UINT8"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """Medians of one step each, and of the pairs."""

    folder: str
    graph: str
    context: int
    products: int
    weight_bytes: int
    bare_seconds: float
    decode_seconds: float
    bare_bytes_per_second: float
    decode_bytes_per_second: float
    # decode / bare, round by round, then the median
    share: float
    machine: str
    load_average: float


def main(arguments: list[str]) -> int:
    """Runs the benchmark and returns its exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks roofline", description=__doc__)
    parser.add_argument("folder", type=Path, help="an exported folder")
    parser.add_argument("--context", type=int, default=128, metavar="N", help="tokens before the first (default: 128)")
    parser.add_argument("--steps", type=int, default=16, metavar="N", help="of each kind in a round (default: 16)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="of both (default: the runtime's own choice)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    found = _measure(options)
    print(json.dumps(dataclasses.asdict(found), indent=2) if options.json else _text(found))
    return 0


def _measure(options: argparse.Namespace) -> _Found:
    # before this process loads both cores itself
    load_average = os.getloadavg()[0]
    engine = Engine(options.folder, provider="cpu", threads=options.threads)
    path = options.folder / engine.graph.file
    model, names = bare_matmuls(path)
    bare = _bare_step(model, path.parent, options.threads)
    ids = np.random.default_rng(0).integers(0, engine.manifest.vocab_size, options.context).tolist()
    token = engine.start(ids, options.context + options.rounds * options.steps + 1)

    def decode() -> None:
        nonlocal token
        token = engine.step(token)

    bare()
    decode()
    rounds = [(_seconds(bare, options.steps), _seconds(decode, options.steps)) for _ in range(options.rounds)]
    bare_seconds, decode_seconds = (statistics.median(values) for values in zip(*rounds, strict=True))
    sizes = weight_bytes(path)
    read = sum(sizes[name] for name in names)
    return _Found(
        folder=str(options.folder),
        graph=engine.graph.file,
        context=options.context,
        products=len(names),
        weight_bytes=read,
        bare_seconds=bare_seconds,
        decode_seconds=decode_seconds,
        bare_bytes_per_second=read / bare_seconds,
        decode_bytes_per_second=read / decode_seconds,
        share=statistics.median(alone / whole for alone, whole in rounds),
        machine=one_line(describe_machine(Path.cwd())),
        load_average=load_average,
    )


def _seconds(step: Callable[[], None], count: int) -> float:
    """The median of some steps."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def bare_matmuls(path: Path) -> tuple[onnx.ModelProto, list[str]]:
    """A graph of the matrix products with weights of a graph, and the names of these nodes.

    Each node keeps its weights and attributes; its activations are the input `float{width}` or `uint8{width}`, [1, 1,
    width], that all nodes of that width and type share, and its product is an output.

    Raises:
        UsageError: there are none, or one with other inputs than activations and weights.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    weights = {value.name: value for value in graph.initializer}
    nodes = [n for n in graph.node if "MatMul" in n.op_type and sum(name in weights for name in n.input)]
    inputs: dict[str, onnx.ValueInfoProto] = {}
    for node in nodes:
        free = [index for index, name in enumerate(node.input) if name and name not in weights]
        if free != [0]:
            raise UsageError(
                f"{node.name} ({node.op_type}) has other inputs than activations and weights",
                hint="Name a folder whose matrix products are single nodes: fp32, int4, int8 or int8-dynamic.",
            )
        width, kind = _width(node, weights), _TYPES.get(node.op_type, "FLOAT")
        node.input[0] = f"{kind.lower()}{width}"
        element = getattr(onnx.TensorProto, kind)
        inputs[node.input[0]] = onnx.helper.make_tensor_value_info(node.input[0], element, [1, 1, width])
    if not nodes:
        raise UsageError(f"{path} has no matrix products with weights", hint="Name a folder of --target ort.")
    used = {name for node in nodes for name in node.input}
    kept = [value for value in graph.initializer if value.name in used]
    outputs = [onnx.helper.make_empty_tensor_value_info(node.output[0]) for node in nodes]
    bare = onnx.helper.make_graph(nodes, "matmuls", list(inputs.values()), outputs, kept)
    imports = list(model.opset_import)
    return onnx.helper.make_model(bare, opset_imports=imports, ir_version=model.ir_version), [n.name for n in nodes]


def _width(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> int:
    """Of the activations: attribute K, or the inner dimension of the matrix."""
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    dims = weights[node.input[1]].dims
    return int(numbers["K"] if "K" in numbers else dims[-1] if numbers.get("transB") else dims[0])


def _bare_step(model: onnx.ModelProto, folder: Path, threads: int | None) -> Callable[[], None]:
    """Runs the graph once; weights come from the folder, outputs are allocated once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # as many as the engine's own session has
    options.intra_op_num_threads = thread_count(threads)
    # a graph in memory has no folder of its own
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    random = np.random.default_rng(0)
    for value in session.get_inputs():
        row = random.integers(0, 256, value.shape, np.uint8)
        binding.bind_cpu_input(value.name, row if "uint8" in value.type else row.astype(np.float32) / 256)
    for value in session.get_outputs():
        buffer = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(value.shape, np.float32))
        binding.bind_ortvalue_output(value.name, buffer)
    return lambda: session.run_with_iobinding(binding)


def _text(found: _Found) -> str:
    rates = (
        f"{found.bare_bytes_per_second / 1e9:.1f} GB/s bare, {found.decode_bytes_per_second / 1e9:.1f} GB/s decoding"
    )
    times = f"{found.bare_seconds * 1e3:.2f} ms and {found.decode_seconds * 1e3:.2f} ms a step"
    return "\n".join(
        (
            found.machine,
            f"load average at the start: {found.load_average:.1f}",
            f"{found.folder}, {found.graph}: {found.products} products, {found.weight_bytes / 1e9:.3f} GB of weights",
            f"{rates}: {times}",
            f"decoding behind {found.context} tokens reaches {found.share:.1%} of the bare kernels' bandwidth",
        )
    )
