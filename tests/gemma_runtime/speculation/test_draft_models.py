"""A second folder guesses: the same text, whatever it thinks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from code_prompts import prompts
from folders import altered

from gemma_export.pipeline import ExportRequest, export
from gemma_runtime import Gemma, Sampling
from gemma_runtime.errors import PromptError

PROMPTS = prompts(25, seed=4)


def padded(tmp_path: Path, rows: int, context: int = 64) -> Path:
    """A small model of random weights with the built-in one's tokenizer and another number of embedding rows."""
    config = {**checkpoints.CONFIG, "vocab_size": rows, "max_position_embeddings": context}
    weights = checkpoints.tensors(config)
    checkpoints.write(tmp_path / "model", weights=weights, vocab_size=rows, max_position_embeddings=context)
    export(ExportRequest(checkpoint=tmp_path / "model", output=tmp_path / "folder"))
    return tmp_path / "folder"


def test_the_quantised_model_guesses_for_the_exact_one(guided: Gemma, plain: Gemma) -> None:
    drafted = accepted = steps = tokens = 0
    for prompt in PROMPTS:
        expected, found = plain.generate(prompt, max_new_tokens=32), guided.generate(prompt, max_new_tokens=32)
        assert found.token_ids == expected.token_ids
        assert found.speculation is not None
        drafted, accepted = drafted + found.speculation.drafted, accepted + found.speculation.accepted
        steps, tokens = steps + found.speculation.steps, tokens + len(found.token_ids)
    assert accepted > 100
    # the two nearly always agree
    assert accepted > 0.6 * drafted


def test_a_whole_answer_guessed_by_the_model_itself(tiny_fp32: Path, plain: Gemma) -> None:
    model = Gemma(tiny_fp32, draft=tiny_fp32, threads=1)
    # the first runs of several are compared with runs of one, which ends their use
    model.generate(PROMPTS[0], max_new_tokens=30)
    found = model.generate(PROMPTS[0], max_new_tokens=30)
    assert found.token_ids == plain.generate(PROMPTS[0], max_new_tokens=30).token_ids
    assert found.speculation is not None
    assert found.speculation.accepted == found.speculation.drafted


def test_more_padding_rows_than_the_model(tiny_fp32: Path, plain: Gemma, tmp_path: Path) -> None:
    model = Gemma(tiny_fp32, draft=padded(tmp_path, 3200), threads=1)
    found = model.generate("import os", max_new_tokens=16)
    assert found.token_ids == plain.generate("import os", max_new_tokens=16).token_ids
    drawn = model.generate("import os", max_new_tokens=16, sampling=Sampling(temperature=50.0))
    assert all(token < plain.tokenizer.size for token in drawn.token_ids)


def test_fewer_padding_rows_than_the_model(tiny_fp32: Path, plain: Gemma, tmp_path: Path) -> None:
    """A prompt of ids, and biases, may have padding that the smaller model's table has no rows for."""
    folder = padded(tmp_path, 3200)
    model, alone = Gemma(folder, draft=tiny_fp32, threads=1), Gemma(folder, speculation="off", threads=1)
    for prompt in (plain.encode("import os"), [*plain.encode("import os"), 3199, 300]):
        for sampling in (Sampling(logit_bias={3199: 2.0, 300: 1.0}), Sampling()):
            expected = alone.generate(prompt, max_new_tokens=16, sampling=sampling)
            assert model.generate(prompt, max_new_tokens=16, sampling=sampling).token_ids == expected.token_ids


def test_guesses_have_random_numbers_of_their_own(tiny_fp32: Path, plain: Gemma) -> None:
    """With the model's own, the second token would follow from the first: here each is one of two, equally likely."""
    model = Gemma(tiny_fp32, draft=tiny_fp32, threads=1)
    conversation, prompt = model.conversation(), plain.encode("import os")
    sampling = Sampling(temperature=1e6, top_k=2)

    def choices(text: Sequence[int]) -> tuple[int, int]:
        logits = plain.sequence().extend(text)
        assert logits is not None
        low, high = sorted(int(token) for token in np.argsort(logits[-1])[-2:])
        return low, high

    first = choices(prompt)
    second = {token: choices([*prompt, token]) for token in first}
    counts = np.zeros((2, 2), int)
    for seed in range(150):
        # the first run of the model after the prompt must have guesses
        options = {"max_new_tokens": 4, "stop_ids": (), "min_new_tokens": 4}
        found = conversation.generate(prompt, sampling=dataclasses.replace(sampling, seed=seed), **options).token_ids
        counts[first.index(found[0]), second[found[0]].index(found[1])] += 1
    # 37.5 each; fewer than 20 has a chance of 1e-3 at a fixed seed
    assert counts.min() >= 20


def test_text_beyond_the_draft_models_context(tiny_fp32: Path, plain: Gemma, tmp_path: Path) -> None:
    model = Gemma(tiny_fp32, draft=padded(tmp_path, 3072, context=24), threads=1)
    for prompt in (" x" * 15, " x" * 22, " x" * 40):
        found = model.generate(prompt, max_new_tokens=20, stop_ids=())
        assert found.token_ids == plain.generate(prompt, max_new_tokens=20).token_ids


def test_a_draft_model_that_gives_nonsense_costs_nothing_but_time(
    tiny_fp32: Path, plain: Gemma, tmp_path: Path
) -> None:
    weights = checkpoints.tensors(checkpoints.CONFIG)
    for name in weights:
        if name.endswith("down_proj.weight"):
            weights[name] = (weights[name].astype(np.float32) * 3e5).clip(-6e4, 6e4).astype(weights[name].dtype)
    checkpoints.write(tmp_path / "model", weights=weights)
    request = ExportRequest(checkpoint=tmp_path / "model", precision="fp16", output=tmp_path / "folder")
    export(dataclasses.replace(request, residual_scale="off"))
    model = Gemma(tiny_fp32, draft=tmp_path / "folder", threads=1)
    found = model.generate("import os", max_new_tokens=12)
    assert found.token_ids == plain.generate("import os", max_new_tokens=12).token_ids
    assert found.speculation is not None
    assert found.speculation.drafted == 0


def test_another_tokenizer_is_refused(tiny_fp32: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_fp32 / "tokenizer.json").read_bytes())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {text: token + (token >= 300) for text, token in vocabulary.items()}
    folder = altered(tiny_fp32, tmp_path / "folder", {"tokenizer.json": json.dumps(content).encode()})
    with pytest.raises(PromptError, match="tokenizer differs") as caught:
        Gemma(tiny_fp32, draft=folder)
    assert caught.value.exit_code == 2
    assert "same family" in caught.value.hint
