"""Gemma 3's table: rows without a piece of the tokenizer, and tokens that stand for images, are never chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import ml_dtypes
import numpy as np
import pytest
from programs import assert_error, gemma_run

from gemma_export.pipeline import ExportRequest, export
from gemma_runtime import Constraint, Gemma, Sampling
from gemma_runtime.errors import PromptError
from gemma_runtime.tokenizer import load_tokenizer

TINY = Path(checkpoints.BUILTIN_DIRECTORY)
IMAGE, PIECES, ROWS = 3072, 3073, 3080
PROMPT = "import os"
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "biased": {"logit_bias": {IMAGE: 100.0, ROWS - 1: 100.0}},
    "penalised": {"repetition_penalty": 1.3, "presence_penalty": -2.0, "frequency_penalty": 1.0},
    "sampled": {"temperature": 1.0, "seed": 3},
    "sampled from few": {"temperature": 3.0, "top_k": 2, "top_p": 0.9, "min_p": 0.01, "seed": 4},
}


def _with_image_token(path: Path) -> None:
    """The tokenizer of a model of images: one token more, behind the vocabulary."""
    content = json.loads((TINY / "tokenizer.json").read_bytes())
    token = dict(content["added_tokens"][0], id=IMAGE, content="<image_soft_token>", special=True)
    content["added_tokens"].append(token)
    path.write_text(json.dumps(content), encoding="utf-8")


def _export(root: Path, rows: int) -> Path:
    """A model whose rows behind the vocabulary are the most likely ones, whatever the text."""
    weights = checkpoints.tensors({**checkpoints.CONFIG, "vocab_size": rows})
    table = weights["model.embed_tokens.weight"].astype(np.float32)
    # of a direction and its opposite one has a large logit; the others' rows are small
    for row in range(IMAGE, rows):
        table[row] = np.float32(4.0) * (-1) ** row
    weights["model.embed_tokens.weight"] = table.astype(ml_dtypes.bfloat16)
    folder = checkpoints.write(root / "model", weights=weights, vocab_size=rows)
    _with_image_token(folder / "tokenizer.json")
    (folder / "tokenizer.model").unlink()
    export(ExportRequest(checkpoint=folder, output=root / "folder"))
    return root / "folder"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _export(tmp_path_factory.mktemp("images"), ROWS)


@pytest.fixture(scope="module")
def model(folder: Path) -> Gemma:
    return Gemma(folder, speculation="off", threads=1)


def test_the_rows_are_the_most_likely_ones(model: Gemma) -> None:
    """Else the tests below prove nothing."""
    sequence, best = model.sequence(), set()
    for token in model.encode(PROMPT):
        best.add(int(sequence.step([token])[-1].argmax()))
    assert best <= set(range(IMAGE, ROWS))
    assert IMAGE in best
    assert model.tokenizer.size == PIECES


@pytest.mark.parametrize("name", SAMPLINGS)
def test_alone_and_in_a_batch(name: str, model: Gemma) -> None:
    options: dict[str, Any] = {"max_new_tokens": 24, "sampling": Sampling(**SAMPLINGS[name]), "min_new_tokens": 24}
    alone = model.generate(PROMPT, **options)
    assert len(alone.token_ids) == 24
    assert max(alone.token_ids) < IMAGE
    assert not model.tokenizer.never_chosen & set(alone.token_ids)
    both = model.generate_many([PROMPT, "def f(x):"], batch_size=2, **options)
    assert max(token for each in both for token in each.token_ids) < IMAGE


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_a_draft_model_that_would_choose_them(name: str, folder: Path, model: Gemma, tmp_path: Path) -> None:
    drafting = Gemma(folder, draft=folder, threads=1)
    options: dict[str, Any] = {"max_new_tokens": 24, "sampling": Sampling(**SAMPLINGS[name]), "min_new_tokens": 24}
    found = drafting.generate(PROMPT, **options)
    assert max(found.token_ids) < IMAGE
    assert found.speculation is not None
    # guesses are made under the same ban: what is never chosen would never be kept
    assert found.speculation.accepted > found.speculation.drafted / 2
    if name == "greedy":
        assert found.token_ids == model.generate(PROMPT, **options).token_ids


def test_an_image_where_the_table_has_no_row_for_it(tmp_path: Path) -> None:
    alone = _export(tmp_path, IMAGE)
    model = Gemma(alone, threads=1)
    assert model.tokenizer.size == PIECES
    with pytest.raises(PromptError, match=r"has '<image_soft_token>', token id 3072, the embedding has 3072 rows"):
        model.generate(f"{PROMPT} <image_soft_token>")
    with pytest.raises(PromptError, match="from 0 to 3071, found 3072"):
        model.generate([2, IMAGE])
    assert max(model.generate(PROMPT, max_new_tokens=8).token_ids) < IMAGE
    # a tokenizer that knows more than the logits have
    digits = model.generate(PROMPT, max_new_tokens=8, constraint=Constraint.regex("[0-9]{4}"))
    assert digits.text.isdigit()
    chat = [{"role": "user", "content": "what is <image_soft_token>?"}]
    with pytest.raises(PromptError, match="this model reads text alone"):
        model.generate(chat)


@pytest.mark.parametrize("wrong", [-1, ROWS, 1 << 40])
def test_ids_that_have_no_row(wrong: int, model: Gemma) -> None:
    with pytest.raises(PromptError, match=f"prompt token 1 must be an id from 0 to {ROWS - 1}, found {wrong}"):
        model.generate([2, wrong])


def test_rows_without_a_piece_may_stand_in_a_prompt_of_ids(model: Gemma) -> None:
    assert max(model.generate([2, PIECES, ROWS - 1], max_new_tokens=4).token_ids) < IMAGE


@pytest.mark.parametrize(
    "prompt",
    [
        f"{PROMPT} <image_soft_token>",
        [2, 300, IMAGE],
        [{"role": "user", "content": "what is <image_soft_token>?"}],
    ],
    ids=["text", "ids", "chat"],
)
def test_an_image_where_the_table_has_a_row_for_it(prompt: Any, model: Gemma) -> None:
    """Whose numbers would mean nothing: where the model was trained an image's features stood there."""
    match = "has '<image_soft_token>', token id 3072, which stands for a part of an image: this model reads text alone"
    for refused in (lambda: model.generate(prompt), lambda: model.generate_many([PROMPT, prompt])):
        with pytest.raises(PromptError, match=match) as caught:
            refused()
        assert caught.value.exit_code == 2
        assert "escape=True" in caught.value.hint


def test_its_name_as_characters_is_text(model: Gemma) -> None:
    """As in a program that handles such tokens, or in a chat that reads no special tokens."""
    ids = [2, *model.tokenizer.encode_plain('TOKEN = "<image_soft_token>"')]
    assert IMAGE not in ids
    assert model.generate(ids, max_new_tokens=2).token_ids
    assert model.chat(escape=True).send("what is <image_soft_token>?", max_new_tokens=2).token_ids


@pytest.mark.parametrize("rows", [IMAGE, ROWS])
def test_the_command_line_refuses_it(rows: int, folder: Path, tmp_path: Path) -> None:
    alone = folder if rows == ROWS else _export(tmp_path, rows)
    assert_error(gemma_run(alone, "<image_soft_token>"), 2, "this model reads text alone", "Leave it out")


def test_which_pieces(tmp_path: Path) -> None:
    _with_image_token(tmp_path / "tokenizer.json")
    content = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    content = content.replace("<unused99>", "<start_of_image>").replace("<unused98>", "<end_of_image>")
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    assert load_tokenizer(tmp_path).never_chosen == {0, 2, 103, 104, IMAGE}
    # a model that knows no images is left with what its reference would choose
    assert load_tokenizer(TINY).never_chosen == frozenset()
    assert load_tokenizer(TINY, "sentencepiece").never_chosen == frozenset()
