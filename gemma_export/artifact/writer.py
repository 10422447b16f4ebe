"""Writes a folder: several graphs over one weight store, streamed, hashed while written, published by one rename."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import onnx_ir as ir

from gemma_export.artifact.disk import check_disk, explained, sync_directory
from gemma_export.artifact.hashing_file import HashingFile
from gemma_export.artifact.layout import MANIFEST_FILE, check_relative, file_kind
from gemma_export.artifact.output import claim_output, publish, staged
from gemma_export.artifact.verify import verify_folder
from gemma_export.artifact.weight_store import WeightStore, write_tensor
from gemma_export.errors import InternalError, MissingResourceError
from gemma_export.progress import NullProgress, Progress
from gemma_runtime.manifest import FileEntry, Manifest

__all__ = ["GraphFile", "WrittenFolder", "write_folder"]

_COPY_BYTES = 1 << 20
# manifest, directory entries and the file system's own bookkeeping
_RESERVE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """One graph of the folder.

    `file` is its path ("onnx/model_fp16.onnx"); `logits` says which positions it gives: the last, all, or the last n.
    Its initializers carry lazy tensors; it is not changed by writing.
    """

    role: str
    file: str
    logits: Literal["last", "all"] | int
    model: ir.Model


@dataclass(frozen=True, kw_only=True)
class WrittenFolder:
    """What was published: where, its manifest, and what a dead export had left there before, a line each."""

    directory: Path
    manifest: Manifest
    files: tuple[FileEntry, ...]
    total_bytes: int
    recovered: tuple[str, ...]


def write_folder(
    output: Path,
    *,
    graphs: Sequence[GraphFile],
    data_file: str,
    extra_files: Mapping[str, bytes | Path],
    manifest: Callable[[Sequence[FileEntry]], Manifest],
    force: bool,
    progress: Progress | None = None,
) -> WrittenFolder:
    """Writes the whole folder or nothing; after a kill at any point the next export of this output cleans up.

    Memory stays bounded by what the tensors themselves take to write one chunk. The same inputs give the same bytes.

    Args:
        output: the folder to make; missing parents are made too.
        graphs: the graphs; the first one's initializers lead the data file.
        data_file: path of the weights inside the folder, beside the graphs ("onnx/model_fp16.onnx_data").
        extra_files: further files by path inside the folder: their content, or a file to copy.
        manifest: makes the manifest from every other file's entry, sorted by path.
        force: replace an older export at `output`.
        progress: told the bytes of the folder as they are written.

    Raises:
        OutputError: the output exists, is held by another export, or cannot be written.
        ResourceExhaustedError: the disk is too small, or fills up.
        InternalError: graphs, names or manifest contradict each other.
    """
    _check_names(graphs, data_file, extra_files)
    with claim_output(output, force=force) as claim:
        store = WeightStore([graph.model for graph in graphs])
        location = PurePosixPath(data_file).name
        contents: dict[str, bytes | Path] = {graph.file: store.serialize(graph.model, location) for graph in graphs}
        contents |= extra_files
        total = store.plan.size + sum(_size(name, content) for name, content in contents.items())
        check_disk(claim.output, total + _RESERVE_BYTES)
        with staged(claim.output) as staging:
            write = _FileWriter(staging.folder, total, progress if progress is not None else NullProgress())
            write.progress.start(total, f"writing {claim.output.name}")
            try:
                if store.plan.ranges:
                    write.weights(data_file, store)
                for name, content in contents.items():
                    write.file(name, content)
            finally:
                write.progress.finish()
            entries = tuple(sorted(write.entries, key=lambda entry: entry.path))
            written = manifest(entries)
            if tuple(written.files) != entries:
                raise InternalError(
                    "the manifest does not list exactly the files that were written", hint="Report this bug."
                )
            write.file(MANIFEST_FILE, written.to_json().encode())
            _sync_tree(staging.folder)
            # digests were taken while writing: nothing large is read again
            verify_folder(staging.folder, hash_data=False)
            publish(staging, force=force)
        return WrittenFolder(
            directory=claim.output,
            manifest=written,
            files=entries,
            total_bytes=sum(entry.size for entry in entries),
            recovered=claim.recovered,
        )


class _FileWriter:
    """Writes files of a staging folder and keeps their entries."""

    def __init__(self, folder: Path, total: int, progress: Progress) -> None:
        self.progress = progress
        self.entries: list[FileEntry] = []
        self._folder = folder
        self._total = total

    def weights(self, name: str, store: WeightStore) -> None:
        """Streams every range of the store, in file order, zeros between them."""
        with self._open(name) as file:
            for entry in store.plan.ranges:
                file.pad_to(entry.offset)
                write_tensor(store.tensor(entry), file)
                if file.size != entry.offset + entry.nbytes:
                    raise InternalError(
                        f"tensor {entry.name}: expected {entry.nbytes} bytes, wrote {file.size - entry.offset}",
                        hint="A lazy weight contradicts its own shape. Report this bug.",
                    )
            file.pad_to(store.plan.size)
        self._note(name, file)

    def file(self, name: str, content: bytes | Path) -> None:
        """Writes a small file, or copies one."""
        with self._open(name) as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                _copy(name, content, file)
        self._note(name, file)

    def _open(self, name: str) -> HashingFile:
        path = self._folder / name
        with explained(path, self._total):
            path.parent.mkdir(parents=True, exist_ok=True)
        return HashingFile(path, needed_bytes=self._total, progress=self.progress)

    def _note(self, name: str, file: HashingFile) -> None:
        self.entries.append(FileEntry(path=name, size=file.size, sha256=file.sha256, kind=file_kind(name)))


def _check_names(graphs: Sequence[GraphFile], data_file: str, extra_files: Mapping[str, bytes | Path]) -> None:
    names = [*(graph.file for graph in graphs), data_file, MANIFEST_FILE, *extra_files]
    seen: dict[str, str] = {}
    for name in names:
        # two spellings of one name are one file on Windows and macOS
        folded = check_relative(name).casefold()
        if folded in seen:
            raise InternalError(
                f"two files of the folder are called {name} and {seen[folded]}", hint="Report this bug."
            )
        seen[folded] = name
    parent = PurePosixPath(data_file).parent
    apart = [graph.file for graph in graphs if PurePosixPath(graph.file).parent != parent]
    if apart or not graphs:
        found = ", ".join(apart) or "no graph"
        raise InternalError(f"expected graphs beside {data_file}, found {found}", hint="Report this bug.")


def _size(name: str, content: bytes | Path) -> int:
    if isinstance(content, bytes):
        return len(content)
    try:
        return content.stat().st_size
    except OSError as error:
        raise _unreadable(name, content, error) from error


def _copy(name: str, path: Path, target: HashingFile) -> None:
    # the target's own refusals come as errors of ours: an OSError here is the source's
    try:
        with path.open("rb") as source:
            shutil.copyfileobj(source, target, _COPY_BYTES)
    except OSError as error:
        raise _unreadable(name, path, error) from error


def _unreadable(name: str, path: Path, error: OSError) -> MissingResourceError:
    return MissingResourceError(
        f"{path}, to be copied to {name}, cannot be read: {error.strerror}",
        hint="Put the file back, or choose a checkpoint directory you may read.",
    )


def _sync_tree(folder: Path) -> None:
    with explained(folder):
        for directory in sorted(path for path in folder.rglob("*") if path.is_dir()):
            sync_directory(directory)
        sync_directory(folder)
