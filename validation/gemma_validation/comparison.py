"""Logits of both sides over the same text, and everything else that needs both at once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from gemma_runtime.manifest import Manifest
from gemma_validation.artifact import ArtifactRunner
from gemma_validation.documents import Document
from gemma_validation.errors import FolderUnreadableError
from gemma_validation.findings import Check, Drift, Flip, GreedyDivergence, PositionDrift, ReferenceAbout
from gemma_validation.golden import GoldenReference, measure_golden
from gemma_validation.metrics import DriftMeter, NotFinite
from gemma_validation.noise_floor import NoiseFloor
from gemma_validation.reference import GreedyText, ReferenceSource, ask_injection, greedy_divergences, greedy_texts
from gemma_validation.texts import folder_tokenizer

__all__ = ["Comparison", "compare", "compare_golden"]

# logits of a 256,000-token vocabulary at 128 positions are 131 MB, and up to three sides have them at once
_ROWS = 128
# tokens of free-running greedy text, and documents that it is written behind
_GREEDY = {"quick": (24, 5), "full": (64, 24)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What both sides gave."""

    about: ReferenceAbout | None
    # whether the graph that is compared could be opened
    loaded: bool = True
    drift: tuple[Drift, ...] = ()
    noise_floor: tuple[Drift, ...] = ()
    positions: tuple[PositionDrift, ...] = ()
    flips: tuple[Flip, ...] = ()
    greedy: tuple[GreedyDivergence, ...] = ()
    checks: tuple[Check, ...] = ()

    @classmethod
    def nothing(cls) -> Comparison:
        """Nothing could be run."""
        return cls(about=None, loaded=False)


def compare(
    directory: Path,
    manifest: Manifest,
    source: ReferenceSource,
    documents: Sequence[Document],
    *,
    opened: Callable[[str], ArtifactRunner],
    suite: Literal["quick", "full"],
    tau: float,
) -> Comparison:
    """Runs all documents through the reference and the folder's graph with all positions.

    Args:
        directory: the exported folder.
        manifest: its manifest.
        source: the reference.
        documents: what to run.
        opened: the session of a role's graph, until another is asked for.
        suite: how much greedy text.
        tau: margin above which a changed token is a decisive flip, logits.

    A graph that does not run, and logits of a text that are not finite, end it: a failed check is what is left. Where
    only greedy text meets such, its check fails and the rest is kept.
    """
    meter = DriftMeter(tau=tau)
    try:
        runner = opened("all")
    except FolderUnreadableError as error:
        return _not_loaded(source.about, error)
    with contextlib.ExitStack() as stack:
        steps, count = _GREEDY[suite]
        texts, finite = _written(runner, list(_first_of_each_slice(documents))[:count], steps)
        # together: a reference that is read layer by layer reads its layers once
        injected = ask_injection(source, runner, min(documents, key=lambda document: len(document.token_ids)))
        source.prepare([*documents, *(text.document for text in texts)])
        floor = stack.enter_context(contextlib.closing(NoiseFloor(source, documents, tau=tau)))
        try:
            for index, document in enumerate(documents):
                for first, test in runner.logits(document.token_ids, rows=_ROWS):
                    expected = source.logits(index, first, first + len(test))
                    meter.add(document, first, expected, test)
                    floor.add(index, first, expected)
        except NotFinite as error:
            return Comparison(about=source.about, checks=(_not_finite(error),))
        greedy: tuple[GreedyDivergence, ...] = ()
        try:
            greedy = greedy_divergences(source, texts, len(documents))
        except NotFinite as error:
            finite = _not_finite(error)
        exchanged = injected()
    return Comparison(
        about=source.about,
        drift=meter.drifts(),
        noise_floor=floor.drifts(),
        positions=meter.positions(),
        flips=meter.flips(_decoder(directory, manifest)),
        greedy=greedy,
        checks=(finite, *floor.checks(), *exchanged),
    )


def _written(runner: ArtifactRunner, documents: Sequence[Document], steps: int) -> tuple[tuple[GreedyText, ...], Check]:
    """Greedy text, and the check of finite logits: a step behind a cache may be the first that gives others."""
    try:
        return greedy_texts(runner, documents, steps), _finite()
    except NotFinite as error:
        return (), _not_finite(error)


def compare_golden(
    directory: Path,
    manifest: Manifest,
    pack: GoldenReference,
    *,
    opened: Callable[[str], ArtifactRunner],
    tau: float,
) -> Comparison:
    """Runs a golden pack's documents through the folder's graph with all positions; see `compare`."""
    try:
        runner = opened("all")
    except FolderUnreadableError as error:
        return _not_loaded(pack.about, error)
    try:
        found = measure_golden(pack, lambda ids: runner.logits(ids, rows=_ROWS), tau=tau)
    except NotFinite as error:
        return Comparison(about=pack.about, checks=(_not_finite(error),))
    return Comparison(
        about=pack.about,
        drift=found.drifts(),
        positions=found.positions(),
        flips=found.flips(_decoder(directory, manifest)),
        checks=(_finite(),),
    )


def _first_of_each_slice(documents: Sequence[Document]) -> Iterator[Document]:
    """The first document of each slice, then all others."""
    seen: set[str] = set()
    later = []
    for document in documents:
        if document.slice in seen:
            later.append(document)
        else:
            seen.add(document.slice)
            yield document
    yield from later


def _decoder(directory: Path, manifest: Manifest) -> Callable[[Sequence[int]], str]:
    tokenizer = folder_tokenizer(directory, manifest)
    if tokenizer is None:
        return lambda token_ids: " ".join(map(str, token_ids))
    return tokenizer.decode


def _not_loaded(about: ReferenceAbout, error: FolderUnreadableError) -> Comparison:
    check = Check(group="structure", name="graph of all positions", outcome="failed", message=error.message)
    return Comparison(about=about, loaded=False, checks=(check,))


def _finite() -> Check:
    return Check(group="structure", name="finite logits", outcome="passed", message="every logit is a number")


def _not_finite(error: NotFinite) -> Check:
    return Check(group="structure", name="finite logits", outcome="failed", message=str(error))
