"""Which graph of a folder an onnxruntime release takes. Imports nothing heavy: the diagnosis asks it too."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gemma_runtime.errors import ProviderError
from gemma_runtime.manifest import Graph, Manifest

__all__ = ["PROVIDERS", "choose_provider", "graph_for", "release", "told_provider"]

# Providers whose attention keeps window-sized caches, and whether there is room behind the window, so that guesses can
# be taken back: CUDA's kernel wants a cache exactly as long as the window.
_WINDOWED = {"cpu": True, "cuda": False}
# the manifest's and --provider's word -> onnxruntime's
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "directml": "DmlExecutionProvider"}


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, for comparing."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def graph_for(
    manifest: Manifest,
    installed: tuple[int, ...],
    *,
    provider: str = "cpu",
    windowed: str = "auto",
    guesses: bool = True,
    static: bool = False,
) -> Graph:
    """The graph that generates: the one whose last few positions get logits, if there is one, otherwise the main one.

    One session then serves prompts, single tokens and the checking of several guessed tokens at once; for a single
    token both do the same work. Where a prompt goes through whole, nothing can be guessed and the main graph does.
    With window-sized caches, where the folder has such graphs and this release and provider run them.

    Args:
        manifest: of the folder.
        installed: the onnxruntime release.
        provider: "cpu", "cuda" or "directml".
        windowed: "auto", "on" or "off".
        guesses: whether several guessed tokens are to be checked at once, where a graph can.
        static: whether a static twin shares its cache.

    Raises:
        ProviderError: the main graph needs a later release; window-sized caches are asked for and cannot be had.
    """
    main = manifest.graph("main")
    if release(main.min_onnxruntime) > installed:
        raise ProviderError(
            f"{main.file} needs onnxruntime {main.min_onnxruntime} or later, found {_text(installed)}",
            hint="pip install --upgrade the onnxruntime package that is installed.",
        )
    plain = _best(graph for graph in manifest.graphs if not graph.windowed and _runs(graph, installed)) or main
    if windowed == "off":
        return plain
    found = _windowed(manifest, installed, provider, guesses=guesses, static=static)
    if isinstance(found, Graph):
        return found
    if windowed == "on":
        alone = _windowed(manifest, installed, provider, guesses=False, static=static)
        without = " With --speculate off they can be." if isinstance(alone, Graph) else ""
        raise ProviderError(f"window-sized caches: {found}", hint=f"By default they are used where they work.{without}")
    return plain


def _runs(graph: Graph, installed: tuple[int, ...]) -> bool:
    return release(graph.min_onnxruntime) <= installed


def _best(graphs: Iterable[Graph]) -> Graph | None:
    """Of graphs that check several tokens at once; the main one before any other."""
    found = [graph for graph in graphs if isinstance(graph.logits, int) and graph.logits > 1 and graph.chunks != "none"]
    return next((graph for graph in found if graph.role == "main"), found[0] if found else None)


def _windowed(
    manifest: Manifest, installed: tuple[int, ...], provider: str, *, guesses: bool, static: bool
) -> Graph | str:
    """The graph with window-sized caches, or why there is none."""
    there = [graph for graph in manifest.graphs if graph.windowed]
    if not there:
        return f"this folder ({manifest.target}, {manifest.precision.name}) has no graph with them"
    if static:
        return "a CUDA graph needs caches of full size"
    if provider not in _WINDOWED:
        return f"{provider} has no kernel for them, found on {' and '.join(_WINDOWED)}"
    usable = [graph for graph in there if _runs(graph, installed)]
    if not usable:
        needed = min((graph.min_onnxruntime for graph in there), key=release)
        return f"{there[0].file} needs onnxruntime {needed} or later, found {_text(installed)}"
    several = _best(usable) if _WINDOWED[provider] else None
    if several is not None:
        return several
    if not guesses:
        return next((graph for graph in usable if graph.logits == "last"), usable[0])
    return f"guessing ahead needs caches of full size on {provider} with onnxruntime {_text(installed)}"


def _text(installed: tuple[int, ...]) -> str:
    return ".".join(map(str, installed))


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


def told_provider(provider: str, reason: str) -> str:
    """What a user is told of what "auto" has chosen, with what `choose_provider` gives."""
    return f"provider: {provider} ({reason})"
