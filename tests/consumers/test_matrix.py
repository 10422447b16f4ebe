"""The README says what the committed results say."""

from __future__ import annotations

import json

from consumers.environments import CONSUMERS, Answer
from consumers.matrix import README, RESULTS, in_readme, render
from consumers.outcome import judge
from consumers.reference import TEXTS, Reference


def test_readme_has_the_table_of_the_committed_results() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert in_readme(README.read_text(encoding="utf-8")) == render(results)
    assert results


def _reference() -> Reference:
    tokenized = [[index] for index, _ in enumerate(TEXTS)]
    return Reference(prompts=("x",), prompt_ids=[[2, 5]], tokenized=tokenized, tokens=[[7, 8, 9]], margin=1.0)


def _answer(**changes: object) -> Answer:
    expected = _reference()
    right = {
        "loaded": "x",
        "prompt_ids": expected.prompt_ids,
        "tokenized": expected.tokenized,
        "single": expected.tokens,
        "batch": expected.tokens,
    }
    return Answer(**{**right, **changes})


def test_a_right_answer() -> None:
    assert judge(CONSUMERS["optimum"], "tiny", "fp32", _answer(), _reference()).words == ("same", "same", "same")


def test_wrong_answers_are_told_where() -> None:
    optimum, genai = CONSUMERS["optimum"], CONSUMERS["genai"]
    expected = _reference()
    assert (
        judge(optimum, "tiny", "fp32", _answer(single=[[7, 9, 9]]), expected).greedy
        == "differs: prompt 0, token 1 of 64"
    )
    assert (
        judge(optimum, "tiny", "fp32", _answer(single=[[7, 8]]), expected).greedy == "differs: prompt 0, token 2 of 64"
    )
    assert judge(optimum, "tiny", "fp32", _answer(batch=None), expected).batch == "fails: no answer"
    assert judge(optimum, "tiny", "fp32", _answer(prompt_ids=[[5]]), expected).text == "differs: the prompts' token ids"
    assert judge(optimum, "tiny", "fp32", Answer(loaded="", error="boom"), expected).words == ("fails: boom",) * 3
    spaces = [[0], [99], [2], [3], [4]]
    assert judge(optimum, "tiny", "fp32", _answer(tokenized=spaces), expected).text == "differs: 'a  b    c'"
    assert judge(genai, "tiny", "fp32", _answer(tokenized=spaces), expected).text == genai.limits["text"]
    # a limit explains no other difference
    assert (
        judge(genai, "tiny", "fp32", _answer(tokenized=[[99], *spaces[1:]]), expected).text
        == "differs: 'Hello, world!'"
    )
