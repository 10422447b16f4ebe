"""Modules without weights."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["on_meta"]


def on_meta(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A module whose parameters have shapes and no memory, for evaluation."""
    with torch.device("meta"):
        return make().eval()
