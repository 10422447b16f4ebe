"""A folder small enough to break on purpose: two graphs of one made-up decoder layer over one weight store."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from gemma_export.artifact.writer import GraphFile, WrittenFolder, write_folder
from gemma_export.progress import Progress
from gemma_runtime.manifest import (
    MANIFEST_FILE,
    FileEntry,
    Generator,
    Graph,
    Manifest,
    Precision,
    Source,
    State,
    read_manifest,
)

# every number differs, so that no two dims can be mistaken for each other
VOCAB, HIDDEN, HEADS, HEAD_DIM = 600, 31, 2, 5
OPSET = 23
MAIN, ALL, DATA = "onnx/model.onnx", "onnx/model_all.onnx", "onnx/model.onnx_data"
EXTRA = {"config.json": b'{"model_type": "gemma"}\n', "notes/README.md": b"made by hand\n"}
_PAST = ("past_key_values.0.key", "past_key_values.0.value")
_PRESENT = ("present.0.key", "present.0.value")


class LazyWeight(ir.LazyTensor):
    """A tensor computed when it is written; two of them over one `weight` are one range of the data file."""

    def __init__(self, weight: Callable[[], np.ndarray], shape: Sequence[int]) -> None:
        super().__init__(lambda: ir.tensor(weight().reshape(shape)), ir.DataType.FLOAT, ir.Shape(shape))
        self.weight = weight


def tiny_weights(seed: int = 0, *, vocab: int = VOCAB, hidden: int = HIDDEN) -> dict[str, ir.TensorProtocol]:
    """Named weights of the layer: by default two of more than 64 KiB, two of more than 1 KiB, one that stays inline."""
    random = np.random.default_rng(seed)
    shapes = {
        "key": (hidden, HEADS * HEAD_DIM),
        "embedding": (vocab, hidden),
        "scale": (hidden,),
        "value": (hidden, HEADS * HEAD_DIM),
        "head": (hidden, vocab),
    }
    return {name: ir.tensor(random.standard_normal(shape, np.float32), name=name) for name, shape in shapes.items()}


def tiny_model(weights: Mapping[str, ir.TensorProtocol], *, last: bool) -> ir.Model:
    """A layer with the interface of a decoder: embedding, key and value caches, logits of the last or all positions."""
    floats = ir.DataType.FLOAT
    cache = ["batch_size", HEADS, "past_sequence_length", HEAD_DIM]
    ids = ir.val("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
    mask = ir.val("attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"])
    past = [ir.val(name, floats, cache) for name in _PAST]
    constants = {"heads_shape": np.array([0, 0, HEADS, HEAD_DIM]), "last_position": np.array([-1])}
    tensors = {**weights, **{name: ir.tensor(array, name=name) for name, array in constants.items()}}
    values = {name: ir.val(name, tensor.dtype, tensor.shape, const_value=tensor) for name, tensor in tensors.items()}
    nodes: list[ir.Node] = []

    def call(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(op, inputs, attributes))
        output = nodes[-1].outputs[0]
        output.name = f"{op.lower()}_{len(nodes)}"
        return output

    hidden = call("Mul", call("Gather", values["embedding"], ids), values["scale"])
    present = []
    for name, old in zip(("key", "value"), past, strict=True):
        new = call("Reshape", call("MatMul", hidden, values[name]), values["heads_shape"])
        present.append(call("Concat", old, call("Transpose", new, perm=[0, 2, 1, 3]), axis=2))
    positions = call("Gather", hidden, values["last_position"], axis=1) if last else hidden
    logits = call("MatMul", positions, values["head"])
    logits.name, logits.type = "logits", ir.TensorType(floats)
    logits.shape = ir.Shape(["batch_size", 1 if last else "sequence_length", weights["head"].shape[1]])
    for name, value in zip(_PRESENT, present, strict=True):
        value.name, value.type = name, ir.TensorType(floats)
        value.shape = ir.Shape(["batch_size", HEADS, "total_sequence_length", HEAD_DIM])
    used = [value for value in values.values() if value.uses()]
    graph = ir.Graph(
        [ids, mask, *past],
        [logits, *present],
        nodes=nodes,
        initializers=used,
        opset_imports={"": OPSET},
        name="tiny",
    )
    return ir.Model(graph, ir_version=10)


def tiny_graphs(weights: Mapping[str, ir.TensorProtocol]) -> list[GraphFile]:
    """The graph for the last position and its twin for all of them, over the same tensor objects."""
    return [
        GraphFile(role="main", file=MAIN, logits="last", model=tiny_model(weights, last=True)),
        GraphFile(role="all", file=ALL, logits="all", model=tiny_model(weights, last=False)),
    ]


def tiny_manifest(files: Sequence[FileEntry]) -> Manifest:
    """The manifest of the two graphs."""
    state = State(
        layer=0,
        kind="attention",
        past=_PAST,
        present=_PRESENT,
        shape=("batch_size", HEADS, "past_sequence_length", HEAD_DIM),
        dtype="float32",
        window=0,
    )
    roles = ((MAIN, "main", "last"), (ALL, "all", "all"))
    return Manifest(
        variant=None,
        family="gemma",
        source=Source(
            kind="local",
            repository=None,
            revision=None,
            name="tiny",
            seed=None,
            generator_version=None,
            files=(),
            adapter=None,
        ),
        target="portable",
        precision=Precision(name="fp32", activation_dtype="float32", weight_dtype="float32", options={}),
        providers=("cpu",),
        min_onnxruntime="1.23",
        cache_layout="columns",
        context_length=64,
        vocab_size=VOCAB,
        graphs=tuple(
            Graph(
                file=file,
                role=role,
                logits=logits,  # type: ignore[arg-type]
                opset=OPSET,
                chunks="batched",
                min_onnxruntime="1.23",
                inputs=("input_ids", "attention_mask"),
                data_files=(DATA,),
                cache_bytes=64 * 2 * HEADS * HEAD_DIM * 4,
                state=(state,),
            )
            for file, role, logits in roles
        ),
        files=tuple(files),
        generator=Generator(version="0", packages={}),
    )


def write_tiny(
    output: Path,
    *,
    weights: Mapping[str, ir.TensorProtocol] | None = None,
    extra_files: Mapping[str, bytes | Path] = EXTRA,
    force: bool = False,
    progress: Progress | None = None,
) -> WrittenFolder:
    """Writes the folder with the real writer."""
    return write_folder(
        output,
        graphs=tiny_graphs(tiny_weights() if weights is None else weights),
        data_file=DATA,
        extra_files=extra_files,
        manifest=tiny_manifest,
        force=force,
        progress=progress,
    )


def feeds(batch_size: int = 2, sequence: int = 3, past: int = 4) -> dict[str, np.ndarray]:
    """Inputs of one step."""
    random = np.random.default_rng(1)
    cache = (batch_size, HEADS, past, HEAD_DIM)
    return {
        "input_ids": random.integers(0, VOCAB, (batch_size, sequence)),
        "attention_mask": np.ones((batch_size, past + sequence), np.int64),
        **{name: random.standard_normal(cache, np.float32) for name in _PAST},
    }


def expected(weights: Mapping[str, ir.TensorProtocol], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Logits of all positions [B, S, vocab] and the present key and value, by numpy."""
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    hidden = arrays["embedding"][inputs["input_ids"]] * arrays["scale"]
    present = []
    for name, old in zip(("key", "value"), _PAST, strict=True):
        new = (hidden @ arrays[name]).reshape(*hidden.shape[:2], HEADS, HEAD_DIM).transpose(0, 2, 1, 3)
        present.append(np.concatenate((inputs[old], new), axis=2))
    return [hidden @ arrays["head"], *present]


def relist(folder: Path, name: str) -> None:
    """Makes the manifest agree with what a file holds by now, as somebody with bad intentions would."""
    content = (folder / name).read_bytes()
    new = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = read_manifest(folder)
    files = tuple(dataclasses.replace(file, **new) if file.path == name else file for file in manifest.files)
    (folder / MANIFEST_FILE).write_text(dataclasses.replace(manifest, files=files).to_json(), "utf-8")


def alter_graph(folder: Path, alter: Callable[[onnx.ModelProto], object], name: str = MAIN) -> None:
    """Changes a graph and the manifest's size and hash of it, so that only a look into the graph can tell."""
    model = onnx.load_model(folder / name, load_external_data=False)
    alter(model)
    (folder / name).write_bytes(model.SerializeToString())
    relist(folder, name)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder by path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hidden_siblings(output: Path) -> list[str]:
    """Names beside an output that a writer may have left."""
    return sorted(name for name in os.listdir(output.parent) if name.startswith("."))


def start_child(code: str, *arguments: object, seed: int = 0) -> subprocess.Popen[str]:
    """Starts Python code as a process of its own, which can import this module; standard streams are pipes."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONHASHSEED": str(seed)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run_child(code: str, *arguments: object, seed: int = 0, expected_exit: int = 0) -> str:
    """Runs Python code to its end; its standard output."""
    with start_child(code, *arguments, seed=seed) as child:
        output, errors = child.communicate(timeout=120)
    assert child.returncode == expected_exit, errors
    return output
