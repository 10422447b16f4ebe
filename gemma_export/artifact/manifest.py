"""What an export knows, as the folder's manifest."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gemma_export import __version__
from gemma_export.artifact.writer import GraphFile
from gemma_export.config import CacheState, DecoderSpec
from gemma_runtime.manifest import (
    WINDOW_CAPACITY,
    AdapterSource,
    FileEntry,
    Generator,
    Graph,
    Manifest,
    Precision,
    Source,
    SourceFile,
    State,
)

__all__ = ["build_manifest", "hashed_adapter", "hashed_source"]

# packages whose release decides the bytes of the graphs and weights; absent ones are left out
_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")


def build_manifest(
    *,
    graphs: Sequence[GraphFile],
    files: Sequence[FileEntry],
    data_file: str,
    spec: DecoderSpec,
    states: Sequence[CacheState],
    variant: str | None,
    source: Source,
    target: str,
    opset: int,
    cache_layout: str,
    providers: tuple[str, ...],
    rows: Mapping[str, int | str],
    chunks: Mapping[str, str],
    min_onnxruntime: Mapping[str, str],
    windowed: Collection[str],
    cache_bytes: Mapping[str, int],
    precision: str,
    activation_dtype: str,
    weight_dtype: str,
    state_dtype: str,
    options: Mapping[str, Any],
) -> Manifest:
    """The manifest of a folder.

    Args:
        graphs: what was written.
        files: every file but the manifest.
        data_file: path of the shared weights.
        spec: the architecture, with the exported context length.
        states: decoder state, layer by layer.
        variant: name of the released checkpoint, if it is one.
        source: where the weights came from.
        target, opset, cache_layout, providers: of the deployment target.
        rows: for each role, how many rows its graph takes: a number, or the contract's symbol batch_size.
        chunks: for each role, which steps of several tokens with a cache its graph takes: batched, single or none.
        min_onnxruntime: for each role, the first release that loads its graph.
        windowed: roles whose layers with a window have caches of its size.
        cache_bytes: for each role, bytes of one row's decoder state at the full context.
        precision, activation_dtype, weight_dtype, state_dtype, options: of the number format.
    """
    return Manifest(
        variant=variant,
        family=spec.family,
        source=source,
        target=target,
        precision=Precision(
            name=precision, activation_dtype=activation_dtype, weight_dtype=weight_dtype, options=options
        ),
        providers=providers,
        min_onnxruntime=min(min_onnxruntime.values(), key=lambda text: tuple(map(int, text.split(".")))),
        cache_layout=cache_layout,
        context_length=spec.max_position_embeddings,
        vocab_size=spec.vocab_size,
        graphs=tuple(
            Graph(
                file=graph.file,
                role=graph.role,
                logits=graph.logits,
                opset=opset,
                chunks=chunks[graph.role],
                min_onnxruntime=min_onnxruntime[graph.role],
                inputs=("input_ids", "attention_mask"),
                data_files=(data_file,),
                cache_bytes=cache_bytes[graph.role],
                state=tuple(
                    _state(entry, state_dtype, rows[graph.role], windowed=graph.role in windowed) for entry in states
                ),
            )
            for graph in graphs
        ),
        files=tuple(files),
        generator=Generator(version=__version__, packages=_versions()),
    )


def hashed_source(
    *,
    kind: str,
    repository: str | None,
    revision: str | None,
    name: str | None,
    seed: int | None,
    generator_version: int | None,
    files: Sequence[tuple[str, int, str]],
    adapter: AdapterSource | None = None,
) -> Source:
    """Where weights came from; `files` are (base name, size in bytes, SHA-256)."""
    return Source(
        kind=kind,
        repository=repository,
        revision=revision,
        name=name,
        seed=seed,
        generator_version=generator_version,
        files=_source_files(files),
        adapter=adapter,
    )


def hashed_adapter(
    *,
    repository: str | None,
    revision: str | None,
    name: str | None,
    ranks: Sequence[int],
    files: Sequence[tuple[str, int, str]],
) -> AdapterSource:
    """The adapter that was merged; `files` as in `hashed_source`."""
    return AdapterSource(
        repository=repository, revision=revision, name=name, ranks=tuple(ranks), files=_source_files(files)
    )


def _source_files(files: Sequence[tuple[str, int, str]]) -> tuple[SourceFile, ...]:
    return tuple(SourceFile(name=file, size=size, sha256=sha256) for file, size, sha256 in sorted(files))


def _state(state: CacheState, dtype: str, rows: int | str, *, windowed: bool) -> State:
    length = WINDOW_CAPACITY if windowed and state.window else "past_sequence_length"
    return State(
        layer=state.layer,
        kind=state.kind,
        past=state.past_names,
        present=state.present_names,
        shape=(rows, state.num_heads, length, state.head_dim),
        dtype=dtype,
        window=state.window,
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
