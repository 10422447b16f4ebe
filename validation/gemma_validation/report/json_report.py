"""The report as JSON: schemas/report.schema.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from gemma_validation.findings import Report
from gemma_validation.report.text import clean

__all__ = ["json_document", "json_text"]


def json_document(report: Report) -> dict[str, Any]:
    """What the schema describes: null for numbers that are not finite, no lone surrogates."""
    document: dict[str, Any] = _plain(report.to_dict())
    return document


def json_text(report: Report) -> str:
    """The document as ASCII text with sorted keys: the same report gives the same text."""
    return json.dumps(json_document(report), indent=1, sort_keys=True, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
