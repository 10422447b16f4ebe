"""A copy of an exported folder that is altered graph by graph and tensor by tensor."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from gemma_runtime.manifest import MANIFEST_FILE, FileEntry, Manifest, read_manifest
from gemma_validation.errors import ValidationUsageError

__all__ = ["Array", "Mutant", "set_attribute"]

Array = npt.NDArray[Any]
# offsets that a memory map of the file can start from
_ALIGNMENT = 4096
_HINT = "Defect.needs names the kind of folder that a defect goes into."


class Mutant:
    """A folder's copy: its graphs without weights, its weights by name.

    Args:
        folder: an exported folder; it stays as it is.
        out: where the copy goes; must not exist.

    Raises:
        FileExistsError: `out` exists.
        ManifestError: `folder` has no manifest.
    """

    def __init__(self, folder: Path, out: Path) -> None:
        self.manifest: Manifest = read_manifest(folder)
        self.directory = out
        shutil.copytree(folder, out)
        # by file, in the manifest's order
        self.models: dict[str, onnx.ModelProto] = {
            graph.file: onnx.load_model(out / graph.file, load_external_data=False) for graph in self.manifest.graphs
        }
        self._sound = {file: model.SerializeToString(deterministic=True) for file, model in self.models.items()}

    @property
    def main(self) -> onnx.ModelProto:
        """The main graph."""
        return self.models[self.manifest.graph("main").file]

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.manifest.graph("main").state)

    def producer(self, model: onnx.ModelProto, value: str) -> onnx.NodeProto:
        """The node whose output a value is.

        Raises:
            ValidationUsageError: the graph has no such value.
        """
        found: onnx.NodeProto
        for found in model.graph.node:
            if value in found.output:
                return found
        raise ValidationUsageError(f"{self.manifest.target} graph: no node computes {value!r}", hint=_HINT)

    def producers(self, value: str) -> Iterator[tuple[onnx.ModelProto, onnx.NodeProto]]:
        """Each graph with its node that computes `value`."""
        for model in self.models.values():
            yield model, self.producer(model, value)

    def set_attribute(self, value: str, name: str, content: float | int | str) -> None:
        """Sets an attribute of the node that computes `value`, in every graph."""
        for _, node in self.producers(value):
            set_attribute(node, name, content)

    def insert(self, model: onnx.ModelProto, anchor: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> None:
        """Puts nodes in front of `anchor`, which reads them."""
        rest = list(model.graph.node)
        index = next(i for i, node in enumerate(rest) if node is anchor or node.name == anchor.name)
        del model.graph.node[:]
        model.graph.node.extend([*rest[:index], *nodes, *rest[index:]])

    def tensor(self, name: str) -> Array:
        """A weight of the main graph, as a copy: [its dims], in its stored type.

        Raises:
            ValidationUsageError: the graph has no such initializer.
        """
        return self._read(self._initializer(self.main, name))

    def skip(self, value: str, instead: str) -> None:
        """Whatever reads `value` reads `instead`, in every graph."""
        for model in self.models.values():
            for node in model.graph.node:
                for index, name in enumerate(node.input):
                    if name == value:
                        node.input[index] = instead

    def write_without_one(self, norm: str) -> None:
        """A norm's gain, 1 + w, becomes w."""
        self.write(f"{norm}.gain", self.tensor(f"{norm}.gain") - 1)

    def write(self, name: str, values: Array) -> None:
        """Replaces a weight wherever it is stored: in the data file that all graphs share, or in each graph.

        Args:
            name: of an initializer.
            values: of its dims; converted to its type.
        """
        for model in self.models.values():
            tensor = self._initializer(model, name)
            stored = np.ascontiguousarray(values, dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type))
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                # left alone where it says the same already, in whichever of protobuf's fields
                if numpy_helper.to_array(tensor).tobytes() != stored.tobytes():
                    tensor.CopyFrom(numpy_helper.from_array(stored, name))
                continue
            path, offset = self._location(model, tensor)
            with path.open("r+b") as file:
                file.seek(offset)
                file.write(stored.tobytes())

    def append(self, name: str, values: Array) -> None:
        """A new weight at the end of the data file, known to every graph as `name`: [dims of values]."""
        (path,) = {self.directory / entry.path for entry in self.manifest.files if entry.kind == "data"}
        with path.open("r+b") as file:
            size = file.seek(0, 2)
            offset = -(-size // _ALIGNMENT) * _ALIGNMENT
            file.write(bytes(offset - size) + np.ascontiguousarray(values).tobytes())
        for model in self.models.values():
            tensor = onnx.TensorProto(
                name=name,
                dims=values.shape,
                data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
                data_location=onnx.TensorProto.EXTERNAL,
            )
            for key, value in (("location", path.name), ("offset", offset), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            model.graph.initializer.append(tensor)

    def offset(self, name: str) -> tuple[Path, int]:
        """The data file and the first byte of a weight that lies in it."""
        return self._location(self.main, self._initializer(self.main, name))

    def save(self, *, rehash: bool = True) -> None:
        """Writes graphs and manifest.

        Args:
            rehash: sizes and hashes in the manifest become those of the altered files.

        Raises:
            ValidationUsageError: nothing was altered: a defect that changes nothing could never be caught.
        """
        for file, model in self.models.items():
            content = model.SerializeToString(deterministic=True)
            if content != self._sound[file]:
                (self.directory / file).write_bytes(content)
        files = tuple(self._entry(entry) for entry in self.manifest.files)
        if files == self.manifest.files:
            raise ValidationUsageError(f"{self.directory.name}: the defect changes nothing here", hint=_HINT)
        if rehash:
            self.manifest = dataclasses.replace(self.manifest, files=files)
            (self.directory / MANIFEST_FILE).write_text(self.manifest.to_json(), encoding="utf-8")

    def _entry(self, entry: FileEntry) -> FileEntry:
        path = self.directory / entry.path
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return dataclasses.replace(entry, size=path.stat().st_size, sha256=digest)

    def _initializer(self, model: onnx.ModelProto, name: str) -> onnx.TensorProto:
        found: onnx.TensorProto
        for found in model.graph.initializer:
            if found.name == name:
                return found
        raise ValidationUsageError(f"{self.manifest.target} graph: no initializer {name!r}", hint=_HINT)

    def _location(self, model: onnx.ModelProto, tensor: onnx.TensorProto) -> tuple[Path, int]:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        (file,) = (file for file, found in self.models.items() if found is model)
        return (self.directory / file).parent / entries["location"], int(entries["offset"])

    def _read(self, tensor: onnx.TensorProto) -> Array:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor).copy()
        path, offset = self._location(self.main, tensor)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        count = int(np.prod(tensor.dims))
        return np.fromfile(path, dtype=dtype, count=count, offset=offset).reshape(tuple(tensor.dims))


def set_attribute(node: onnx.NodeProto, name: str, content: float | int | str) -> None:
    """Sets a node's attribute, which it must have already."""
    (attribute,) = (attribute for attribute in node.attribute if attribute.name == name)
    attribute.CopyFrom(helper.make_attribute(name, content))
