"""Guessing tokens ahead, so that one run of the model checks several.

drafter         what a source of guesses provides
prompt_lookup   guesses from the text so far: what followed the same tokens earlier
draft_model     guesses from a smaller model's folder
draft_length    how many guesses pay, by what they cost and how many came true
row_cost        what one more row adds to a run
kernel_difference  how far runs of several tokens are off

The loop that checks them is `gemma_runtime.decoding`.
Sources: https://arxiv.org/abs/2211.17192 (speculative decoding), https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from gemma_runtime.speculation.draft_length import DraftLength
from gemma_runtime.speculation.draft_model import DraftModel
from gemma_runtime.speculation.drafter import Draft, Drafter
from gemma_runtime.speculation.kernel_difference import KernelDifference, measure_difference
from gemma_runtime.speculation.prompt_lookup import PromptLookup
from gemma_runtime.speculation.row_cost import row_cost

__all__ = [
    "Draft",
    "DraftLength",
    "DraftModel",
    "Drafter",
    "KernelDifference",
    "PromptLookup",
    "measure_difference",
    "row_cost",
]
