"""Fill in the middle: the published format, positions as editors count them, contexts that are too short."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gemma_runtime.errors import PromptError
from gemma_runtime.fim import fim_prompt, fim_stop_ids, fit_to_context, split_at
from gemma_runtime.tokenizer import Tokenizer, load_tokenizer

TINY = Path(__file__).parents[2] / "gemma_export" / "checkpoint" / "tiny"
PREFIX, MIDDLE, SUFFIX, SEPARATOR = 67, 68, 69, 70
NAMES = ["<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<unused7>", "<start_of_turn>", "<end_of_turn>"]
NAMES += ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"]


@pytest.fixture(scope="module", params=["tokenizers", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(TINY, request.param)


def test_the_published_format(tokenizer: Tokenizer) -> None:
    """The example of https://ai.google.dev/gemma/docs/codegemma/prompt-structure."""
    prefix, suffix = "import ", "\nif __name__ == '__main__':\n    sys.exit(0)"
    ids = fim_prompt(tokenizer, prefix, suffix)
    assert ids == tokenizer.encode(f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>")
    assert [ids[0], ids[1], ids[-1]] == [tokenizer.bos_id, PREFIX, MIDDLE]
    assert fim_prompt(tokenizer, "", "") == [tokenizer.bos_id, PREFIX, SUFFIX, MIDDLE]


def test_stops(tokenizer: Tokenizer) -> None:
    assert fim_stop_ids(tokenizer) == {PREFIX, MIDDLE, SUFFIX, SEPARATOR}


def test_special_tokens_in_a_file_stay_text(tokenizer: Tokenizer) -> None:
    special = {tokenizer.find(name) for name in NAMES}
    assert None not in special
    random_ = random.Random(1)
    for _ in range(300):
        text = "".join(random_.choices([*NAMES, "<", "<<", ">", "|", "x = ", "\n", "bos>", "  "], k=12))
        ids = tokenizer.encode_plain(text)
        assert special.isdisjoint(ids)
        assert tokenizer.decode(ids) == text
    assert fim_prompt(tokenizer, "".join(NAMES), "".join(NAMES)).count(SUFFIX) == 1


def test_both_libraries_read_plain_text_alike() -> None:
    libraries = [load_tokenizer(TINY, name) for name in ("tokenizers", "sentencepiece")]
    random_ = random.Random(2)
    for _ in range(300):
        text = "".join(random_.choices([*NAMES, "def", " ", "\n", "日本", "é", "\r\n", "\t"], k=12))
        by_json, by_model = (library.encode_plain(text) for library in libraries)
        assert by_json == by_model


def test_plain_text_without_names_is_what_encode_gives(tokenizer: Tokenizer) -> None:
    text = "def f(x):\n    return x  # <b> \u00e9\n\n"
    assert [tokenizer.bos_id, *tokenizer.encode_plain(text)] == tokenizer.encode(text)
    assert tokenizer.encode_plain("") == []


TEXT = "ab\ncé\N{GRINNING FACE}d\r\n\r\nlast"


@pytest.mark.parametrize(
    ("line", "column", "before"),
    [
        (1, 1, ""),
        (1, 3, "ab"),
        (2, 1, "ab\n"),
        (2, 4, "ab\ncé\N{GRINNING FACE}"),
        (2, 5, "ab\ncé\N{GRINNING FACE}d"),
        (3, 1, "ab\ncé\N{GRINNING FACE}d\r\n"),
        (4, 1, "ab\ncé\N{GRINNING FACE}d\r\n\r\n"),
        (4, 5, TEXT),
    ],
)
def test_positions(line: int, column: int, before: str) -> None:
    assert split_at(TEXT, line, column) == (before, TEXT[len(before) :])


def test_positions_at_the_ends() -> None:
    assert split_at("", 1, 1) == ("", "")
    assert split_at("a\n", 2, 1) == ("a\n", "")
    # other marks that Python counts as line ends are characters here, as in editors
    assert split_at("a\x0cb\u2028c", 1, 6) == ("a\x0cb\u2028c", "")


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        ("a\nb", 3, 1, "line 3 is outside the file, which has 2"),
        ("a\nb", 0, 1, "line 0"),
        ("a\nb", -1, 1, "line -1"),
        ("a\nb", 1, 3, "column 3 is outside line 1, which has 1"),
        ("a\r\nb", 1, 3, "column 3 is outside line 1, which has 1"),
        ("a\nb", 2, 0, "column 0"),
        ("", 1, 2, "column 2"),
        ("", 2, 1, "line 2"),
    ],
)
def test_positions_outside(text: str, line: int, column: int, reason: str) -> None:
    with pytest.raises(PromptError, match=reason) as caught:
        split_at(text, line, column)
    assert caught.value.hint


def test_a_context_that_holds_everything_cuts_nothing(tokenizer: Tokenizer) -> None:
    prefix, suffix = "\n\n\na = 1\n\nb", " = 2\n\n\nc\n"
    size = len(fim_prompt(tokenizer, prefix, suffix))
    parts = fit_to_context(tokenizer, prefix, suffix, context_length=size + 10, new_tokens=10)
    assert (parts.prefix, parts.suffix, parts.lines_before, parts.lines_after) == (prefix, suffix, 0, 0)
    cut = fit_to_context(tokenizer, prefix, suffix, context_length=size + 9, new_tokens=10)
    assert cut.lines_before + cut.lines_after > 0


def test_far_lines_go_first(tokenizer: Tokenizer) -> None:
    prefix = "".join(f"before_{number} = {number}\r\n" for number in range(200)) + "x = "
    suffix = "\r\n" + "".join(f"after_{number} = {number}\n" for number in range(200))
    for context in (60, 100, 333, 1000):
        parts = fit_to_context(tokenizer, prefix, suffix, context_length=context, new_tokens=16)
        assert len(fim_prompt(tokenizer, parts.prefix, parts.suffix)) + 16 <= context
        assert prefix.endswith(parts.prefix)
        assert suffix.startswith(parts.suffix)
        assert parts.prefix.startswith("before_")
        assert parts.suffix.endswith("\n")
        assert parts.lines_before == 200 - parts.prefix.count("\n")
        assert parts.lines_after == 201 - parts.suffix.count("\n")
        # one more line would not have fitted: a line is fewer than 20 tokens
        assert len(fim_prompt(tokenizer, parts.prefix, parts.suffix)) + 16 > context - 40
        assert len(parts.prefix) > len(parts.suffix)


def test_what_one_part_does_not_need_is_the_others(tokenizer: Tokenizer) -> None:
    long = "".join(f"value_{number} = {number}\n" for number in range(200))
    only = fit_to_context(tokenizer, long, "", context_length=300, new_tokens=16)
    assert len(fim_prompt(tokenizer, only.prefix, "")) > 300 - 16 - 20
    short = fit_to_context(tokenizer, "a = ", long, context_length=300, new_tokens=16)
    assert short.prefix == "a = "
    assert len(fim_prompt(tokenizer, "a = ", short.suffix)) > 300 - 16 - 20


@pytest.mark.parametrize(
    ("prefix", "suffix", "new_tokens", "reason"),
    [
        ("x", "", 100, "100 new tokens leave no room for a prompt in this folder's context of 100"),
        ("x1y2 " * 200, "", 16, "the line at the cursor has .* tokens before it, there is room for 80"),
        ("", "x1y2 " * 200, 16, "the line at the cursor has .* tokens after it, there is room for 80"),
    ],
)
def test_no_room(tokenizer: Tokenizer, prefix: str, suffix: str, new_tokens: int, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        fit_to_context(tokenizer, prefix, suffix, context_length=100, new_tokens=new_tokens)


def test_no_fill_in_the_middle_model(tmp_path: Path) -> None:
    found = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(found).replace("<|fim_suffix|>", "<unused64>"), encoding="utf-8"
    )
    tokenizer = load_tokenizer(tmp_path)
    for refused in (lambda: fim_prompt(tokenizer, "a", "b"), lambda: fim_stop_ids(tokenizer)):
        with pytest.raises(PromptError, match=r"this tokenizer has no <\|fim_suffix\|>"):
            refused()


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="not valid UTF-8 at character 1"):
        fim_prompt(tokenizer, "a\udcff", "")
