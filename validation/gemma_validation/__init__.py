"""Numerical drift between a reference and what was exported: `gemma-validate`, and its parts for programs.

run          the order of a validation; findings what it finds, errors what stops it
structure    the folder's files and graphs; invariances the artifact against itself
texts        what is run; artifact runs it, reference and layered say what should come out
metrics      how far that is; budgets whether it is too far; golden a reference that is kept in a file
localise     where it comes from; stored weights that are not the checkpoint's
report       what people and programs are told
mutations    known bugs, which must be found
drift, widen for benchmarks and tests
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma_validation.drift import Drift, measure_drift
    from gemma_validation.run import validate
    from gemma_validation.widen import widen_bfloat16

__all__ = ["Drift", "measure_drift", "validate", "widen_bfloat16"]

_HOME = {"Drift": "drift", "measure_drift": "drift", "validate": "run", "widen_bfloat16": "widen"}


def __getattr__(name: str) -> Any:
    # `gemma-validate --help` must not wait for onnx
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
