from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from gemma_export.consumers import CONSUMERS, FolderFacts
from gemma_export.consumers.genai import GENAI
from gemma_export.pipeline import ExportRequest
from gemma_export.planning import plan_export


def facts(**request: Any) -> FolderFacts:
    return plan_export(ExportRequest(variant="tiny", output=Path("unused"), **request)).facts


def genai_config(known: FolderFacts, **changes: Any) -> dict[str, Any]:
    content = GENAI.files(dataclasses.replace(known, **changes))["genai_config.json"]
    assert isinstance(content, bytes)
    return json.loads(content)


def search(generation_config: dict[str, Any] | None) -> dict[str, Any]:
    return genai_config(facts(), generation_config=generation_config)["search"]


def test_is_written_by_default() -> None:
    assert GENAI in CONSUMERS
    planned = {file.path: file for file in plan_export(ExportRequest(variant="tiny")).files}
    assert planned["genai_config.json"].exact


def test_names_and_sizes() -> None:
    model = genai_config(facts(precision="fp16", context=500))["model"]
    decoder = model.pop("decoder")
    assert model == {
        "type": "gemma",
        "context_length": 500,
        "vocab_size": 3072,
        "bos_token_id": 2,
        "eos_token_id": [1, 107],
        "pad_token_id": 0,
    }
    sizes = {key: value for key, value in decoder.items() if isinstance(value, int)}
    # head_size is its own number, not hidden_size / num_attention_heads
    assert sizes == {
        "hidden_size": 256,
        "head_size": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
    }
    assert decoder["filename"] == "onnx/model_fp16.onnx"
    assert set(decoder["inputs"]) == {"input_ids", "attention_mask", "past_key_names", "past_value_names"}
    assert decoder["inputs"]["past_value_names"] % 3 == "past_key_values.3.value"
    assert decoder["outputs"]["present_key_names"] % 0 == "present.0.key"


@pytest.mark.parametrize(
    ("family", "kind"),
    [("gemma", "gemma"), ("gemma2", "gemma2"), ("gemma3", "gemma3_text"), ("another", "decoder")],
)
def test_families_by_genais_names(family: str, kind: str) -> None:
    """No key says anything of windows: the main graph's caches are as long as the text in every layer."""
    known = facts()
    model = genai_config(known, spec=dataclasses.replace(known.spec, family=family))["model"]
    assert model["type"] == kind
    assert "sliding_window" not in model["decoder"]


@pytest.mark.parametrize(
    ("logits", "file"), [("last", "model.onnx"), ("all", "model.onnx"), ("1", "model.onnx"), ("4", "model_all.onnx")]
)
def test_graph_has_one_position_or_all(logits: str, file: str) -> None:
    assert genai_config(facts(logits=logits))["model"]["decoder"]["filename"] == f"onnx/{file}"


def test_stop_ids_are_those_of_the_other_readers() -> None:
    known = facts()
    assert genai_config(known, generation_config={"eos_token_id": 107})["model"]["eos_token_id"] == [107]
    assert genai_config(known, generation_config={})["model"]["eos_token_id"] == [1]
    assert genai_config(known, generation_config=None)["model"]["eos_token_id"] == [1]


def test_one_buffer_only_where_rows_start_at_index_zero() -> None:
    known = facts()
    for layout, shared in (("compacted", True), ("columns", False)):
        found = genai_config(known, cache_layout=layout)
        assert found["search"]["past_present_share_buffer"] is shared


@pytest.mark.parametrize("change", [{"kind": "recurrent"}, {"past_names": ("past.0.k", "past.0.v")}])
def test_state_that_it_cannot_name_means_no_file(change: dict[str, Any]) -> None:
    known = facts()
    first = dataclasses.replace(known.states[0], **change)
    other = dataclasses.replace(known, states=(first, *known.states[1:]))
    assert GENAI.files(known)
    assert GENAI.files(other) == {}


def test_a_family_that_it_has_no_word_for_is_a_decoder() -> None:
    known = facts()
    other = dataclasses.replace(known.spec, family="gemma9")
    assert genai_config(known, spec=other)["model"]["type"] == "decoder"


def test_sampling_of_the_checkpoint() -> None:
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95, "repetition_penalty": 1.1}
    found = search(sampling)
    assert {key: found[key] for key in sampling} == sampling
    assert found["max_length"] == 8192
    assert search(None)["do_sample"] is False


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("top_k", 1 << 40, 3072),
        ("top_k", 0, 0),
        ("top_k", -1, None),
        ("top_k", True, None),
        ("top_k", "50", None),
        ("top_p", 1.0, 1.0),
        ("top_p", 1.5, None),
        ("top_p", 0, None),
        ("temperature", 1, 1),
        ("temperature", -1.0, None),
        ("temperature", 1e-30, None),
        ("temperature", 10**400, None),
        ("temperature", float("inf"), None),
        ("temperature", None, None),
        ("temperature", [1], None),
        ("repetition_penalty", 0.0, None),
        ("repetition_penalty", 1.3, 1.3),
        ("early_stopping", "never", None),
        ("num_beams", 4, None),
        ("max_new_tokens", 5, None),
    ],
)
def test_only_values_that_it_takes(key: str, value: Any, expected: Any) -> None:
    """A test of the consumers marker loads such a folder."""
    assert search({"do_sample": True, key: value}).get(key) == expected


def test_temperature_zero_means_greedy() -> None:
    assert search({"do_sample": True, "temperature": 0.0})["do_sample"] is False
    assert search({"do_sample": "yes"})["do_sample"] is False
