"""A plan for machines, and the parts of it that an export's result repeats. Torch-free."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from gemma_export import JSON_VERSION
from gemma_export.adapter import Merge
from gemma_export.artifact import file_kind
from gemma_export.planning import ExportPlan

__all__ = ["adapter_json", "cache_json", "plan_json"]


def adapter_json(merge: Merge | None) -> dict[str, Any] | None:
    """The merged adapter for machines."""
    if merge is None:
        return None
    return {"name": merge.adapter.name, "ranks": list(merge.ranks), "tensors": len(merge.tensors)}


def cache_json(plan: ExportPlan) -> dict[str, Any]:
    """Keys and values between steps, for machines."""
    cache, states, tokens = plan.precision.cache, plan.family.cache_states(plan.spec), plan.spec.max_position_embeddings
    windowed = any(graph.windowed for graph in plan.graphs)
    return {
        "dtype": plan.precision.state_dtype,
        "granularity": None if cache is None else cache.granularity,
        "bytes_per_token": plan.precision.state_nbytes(states),
        "full_context_bytes": plan.precision.cache_nbytes(states, tokens, windowed=False),
        "windowed_full_context_bytes": plan.precision.cache_nbytes(states, tokens, windowed=True) if windowed else None,
    }


def _bounds_json(plan: ExportPlan) -> dict[str, Any]:
    return {
        "max_kl": plan.request.max_kl,
        "smallest_data_bytes": plan.smallest_data,
        "largest_data_bytes": plan.data.size,
    }


def plan_json(plan: ExportPlan) -> str:
    """The plan for machines: schemas/plan.schema.json."""
    content = {
        "schema_version": JSON_VERSION,
        "output": str(plan.output),
        "family": plan.family.name,
        "variant": plan.variant.name if plan.variant else None,
        "target": plan.target.name,
        "precision": plan.precision.name,
        "checkpoint_quantisation": plan.facts.quantised_by,
        "source": plan.facts.source,
        "adapter": adapter_json(plan.merge),
        "residual_scale": dataclasses.asdict(plan.residual_scale),
        "kv_cache": cache_json(plan),
        "max_kl": None if plan.request.max_kl is None else _bounds_json(plan),
        "files": [{"path": file.path, "size": file.nbytes, "exact": file.exact} for file in plan.files],
        "total_bytes": plan.nbytes,
        "download_bytes": plan.download_bytes,
        "peak_memory_bytes": plan.peak_memory_bytes,
        "warnings": list(plan.warnings),
        "kinds": {file.path: file_kind(file.path) for file in plan.files},
    }
    return json.dumps(content, indent=2)
