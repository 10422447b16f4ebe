from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from gemma_export.consumers import FolderFacts
from gemma_export.consumers.transformers_files import TRANSFORMERS_FILES
from gemma_export.consumers.transformers_js import transformers_js_config
from gemma_export.pipeline import ExportRequest
from gemma_export.planning import plan_export


def facts(precision: str) -> FolderFacts:
    return plan_export(ExportRequest(variant="tiny", precision=precision, output=Path("unused"))).facts


def config(known: FolderFacts) -> dict[str, Any]:
    content = TRANSFORMERS_FILES.files(known)["config.json"]
    assert isinstance(content, bytes)
    return json.loads(content)


def test_float32() -> None:
    found = config(facts("fp32"))
    assert found["transformers.js_config"] == {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}}
    assert found["model_type"] == "gemma"


def test_float16() -> None:
    assert config(facts("fp16"))["transformers.js_config"] == {
        "dtype": "fp16",
        "use_external_data_format": {"model_fp16.onnx": 1},
        "kv_cache_dtype": {"fp16": "float16"},
    }


def test_an_int8_cache_is_left_to_the_session() -> None:
    """Releases before 4 know only floating-point caches: they would be told a wrong type."""
    plan = plan_export(ExportRequest(variant="tiny", precision="fp16", kv_cache="int8", output=Path("unused")))
    assert "kv_cache_dtype" not in config(plan.facts)["transformers.js_config"]


def test_every_data_file_counts() -> None:
    known = dataclasses.replace(facts("fp32"), data_files=("onnx/model.onnx_data", "onnx/model.onnx_data_1"))
    section = transformers_js_config(known)
    assert section is not None
    assert section["use_external_data_format"] == {"model.onnx": 2}


@pytest.mark.parametrize("suffix", ["_bf16", "_int8f16"])
def test_a_precision_without_a_name_there_has_no_section(suffix: str) -> None:
    """A section of the checkpoint's own goes too: it describes other graphs."""
    known = facts("fp32")
    stale = {**known.config, "transformers.js_config": {"dtype": "q4"}}
    known = dataclasses.replace(known, config=stale, graphs={f"onnx/model{suffix}.onnx": ("main", "last")})
    assert transformers_js_config(known) is None
    assert "transformers.js_config" not in config(known)
