"""An artifact against itself: the same tokens give the same numbers, whichever way they go through.

bounds       how far apart two ways may be, by precision
differences  the distances, and the check that they make
scene        the texts, and what they give when nothing is done to them
prompts      one row: parts, other ends, one buffer
batches      several rows: padding, order
windows      which cached positions a layer reads
twins        the folder's other graphs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from gemma_runtime.manifest import Graph, Manifest
from gemma_validation.artifact import ArtifactRunner
from gemma_validation.documents import Document
from gemma_validation.errors import FolderUnreadableError, ProviderUnavailableError
from gemma_validation.findings import Check
from gemma_validation.invariances import batches, prompts, twins, windows
from gemma_validation.invariances.bounds import Bounds, same_shape_bounds
from gemma_validation.invariances.differences import Difference, passed, skipped
from gemma_validation.invariances.scene import SIZES, Scene
from gemma_validation.metrics import NotFinite

__all__ = ["check_invariances"]

_CHUNKS = {"quick": (7, 64), "full": (2, 7, 64, 128)}


def check_invariances(
    directory: Path,
    manifest: Manifest,
    documents: Sequence[Document],
    *,
    opened: Callable[[str], ArtifactRunner],
    suite: str,
) -> tuple[Check, ...]:
    """Runs the artifact in many ways and compares them with one another; no reference is needed.

    Args:
        directory: the exported folder.
        manifest: its manifest.
        documents: texts; without any, made-up tokens serve.
        opened: the session of a role's graph, until another is asked for.
        suite: "quick", less than a minute for a 2B in 4 bits, or "full", which takes longer texts and more sizes.

    Returns:
        One check for each invariance; skipped where the folder promises nothing.

    Raises:
        FolderUnreadableError: there is no graph of all positions, or it does not load.
        ProviderUnavailableError: the provider does not start.
    """
    scene = Scene(opened("all"), documents, SIZES[suite])
    try:
        # what everything else is compared with
        _ = scene.whole, scene.alone
    except FolderUnreadableError as error:
        return (Check(group="invariance", name="one run", outcome="failed", message=error.message),)
    found = windows.layer_windows(directory, scene.runner.graph)
    checks = [*_single_row(scene, suite), *_several_rows(scene), *_windows(scene, found, documents)]
    # before the session closes: what the others are compared with
    _ = scene.asked
    for graph in manifest.graphs:
        if graph.role != scene.runner.graph.role:
            checks += _twin(scene, graph, opened)
    return tuple(checks)


def _single_row(scene: Scene, suite: str) -> list[Check]:
    checks = [_measured("token by token", scene, partial(prompts.in_parts, scene, 1))]
    for size in _CHUNKS[suite]:
        name = f"chunks of {size}"
        if scene.runner.chunked:
            checks.append(_measured(name, scene, partial(prompts.in_parts, scene, size)))
        else:
            checks.append(skipped(name, f"{scene.runner.graph.file} takes no chunks behind a cache"))
    checks.append(_measured("later tokens", scene, partial(prompts.later_tokens, scene)))
    if scene.runner.manifest.cache_layout == "compacted":
        checks.append(_measured("one buffer for past and present", scene, partial(prompts.in_place, scene)))
    else:
        checks.append(skipped("one buffer for past and present", "these kernels make their cache anew"))
    checks.append(_told("state symbols", "dimensions are their symbols'", partial(prompts.state_symbols, scene)))
    return checks


def _several_rows(scene: Scene) -> list[Check]:
    asked: dict[str, Callable[[Scene], Difference]] = {
        "rows side by side": batches.side_by_side,
        "left padding": partial(batches.padding, side="left"),
        "right padding": partial(batches.padding, side="right"),
        "rows in another order": batches.permuted,
        "another pad id": batches.other_pad,
    }
    return [_measured(name, scene, partial(function, scene)) for name, function in asked.items()]


def _windows(scene: Scene, found: Mapping[int, int], documents: Sequence[Document]) -> list[Check]:
    told = ", ".join(f"{window or 'none'}" for window in sorted(set(found.values())))
    message = f"every layer reads its window and nothing outside (windows: {told})"
    checks = [_told("cached positions", message, partial(windows.unread_positions, scene, found))]
    largest, longest = max(found.values()), max((len(document.token_ids) for document in documents), default=0)
    if largest:
        # what the comparison with the reference, and the invariances above, can say of windows
        name, held = "texts beyond the window", f"the longest text has {longest} tokens, the largest window {largest}"
        why = f"{held}: only `cached positions` looks behind it"
        checks.append(passed(name, held) if longest > largest else skipped(name, why))
    return checks


def _twin(scene: Scene, graph: Graph, opened: Callable[[str], ArtifactRunner]) -> list[Check]:
    name = f"graph {graph.role}"
    try:
        runner = opened(graph.role)
    except ProviderUnavailableError as error:
        # a twin may need a later onnxruntime than the main graph
        return [skipped(name, error.message)]
    except FolderUnreadableError as error:
        return [Check(group="invariance", name=name, outcome="failed", message=error.message)]
    if graph.role == "static":
        return [_measured(name, scene, partial(twins.static_step, scene, runner))]
    bounds = same_shape_bounds(scene.runner.manifest)
    checks = [_measured(name, scene, partial(twins.same_steps, scene, runner), bounds)]
    if graph.role == "batched":
        checks.append(_measured("chunks of several rows", scene, partial(twins.batched_chunks, scene, runner)))
    return checks


def _measured(name: str, scene: Scene, ask: Callable[[], Difference], bounds: Bounds | None = None) -> Check:
    try:
        return ask().judged(name, bounds or scene.bounds)
    except FolderUnreadableError as error:
        # a graph that runs one way and not another breaks its promise
        return Check(group="invariance", name=name, outcome="failed", message=error.message)


def _told(name: str, message: str, ask: Callable[[], str | None]) -> Check:
    finite = True
    try:
        wrong = ask()
    except FolderUnreadableError as error:
        wrong = error.message
    except NotFinite as error:
        wrong, finite = str(error), False
    if wrong is None:
        return passed(name, message)
    return Check(group="invariance", name=name, outcome="failed", message=wrong, finite=finite)
