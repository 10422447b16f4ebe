"""report.json: the shipped schema, the dataclasses and what is written agree."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from example_reports import REPORTS
from json_schemas import SCHEMAS, validated

from gemma_validation import findings
from gemma_validation.findings import Report
from gemma_validation.report import json_document, json_text

SCHEMA = SCHEMAS["gemma_validation/report"]
SIMPLE = {str: "string", int: "integer", bool: "boolean"}


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_follows_the_schema(name: str) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json_text(REPORTS[name])))


def test_altered_documents_are_refused() -> None:
    validated(json_text(REPORTS["drifted"]), "gemma_validation/report")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for place, value in (("verdict", "fine"), ("drift", None), ("exit_code", 1), ("seconds", {"a": "1"}), ("tau", "x")):
        assert not validator.is_valid({**json_document(REPORTS["passed"]), place: value}), place


def test_the_schema_has_every_field_of_the_dataclasses() -> None:
    classes = [found for found in vars(findings).values() if dataclasses.is_dataclass(found)]
    assert {word(found) for found in classes} == {*SCHEMA["$defs"], "report"}
    for found in classes:
        assert isinstance(found, type)
        schema = SCHEMA if found is Report else SCHEMA["$defs"][word(found)]
        added = {"schema_version", "exit_code"} if found is Report else set()
        hints = typing.get_type_hints(found)
        assert set(schema["properties"]) == {field.name for field in dataclasses.fields(found)} | added, found
        for field in dataclasses.fields(found):
            written = {key: value for key, value in schema["properties"][field.name].items() if key != "description"}
            assert written == expected(hints[field.name]), f"{found.__name__}.{field.name}"
    assert SCHEMA["properties"]["exit_code"]["enum"] == sorted(findings.EXIT_CODES.values())
    assert SCHEMA["properties"]["schema_version"]["const"] == findings.SCHEMA_VERSION


def word(found: Any) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", found.__name__).lower()


def expected(hint: Any) -> dict[str, Any]:
    """What the schema must say of a type; every float may be null, for what is not finite."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is float:
        return {"type": ["number", "null"]}
    if hint in SIMPLE:
        return {"type": SIMPLE[hint]}
    if dataclasses.is_dataclass(hint):
        return {"$ref": f"#/$defs/{word(hint)}"}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": expected(arguments[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": expected(arguments[1])}
    assert origin is types.UnionType
    assert arguments[1] is type(None)
    inner = expected(arguments[0])
    if "$ref" in inner:
        return {"anyOf": [{"type": "null"}, inner]}
    return {"type": inner["type"] if isinstance(inner["type"], list) else [inner["type"], "null"]}


def test_numbers_that_are_not_finite_are_null() -> None:
    text = json_text(REPORTS["broken"])

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads(text, parse_constant=refuse)
    assert document["positions"][0]["kl"] == [1e-4, 0.0, None, None, 2e-3]
    assert document["checks"][-1]["measured"] is None
    assert "not finite" in document["checks"][-1]["message"]


def test_the_text_is_stable_ascii_with_sorted_keys() -> None:
    text = json_text(REPORTS["hostile"])
    assert text.isascii()
    assert text == json_text(REPORTS["hostile"])
    assert list(json.loads(text)) == sorted(json.loads(text))
    # no half of a pair, escaped or not: strict readers refuse it
    json.loads(text)["flips"][0]["context"].encode()


def test_nothing_but_half_pairs_is_altered() -> None:
    written = json_document(REPORTS["hostile"])["flips"][0]
    flip = REPORTS["hostile"].flips[0]
    assert written["context"] == flip.context.replace("\ud800", "\ufffd").replace("\udfff", "\ufffd")
    assert "<script>" in written["context"]
    assert written["margin"] == flip.margin
