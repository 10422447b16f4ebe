"""Checks an exported folder by its manifest, without loading weights into anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gemma_export.artifact.graph_check import check_graph
from gemma_export.artifact.layout import MANIFEST_FILE
from gemma_export.errors import FolderError
from gemma_export.progress import NullProgress, Progress
from gemma_runtime.errors import ManifestError
from gemma_runtime.manifest import Manifest, read_manifest, verify_hashes, verify_structure

__all__ = ["VerifyReport", "verify_folder"]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked and found right.

    `external_tensors` counts references of all graphs into data files. `extra_files` lie in the folder but not in its
    manifest: a user's own notes do no harm, so they are reported and are no error.
    """

    directory: Path
    manifest: Manifest
    total_bytes: int
    hashed_bytes: int
    external_tensors: int
    extra_files: tuple[str, ...]


def verify_folder(directory: Path, progress: Progress | None = None, *, hash_data: bool = True) -> VerifyReport:
    """Holds a folder against its manifest: structure, sizes, hashes, and every graph's use of the data files.

    Args:
        directory: an exported folder.
        progress: told the bytes as they are hashed.
        hash_data: also read and hash the weight data, the one slow part.

    Raises:
        FolderError: names the file, what was expected and what was found.
    """
    progress = progress if progress is not None else NullProgress()
    try:
        manifest = read_manifest(directory)
        verify_structure(directory, manifest)
    except ManifestError as error:
        raise FolderError(error.message, hint=error.hint) from error
    # before the slow hashing: a graph that points outside its data is wrong whatever the hashes say
    external = sum(check_graph(directory, manifest, graph) for graph in manifest.graphs)
    total = sum(entry.size for entry in manifest.files)
    data = sum(entry.size for entry in manifest.files if entry.kind == "data")
    if hash_data:
        progress.start(data, f"verifying {directory.name}")
        try:
            verify_hashes(directory, manifest, progress.advance)
        except ManifestError as error:
            raise FolderError(error.message, hint=error.hint) from error
        finally:
            progress.finish()
    listed = {entry.path for entry in manifest.files} | {MANIFEST_FILE}
    found = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())
    return VerifyReport(
        directory=directory,
        manifest=manifest,
        total_bytes=total,
        hashed_bytes=total if hash_data else total - data,
        external_tensors=external,
        extra_files=tuple(sorted(set(found) - listed)),
    )
