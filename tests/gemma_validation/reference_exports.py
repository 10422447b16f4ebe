"""Checkpoints and folders beside each other."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from gemma_export.pipeline import ExportRequest, export
from gemma_runtime import Manifest, read_manifest

__all__ = ["Exported", "exported"]


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
