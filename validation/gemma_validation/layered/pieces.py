"""transformers' eager attention some queries at a time: the same numbers, in memory that long documents do not square.

Eager attention holds heads * queries * keys scores several times over. A document that is longer than the window of
Gemma 2, 4,096 tokens, would take four gigabytes in a 9B.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface

__all__ = ["attends_in_pieces"]

# queries at a time: 35 MB of scores for 4 heads at 4,224 keys
_QUERIES = 512


def attends_in_pieces(config: Any, eager: Callable[..., tuple[torch.Tensor, Any]]) -> Any:
    """The configuration of layers that attend in pieces; masks are still made by the one given.

    Args:
        config: of transformers, with eager attention.
        eager: the eager attention of its architecture.
    """

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        starts = range(0, query.shape[2], _QUERIES)
        pieces = [slice(start, start + _QUERIES) for start in starts]
        found = [
            eager(module, query[:, :, rows], key, value, attention_mask[:, :, rows], **options)[0] for rows in pieces
        ]
        return torch.cat(found, dim=1), None

    name = f"{config.model_type}_eager_in_pieces"
    AttentionInterface.register(name, attend)
    own = copy.deepcopy(config)
    own._attn_implementation = name
    return own
