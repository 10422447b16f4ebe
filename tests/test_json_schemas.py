"""Every --json of every command, as a real process, against the shipped schemas."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from json_schemas import SCHEMAS, validated
from programs import gemma_export, gemma_run, gemma_validate

from gemma_export import errors as export_errors
from gemma_export.variants import VARIANTS
from gemma_runtime import errors as runtime_errors
from gemma_validation import errors as validation_errors

# a folder whose name needs more than ASCII, a space and a quote
NAME = "größe 你's"


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_strict_and_described(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    for where, node in _nodes(SCHEMAS[name], name):
        if "properties" in node:
            assert node["additionalProperties"] is False, where
            assert set(node["required"]) == set(node["properties"]), where
            for key, field in node["properties"].items():
                assert field.get("description") or "properties" in field, f"{where}.{key} has no description"
                if "integer" in field.get("type", ()) and re.search(r"bytes|^size$|^total$|^available$", key):
                    assert "bytes" in field["description"], f"{where}.{key} has no unit"


def _nodes(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        yield where, node
        for key, value in node.items():
            yield from _nodes(value, f"{where}.{key}")


@pytest.mark.parametrize(
    ("schema", "module", "root"),
    [
        ("gemma_export/error", export_errors, export_errors.GemmaExportError),
        ("gemma_runtime/error", runtime_errors, runtime_errors.GemmaRuntimeError),
        ("gemma_validation/error", validation_errors, validation_errors.GemmaValidationError),
    ],
)
def test_every_error_class_has_its_word(schema: str, module: Any, root: type[Exception]) -> None:
    kinds = SCHEMAS[schema]["properties"]["error"]["properties"]["kind"]["enum"]
    for name in module.__all__:
        if getattr(module, name) is not root:
            word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Error")).lower()
            assert word in kinds, name


def test_plan_export_and_verify(tmp_path: Path) -> None:
    arguments = ("--variant", "tiny", "--output", NAME, "--json")
    plan = validated(gemma_export(*arguments, "--dry-run", cwd=tmp_path).stdout, "gemma_export/plan")
    assert plan["output"] == NAME
    result = gemma_export(*arguments, cwd=tmp_path)
    assert result.stdout.isascii()
    written = validated(result.stdout, "gemma_export/export")
    assert (written["output"], written["variant"]) == (NAME, "tiny")
    (tmp_path / NAME / "notes.txt").write_text("mine")
    checked = validated(gemma_export("verify", NAME, "--json", cwd=tmp_path).stdout, "gemma_export/verify")
    assert (checked["directory"], checked["extra_files"]) == (NAME, ["notes.txt"])
    assert checked["bytes"] == written["bytes"] <= plan["total_bytes"]
    options = ("--max-new-tokens", "4", "--json")
    for prompt in ("def f():", "größe = 你"):
        # a console that cannot show a character must not change the text
        found = gemma_run(NAME, prompt, *options, cwd=tmp_path, PYTHONIOENCODING="ascii")
        assert len(validated(found.stdout, "gemma_runtime/generation")["token_ids"]) <= 4
    doctor = gemma_run("--doctor", NAME, "--json", cwd=tmp_path)
    folder = validated(doctor.stdout, "gemma_runtime/doctor")["folder"]
    assert (doctor.returncode, folder["path"], folder["graph"]) == (0, NAME, "onnx/model_last8.onnx")


def test_variants() -> None:
    assert len(validated(gemma_export("variants", "--json").stdout, "gemma_export/variants")["variants"]) == len(
        VARIANTS
    )


@pytest.mark.parametrize(
    ("arguments", "kind", "code", "phrase"),
    [
        (["--variant", "7b-ti", "--json"], "unknown_variant", 2, "7b-ti"),
        (["--json", "--int3"], "usage", 2, "--int3"),
        (["--variant", "tiny", "--logits", "0", "--json"], "usage", 2, "--logits"),
        (["--checkpoint", NAME, "--json"], "missing_resource", 4, NAME),
        (["verify", NAME, "--json"], "folder", 3, NAME),
        (["--json", "verify", NAME], "folder", 3, NAME),
    ],
)
def test_errors_of_gemma_export(arguments: list[str], kind: str, code: int, phrase: str, tmp_path: Path) -> None:
    _check_error(gemma_export(*arguments, cwd=tmp_path), "gemma_export/error", kind, code, phrase)


@pytest.mark.parametrize(
    ("arguments", "kind", "code", "phrase"),
    [
        ([NAME, "x", "--json"], "manifest", 3, NAME),
        (["--json"], "usage", 2, "DIR"),
        ([".", "--json"], "usage", 2, "PROMPT"),
        ([".", "x", "--json", "--provider", "tpu"], "usage", 2, "tpu"),
        ([".", "x", "--json", "--temperature", "-1"], "prompt", 2, "temperature"),
        (["--doctor", ".", "x", "--json"], "usage", 2, "PROMPT"),
    ],
)
def test_errors_of_gemma_run(arguments: list[str], kind: str, code: int, phrase: str, tmp_path: Path) -> None:
    _check_error(gemma_run(*arguments, cwd=tmp_path), "gemma_runtime/error", kind, code, phrase)


@pytest.mark.parametrize(
    ("arguments", "kind", "code", "phrase"),
    [
        ([NAME, "--json"], "folder_unreadable", 3, NAME),
        (["--json"], "usage", 2, "DIR"),
        ([".", "--json", "--suite", "some"], "usage", 2, "some"),
        ([".", "--json", "--make-golden", "x", "--budget", "y"], "validation_usage", 2, "--budget"),
        ([".", "--json", "--make-golden", "x", "--no-record"], "validation_usage", 2, "--record"),
    ],
)
def test_errors_of_gemma_validate(arguments: list[str], kind: str, code: int, phrase: str, tmp_path: Path) -> None:
    _check_error(gemma_validate(*arguments, cwd=tmp_path), "gemma_validation/error", kind, code, phrase)


def _check_error(result: subprocess.CompletedProcess[str], schema: str, kind: str, code: int, phrase: str) -> None:
    error = validated(result.stdout, schema)["error"]
    assert (result.returncode, error["exit_code"], error["kind"]) == (code, code, kind)
    assert phrase in error["message"]
    assert result.stderr.splitlines()[-2:] == [f"error: {error['message']}", f"hint: {error['hint']}"]


def test_text_that_only_looks_like_the_flag(tmp_path: Path) -> None:
    result = gemma_run("nowhere", "--", "--json", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (3, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["gemma_export", "variants", "--json"], ["gemma_runtime", "--doctor", "--json"]])
def test_a_full_stdout_is_told_on_stderr(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", *arguments]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=os.environ)
    assert result.returncode == 5, result.stderr
    assert result.stderr.startswith("error: stdout: no space left on device\nhint: ")


def test_json_is_one_document(tmp_path: Path) -> None:
    """Warnings and progress stay off stdout."""
    import checkpoints

    checkpoints.write(tmp_path / "model", my_note="x")
    result = gemma_export("--checkpoint", "model", "--json", cwd=tmp_path)
    assert json.loads(result.stdout)["output"] == "model-fp32"
    assert "my_note" in result.stderr
