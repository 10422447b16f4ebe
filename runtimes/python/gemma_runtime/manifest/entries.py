"""What a manifest says, as data, and the text of gemma_export.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from gemma_runtime.errors import ManifestError
from gemma_runtime.manifest.json_object import HINT, MANIFEST_FILE

__all__ = [
    "SCHEMA_VERSION",
    "WINDOW_CAPACITY",
    "AdapterSource",
    "FileEntry",
    "Generator",
    "Graph",
    "Manifest",
    "Precision",
    "Source",
    "SourceFile",
    "State",
]

SCHEMA_VERSION = 3
# symbol of a state's positions where the reader chooses their number, from the window on: GroupQueryAttention with
# sliding_window_cache
WINDOW_CAPACITY = "window_capacity"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the folder: its path with forward slashes, size in bytes, SHA-256 in hexadecimal, and kind."""

    path: str
    size: int
    sha256: str
    # graph, data, tokenizer, config or document
    kind: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file that the weights came from, by base name."""

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterSource:
    """A LoRA adapter that was merged into the weights."""

    # Hub repository and 40-hex commit, where there is one
    repository: str | None
    revision: str | None
    # base name of a local adapter's folder
    name: str | None
    # the ranks that occur, ascending; none where modules are only replaced
    ranks: tuple[int, ...]
    files: tuple[SourceFile, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights came from."""

    # builtin, local, hub or synthetic
    kind: str
    # Hub repository and 40-hex commit, where there is one
    repository: str | None
    revision: str | None
    # base name of a local checkpoint's folder
    name: str | None
    # of synthetic weights: seed, and the version of the generator that defines the numbers
    seed: int | None
    generator_version: int | None
    files: tuple[SourceFile, ...]
    adapter: AdapterSource | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """What made the folder: release of gemma-export and of the packages that decide the bytes."""

    version: str
    packages: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """The number format and its options."""

    name: str
    activation_dtype: str
    weight_dtype: str
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """One layer's decoder state: the tensors that go in and come out of every step, in matching order."""

    layer: int
    kind: str
    past: tuple[str, ...]
    present: tuple[str, ...]
    # of each past tensor: numbers, and symbols such as batch_size
    shape: tuple[int | str, ...]
    dtype: str
    # positions that a token of this layer sees, its own counted; 0 means all of them
    window: int

    @property
    def windowed(self) -> bool:
        """Whether the tensors are as long as the window, or a little longer, whatever the text's length."""
        return WINDOW_CAPACITY in self.shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph of the folder."""

    file: str
    # "main", or what a twin offers: "all", "last8", "batched" (chunks of several rows),
    # "static" (one row, one token, a cache of full capacity), "windowed" (layers with a window keep no more), ...
    role: str
    # positions that get logits
    logits: Literal["last", "all"] | int
    opset: int
    # steps of several tokens with a cache: "batched", "single" row only, or "none"; one token is always possible.
    # Window-sized caches are there from the first token on
    chunks: str
    # first onnxruntime release whose schemas know every operator, input and attribute used
    min_onnxruntime: str
    # inputs besides the state
    inputs: tuple[str, ...]
    data_files: tuple[str, ...]
    # bytes of one row's state at the full context; window-sized tensors counted as long as the window
    cache_bytes: int
    state: tuple[State, ...]

    @property
    def windowed(self) -> bool:
        """Whether some layers keep their window only."""
        return any(state.windowed for state in self.state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a reader may rely on."""

    variant: str | None
    family: str
    source: Source
    target: str
    precision: Precision
    # execution providers that this precision runs on: cpu, cuda, directml
    providers: tuple[str, ...]
    # first onnxruntime release that can run the folder: the least of its graphs'
    min_onnxruntime: str
    # "compacted": row b of present holds its real tokens at [0, T_b); "columns": it keeps the mask's columns
    cache_layout: str
    # tokens that the rotary tables cover
    context_length: int
    # rows of the embedding table
    vocab_size: int
    graphs: tuple[Graph, ...]
    files: tuple[FileEntry, ...]
    generator: Generator
    # verdict of gemma-validate once there is one
    validation: Mapping[str, Any] | None = None

    @property
    def weight_bytes(self) -> int:
        """Size of the data files."""
        return sum(entry.size for entry in self.files if entry.kind == "data")

    def graph(self, role: str = "main") -> Graph:
        """The graph of a role.

        Raises:
            ManifestError: the folder has none.
        """
        for graph in self.graphs:
            if graph.role == role:
                return graph
        raise ManifestError(
            f"{MANIFEST_FILE}: no graph of role {role!r}, found {', '.join(g.role for g in self.graphs)}", hint=HINT
        )

    def to_json(self) -> str:
        """The text of gemma_export.json; the same manifest gives the same text."""
        content = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
