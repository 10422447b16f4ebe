"""Holds what --json printed against the schemas that are shipped."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema

import gemma_export
import gemma_runtime
import gemma_validation

__all__ = ["SCHEMAS", "validated"]

SCHEMAS = {
    f"{package.__name__}/{path.name.removesuffix('.schema.json')}": json.loads(path.read_text(encoding="utf-8"))
    for package in (gemma_export, gemma_runtime, gemma_validation)
    for path in sorted(Path(str(package.__file__)).with_name("schemas").glob("*.schema.json"))
}


def validated(text: str, schema: str) -> dict[str, Any]:
    """The one JSON document that the text is, after validation; and the schema must refuse it once it is altered."""
    content: dict[str, Any] = json.loads(text)
    validator = jsonschema.Draft202012Validator(SCHEMAS[schema])
    validator.validate(content)
    for altered in _alterations(content):
        assert not validator.is_valid(altered), "the schema accepts an altered document"
    return content


def _alterations(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Without each field, with one too many, with another version, and with one too many in every object below."""
    found = []
    for key in content:
        found.append({name: value for name, value in content.items() if name != key})
    found += [{**content, "more": 1}, {**content, "schema_version": 2}]
    for key, value in content.items():
        item = value[0] if isinstance(value, list) and value else value
        if isinstance(item, dict) and key not in ("versions", "seconds", "kinds"):
            deep = copy.deepcopy(content)
            target = deep[key][0] if isinstance(value, list) else deep[key]
            target["more"] = 1
            found.append(deep)
            short = copy.deepcopy(content)
            target = short[key][0] if isinstance(value, list) else short[key]
            del target[next(iter(target))]
            found.append(short)
    return found
