"""Deployment targets, one file each. `TARGETS` is the registry: to add one, add a file and a line here."""

from __future__ import annotations

from gemma_export.targets.directml import DIRECTML
from gemma_export.targets.ort import ORT
from gemma_export.targets.portable import PORTABLE
from gemma_export.targets.target import Target

__all__ = ["TARGETS", "Target"]

TARGETS: dict[str, Target] = {target.name: target for target in (ORT, PORTABLE, DIRECTML)}
