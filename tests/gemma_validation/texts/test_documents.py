"""What a validation runs on: enough of everything, the same every time, in any vocabulary."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import altered

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_runtime import read_manifest
from gemma_runtime.tokenizer import Tokenizer, load_tokenizer
from gemma_validation.documents import SLICES, Document
from gemma_validation.errors import FolderUnreadableError, MismatchError, MissingPackageError
from gemma_validation.texts import documents_for, folder_documents, probe_texts, slice_texts

TOKENIZER = load_tokenizer(BUILTIN_DIRECTORY)


class Words:
    """A library whose every few characters are a token: of a vocabulary without turns, or as large as Gemma's."""

    size = 256_000

    def __init__(self, characters: int = 1) -> None:
        self._characters = characters

    def ids(self, text: str) -> list[int]:
        return [ord(char) % 200_000 + 3 for char in text[:: self._characters]]

    def piece(self, token: int) -> str:
        return {2: "<bos>"}.get(token, "x")

    def find(self, piece: str) -> int | None:
        return 2 if piece == "<bos>" else None

    def special(self) -> set[int]:
        return {2}


def documents(**changes: Any) -> tuple[Document, ...]:
    arguments: dict[str, Any] = {"suite": "quick", "vocab_size": TOKENIZER.size, "context_length": 8192, **changes}
    return documents_for(arguments.pop("tokenizer", TOKENIZER), **arguments)


def positions(found: tuple[Document, ...]) -> int:
    return sum(len(document.token_ids) for document in found)


def test_every_slice_is_there_in_both_suites() -> None:
    for suite in ("quick", "full"):
        found = documents(suite=suite)
        assert tuple(dict.fromkeys(document.slice for document in found)) == SLICES
        assert len({document.name for document in found}) == len(found)
        assert all(document.token_ids[0] == TOKENIZER.bos_id for document in found)
        assert all(document.token_ids.count(2) == 1 for document in found)


def test_sizes_of_the_suites() -> None:
    assert 1000 <= positions(documents()) <= 1500
    assert 10_000 <= positions(documents(suite="full")) <= 15_000
    large = Tokenizer(Words())
    quick, full = (documents(tokenizer=large, vocab_size=256_000, suite=suite) for suite in ("quick", "full"))
    assert 450 <= positions(quick) <= 600
    assert 4_500 <= positions(full) <= 7_000
    (long,) = [document for document in documents(suite="full") if document.slice == "long"]
    assert len(long.token_ids) == 3600


@pytest.mark.parametrize("window", [4096, 1024, 0])
def test_one_document_is_longer_than_the_window(window: int) -> None:
    """Of a full suite, as far as the context goes; Gemma's tokenizer makes about four characters a token."""
    fours = Tokenizer(Words(4))
    arguments: dict[str, Any] = {"tokenizer": fours, "vocab_size": 256_000, "window": window}
    (long,) = [document for document in documents(suite="full", **arguments) if document.slice == "long"]
    assert len(long.token_ids) == (window + 128 if window == 4096 else 2000)
    others = [document for document in documents(suite="full", **arguments) if document.slice != "long"]
    arguments["window"] = 0
    assert others == [document for document in documents(suite="full", **arguments) if document.slice != "long"]
    arguments["window"] = window
    assert max(len(one.token_ids) for one in documents(suite="full", context_length=300, **arguments)) == 300
    assert max(len(one.token_ids) for one in documents(**arguments)) == 128


def test_a_folders_window_is_its_configurations(
    windowed_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest of its layers'; a configuration that cannot be read has none."""
    asked: list[int] = []
    monkeypatch.setattr(
        "gemma_validation.texts.documents.documents_for", lambda *_, window, **__: asked.append(window) or ()
    )
    folder = windowed_folder("gemma2")
    broken = altered(folder, tmp_path / "broken", {"config.json": b"{"})
    for one in (folder, broken):
        folder_documents(one, read_manifest(one), suite="full")
    assert asked == [9, 0]


def test_the_same_every_time() -> None:
    assert documents(suite="full") == documents(suite="full")
    assert documents(tokenizer=None) == documents(tokenizer=None)


def test_at_least_eight_scripts_in_the_quick_suite() -> None:
    names = {document.name for document in documents() if document.slice == "scripts"}
    scripts = set()
    for text in slice_texts(turns=True):
        if text.name in names and text.slice == "scripts":
            letters = [unicodedata.name(char).split()[0] for char in text.text if char.isalpha()]
            assert "LATIN" not in letters
            scripts.add(max(set(letters), key=letters.count))
    assert len(scripts) >= 8


def test_the_long_document_never_repeats_a_day() -> None:
    (text,) = [text.text for text in slice_texts(turns=True) if text.slice == "long"]
    days = [day.partition(". ")[2] for day in text.split("\n\n")[1:]]
    assert len(set(days)) == len(days) > 40
    # what it looks back to was before
    for number, day in enumerate(text.split("\n\n")[1:], start=1):
        back = day.rpartition("day ")[2]
        if back[:1].isdigit():
            assert int(back[: len(back) - len(back.lstrip("0123456789"))]) < number


def test_turns_are_special_tokens_where_the_tokenizer_has_them() -> None:
    start, end = TOKENIZER.find("<start_of_turn>"), TOKENIZER.find("<end_of_turn>")
    chats = [document for document in documents() if document.slice == "chat"]
    assert all(document.token_ids[1] == start and end in document.token_ids for document in chats)
    plain = [
        document for document in documents(tokenizer=Tokenizer(Words()), vocab_size=256_000) if document.slice == "chat"
    ]
    assert all(document.token_ids[1:6] == tuple(Words().ids("user\n")) for document in plain)


def test_no_document_is_longer_than_the_context() -> None:
    assert max(len(document.token_ids) for document in documents(suite="full", context_length=50)) == 50
    assert max(len(document.token_ids) for document in documents(tokenizer=None, context_length=50)) == 50


def test_a_limit_shortens_all_alike() -> None:
    whole, short = documents(), documents(limit=400)
    assert 300 <= positions(short) <= 400
    assert [document.name for document in short] == [document.name for document in whole]
    assert all(
        first.token_ids[: len(second.token_ids)] == second.token_ids for first, second in zip(whole, short, strict=True)
    )
    assert documents(limit=100_000) == whole
    assert min(len(document.token_ids) for document in documents(limit=1)) == 2


def test_without_a_tokenizer_ids_are_random_and_ordinary() -> None:
    found = documents(tokenizer=None, vocab_size=40, special_ids=(7, 0, 1))
    assert {document.slice for document in found} == {"random"}
    assert len({document.name for document in found}) == len(found)
    assert all(document.token_ids[0] == 7 for document in found)
    assert {token for document in found for token in document.token_ids[1:]} == set(range(40)) - {7, 0, 1}
    assert 1000 <= positions(found) <= 1500


def test_a_tokenizer_of_another_model() -> None:
    with pytest.raises(MismatchError, match=r"token id [0-9]+, the embedding has 300 rows"):
        documents(vocab_size=300)


def test_a_folder_with_its_tokenizer_and_without(tiny_fp32: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_fp32)
    assert folder_documents(tiny_fp32, manifest, suite="quick") == documents()
    bare = altered(tiny_fp32, tmp_path / "bare", {"tokenizer.json": None, "tokenizer.model": None})
    found = folder_documents(bare, read_manifest(bare), suite="quick")
    assert {document.slice for document in found} == {"random"}
    # config.json of the folder says which are special
    assert not {0, 1, 2} & {token for document in found for token in document.token_ids[1:]}
    no_config = altered(bare, tmp_path / "no config", {"config.json": None})
    assert folder_documents(no_config, read_manifest(no_config), suite="quick") == found


def test_a_broken_tokenizer(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "broken", {"tokenizer.json": b"{}"})
    with pytest.raises(FolderUnreadableError, match=r"tokenizer.json cannot be read") as caught:
        folder_documents(folder, read_manifest(folder), suite="quick")
    assert caught.value.exit_code == 3


def test_the_tokenizers_library_is_missing(tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(MissingPackageError, match="needs the package tokenizers") as caught:
        folder_documents(tiny_fp32, read_manifest(tiny_fp32), suite="quick")
    assert caught.value.exit_code == 4


def test_probes_have_what_texts_have_not() -> None:
    probes = probe_texts()
    assert any("<start_of_turn>" in text for text in probes)
    assert len(probes) > 30
