"""Folders and text that the tests of localising share."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from tokenizers import Tokenizer

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_runtime.manifest import read_manifest
from gemma_validation.documents import Document
from gemma_validation.mutations import write_grown

_TEXTS = {
    "code": "def add(a, b):\n    return a + b\n\nclass Shape:\n    def __init__(self, name):\n        self.a = name\n",
    "prose": "The quick brown fox jumps over the lazy dog, and then it rests in the shade of a tree for an hour.",
    "scripts": "import numpy as np\nfor row in range(10):\n    print(np.zeros(row))\n",
}


@pytest.fixture(scope="session")
def documents() -> tuple[Document, ...]:
    """Three slices."""
    tokenizer = Tokenizer.from_file(str(BUILTIN_DIRECTORY / "tokenizer.json"))
    return tuple(
        Document(slice=name, name=name, token_ids=(2, *tokenizer.encode(text, add_special_tokens=False).ids))
        for name, text in _TEXTS.items()
    )


@pytest.fixture(scope="session")
def export_grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float16 of a model whose stream leaves float16, rescaled; its checkpoint stands beside it."""
    root = tmp_path_factory.mktemp("grown")
    request = ExportRequest(output=root / "folder", checkpoint=write_grown(root / "checkpoint"), precision="fp16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(request).folder.directory


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a folder whose graphs were changed; its manifest is left as it was."""

    def change(folder: Path, graphs: Callable[[onnx.ModelProto], None]) -> Path:
        copy = tmp_path / "changed"
        shutil.copytree(folder, copy)
        for graph in read_manifest(copy).graphs:
            model = onnx.load_model(copy / graph.file, load_external_data=False)
            graphs(model)
            onnx.save_model(model, copy / graph.file)
        return copy

    return change


@pytest.fixture
def listing() -> Callable[[Path], str]:
    """Everything in a folder, with sizes and times."""

    def of(folder: Path) -> str:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return json.dumps([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files])

    return of
