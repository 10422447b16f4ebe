"""The exported folder: its layout, the crash-safe streaming writer, and the check of a folder by its manifest.

Importing the package is light: a name's module, and onnx with it, is imported when the name is first used,
so that planning a folder (`--dry-run`) never waits for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma_export.artifact.disk import check_disk
    from gemma_export.artifact.layout import MANIFEST_FILE, data_file, file_kind, graph_file
    from gemma_export.artifact.output import check_output, claim_output
    from gemma_export.artifact.plan import DataPlan, Range, plan_data, stays_inline
    from gemma_export.artifact.verify import VerifyReport, verify_folder
    from gemma_export.artifact.writer import GraphFile, WrittenFolder, write_folder

__all__ = [
    "MANIFEST_FILE",
    "DataPlan",
    "GraphFile",
    "Range",
    "VerifyReport",
    "WrittenFolder",
    "check_disk",
    "check_output",
    "claim_output",
    "data_file",
    "file_kind",
    "graph_file",
    "plan_data",
    "stays_inline",
    "verify_folder",
    "write_folder",
]

_MODULES = {
    "disk": ("check_disk",),
    "layout": ("MANIFEST_FILE", "data_file", "file_kind", "graph_file"),
    "output": ("check_output", "claim_output"),
    "plan": ("DataPlan", "Range", "plan_data", "stays_inline"),
    "verify": ("VerifyReport", "verify_folder"),
    "writer": ("GraphFile", "WrittenFolder", "write_folder"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
