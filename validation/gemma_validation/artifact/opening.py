"""Opening a graph of a folder, or saying why not in this package's errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma_runtime.element_types import ELEMENT_TYPES, ElementType
from gemma_runtime.errors import MissingPackageError as RuntimeMissingPackageError
from gemma_runtime.errors import ProviderError
from gemma_runtime.graph_choice import PROVIDERS
from gemma_runtime.manifest import MANIFEST_FILE, Graph, Manifest
from gemma_runtime.opening import check_provider, import_onnxruntime, open_session, session_options
from gemma_runtime.session import thread_count
from gemma_validation.errors import (
    FolderUnreadableError,
    MissingPackageError,
    ProviderUnavailableError,
    ValidationUsageError,
)

__all__ = ["VERIFY", "element_of", "graph_of_role", "open_graph"]

VERIFY = "`gemma-export verify` checks the folder; export it again."


def graph_of_role(manifest: Manifest, role: str) -> Graph:
    """The graph of a role; a main graph that gives all positions needs no twin for it.

    Raises:
        FolderUnreadableError: the folder has none.
    """
    found = {graph.role: graph for graph in manifest.graphs}
    main = found.get("main")
    if role == "all" and "all" not in found and main is not None and main.logits == "all":
        return main
    if role not in found:
        raise FolderUnreadableError(
            f"{MANIFEST_FILE}: no graph of role {role!r}, found {', '.join(found)}",
            hint="Export it again: this release writes such a graph.",
        )
    return found[role]


def open_graph(
    directory: Path,
    manifest: Manifest,
    graph: Graph,
    *,
    provider: str,
    threads: int | None = None,
    profile: Path | None = None,
    content: bytes | None = None,
) -> tuple[Any, Any]:
    """The module onnxruntime, and a session of a graph on the provider that was asked for or not at all.

    Args:
        directory: the exported folder.
        manifest: its manifest.
        graph: which.
        provider: "cpu", "cuda" or "directml".
        threads: that kernels on the CPU use; None takes as many as this process may have.
        profile: beginning of the name of a file that onnxruntime writes its profile to.
        content: the graph itself, where it is not what the file holds.

    Raises:
        FolderUnreadableError: the graph does not load.
        ProviderUnavailableError: the folder does not run on the provider, or the provider does not start.
        MissingPackageError: no onnxruntime.
        ValidationUsageError: no such provider.
    """
    if provider not in PROVIDERS:
        raise ValidationUsageError(f"no provider {provider!r}", hint=f"There are {', '.join(PROVIDERS)}.")
    try:
        onnxruntime = import_onnxruntime(provider)
        check_provider(onnxruntime, manifest, provider, min_onnxruntime=graph.min_onnxruntime)
        options = session_options(onnxruntime, thread_count(threads), profile)
        return onnxruntime, open_session(onnxruntime, directory / graph.file, provider, options, graph=content)
    except RuntimeMissingPackageError as error:
        raise MissingPackageError(error.message, hint=error.hint) from error
    except ProviderError as error:
        if error.__cause__ is None:
            # it is not there, or started on another
            raise ProviderUnavailableError(error.message, hint=error.hint) from error
        raise FolderUnreadableError(error.message, hint=VERIFY) from error


def element_of(value: Any, graph: Graph) -> ElementType:
    """The element type of a session's output.

    Raises:
        FolderUnreadableError: neither a floating-point type nor int8.
    """
    found = next((element for element in ELEMENT_TYPES.values() if element.onnxruntime == value.type), None)
    if found is None:
        raise FolderUnreadableError(
            f"{graph.file}: {value.name} is {value.type}, expected a floating-point type or int8", hint=VERIFY
        )
    return found
