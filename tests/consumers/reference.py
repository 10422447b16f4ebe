"""What PyTorch computes: transformers in float32 on the built-in models."""

from __future__ import annotations

import dataclasses
import functools

import torch
from decoders import builtin_reference
from tokenizers import Tokenizer

from gemma_export.checkpoint import BUILTIN_DIRECTORIES

__all__ = ["NEW_TOKENS", "STOP_IDS", "TEXTS", "Reference", "reference"]

NEW_TOKENS = 64
STOP_IDS = frozenset({1, 107})
# of different lengths and continuations, without a stop token in them and without close calls, which `margin` measures
_PROMPTS = {
    "tiny": (
        "class LoggerAdapter(object):",
        "raise ValueError('%r is not callable' % (type_func,))",
        "addrlist = []",
    ),
    # whose window is half of what each of these comes to
    "tiny2": (
        "class LoggerAdapter(object):",
        "def __init__(self, name):",
        "import os\nimport sys\n",
    ),
}
# what tokenizers get wrong: runs of spaces, line ends, bytes, special tokens in the text
TEXTS = (
    "Hello, world!",
    "a  b    c",
    "    return x\n\n\n",
    "naïve café 漢字 🙂",
    "<start_of_turn>user\nhi<end_of_turn>\n",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """Greedy generation of the reference."""

    prompts: tuple[str, ...]
    prompt_ids: list[list[int]]
    tokenized: list[list[int]]
    # new tokens of each prompt
    tokens: list[list[int]]
    # the smallest distance between the best and the second-best logit of all steps, in logits
    margin: float


@functools.cache
def reference(model: str) -> Reference:
    """Computed once.

    Args:
        model: variant of a built-in model.
    """
    prompts = _PROMPTS[model]
    tokenizer = Tokenizer.from_file(str(BUILTIN_DIRECTORIES[model] / "tokenizer.json"))
    prompt_ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    continued = [_greedy(model, ids) for ids in prompt_ids]
    return Reference(
        prompts=prompts,
        prompt_ids=prompt_ids,
        tokenized=[tokenizer.encode(text).ids for text in TEXTS],
        tokens=[tokens for tokens, _ in continued],
        margin=min(margin for _, margin in continued),
    )


@torch.no_grad()
def _greedy(name: str, ids: list[int]) -> tuple[list[int], float]:
    """Without a cache: one thing less to be wrong."""
    model, tokens, margin = builtin_reference(name), [], float("inf")
    for _ in range(NEW_TOKENS):
        best = model(torch.tensor([ids + tokens])).logits[0, -1].topk(2)
        tokens.append(int(best.indices[0]))
        margin = min(margin, float(best.values[0] - best.values[1]))
    return tokens, margin
