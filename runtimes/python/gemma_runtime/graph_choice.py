"""Which graph of a folder an onnxruntime release takes. Imports nothing heavy: the diagnosis asks it too."""

from __future__ import annotations

import re

from gemma_runtime.errors import ProviderError
from gemma_runtime.manifest import Graph, Manifest

__all__ = ["PROVIDERS", "choose_provider", "graph_for", "release"]

# the manifest's and --provider's word -> onnxruntime's
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "directml": "DmlExecutionProvider"}


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, for comparing."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def graph_for(manifest: Manifest, installed: tuple[int, ...]) -> Graph:
    """The graph that generates: the one whose last few positions get logits, if there is one, otherwise the main one.

    One session then serves prompts, single tokens and the checking of several guessed tokens at once; for a single
    token both do the same work. Where a prompt goes through whole, nothing can be guessed and the main graph does.

    Raises:
        ProviderError: the main graph needs a later release.
    """
    main = manifest.graph("main")
    if release(main.min_onnxruntime) > installed:
        raise ProviderError(
            f"{main.file} needs onnxruntime {main.min_onnxruntime} or later, found {'.'.join(map(str, installed))}",
            hint="pip install --upgrade the onnxruntime package that is installed.",
        )
    several = [
        graph
        for graph in manifest.graphs
        if isinstance(graph.logits, int)
        and graph.logits > 1
        and graph.chunks != "none"
        and release(graph.min_onnxruntime) <= installed
    ]
    return next((graph for graph in several if graph.role == "main"), several[0] if several else main)


def choose_provider(manifest: Manifest, wanted: str) -> tuple[str, str]:
    """The provider that "auto" means here, and why it is that one; any other word is itself."""
    if wanted != "auto":
        if wanted not in PROVIDERS:
            raise ProviderError(
                f"no provider {wanted!r}, there are auto, {', '.join(PROVIDERS)}", hint="Leave it out for the CPU."
            )
        return wanted, "asked for"
    runs_on = f"this folder ({manifest.target}, {manifest.precision.name}) runs on {' and '.join(manifest.providers)}"
    others = [name for name in manifest.providers if name not in ("cuda", "directml")]
    if "cuda" not in manifest.providers or not others:
        # DirectML only by name: whether it is faster than the CPU depends on the graphics card
        return (others or list(manifest.providers))[0], runs_on
    # in a process of its own: a driver that crashes or hangs must not take this one with it
    from gemma_runtime.doctor.providers import start_provider

    cuda = start_provider(PROVIDERS["cuda"])
    return ("cuda", f"{runs_on}; CUDA starts here") if cuda.starts else (others[0], f"{runs_on}; CUDA: {cuda.reason}")
