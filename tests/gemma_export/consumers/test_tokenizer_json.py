"""A made tokenizer.json gives SentencePiece's ids and text, for every trap that it does not refuse."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepieces
import tokenizers
import transformers
from sentencepieces import Reference, field, hard_texts, model, piece, train

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.consumers.added_tokens import AddedToken
from gemma_export.consumers.merges import derive_merges
from gemma_export.consumers.sentencepiece_model import PieceType, parse_sentencepiece
from gemma_export.consumers.tokenizer_config import complete_config, new_config
from gemma_export.consumers.tokenizer_json import tokenizer_json
from gemma_export.errors import UnfaithfulTokenizerError


class Pair:
    """Both sides of one model."""

    def __init__(self, content: bytes, **options: Any) -> None:
        self.content = content
        self.model = parse_sentencepiece(content)
        self.made = tokenizer_json(self.model, bos="<bos>", **options)
        self.tokenizer = tokenizers.Tokenizer.from_str(self.made.decode())
        self.reference = Reference(content, self.model)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def differs(self, text: str) -> bool:
        """Whether ids or decoded text differ."""
        ids = self.reference.encode(text)
        visible = self.reference.visible(ids)
        decoded = self.tokenizer.decode(visible, skip_special_tokens=False)
        return self.encode(text) != ids or decoded != self.reference.processor.decode(visible)


@pytest.fixture(scope="module")
def gemma() -> Pair:
    return Pair(train())


def test_100_000_hard_texts(gemma: Pair) -> None:
    wrong = [text for text in hard_texts(gemma.model.pieces, 100_000) if gemma.differs(text)]
    assert wrong == []


def test_every_character(gemma: Pair) -> None:
    """Every code point that is no surrogate, alone in its surroundings, through byte pieces where it is no piece."""
    wrong = []
    for start in range(0, 0x110000, 64):
        if not 0xD800 <= start < 0xE000:
            text = "".join(map(chr, range(start, start + 64)))
            if gemma.differs(text):
                wrong.append(hex(start))
    assert wrong == []


def test_every_byte_is_used_and_decoded(gemma: Pair) -> None:
    """UTF-8 has no bytes C0, C1 and F5 to FF; the others all come up in the text of characters without a piece."""
    byte_ids = {token: gemma.model.pieces[token] for token in gemma.model.of_type(PieceType.BYTE)}
    ranges = (range(0x80), range(0x80, 0xD800, 13), range(0xE000, 0x10000, 13), range(0x10000, 0x110000, 997))
    characters = [chr(code) for codes in ranges for code in codes]
    used = {token for character in characters for token in gemma.encode(character)} & byte_ids.keys()
    single = {f"<0x{ord(text):02X}>" for text in gemma.model.pieces if len(text) == 1 and ord(text) < 0x80}
    # "\n" stands alone as a piece, and a space is written as another character
    impossible = {f"<0x{byte:02X}>" for byte in (0xC0, 0xC1, *range(0xF5, 0x100))} | single | {"<0x20>"}
    assert {byte_ids[token] for token in used} >= set(byte_ids.values()) - impossible
    for token, text in byte_ids.items():
        assert gemma.tokenizer.token_to_id(text) == token
        assert gemma.tokenizer.decode([token]) == gemma.reference.processor.decode([token])
        # written out it is text, not the byte
        assert gemma.encode(text) == gemma.reference.encode(text)
        assert token not in gemma.encode(text)


def test_every_token(gemma: Pair) -> None:
    assert gemma.tokenizer.get_vocab_size() == len(gemma.model.pieces)
    for token, text in enumerate(gemma.model.pieces):
        assert gemma.tokenizer.token_to_id(text) == token
        for written in (text, f"a{text}", f" {text} ", f"\n{text}{text}", text[:-1], text.replace("\u2581", " ")):
            assert not gemma.differs(written), written


@pytest.mark.parametrize("text", [*sentencepieces.CONTROL, *sentencepieces.SYMBOLS])
def test_special_tokens_are_one_token(gemma: Pair, text: str) -> None:
    written = text.replace("\u2581", " ")
    assert gemma.encode(f"x{written}y").count(gemma.model.pieces.index(text)) == 1
    assert gemma.tokenizer.encode(written).ids[:1] == [2]


def test_tokens_that_steer_are_left_out_of_text(gemma: Pair) -> None:
    ids = gemma.encode("<bos><start_of_turn>a<mask>\n\n<end_of_turn>")
    assert gemma.tokenizer.decode(ids, skip_special_tokens=True) == "a<mask>\n\n"


def test_the_builtin_model() -> None:
    """Equal to the tokenizer.json that was trained with it, too."""
    pair = Pair((BUILTIN_DIRECTORY / "tokenizer.model").read_bytes())
    own = tokenizers.Tokenizer.from_file(str(BUILTIN_DIRECTORY / "tokenizer.json"))
    for text in hard_texts(pair.model.pieces, 3000, seed=1):
        assert not pair.differs(text), text
        assert own.encode(text).ids == pair.tokenizer.encode(text).ids, text


VARIANTS: dict[str, dict[str, Any]] = {
    "no byte fallback": {"byte_fallback": False, "character_coverage": 0.98},
    "dummy prefix": {"add_dummy_prefix": True, "user_defined_symbols": []},
    "extra spaces removed": {"remove_extra_whitespaces": True, "user_defined_symbols": ["<mask>", "\n\n"]},
    "both": {"add_dummy_prefix": True, "remove_extra_whitespaces": True, "user_defined_symbols": []},
    "suffix without a dummy": {"treat_whitespace_as_suffix": True},
    "control tokens that start alike": {"control_symbols": ["<ctl>", "<ctl>x", "<|a|>"]},
    "a symbol that runs into a control token": {"user_defined_symbols": ["a<bo", "<bos>x", "\u2581<", "\u2581\u2581"]},
    "digits kept together": {"split_digits": False},
    "no symbols": {"user_defined_symbols": []},
    "one-character symbols": {"user_defined_symbols": ["\n", "-", "\u2581\u2581", "e"]},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_trap_variants(name: str) -> None:
    pair = Pair(train(**VARIANTS[name]))
    wrong = [text for text in hard_texts(pair.model.pieces, 4000, seed=2) if pair.differs(text)]
    assert wrong == []


def test_spaces_that_are_not_escaped() -> None:
    letters = [piece(text, -index) for index, text in enumerate(["ab", "a ", "a", "b", " ", "\u2581"])]
    pair = Pair(model(letters, normalizer=field(5, 0)))
    assert pair.encode("ab a \u2581") == pair.reference.encode("ab a \u2581")
    assert not any(pair.differs(text) for text in hard_texts(["ab", "a ", "<bos>", "\u2581", "a", "b"], 2000))


def test_the_bytes_are_the_same_each_time(gemma: Pair) -> None:
    again = tokenizer_json(parse_sentencepiece(gemma.content), bos="<bos>")
    assert again == gemma.made
    assert b", " not in gemma.made.split(b'"model"')[0]


def test_merges_whose_halves_hold_a_space_are_written_as_pairs() -> None:
    pieces = [piece(text, -index) for index, text in enumerate(["a b", "a ", "a", "b", " "])]
    pair = Pair(model(pieces, normalizer=field(5, 0)))
    assert b'["a ","b"]' in pair.made
    assert not pair.differs("a ba b")
    comment = [piece(text, -index) for index, text in enumerate(["#version"[:cut] for cut in range(2, 9)])]
    comment += [piece("#versionx", -20), *(piece(text, -30 - index) for index, text in enumerate("#versionx"[:-1]))]
    comment = [*dict.fromkeys(comment), piece("x", -50)]
    assert not Pair(model(comment)).differs("#versionx #version")


def letters(*pieces: tuple[str, float], kinds: dict[str, PieceType] | None = None) -> bytes:
    """A model of these pieces over the letters a to e."""
    kinds = kinds or {}
    longer = [piece(text, score, kinds.get(text, PieceType.NORMAL)) for text, score in pieces]
    return model([*longer, *(piece(letter, -100.0 - index) for index, letter in enumerate("abcde"))])


def small_texts(count: int = 3000) -> list[str]:
    chance = random.Random(0)
    return ["".join(chance.choices("abcde", k=chance.randint(1, 12))) for _ in range(count)]


@pytest.mark.parametrize(
    "pieces",
    [
        # a later piece within an earlier one, and runs that can be cut in several ways
        [("ab", -1.0), ("abc", -2.0), ("bc", -3.0), ("abcd", -4.0), ("cd", -5.0), ("bcd", -0.5)],
        [("aa", -1.0), ("aaa", -2.0), ("aaaa", -3.0), ("aaaaa", -4.0)],
        [("aaa", -1.0), ("aa", -2.0), ("aaaaa", -0.5)],
        [("abab", 0.0), ("ab", -3.0), ("ba", -2.0), ("aba", -1.0), ("bab", -2.5)],
        # equal scores that never meet
        [("ab", -1.0), ("cd", -1.0), ("abcd", -2.0)],
        [("aa", -1.0), ("bb", -1.0), ("cc", -1.0)],
    ],
)
def test_orders_of_merging(pieces: list[tuple[str, float]]) -> None:
    pair = Pair(letters(*pieces))
    assert [text for text in small_texts() if pair.differs(text)] == []


def test_random_pieces_are_exact_or_refused() -> None:
    """Overlapping pieces in any order of scores, a part of them equal; the refusals are for equal scores only."""
    chance, refused = random.Random(5), 0
    for number in range(400):
        alphabet = "abc"[: 2 + number % 2]
        pieces = sorted({"".join(chance.choices(alphabet, k=chance.randint(2, 5))) for _ in range(6)})
        distinct = number % 3 == 0
        scores = chance.sample(range(50), len(pieces)) if distinct else chance.choices(range(8), k=len(pieces))
        content = letters(*((text, -float(score)) for text, score in zip(pieces, scores, strict=True)))
        try:
            pair = Pair(content)
        except UnfaithfulTokenizerError:
            assert not distinct
            refused += 1
            continue
        texts = ("".join(chance.choices(alphabet, k=chance.randint(1, 14))) for _ in range(100))
        assert [text for text in texts if pair.differs(text)] == [], (pieces, scores)
    assert 10 < refused < 200


def reason(content: bytes) -> str:
    with pytest.raises(UnfaithfulTokenizerError) as caught:
        tokenizer_json(parse_sentencepiece(content), bos="<bos>")
    assert caught.value.exit_code == 3
    assert caught.value.hint
    start = "no tokenizer.json can be made from tokenizer.model: "
    assert caught.value.message.startswith(start)
    return caught.value.message.removeprefix(start)


UNUSED = {"ab": PieceType.UNUSED}
REFUSED = {
    "ties that share a letter": (letters(("ab", 0.0), ("bc", 0.0)), "'ab' and 'bc' have scores that leave their order"),
    "ties that grow": (letters(("ab", 0.0), ("abc", 0.0)), "have scores that leave their order open"),
    "ties that grow at once": (letters(("ab", -1.0), ("cd", -1.0), ("abc", -0.5)), "leave their order open"),
    "unused": (letters(("ab", 0.0), ("abc", -1.0), kinds=UNUSED), "the unused piece 'ab' and takes it apart again"),
    "unknown character": (model([piece("xy"), piece("x")]), "piece 'xy' holds 'y', which is no piece itself"),
    "long piece": (model([piece("x" * 300, -1.0), piece("x", -2.0)]), "a piece of 300 characters"),
    "like a byte": (model([piece("<0xe9>", kind=PieceType.USER_DEFINED)]), "'<0xe9>' would be decoded as a byte"),
    "charsmap": (model([piece("a")], normalizer=field(2, b"\0" * 8)), "by a compiled table"),
    "unigram": (model([piece("a")], trainer=field(3, 1)), "unigram model"),
    "word": (model([piece("a")], trainer=field(3, 3)), "it is a word model, expected byte pair encoding"),
    "prefix and symbols": (
        model([piece("<mask>", kind=PieceType.USER_DEFINED)], normalizer=field(3, 1)),
        "(add_dummy_prefix) has no place beside the symbol '<mask>'",
    ),
    "suffix": (model([piece("a")], trainer=field(24, 1), normalizer=field(3, 1)), "treat_whitespace_as_suffix"),
    "not escaped": (model([piece("a")], normalizer=field(3, 1) + field(5, 0)), "escape_whitespaces"),
    "spaces removed from symbols": (
        model([piece("\u2581\u2581", kind=PieceType.USER_DEFINED)], normalizer=field(4, 1)),
        "also from the symbol '\u2581\u2581'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    content, phrase = REFUSED[name]
    assert phrase in reason(content)
    # it is a sound model all the same, but for the table
    if name != "charsmap":
        Reference(content, parse_sentencepiece(content)).encode("abc")


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc_cf"])
def test_trained_charsmaps_are_refused(rule: str) -> None:
    assert "by a compiled table" in reason(train(normalization_rule_name=rule))


def test_what_is_refused_really_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusals are no excuses: without them the ids are wrong."""
    monkeypatch.setattr("gemma_export.consumers.merges._check_ties", lambda *_: None)
    pair = Pair(letters(("bc", 0.0), ("ab", 0.0)))
    assert any(pair.differs(text) for text in small_texts())


def test_an_unused_piece_that_nothing_joins_is_harmless() -> None:
    pair = Pair(letters(("abc", -1.0), ("de", -2.0), kinds={"abc": PieceType.UNUSED}))
    assert [text for text in small_texts() if pair.differs(text)] == []
    assert derive_merges(pair.model) == [("d", "e")]


def test_a_symbol_with_a_space_is_never_found() -> None:
    symbols = [piece(text, kind=PieceType.USER_DEFINED) for text in ("a b", "  ")]
    pair = Pair(model([*symbols, *(piece(text, -1.0 - index) for index, text in enumerate("ab\u2581"))]))
    assert not any(pair.differs(text) for text in ("a b", "  ", "a b  a", "\u2581\u2581"))
    assert pair.encode("a b") == pair.reference.encode("a b")


def test_tokens_on_top(gemma: Pair) -> None:
    size = len(gemma.model.pieces)
    added = [
        AddedToken(content="<|im_start|>", special=True, normalized=False),
        AddedToken(content="wordlet", special=False, normalized=True, single_word=True),
    ]
    pair = Pair(gemma.content, added=added)
    assert pair.tokenizer.get_vocab_size() == size + 2
    assert pair.encode("a<|im_start|>b wordlet wordlets").count(size) == 1
    assert pair.encode("a<|im_start|>b wordlet wordlets").count(size + 1) == 1
    assert pair.tokenizer.decode([size, *pair.encode("b")], skip_special_tokens=True) == "b"


def test_transformers_reads_it_alike(tmp_path: Path, gemma: Pair) -> None:
    """Its Gemma class rebuilds the tokenizer from the file's parts."""
    special = {token: gemma.model.pieces[token] for token in gemma.model.of_type(*map(PieceType, (2, 3, 4)))}
    roles = {"bos": 2, "eos": 1, "pad": 0, "unk": 3}
    config = complete_config(
        new_config(special, roles, generic=False), special, roles, template=None, context=sys.maxsize
    )
    (tmp_path / "tokenizer.json").write_bytes(gemma.made)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "gemma"}')
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "GemmaTokenizer"
    assert len(loaded) == len(gemma.model.pieces)
    for text in hard_texts(gemma.model.pieces, 2000, seed=3):
        ids = gemma.reference.encode(text)
        assert loaded(text).input_ids == [2, *ids], text
        visible = gemma.reference.visible(ids)
        assert loaded.decode(visible) == gemma.reference.processor.decode(visible), text
