"""What a family file provides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gemma_export.config import CacheState, DecoderSpec

if TYPE_CHECKING:
    from gemma_export.nn import Decoder

__all__ = ["Family"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture: how to read its config, what its checkpoint holds, how to build it."""

    name: str
    # the value of config.json's "model_type"
    model_type: str
    # keys of config.json that have one value in all released checkpoints, for synthetic weights of a variant
    constants: Mapping[str, Any]
    # config.json -> (specification, names of keys that nothing reads)
    parse_config: Callable[[Mapping[str, Any]], tuple[DecoderSpec, tuple[str, ...]]]
    # checkpoint tensor name -> shape; the decoder's parameters have the same names
    tensor_shapes: Callable[[DecoderSpec], dict[str, tuple[int, ...]]]
    # decoder state, layer by layer
    cache_states: Callable[[DecoderSpec], tuple[CacheState, ...]]
    # the torch decoder; parameters are uninitialised
    build: Callable[[DecoderSpec], Decoder]
