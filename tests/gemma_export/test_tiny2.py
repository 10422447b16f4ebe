"""The built-in Gemma 2: its export against transformers, in every precision and past its window."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from decoders import Graph, builtin_reference, reference_choices, reference_logits
from programs import gemma_run

from gemma_export.checkpoint import BUILTIN_DIRECTORIES
from gemma_export.checkpoint.checkpoint import TOKENIZER_FILES
from gemma_export.pipeline import ExportRequest, export
from gemma_export.precision import WeightOptions
from gemma_runtime import read_manifest
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift

_DIRECTORY = BUILTIN_DIRECTORIES["tiny2"]
# this file's own text, written after the model was trained: a dozen windows
_TEXT = Path(__file__).read_text(encoding="utf-8")
_IDS = np.array([load_tokenizer(_DIRECTORY).encode(_TEXT)[:400]])
_WINDOW = 32


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return reference_logits(builtin_reference("tiny2"), _IDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _export(tmp_path_factory.mktemp("tiny2") / "fp32")


def _export(output: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(ExportRequest(variant="tiny2", output=output, **options)).folder.directory


def _graph(folder: Path) -> Graph:
    return Graph(folder / read_manifest(folder).graph("all").file)


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_logit_softcapping": None},
        {"attn_logit_softcapping": 9.0},
        {"final_logit_softcapping": None},
        {"sliding_window": _WINDOW - 1},
        {"layer_types": ["full_attention", "sliding_attention"] * 2},
        {"query_pre_attn_scalar": 64},
    ],
    ids=str,
)
def test_its_weights_hide_nothing(changes: dict[str, Any], expected: np.ndarray) -> None:
    """A decoder that got one of its numbers wrong is far outside the tolerance on this text."""
    wrong = reference_logits(builtin_reference("tiny2", **changes), _IDS)
    assert np.abs(wrong - expected).max() > 100 * tolerances.FP32_LOGITS * expected.std()


@pytest.mark.parametrize("size", [400, 100, 7])
def test_all_positions(size: int, folder: Path, expected: np.ndarray) -> None:
    found = _graph(folder).chunks(_IDS, size)
    assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()
    assert measure_drift(expected, found).mean_kl <= tolerances.FP32_MEAN_KL


def test_portable(tmp_path: Path, expected: np.ndarray) -> None:
    found, _ = _graph(_export(tmp_path / "folder", target="portable")).step(_IDS, np.ones_like(_IDS))
    assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"precision": "fp16"}, tolerances.FP16_MEAN_KL),
        ({"weights": WeightOptions(scheme="int8")}, tolerances.INT8_MEAN_KL),
        ({"weights": WeightOptions(scheme="int4")}, tolerances.INT4_MEAN_KL),
        ({"weights": WeightOptions(scheme="int4"), "precision": "fp16"}, tolerances.INT4_MEAN_KL),
    ],
    ids=["fp16", "int8", "int4", "int4-fp16"],
)
def test_drift(options: dict[str, Any], bound: float, tmp_path: Path, expected: np.ndarray) -> None:
    found, _ = _graph(_export(tmp_path / "folder", **options)).step(_IDS, np.ones_like(_IDS))
    assert 0 < measure_drift(expected, found).mean_kl <= bound


def test_greedy_text_past_the_window(folder: Path) -> None:
    """As a user gets it, guesses of several tokens a step included."""
    text = "def read_lines(path):\n"
    options = ("--max-new-tokens", 3 * _WINDOW, "--min-new-tokens", 3 * _WINDOW, "--json")
    content = json.loads(gemma_run(folder, text, *options).stdout)
    prompt, tokens = load_tokenizer(folder).encode(text), content["token_ids"]
    assert content["prompt_tokens"] == len(prompt) < _WINDOW
    assert len(tokens) == 3 * _WINDOW
    chosen = reference_choices(builtin_reference("tiny2"), np.array([prompt]), tokens)
    # stop tokens are not chosen before the least number
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert all(one == other or other in stops for one, other in zip(tokens, chosen, strict=True))


def test_the_folder_is_a_checkpoint_of_its_own() -> None:
    """With the first model's tokenizer."""
    for name in TOKENIZER_FILES:
        assert (_DIRECTORY / name).is_file() == (BUILTIN_DIRECTORIES["tiny"] / name).is_file()
        if (_DIRECTORY / name).is_file():
            assert (_DIRECTORY / name).read_bytes() == (BUILTIN_DIRECTORIES["tiny"] / name).read_bytes()
