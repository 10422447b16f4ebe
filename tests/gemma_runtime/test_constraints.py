"""Answers of the built-in model at high temperature match what was asked for, whatever the tokenizer's library."""

from __future__ import annotations

import gc
import json
import re
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from decoders import Graph

from gemma_runtime.constraints import Constraint, ConstraintState
from gemma_runtime.errors import GemmaRuntimeError, MissingPackageError, PromptError
from gemma_runtime.sampling import Sampling, TokenChooser
from gemma_runtime.tokenizer import Tokenizer, load_tokenizer

TINY = Path(__file__).parents[2] / "gemma_export" / "checkpoint" / "tiny"
EOS, END_OF_TURN = 1, 107
STOPS = frozenset({EOS, END_OF_TURN})
VOCABULARY = 3072
SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "kind": {"enum": ["a b", "<eos>", "日本", "\N{GRINNING FACE}"]},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": {
            "type": "object",
            "properties": {
                "ok": {"type": "boolean"},
                "at": {"type": "array", "items": {"type": "number", "minimum": -9, "maximum": 9}, "maxItems": 2},
            },
            "required": ["ok"],
            "additionalProperties": False,
        },
    },
    "either": {
        "$defs": {"date": {"type": "string", "pattern": "^[0-9]{4}-[0-1][0-9]$"}},
        "type": "object",
        "properties": {"when": {"anyOf": [{"$ref": "#/$defs/date"}, {"type": "null"}, {"const": "<bos>never<eos>"}]}},
        "required": ["when"],
        "additionalProperties": False,
    },
}
PATTERNS = [r"[a-c]{3,8}", r"(yes|no), (\d{1,3}|\n+ )x", r"<unused[0-9]>", r"日+本? é{2}", r"\{[^\n{}]{0,9}\}"]
CALCULATION = r"""
start: sum
sum: product (("+" | "-") product)~0..2
product: value ("*" value)~0..1
value: NUMBER | "(" sum ")"
NUMBER: /[0-9]{1,3}/
"""


@pytest.fixture(scope="module", params=["tokenizers", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(TINY, request.param)


@pytest.fixture(scope="module")
def graph(tiny_fp32: Path) -> Graph:
    return Graph(tiny_fp32 / "onnx/model.onnx")


def samples(
    graph: Graph, tokenizer: Tokenizer, constraint: Constraint, *, count: int = 50, length: int = 80, seed: int = 0
) -> list[tuple[list[int], bool]]:
    """(tokens, whether a stop token ended them) of many answers at once, hot."""
    choosers = [
        TokenChooser(
            Sampling(temperature=3.0, seed=seed + row),
            vocab_size=VOCABULARY,
            prompt_ids=[],
            stop_ids=STOPS,
            constraint=constraint.matcher(tokenizer, STOPS),
        )
        for row in range(count)
    ]
    answers: list[list[int]] = [[] for _ in choosers]
    ended = [False] * count
    ids = np.array([tokenizer.encode("x = ")] * count)
    total, past = ids.shape[1], None
    for _ in range(length):
        logits, past = graph.step(ids, np.ones((count, total)), past)
        for row, chooser in enumerate(choosers):
            if ended[row]:
                continue
            token = chooser.choose(logits[row, -1])
            ended[row] = token in STOPS
            if not ended[row]:
                chooser.accept(token)
                answers[row].append(token)
        if all(ended):
            break
        ids, total = np.array([[answer[-1] if answer else 0] for answer in answers]), total + 1
    return list(zip(answers, ended, strict=True))


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_is_valid_under_its_schema(graph: Graph, tokenizer: Tokenizer, name: str) -> None:
    constraint = Constraint.json_schema(SCHEMAS[name])
    texts = set()
    for tokens, ended in samples(graph, tokenizer, constraint):
        if ended:
            text = tokenizer.decode(tokens)
            jsonschema.validate(json.loads(text), SCHEMAS[name])
            texts.add(text)
    # hot: most are different, and all schemas have an end
    assert len(texts) > 15


def test_white_space_in_json_has_an_end(tokenizer: Tokenizer) -> None:
    """A small model that may go on with spaces does."""
    state = Constraint.json_schema(SCHEMAS["flat"]).matcher(tokenizer, STOPS)
    state.accept(token(tokenizer, "{"))
    blank = {one for one in allowed(state) if not tokenizer.token_bytes(one).strip()}
    assert {tokenizer.token_bytes(one) for one in blank} >= {b" ", b"\n"}
    assert all(re.fullmatch(rb" |\n *", tokenizer.token_bytes(one)) for one in blank)
    state.accept(token(tokenizer, "\u2581"))
    assert not {one for one in allowed(state) if not tokenizer.token_bytes(one).strip()}


def test_any_json(graph: Graph, tokenizer: Tokenizer) -> None:
    ended = [tokens for tokens, ended in samples(graph, tokenizer, Constraint.json()) if ended]
    # a string goes on as long as the model likes
    assert len(ended) > 4
    kinds = {type(json.loads(tokenizer.decode(tokens))) for tokens in ended}
    assert len(kinds) > 1


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_whole_answer_matches_the_expression(graph: Graph, tokenizer: Tokenizer, pattern: str) -> None:
    found = samples(graph, tokenizer, Constraint.regex(pattern), count=30, length=40)
    texts = {tokenizer.decode(tokens) for tokens, ended in found if ended}
    assert len(texts) > 2
    for text in texts:
        assert re.fullmatch(pattern, text), text


def test_a_grammar(graph: Graph, tokenizer: Tokenizer) -> None:
    found = samples(graph, tokenizer, Constraint.lark(CALCULATION), count=30, length=80)
    texts = {tokenizer.decode(tokens) for tokens, ended in found if ended}
    assert len(texts) > 10
    for text in texts:
        # parses, and nothing but what the grammar has
        assert re.fullmatch(r"[0-9+*()-]+", text)
        compile(re.sub(r"\b0+(?=\d)", "", text), "answer", "eval")


def allowed(state: ConstraintState, size: int = VOCABULARY) -> set[int]:
    logits = np.zeros(size, np.float32)
    state.mask(logits)
    return set(np.flatnonzero(logits == 0).tolist())


def token(tokenizer: Tokenizer, piece: str) -> int:
    found = tokenizer.find(piece)
    assert found is not None
    return found


def test_the_end_comes_only_where_the_text_may_end(tokenizer: Tokenizer) -> None:
    state = Constraint.regex("ab+").matcher(tokenizer, [END_OF_TURN, EOS])
    assert not state.complete
    assert not allowed(state) & STOPS
    state.accept(token(tokenizer, "a"))
    assert not allowed(state) & STOPS
    state.accept(token(tokenizer, "b"))
    # more may come, and every stop token
    assert allowed(state) & STOPS == STOPS
    assert state.complete
    assert not state.finished
    state = Constraint.regex("ab").matcher(tokenizer, STOPS)
    for piece in "ab":
        assert not state.finished
        state.accept(token(tokenizer, piece))
    assert state.finished
    assert allowed(state) == STOPS
    assert allowed(Constraint.regex("ab?").matcher(tokenizer, [EOS])) & STOPS == set()


def test_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    """Not in a string of any characters, and not where the text spells their names."""
    special = tokenizer.special_tokens()
    assert {"<eos>", "<unk>", "<unused7>", "<mask>", "<start_of_turn>", "<|fim_prefix|>"} <= set(special.values())
    state = Constraint.regex(r"(?s).*").matcher(tokenizer, STOPS)
    assert allowed(state) & set(special) == STOPS
    assert len(allowed(state)) > 2500
    state = Constraint.regex("<start_of_turn>").matcher(tokenizer, STOPS)
    text = b""
    while not state.finished:
        choice = max(allowed(state))
        assert choice not in special
        text += tokenizer.token_bytes(choice)
        state.accept(choice)
    assert text == b"<start_of_turn>"
    # a grammar may ask for one
    state = Constraint.lark("start: <start_of_turn>").matcher(tokenizer, STOPS)
    assert allowed(state) == {token(tokenizer, "<start_of_turn>")}


def test_spaces_and_bytes(tokenizer: Tokenizer) -> None:
    """A space is SentencePiece's mark; a character without a token is its bytes; line ends have both."""
    state = Constraint.regex("a b").matcher(tokenizer, STOPS)
    state.accept(token(tokenizer, "a"))
    assert token(tokenizer, "\u2581b") in allowed(state) or token(tokenizer, "\u2581") in allowed(state)
    state = Constraint.regex("[\N{GRINNING FACE}\n]").matcher(tokenizer, STOPS)
    assert {token(tokenizer, "<0xF0>"), token(tokenizer, "<0x0A>"), token(tokenizer, "\n")} <= allowed(state)
    for byte in ("<0xF0>", "<0x9F>", "<0x98>", "<0x80>"):
        state.accept(token(tokenizer, byte))
    assert state.complete


def test_logits_of_more_or_fewer_rows_than_the_tokenizer(tokenizer: Tokenizer) -> None:
    # a table may have padding rows
    state = Constraint.regex("(?s).+").matcher(tokenizer, STOPS)
    assert allowed(state, VOCABULARY + 64) == allowed(state)
    assert allowed(state, 3000) == {one for one in allowed(state) if one < 3000}


def test_states_go_their_own_ways(tokenizer: Tokenizer) -> None:
    constraint = Constraint.regex("(ab|cd)*e")
    first, second = constraint.matcher(tokenizer, STOPS), constraint.matcher(tokenizer, STOPS)
    begin = allowed(first)
    first.accept(token(tokenizer, "a"))
    third = first.copy()
    third.accept(token(tokenizer, "b"))
    assert allowed(second) == begin == allowed(third)
    assert allowed(first) != begin
    first.rollback(1)
    assert allowed(first) == begin
    third.accept(token(tokenizer, "e"))
    third.accept(END_OF_TURN)
    fourth = third.copy()
    assert fourth.finished
    with pytest.raises(ValueError, match="does not continue"):
        fourth.accept(EOS)
    third.rollback(2)
    assert allowed(third) == begin
    third.accept(token(tokenizer, "a"))
    with pytest.raises(ValueError, match="does not continue"):
        third.accept(EOS)
    with pytest.raises(ValueError, match="cannot take 9 tokens back"):
        third.rollback(9)


def test_a_token_that_may_not_come(tokenizer: Tokenizer) -> None:
    state = Constraint.regex("ab").matcher(tokenizer, STOPS)
    with pytest.raises(ValueError, match="does not continue the regular expression"):
        state.accept(token(tokenizer, "b"))
    # and the state is as it was
    state.accept(token(tokenizer, "a"))


def chooser_for(constraint: ConstraintState, **options: Any) -> TokenChooser:
    sampling = Sampling(logit_bias=options.pop("logit_bias", {}))
    return TokenChooser(
        sampling, vocab_size=VOCABULARY, prompt_ids=[], stop_ids=STOPS, constraint=constraint, **options
    )


def test_the_least_length_yields_to_the_grammars_end(tokenizer: Tokenizer) -> None:
    chooser = chooser_for(Constraint.regex("a(b?)").matcher(tokenizer, STOPS), min_new_tokens=9)
    logits = np.zeros(VOCABULARY, np.float32)
    logits[[EOS, END_OF_TURN]] = 5
    chooser.accept(token(tokenizer, "a"))
    assert tokenizer.decode([chooser.choose(logits)]) == "b"
    assert not chooser.finished
    chooser.accept(token(tokenizer, "b"))
    assert chooser.finished
    assert chooser.choose(logits) == EOS
    chooser.rollback(1)
    assert tokenizer.decode([chooser.choose(logits)]) == "b"


def test_bans_against_the_grammar(tokenizer: Tokenizer) -> None:
    state = Constraint.regex("a").matcher(tokenizer, STOPS)
    chooser = chooser_for(state, logit_bias=dict.fromkeys(allowed(state), -np.inf))
    with pytest.raises(PromptError, match="the options leave no token") as caught:
        chooser.choose(np.zeros(VOCABULARY, np.float32))
    assert "constraint" in caught.value.hint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraint.json_schema("{"), "the JSON schema cannot be used: Expecting property name"),
        (lambda: Constraint.json_schema("[1]"), "the JSON schema cannot be used: it must be an object, found [1]"),
        (lambda: Constraint.json_schema({"const": {1}}), "the JSON schema cannot be used: Object of type set"),
        (lambda: Constraint.json_schema({"type": "objekt"}), "the JSON schema cannot be used: Invalid type: objekt"),
        (lambda: Constraint.json_schema({"$ref": "#/no"}), "the JSON schema cannot be used: Pointer '/no' does not"),
        # refused, not ignored
        (lambda: Constraint.json_schema({"not": {}}), 'the JSON schema cannot be used: Unimplemented keys: ["not"]'),
        (lambda: Constraint.regex("("), "the regular expression cannot be used: "),
        (lambda: Constraint.regex("a(?=b)"), "look-around, including look-ahead and look-behind, is not supported"),
        (lambda: Constraint.regex(b"a"), "the regular expression cannot be used: it must be text, found bytes"),
        (lambda: Constraint.lark(""), "the Lark grammar cannot be used: Empty grammar"),
        (lambda: Constraint.lark('start: "a" b'), 'the Lark grammar cannot be used: at 1(8): unknown name: "b"'),
    ],
)
def test_what_cannot_be_enforced(tokenizer: Tokenizer, make: Callable[[], Constraint], message: str) -> None:
    with pytest.raises(PromptError) as caught:
        make().matcher(tokenizer, STOPS)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingPackageError) as caught:
        Constraint.json().matcher(load_tokenizer(TINY), STOPS)
    assert "llguidance" in caught.value.message
    assert caught.value.hint == "pip install llguidance"
    assert isinstance(caught.value, GemmaRuntimeError)


def test_compiled_once_for_a_tokenizer_and_let_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import llguidance

    made = []
    real = llguidance.LLMatcher
    recording = type(
        "Recording",
        (),
        {
            "__new__": lambda _, *arguments, **options: made.append(1) or real(*arguments, **options),
            "grammar_from_regex": staticmethod(real.grammar_from_regex),
        },
    )
    monkeypatch.setattr(llguidance, "LLMatcher", recording)
    tokenizer = load_tokenizer(TINY)
    for _ in range(3):
        Constraint.regex("a|b").matcher(tokenizer, STOPS)
    assert len(made) == 1
    Constraint.regex("a|c").matcher(tokenizer, STOPS)
    assert len(made) == 2
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None
