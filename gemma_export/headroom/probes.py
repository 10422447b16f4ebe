"""The prompts that headroom is measured on: code, prose, many scripts, symbols, a long text, BOS alone. Torch-free."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import numpy as np

from gemma_export.checkpoint import Checkpoint
from gemma_export.checkpoint.text import encode_texts
from gemma_export.config import DecoderSpec

__all__ = ["Probe", "probes_for"]

_FILE = Path(__file__).with_name("probes.toml")
# Tokens of one probe and of the long one. The scores of a layer with 16 heads take 64 MiB at 1,024 tokens.
_TOKENS, _LONG_TOKENS = 256, 1024
_RANDOM_LENGTHS = {"random 1": 64, "random 2": _TOKENS, "random long": _LONG_TOKENS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """One sequence, BOS first."""

    name: str
    token_ids: tuple[int, ...]


def probes_for(checkpoint: Checkpoint, spec: DecoderSpec) -> tuple[Probe, ...]:
    """The probe prompts by the checkpoint's tokenizer; random ids for synthetic weights or where it has none.

    Every probe starts with BOS and is cut to the context length.

    Raises:
        MissingResourceError, ConfigError: the tokenizer cannot be used.
    """
    if checkpoint.kind == "synthetic" or not checkpoint.has_tokenizer:
        generator = np.random.default_rng(0)
        sequences = {
            name: generator.integers(0, spec.vocab_size, length).tolist() for name, length in _RANDOM_LENGTHS.items()
        }
    else:
        texts = {probe["name"]: probe["text"].strip() for probe in tomllib.loads(_FILE.read_text("utf-8"))["probe"]}
        texts["long"] = "\n\n".join(texts.values())
        encoded = encode_texts(checkpoint.tokenizer_files, list(texts.values()), vocab_size=spec.vocab_size)
        sequences = dict(zip(texts, encoded, strict=True))
    sequences["bos"] = []
    probes = []
    for name, ids in sequences.items():
        limit = min(_LONG_TOKENS if name.endswith("long") else _TOKENS, spec.max_position_embeddings)
        probes.append(Probe(name=name, token_ids=(spec.bos_token_id, *ids)[:limit]))
    return tuple(probes)
