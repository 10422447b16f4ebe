"""Checkpoints and folders beside each other."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemma_export.pipeline import ExportRequest, export
from gemma_runtime import Manifest, read_manifest
from gemma_validation.artifact import ArtifactRunner
from gemma_validation.findings import Check
from gemma_validation.structure import PROVIDERS_CHECK, ProfiledSessions, check_providers, check_structure

__all__ = ["Exported", "exported", "opens", "structure_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """A folder beside the checkpoint that it was made from."""

    checkpoint: Path
    folder: Path

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.folder)


def exported(root: Path, checkpoint: Path, **changes: Any) -> Exported:
    """Exports a checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(ExportRequest(checkpoint=checkpoint, output=root / "folder", **changes))
    return Exported(checkpoint=checkpoint, folder=root / "folder")


def opens(folder: Path) -> Callable[[str], ArtifactRunner]:
    """What opens a folder's graphs by their roles, on the CPU."""
    return ProfiledSessions(folder, read_manifest(folder), provider="cpu").open


def structure_of(folder: Path) -> tuple[Check, ...]:
    """Everything that is looked at without the model's numbers, the providers too."""
    manifest = read_manifest(folder)
    checks = check_structure(folder, manifest)
    if any(check.name == PROVIDERS_CHECK for check in checks):
        return checks
    return (*checks, check_providers(ProfiledSessions(folder, manifest, provider="cpu")))
