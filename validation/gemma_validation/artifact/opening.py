"""Opening a graph of a folder, or saying why not in this package's errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gemma_runtime.element_types import ELEMENT_TYPES, ElementType
from gemma_runtime.errors import ProviderError
from gemma_runtime.graph_choice import PROVIDERS, release
from gemma_runtime.manifest import MANIFEST_FILE, Graph, Manifest
from gemma_runtime.opening import open_session
from gemma_validation.errors import (
    FolderUnreadableError,
    MissingPackageError,
    ProviderUnavailableError,
    ValidationUsageError,
)

__all__ = ["VERIFY", "check_provider", "element_of", "graph_of_role", "import_onnxruntime", "open_graph"]

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


def import_onnxruntime() -> Any:
    """The module.

    Raises:
        MissingPackageError: it is not installed.
    """
    # telemetry is on by default since 1.29 and reads this only while it is imported
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            f"onnxruntime is not installed: {error}", hint='pip install "gemma-export[cpu]"'
        ) from error
    return onnxruntime


def check_provider(onnxruntime: Any, manifest: Manifest, graph: Graph, provider: str) -> None:
    """Refuses before anything is loaded; never a silent fallback.

    Raises:
        ValidationUsageError: no such provider.
        ProviderUnavailableError: the folder does not run there, or this onnxruntime does not have it or is too old.
    """
    if provider not in PROVIDERS:
        raise ValidationUsageError(f"no provider {provider!r}", hint=f"There are {', '.join(PROVIDERS)}.")
    if provider not in manifest.providers:
        raise ProviderUnavailableError(
            f"this folder ({manifest.target}, {manifest.precision.name}) runs on {', '.join(manifest.providers)}, "
            f"not on {provider}",
            hint=f"Choose --provider {manifest.providers[0]}, or export with a precision that runs on {provider}.",
        )
    available = onnxruntime.get_available_providers()
    if PROVIDERS[provider] not in available:
        raise ProviderUnavailableError(
            f"the installed onnxruntime {onnxruntime.__version__} has no {provider} provider, found "
            f"{', '.join(available)}",
            hint="gemma-run --doctor says which package to install.",
        )
    if release(onnxruntime.__version__) < release(graph.min_onnxruntime):
        raise ProviderUnavailableError(
            f"{graph.file} needs onnxruntime {graph.min_onnxruntime} or later, found {onnxruntime.__version__}",
            hint="pip install --upgrade the onnxruntime package that is installed.",
        )


def open_graph(onnxruntime: Any, file: Path, provider: str, options: Any, graph: bytes | None) -> Any:
    """A session of a graph.

    Args:
        onnxruntime: the module.
        file: of the graph.
        provider: "cpu", "cuda" or "directml".
        options: onnxruntime's SessionOptions.
        graph: the graph itself, where it is not what the file holds.

    Raises:
        FolderUnreadableError: the graph does not load.
        ProviderUnavailableError: the session started on another provider.
    """
    try:
        return open_session(onnxruntime, file, provider, options, graph=graph)
    except ProviderError as error:
        if error.__cause__ is None:
            # it started on another provider
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
