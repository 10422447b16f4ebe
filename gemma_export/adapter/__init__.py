"""Adapters that are merged into a checkpoint while it is exported: PEFT's LoRA. Torch-free and never pickle."""

from __future__ import annotations

from gemma_export.adapter.adapter import Adapter, open_adapter
from gemma_export.adapter.config import AdapterConfig
from gemma_export.adapter.hub_adapter import find_adapter
from gemma_export.adapter.merge import Factors, Merge, MergedTensor, plan_merge

__all__ = ["Adapter", "AdapterConfig", "Factors", "Merge", "MergedTensor", "find_adapter", "open_adapter", "plan_merge"]
