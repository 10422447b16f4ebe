"""Gemma 2 and Gemma 3 in other people's loaders: the same tokens as PyTorch, several windows past the first."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tolerances
import torch
from consumers.environments import CONSUMERS, Answer, ask
from tokenizers import Tokenizer
from windowed_decoders import WINDOWED_CONFIGS, windowed_reference, write_windowed_checkpoint

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export

pytestmark = pytest.mark.consumers

FAMILIES = ("gemma2", "gemma3")
NEW_TOKENS = 32
# without runs of spaces, which genai's tokenizer splits otherwise
PROMPTS = (
    "class LoggerAdapter(object): pass",
    "raise ValueError('%r is not callable' % (type_func,))",
    "addrlist = []",
)
# of the reference's weights: no choice is closer than 0.004 of the logits' standard deviation
SEED = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """Greedy generation of the reference."""

    model: Any
    prompt_ids: list[list[int]]
    tokens: list[list[int]]
    # the smallest distance between the best and the second-best logit, in the logits' standard deviation
    margin: float


@functools.cache
def reference(family: str, window: int | None = None) -> Reference:
    """With weights under which the text, and not the last token alone, decides."""
    config = WINDOWED_CONFIGS[family]
    model = windowed_reference({**config, "sliding_window": window or config["sliding_window"]}, SEED)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.03)
    tokenizer = Tokenizer.from_file(str(BUILTIN_DIRECTORY / "tokenizer.json"))
    prompt_ids = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    rows = [_greedy(model, ids) for ids in prompt_ids]
    return Reference(
        model=model,
        prompt_ids=prompt_ids,
        tokens=[tokens for tokens, _ in rows],
        margin=min(margin for _, margin in rows),
    )


@torch.no_grad()
def _greedy(model: Any, ids: list[int]) -> tuple[list[int], float]:
    """Without a cache: one thing less to be wrong."""
    tokens: list[int] = []
    margin = float("inf")
    for _ in range(NEW_TOKENS):
        logits = model(torch.tensor([ids + tokens]), use_cache=False).logits[0, -1]
        best = logits.topk(2)
        tokens.append(int(best.indices[0]))
        margin = min(margin, float((best.values[0] - best.values[1]) / logits.std()))
    return tokens, margin


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Answer]:
    root = tmp_path_factory.mktemp("windowed")

    @functools.cache
    def folder(family: str, target: str) -> Path:
        checkpoint = root / family
        if not checkpoint.exists():
            write_windowed_checkpoint(reference(family).model, checkpoint, WINDOWED_CONFIGS[family], BUILTIN_DIRECTORY)
        output = root / f"{family}-{target}"
        export(ExportRequest(checkpoint=checkpoint, target=target, output=output))
        return output

    @functools.cache
    def asked(name: str, family: str, head_sizes: bool = True) -> Answer:
        request = {
            "folder": folder(family, CONSUMERS[name].target).as_posix(),
            "graph": "onnx/model.onnx",
            "prompts": PROMPTS,
            "prompt_ids": reference(family).prompt_ids,
            "texts": PROMPTS,
            "new_tokens": NEW_TOKENS,
            "head_sizes": head_sizes,
        }
        return ask(CONSUMERS[name], request)

    return asked


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_no_close_calls_and_windows_decide(family: str) -> None:
    expected = reference(family)
    assert expected.margin > 20 * tolerances.FP32_LOGITS
    # one prompt is longer than a window, and all answers are longer than three
    window = WINDOWED_CONFIGS[family]["sliding_window"]
    assert max(map(len, expected.prompt_ids)) > window
    assert 3 * window < NEW_TOKENS
    for with_windows, without in zip(expected.tokens, reference(family, 512).tokens, strict=True):
        assert with_windows != without


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CONSUMERS)
def test_greedy_tokens(name: str, family: str, answer: Callable[..., Answer]) -> None:
    found = answer(name, family)
    assert found.error is None
    assert found.single == reference(family).tokens
    if CONSUMERS[name].batch:
        assert found.batch == reference(family).tokens


def test_optimum_needs_gemma_2s_head_sizes(answer: Callable[..., Answer]) -> None:
    """As the README says; once it reads them from config.json, that sentence and this test go."""
    found = answer("optimum", "gemma2", head_sizes=False)
    assert found.error is not None
    assert "Got invalid dimensions for input: past_key_values" in found.error
