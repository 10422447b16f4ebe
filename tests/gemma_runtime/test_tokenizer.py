"""Both tokenizer libraries: equal ids, equal text, one BOS, streaming that joins to the whole, typed errors."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gemma_runtime.errors import GemmaRuntimeError, ManifestError, MissingPackageError, MissingTokenizerError
from gemma_runtime.tokenizer import StreamDecoder, Tokenizer, load_tokenizer

TINY = Path(__file__).parents[2] / "gemma_export" / "checkpoint" / "tiny"
FILES = {"tokenizers": "tokenizer.json", "sentencepiece": "tokenizer.model"}
BOS = 2
# Gemma's and CodeGemma's ids: https://ai.google.dev/gemma/docs/codegemma/model_card
STEERING = {
    "<pad>": 0,
    "<eos>": 1,
    "<bos>": 2,
    "<|fim_prefix|>": 67,
    "<|fim_middle|>": 68,
    "<|fim_suffix|>": 69,
    "<|file_separator|>": 70,
    "<start_of_turn>": 106,
    "<end_of_turn>": 107,
}
# one token each, but text
VISIBLE = {"<unk>": 3, "<mask>": 4, "<unused0>": 5}
# runs of spaces and newlines have tokens of their own; the rest looks like special tokens or is hard on byte pairs
PIECES = [*STEERING, *VISIBLE, "<bos", "bos>", "<", ">", "<0x41>", "\u2581", "\u2581\u2581", " ", "  ", " " * 7]
PIECES += [
    "\n",
    "\n\n",
    "\n" * 5,
    "\r\n",
    "\t",
    "\0",
    "def f(x):",
    "return",
    "12345",
    "Gemma",
    "e\u0301",
    "日本",
    "\N{GRINNING FACE}",
]
PIECES += ["\ufeff", "\ufffd", "\u2028", "\x7f", "\U0010ffff"]
# every text that a prompt can be: no lone surrogates
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=12).map("".join)
# no token of the special ones can be written without this character
PLAIN = TEXT.map(lambda text: text.replace("<", ""))
SETTINGS = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def by_json() -> Tokenizer:
    return load_tokenizer(TINY, "tokenizers")


@pytest.fixture(scope="module")
def by_model() -> Tokenizer:
    return load_tokenizer(TINY, "sentencepiece")


@pytest.fixture(scope="module", params=FILES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(TINY, request.param)


@SETTINGS
@given(TEXT)
@example("".join(PIECES))
@example("<bos>" * 3)
@example("<start_of_turn>user\n  Hi <eos><|fim_prefix|><end_of_turn>\n")
@example(" " * 100 + "\n" * 100 + " \n" * 20)
def test_both_libraries_agree(by_json: Tokenizer, by_model: Tokenizer, text: str) -> None:
    ids = by_json.encode(text)
    assert by_model.encode(text) == ids
    assert by_model.decode(ids) == by_json.decode(ids)


def test_both_libraries_agree_about_every_token(by_json: Tokenizer, by_model: Tokenizer) -> None:
    assert by_json.size == by_model.size == 3072
    for token in range(by_json.size):
        assert by_json.token_bytes(token) == by_model.token_bytes(token)


@SETTINGS
@given(TEXT)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    # SentencePiece's own mark is a space
    expected = re.sub("|".join(map(re.escape, STEERING)), "", text).replace("\u2581", " ")
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@SETTINGS
@given(PLAIN)
def test_decoding_is_the_librarys_own(by_json: Tokenizer, by_model: Tokenizer, text: str) -> None:
    ids = by_json.encode(text)
    assert by_json.decode(ids) == JSON_LIBRARY.decode(ids, skip_special_tokens=True)
    assert by_model.decode(ids) == MODEL_LIBRARY.decode(ids)


JSON_LIBRARY = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
MODEL_LIBRARY = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))


@SETTINGS
@given(PLAIN)
def test_encoding_is_the_librarys_own(by_json: Tokenizer, by_model: Tokenizer, text: str) -> None:
    assert by_json.encode(text) == JSON_LIBRARY.encode(text).ids
    assert by_model.encode(text) == [BOS, *MODEL_LIBRARY.encode(text)]


@SETTINGS
@given(TEXT.map(lambda text: text.replace("<bos>", "")).filter(lambda text: "<bos>" not in text))
def test_exactly_one_bos(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids[0] == BOS
    assert ids.count(BOS) == 1
    assert tokenizer.encode(f"<bos>{text}") == ids
    assert tokenizer.bos_id == BOS


def test_a_bos_inside_the_text_stays(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a<bos>b").count(BOS) == 2
    assert tokenizer.encode("") == tokenizer.encode("<bos>") == [BOS]


@pytest.mark.parametrize(("name", "token"), (STEERING | VISIBLE).items())
def test_special_tokens_in_a_prompt_are_one_token(tokenizer: Tokenizer, name: str, token: int) -> None:
    assert tokenizer.find(name) == token
    for text in (name, f"a{name}b", f" {name} ", f"\n{name}\n", f"{name}{name}"):
        ids = tokenizer.encode(text)
        # where the text starts with the BOS, that is the one
        expected = text.count(name) + (name == "<bos>" and not text.startswith(name))
        assert ids.count(token) == expected
    assert tokenizer.decode([token]) == ("" if name in STEERING else name)


@pytest.mark.parametrize("piece", ["<nosuch>", "", "no such piece", "<bos", "\u2581no\u2581such"])
def test_find_unknown(tokenizer: Tokenizer, piece: str) -> None:
    assert tokenizer.find(piece) is None


def test_ids_beyond_the_vocabulary_are_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.size, tokenizer.size + 1000]) == ""


def test_whitespace_has_tokens_of_its_own(tokenizer: Tokenizer) -> None:
    # runs of spaces and of newlines: code would otherwise cost a token a character
    assert len(tokenizer.encode(" " * 16)) == 2
    assert len(tokenizer.encode("\n\n\n")) == 2
    assert tokenizer.decode(tokenizer.encode("  a\n\n   b ")) == "  a\n\n   b "


def byte_tokens(tokenizer: Tokenizer, content: bytes) -> list[int]:
    found = [tokenizer.find(f"<0x{byte:02X}>") for byte in content]
    return [token for token in found if token is not None]


def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    tokens = byte_tokens(tokenizer, bytes(range(256)))
    assert len(set(tokens)) == 256
    assert b"".join(tokenizer.token_bytes(token) for token in tokens) == bytes(range(256))


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


def any_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    # half of them bytes, and those often the starts of characters that never end
    starts = byte_tokens(tokenizer, b"\xc3\xe2\x96\xf0\x9f\x80\xff\xed\xa0A")
    any_byte = byte_tokens(tokenizer, bytes(range(256)))
    token = st.one_of(st.integers(0, tokenizer.size - 1), st.sampled_from(starts), st.sampled_from(any_byte))
    return st.lists(token, max_size=20)


def test_streamed_parts_join_to_the_whole(tokenizer: Tokenizer) -> None:
    replaced = 0

    @SETTINGS
    @given(any_ids(tokenizer))
    def run(ids: list[int]) -> None:
        nonlocal replaced
        whole = tokenizer.decode(ids)
        assert "".join(streamed(tokenizer, ids)) == whole
        replaced += "\ufffd" in whole

    run()
    assert replaced > 20


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"A", ["A", ""]),
        ("é".encode(), ["", "é", ""]),
        ("\N{GRINNING FACE}".encode(), ["", "", "", "\N{GRINNING FACE}", ""]),
        # never finished: one mark at the end
        ("\N{GRINNING FACE}".encode()[:3], ["", "", "", "\ufffd"]),
        # cut off by another character
        (b"\xc3A", ["", "\ufffdA", ""]),
        (b"\xe2\x96\xc3\xa9", ["", "", "\ufffd", "é", ""]),
        (b"\xff", ["\ufffd", ""]),
        (b"\x80\x80", ["\ufffd", "\ufffd", ""]),
        # a surrogate's bytes are not UTF-8
        (b"\xed\xa0\x80", ["", "", "\ufffd" * 3, ""]),
    ],
)
def test_characters_wait_for_their_last_byte(tokenizer: Tokenizer, content: bytes, expected: list[str]) -> None:
    ids = byte_tokens(tokenizer, content)
    assert streamed(tokenizer, ids) == expected
    assert tokenizer.decode(ids) == "".join(expected) == content.decode("utf-8", "replace")


def test_text_goes_out_as_soon_as_it_is_complete(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hello world\n  x = 1")
    parts = streamed(tokenizer, ids)
    assert parts == [*(tokenizer.token_bytes(token).decode() for token in ids), ""]
    # the BOS is no text
    assert parts[0] == ""


def refusal(directory: Path, kind: type[GemmaRuntimeError], library: str | None = None) -> GemmaRuntimeError:
    with pytest.raises(GemmaRuntimeError) as caught:
        load_tokenizer(directory, library)
    assert type(caught.value) is kind
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("library", [None, *FILES])
def test_no_tokenizer_at_all(tmp_path: Path, library: str | None) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").mkdir()
    error = refusal(tmp_path, MissingTokenizerError, library)
    assert error.exit_code == 4
    assert error.message == f"{tmp_path}: no tokenizer: neither tokenizer.json nor tokenizer.model is there"


@pytest.mark.parametrize("library", FILES)
def test_either_file_will_do(tmp_path: Path, library: str) -> None:
    shutil.copy(TINY / FILES[library], tmp_path)
    assert load_tokenizer(tmp_path).encode("Hi") == load_tokenizer(TINY).encode("Hi")
    other = next(name for name in FILES if name != library)
    refusal(tmp_path, MissingTokenizerError, other)


def test_tokenizer_json_goes_first(tmp_path: Path) -> None:
    shutil.copy(TINY / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "tokenizer.json cannot be read" in refusal(tmp_path, ManifestError).message
    assert load_tokenizer(tmp_path, "sentencepiece").size == 3072


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(1000),
    "text": lambda content: b"<!DOCTYPE html><title>404</title>",
    "object": lambda content: b"{}",
    "half": lambda content: content[: len(content) // 2],
    "last byte": lambda content: content[:-1],
    "first byte": lambda content: b"\xff" + content[1:],
}


@pytest.mark.parametrize("library", FILES)
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files(tmp_path: Path, library: str, kind: str) -> None:
    file = FILES[library]
    (tmp_path / file).write_bytes(BROKEN[kind]((TINY / file).read_bytes()))
    error = refusal(tmp_path, ManifestError)
    assert error.message.startswith(f"{file} cannot be read as a tokenizer: ")
    assert error.exit_code == 3
    assert error.__cause__ is not None


class PanicException(BaseException):
    """Named as what pyo3 raises for a panic of Rust code."""


def loading_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    class Broken:
        @staticmethod
        def from_file(path: str) -> Any:
            raise error

    monkeypatch.setattr(tokenizers, "Tokenizer", Broken)


def test_a_panic_inside_the_library_is_a_broken_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tokenizers 0.23 does for a continuing_subword_prefix longer than a piece."""
    loading_raises(monkeypatch, PanicException("range end index 18446744073709551613"))
    message = refusal(TINY, ManifestError).message
    assert message == "tokenizer.json cannot be read as a tokenizer: range end index 18446744073709551613"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interruption_is_no_broken_file(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    loading_raises(monkeypatch, error)
    with pytest.raises(type(error)):
        load_tokenizer(TINY)


def test_a_prefix_that_panics_the_library(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["continuing_subword_prefix"] = "<unk>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    refusal(tmp_path, ManifestError)


@pytest.mark.parametrize("library", FILES)
def test_a_library_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    shutil.copy(TINY / FILES[library], tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    error = refusal(tmp_path, MissingPackageError)
    assert error.exit_code == 4
    assert error.message.startswith(f"{FILES[library]} needs the package {library}: ")
    assert error.hint == f"pip install {library}"


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path) -> None:
    content = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    text = "a text of more than four tokens"
    assert len(tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids) == 64
    assert load_tokenizer(tmp_path).encode(text) == load_tokenizer(TINY).encode(text)
