"""The order of a validation: the only file that knows all its parts.

folder's structure -> reference found, known to be of the same model -> texts -> logits of both sides compared
  -> greedy text, caches exchanged -> the artifact against itself -> stored blocks and gains against the source
  -> where every node ran, seen in the sessions of all that
  -> budget, verdict -> the layer that is to blame, where there is drift
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from gemma_export.errors import GemmaExportError
from gemma_runtime.errors import GemmaRuntimeError
from gemma_runtime.manifest import Manifest, read_manifest
from gemma_validation.artifact import onnxruntime_version
from gemma_validation.budgets import Budget, default_budget, judge, read_budget
from gemma_validation.comparison import Comparison, compare, compare_golden
from gemma_validation.errors import FolderUnreadableError, GemmaValidationError, ValidationUsageError
from gemma_validation.findings import Check, Localisation, ReferenceAbout, Report, Subject
from gemma_validation.golden import GoldenReference, identity_of, make_golden
from gemma_validation.invariances import check_invariances
from gemma_validation.layered import LayeredReference
from gemma_validation.localise import localise as find_culprit
from gemma_validation.metrics import TAU
from gemma_validation.reference import (
    FoundReference,
    find_reference,
    not_exchanged,
    open_reference,
    open_source,
    require_folder,
)
from gemma_validation.stages import StageClock
from gemma_validation.stored import StoredWeights, compare_stored
from gemma_validation.structure import PROVIDERS_CHECK, ProfiledSessions, check_providers, check_structure
from gemma_validation.texts import folder_documents

__all__ = ["MadeGolden", "folder_manifest", "make_golden_pack", "validate"]

Suite = Literal["quick", "full"]


def validate(
    directory: Path,
    *,
    reference: Path | str | None = None,
    suite: Suite = "quick",
    provider: str = "cpu",
    reference_provider: str | None = None,
    budget: Path | None = None,
    localise: bool | None = None,
    tau: float = TAU,
    on_stage: Callable[[str], None] | None = None,
) -> Report:
    """Holds an exported folder against what it was exported from.

    Args:
        directory: the folder.
        reference: a checkpoint's folder, a golden pack, another exported folder; None finds what the manifest names.
        suite: how much text, and how many invariances.
        provider: "cpu", "cuda" or "directml".
        reference_provider: where an exported folder runs as the reference: the folder itself too, on another provider.
            None takes `provider`, or the first that the reference's manifest has where it does not run there.
        budget: TOML file of bounds; None takes those of the folder's precision.
        localise: find the layer that drift comes from; None does so where there is drift and a checkpoint.
        tau: margin above which a changed token is a decisive flip, logits.
        on_stage: told what begins, a line each.

    Raises:
        GemmaValidationError: there is nothing to compare, or not with this; what was found wrong is the report's.
    """
    directory = Path(directory)
    clock = StageClock(on_stage)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    manifest = folder_manifest(directory)
    bounds = _budget(budget, manifest)
    with clock.stage("structure"):
        checks = list(check_structure(directory, manifest))
    sessions = ProfiledSessions(directory, manifest, provider=provider)
    comparison = Comparison.nothing()
    found: FoundReference | None = None
    stored = StoredWeights()
    if _is_what_was_written(checks):
        found = find_reference(directory, manifest, reference, itself=reference_provider not in (None, provider))
        require_folder(found, reference_provider)
        if localise and found.kind != "checkpoint":
            raise ValidationUsageError(
                f"--localise needs a checkpoint's layers, {found.name} is a {_KINDS[found.kind]}",
                hint="Give the checkpoint with --reference, or leave --localise out.",
            )
        with contextlib.closing(sessions):
            comparison = _measured(
                directory,
                manifest,
                found,
                clock,
                sessions,
                suite=suite,
                provider=provider,
                reference_provider=reference_provider,
                tau=tau,
            )
        checks += comparison.checks
        stored = _stored(directory, manifest, found, clock)
        checks += stored.checks
    if all(check.name != PROVIDERS_CHECK for check in checks):
        with clock.stage("providers"), contextlib.closing(sessions):
            checks.append(check_providers(sessions))
    gates, verdict, reasons = judge(bounds, comparison.drift, checks)
    localisation = None
    wanted = verdict in ("drift", "broken") if localise is None else localise
    if wanted and found is not None and found.kind == "checkpoint":
        with clock.stage("layers"):
            localisation = stored.named(_localised(directory, manifest, found, suite, provider))
    return Report(
        subject=_subject(directory, manifest, provider),
        reference=comparison.about or _NO_REFERENCE,
        suite=suite,
        verdict=verdict,
        reasons=reasons,
        checks=tuple(checks),
        drift=comparison.drift,
        noise_floor=comparison.noise_floor,
        gates=gates,
        positions=comparison.positions,
        flips=comparison.flips,
        greedy=comparison.greedy,
        localisation=localisation,
        tau=tau,
        seconds=clock.seconds,
        started=started,
    )


_KINDS = {"folder": "folder that was exported", "golden": "golden pack"}
_NO_REFERENCE = ReferenceAbout(kind="none", name="", dtype="", versions={})


def _measured(
    directory: Path,
    manifest: Manifest,
    found: FoundReference,
    clock: StageClock,
    sessions: ProfiledSessions,
    *,
    suite: Suite,
    provider: str,
    reference_provider: str | None,
    tau: float,
) -> Comparison:
    """Everything that runs the graphs."""
    documents = folder_documents(directory, manifest, suite=suite)
    if found.kind == "golden":
        assert found.path is not None
        pack = GoldenReference.read(found.path)
        pack.require(directory, manifest)
        with clock.stage("golden pack"):
            comparison = compare_golden(directory, manifest, pack, opened=sessions.open, tau=tau)
    else:
        source = open_source(found, directory, manifest, provider=provider, reference_provider=reference_provider)
        with contextlib.closing(source), clock.stage("drift"):
            comparison = compare(directory, manifest, source, documents, opened=sessions.open, suite=suite, tau=tau)
    if not comparison.loaded:
        return comparison
    if found.kind == "golden":
        told = not_exchanged("a golden pack has no keys and values")
        comparison = dataclasses.replace(comparison, checks=(*comparison.checks, *told))
    with clock.stage("invariances"):
        own = check_invariances(directory, manifest, documents, opened=sessions.open, suite=suite)
    return dataclasses.replace(comparison, checks=(*comparison.checks, *own))


def _stored(directory: Path, manifest: Manifest, found: FoundReference, clock: StageClock) -> StoredWeights:
    """Stored weights against the checkpoint's, where there is one."""
    if found.kind != "checkpoint":
        return StoredWeights()
    with clock.stage("stored weights"):
        return compare_stored(directory, manifest, open_reference(found, manifest).weight)


def _is_what_was_written(checks: Sequence[Check]) -> bool:
    """Whether the files are the manifest's: nothing else is given to onnxruntime."""
    return all(check.outcome == "passed" for check in checks if check.name in ("files", "hashes"))


def _localised(directory: Path, manifest: Manifest, found: FoundReference, suite: Suite, provider: str) -> Localisation:
    try:
        checkpoint = open_reference(found, manifest)
        layers = LayeredReference(checkpoint.config, name=checkpoint.name, weights=checkpoint.weight)
        documents, window = folder_documents(directory, manifest, suite=suite), max(checkpoint.spec.windows)
        return find_culprit(directory, manifest, layers, documents, provider=provider, window=window)
    except FolderUnreadableError as error:
        return Localisation(points=(), culprit=None, message=error.message)
    except (GemmaValidationError, GemmaExportError) as error:
        # everything is measured by now: no memory for one layer more must not lose it
        return Localisation(points=(), culprit=None, message=f"not found, the layers could not be run: {error.message}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeGolden:
    """What a golden pack keeps."""

    # what computed it
    reference: ReferenceAbout
    documents: int
    positions: int
    # known tokens of each position
    top: int
    # of the file
    bytes: int
    # of the reference's run
    seconds: float


def make_golden_pack(
    directory: Path,
    file: Path,
    *,
    reference: Path | str | None = None,
    reference_provider: str | None = None,
    suite: Suite = "quick",
    on_stage: Callable[[str], None] | None = None,
) -> MadeGolden:
    """Keeps what the reference says about a folder's texts in a file, so that others validate without it.

    Args:
        directory: the exported folder; its manifest says which model, its tokenizer makes the tokens.
        file: is overwritten.
        reference: a checkpoint's folder or another exported folder; None finds what the manifest names.
        reference_provider: where another exported folder runs; None takes "cpu", or its first where it does not.
        suite: which texts.
        on_stage: told what begins, a line each.

    Returns:
        What was kept.

    Raises:
        GemmaValidationError: no reference, one of another model, its logits are no numbers, or the file cannot be
            written.
    """
    clock = StageClock(on_stage)
    manifest = folder_manifest(directory)
    found = find_reference(directory, manifest, reference)
    if found.kind == "golden":
        raise ValidationUsageError(
            f"{found.name} is a golden pack already", hint="Give the checkpoint with --reference, or leave it out."
        )
    documents = folder_documents(directory, manifest, suite=suite)
    with clock.stage("reference"), contextlib.ExitStack() as stack:
        source = open_source(found, directory, manifest, reference_provider=reference_provider)
        stack.callback(source.close)
        header = make_golden(file, source, documents, identity_of(directory, manifest))
    return MadeGolden(
        reference=header.reference,
        documents=len(header.documents),
        positions=sum(header.rows),
        top=header.top,
        bytes=file.stat().st_size,
        seconds=clock.seconds["reference"],
    )


def folder_manifest(directory: Path) -> Manifest:
    """The manifest of an exported folder.

    Raises:
        FolderUnreadableError: there is none, or it cannot be read.
    """
    try:
        return read_manifest(directory)
    except GemmaRuntimeError as error:
        raise FolderUnreadableError(error.message, hint=error.hint) from error


def _budget(file: Path | None, manifest: Manifest) -> Budget:
    if file is not None:
        return read_budget(file)
    cache = manifest.precision.options.get("kv_cache")
    return default_budget(
        manifest.precision.name, kv_cache=None if cache is None else cache["dtype"], variant=manifest.variant
    )


def _subject(directory: Path, manifest: Manifest, provider: str) -> Subject:
    hashes = sorted(entry.sha256 for entry in manifest.files if entry.kind == "data")
    return Subject(
        directory=str(directory),
        variant=manifest.variant,
        family=manifest.family,
        precision=manifest.precision.name,
        target=manifest.target,
        provider=provider,
        onnxruntime=onnxruntime_version(),
        weights_sha256=hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
    )
