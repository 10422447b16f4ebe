"""The folders in other people's loaders: the same tokens as PyTorch, each loader in its own environment and process."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tolerances
from consumers.environments import CONSUMERS, MODELS, Answer, Consumer, ask
from consumers.matrix import RESULTS
from consumers.outcome import SAME, Outcome, judge
from consumers.reference import NEW_TOKENS, STOP_IDS, TEXTS, reference

from gemma_export.artifact import verify_folder
from gemma_export.consumers.genai import GENAI
from gemma_export.pipeline import ExportRequest, export
from gemma_export.planning import plan_export

pytestmark = pytest.mark.consumers

_FOUND = Path(__file__).resolve().parents[2] / ".consumers/results.json"
_PRECISIONS = {"fp32": "onnx/model.onnx", "fp16": "onnx/model_fp16.onnx"}
_CASES = [(name, model, precision) for name in CONSUMERS for model in MODELS for precision in _PRECISIONS]


def _ask(consumer: Consumer, folder: Path, graph: str, model: str = "tiny") -> Answer:
    expected = reference(model)
    request: dict[str, Any] = {
        "folder": folder.as_posix(),
        "graph": graph,
        "prompts": expected.prompts,
        "prompt_ids": expected.prompt_ids,
        "texts": TEXTS,
        "new_tokens": NEW_TOKENS,
    }
    return ask(consumer, request)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], tuple[Answer, Outcome]]:
    root = tmp_path_factory.mktemp("folders")

    @functools.cache
    def folder(target: str, model: str, precision: str) -> Path:
        output = root / f"{model}-{target}-{precision}"
        export(ExportRequest(variant=model, target=target, precision=precision, output=output))
        verify_folder(output)
        return output

    @functools.cache
    def judged(name: str, model: str, precision: str) -> tuple[Answer, Outcome]:
        consumer = CONSUMERS[name]
        answer = _ask(consumer, folder(consumer.target, model, precision), _PRECISIONS[precision], model)
        return answer, judge(consumer, model, precision, answer, reference(model))

    return judged


@pytest.mark.parametrize("model", MODELS)
def test_prompts_are_no_close_calls(model: str) -> None:
    """Else float16 could choose otherwise and still be right."""
    expected = reference(model)
    assert expected.margin > tolerances.GREEDY_MARGIN
    assert all(len(tokens) == NEW_TOKENS and not STOP_IDS & set(tokens) for tokens in expected.tokens)
    assert len({tuple(tokens) for tokens in expected.tokens}) == len(expected.prompts)
    assert len({len(ids) for ids in expected.prompt_ids}) == len(expected.prompts)


@pytest.mark.parametrize(("name", "model", "precision"), _CASES)
def test_greedy_tokens(name: str, model: str, precision: str, outcome: Callable[..., tuple[Answer, Outcome]]) -> None:
    answer, judged = outcome(name, model, precision)
    assert judged.greedy == SAME
    assert answer.loaded.rpartition("/")[2] == _PRECISIONS[precision].rpartition("/")[2]


@pytest.mark.parametrize(("name", "model", "precision"), [case for case in _CASES if CONSUMERS[case[0]].batch])
def test_padded_batch(name: str, model: str, precision: str, outcome: Callable[..., tuple[Answer, Outcome]]) -> None:
    answer, judged = outcome(name, model, precision)
    assert judged.batch == SAME
    # a loader that has learnt the other side leaves the table's remark
    limited = "batch" in CONSUMERS[name].limits
    assert (answer.limited_batch not in (None, reference(model).tokens)) == limited


@pytest.mark.parametrize(("name", "model", "precision"), [case for case in _CASES if CONSUMERS[case[0]].tokenizes])
def test_tokenizer(name: str, model: str, precision: str, outcome: Callable[..., tuple[Answer, Outcome]]) -> None:
    """Equal to the reference; or, where a limit is known, still limited so."""
    assert outcome(name, model, precision)[1].text == CONSUMERS[name].limits.get("text", SAME)


@pytest.mark.parametrize("precision", _PRECISIONS)
def test_an_int8_cache(precision: str, tmp_path: Path) -> None:
    """Every loader asks the session what type its cache has."""
    folder = tmp_path / "folder"
    export(ExportRequest(variant="tiny", precision=precision, kv_cache="int8", output=folder))
    for consumer in CONSUMERS.values():
        if consumer.target == "ort":
            judged = judge(
                consumer, "tiny", precision, _ask(consumer, folder, _PRECISIONS[precision]), reference("tiny")
            )
            assert (judged.greedy, judged.batch) == (SAME, SAME if consumer.batch else "—"), consumer.name


@pytest.mark.parametrize("logits", ["all", "4"])
def test_other_logits_positions(logits: str, tmp_path: Path) -> None:
    folders = {}
    for consumer in CONSUMERS.values():
        if consumer.target not in folders:
            folders[consumer.target] = folder = tmp_path / consumer.target
            export(ExportRequest(variant="tiny", target=consumer.target, logits=logits, output=folder))
            verify_folder(folder)
        folder = folders[consumer.target]
        judged = judge(consumer, "tiny", "fp32", _ask(consumer, folder, _PRECISIONS["fp32"]), reference("tiny"))
        assert (judged.greedy, judged.batch) == (SAME, SAME if consumer.batch else "—"), consumer.name


def test_openvino_reads_no_functions(tmp_path: Path) -> None:
    """As the README says of --keep-functions; once it does, that sentence and this test go."""
    export(ExportRequest(variant="tiny", target="portable", keep_functions=True, output=tmp_path / "functions"))
    answer = _ask(CONSUMERS["openvino"], tmp_path / "functions", _PRECISIONS["fp32"])
    assert answer.error is not None
    assert "No conversion rule found for operations: gemma." in answer.error


def test_genai_takes_a_generation_config_that_it_would_refuse(tiny_fp32: Path, tmp_path: Path) -> None:
    odd = {
        "do_sample": True,
        "temperature": 0.0,
        "top_k": 1 << 40,
        "top_p": 1.5,
        "num_beams": 4,
        "num_return_sequences": 3,
        "early_stopping": "never",
        "repetition_penalty": -1,
        "max_length": 1 << 40,
        "typical_p": 0.5,
        "eos_token_id": 1,
    }
    facts = plan_export(ExportRequest(variant="tiny", output=tmp_path / "unused")).facts
    folder = tmp_path / "folder"
    shutil.copytree(tiny_fp32, folder)
    for name, content in GENAI.files(dataclasses.replace(facts, generation_config=odd)).items():
        (folder / name).write_bytes(content)
    assert _ask(CONSUMERS["genai"], folder, _PRECISIONS["fp32"]).single == reference("tiny").tokens


def test_committed_results_are_these(outcome: Callable[..., tuple[Answer, Outcome]]) -> None:
    """Versions and verdicts; `make consumer-matrix` accepts new ones into the README."""
    found = [dataclasses.asdict(outcome(name, model, precision)[1]) for name, model, precision in _CASES]
    _FOUND.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == json.loads(RESULTS.read_text(encoding="utf-8"))
