"""The names that `--variant` knows. Literal data: to add a released checkpoint, add a line.

Repository ids are those of the Hub; parameter counts are the sums of the checkpoints' tensors (tied head counted once).
"""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["GEMMA_TERMS_URL", "VARIANTS", "Variant"]

GEMMA_TERMS_URL = "https://ai.google.dev/gemma/terms"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One released checkpoint."""

    name: str
    # name in gemma_export.families.FAMILIES
    family: str
    # Hub repository id; None for a built-in model
    repository: str | None
    # branch, tag or 40-hex commit to start from
    revision: str | None
    # how a prompt is built: "completion", "chat", "fim" (completion and fill-in-the-middle) or "policy" (a text that is
    # judged by a policy)
    prompt: str
    # the licence page that must be accepted or read
    license_url: str
    # the values that a checkpoint claiming this variant must have in its config.json
    architecture: tuple[tuple[str, int], ...]
    # keys of its config.json that differ between sizes of the family and that no number of `architecture` says
    constants: tuple[tuple[str, Any], ...] = ()
    # keys of its config.json with a value besides the usual one that makes the checkpoint no other variant
    also: tuple[tuple[str, Any], ...] = ()


_CONTEXT_8K, _CONTEXT_32K, _CONTEXT_128K = 8192, 32768, 131072


def _sizes(
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocab_size: int,
    context: int,
) -> tuple[tuple[str, int], ...]:
    return (
        ("hidden_size", hidden_size),
        ("intermediate_size", intermediate_size),
        ("num_hidden_layers", layers),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("head_dim", head_dim),
        ("vocab_size", vocab_size),
        ("max_position_embeddings", context),
    )


_GEMMA_2B = _sizes(2048, 16384, 18, 8, 1, 256, 256000, _CONTEXT_8K)
_GEMMA_7B = _sizes(3072, 24576, 28, 16, 16, 256, 256000, _CONTEXT_8K)
_GEMMA2_2B = _sizes(2304, 9216, 26, 8, 4, 256, 256000, _CONTEXT_8K)
_GEMMA2_9B = _sizes(3584, 14336, 42, 16, 8, 256, 256000, _CONTEXT_8K)
_GEMMA2_27B = _sizes(4608, 36864, 46, 32, 16, 128, 256000, _CONTEXT_8K)
_GEMMA3_270M = _sizes(640, 2048, 18, 4, 1, 256, 262144, _CONTEXT_32K)
_GEMMA3_1B = _sizes(1152, 6912, 26, 4, 1, 256, 262144, _CONTEXT_32K)
_GEMMA3_4B = _sizes(2560, 10240, 34, 8, 4, 256, 262208, _CONTEXT_128K)
_GEMMA3_12B = _sizes(3840, 15360, 48, 16, 8, 256, 262208, _CONTEXT_128K)
_GEMMA3_27B = _sizes(5376, 21504, 62, 32, 16, 128, 262208, _CONTEXT_128K)
# both 27B divide query-key products by the root of hidden_size / num_attention_heads, the others by that of head_dim
_SCALAR_256, _SCALAR_144 = (("query_pre_attn_scalar", 256),), (("query_pre_attn_scalar", 144),)
# Gemma 2 9B was published with 224, hidden_size / num_attention_heads, and corrected two weeks later
# (https://github.com/google/gemma_pytorch/commit/03e657582d17cb5a8617ebf333c1c16f3694670e,
# https://github.com/huggingface/transformers/issues/31891). Whether its ShieldGemma was is not known here.
_SHIELDGEMMA_ALSO: dict[str, tuple[tuple[str, Any], ...]] = {"9b": (("query_pre_attn_scalar", 224),)}
_GEMMA3_SMALL = (*_SCALAR_256, ("sliding_window", 512))
_LONG = (("sliding_window", 1024), ("rope_scaling", {"rope_type": "linear", "factor": 8.0}))
_GEMMA3_LARGE, _GEMMA3_LARGEST = (*_SCALAR_256, *_LONG), (("query_pre_attn_scalar", 168), *_LONG)
_TINY = _sizes(256, 512, 4, 8, 2, 64, 3072, _CONTEXT_8K)
_TINY2 = (
    ("attn_logit_softcapping", 8.0),
    ("final_logit_softcapping", 15.0),
    ("query_pre_attn_scalar", 48),
    ("sliding_window", 32),
)


def _built_in(name: str, family: str, constants: tuple[tuple[str, Any], ...] = ()) -> Variant:
    """A trained tiny model; all have the first one's sizes and tokenizer."""
    return Variant(
        name=name,
        family=family,
        repository=None,
        revision=None,
        prompt="fim",
        license_url="https://docs.python.org/3/license.html",
        architecture=_TINY,
        constants=constants,
    )


def _released(
    name: str,
    repository: str,
    prompt: str,
    architecture: tuple[tuple[str, int], ...],
    *,
    family: str = "gemma",
    constants: tuple[tuple[str, Any], ...] = (),
    also: tuple[tuple[str, Any], ...] = (),
) -> Variant:
    return Variant(
        name=name,
        family=family,
        repository=repository,
        revision="main",
        prompt=prompt,
        license_url=f"https://huggingface.co/{repository}",
        architecture=architecture,
        constants=constants,
        also=also,
    )


def _gemma2(
    size: str, architecture: tuple[tuple[str, int], ...], constants: tuple[tuple[str, Any], ...]
) -> tuple[Variant, ...]:
    """One size: as it was trained, tuned for chats, and tuned to judge texts by a policy."""
    kinds = (
        (f"gemma2-{size}", f"google/gemma-2-{size}", "completion"),
        (f"gemma2-{size}-it", f"google/gemma-2-{size}-it", "chat"),
    )
    policy = (f"shieldgemma-{size}", f"google/shieldgemma-{size}", "policy")
    return (
        *(_released(*kind, architecture, family="gemma2", constants=constants) for kind in kinds),
        _released(*policy, architecture, family="gemma2", constants=constants, also=_SHIELDGEMMA_ALSO.get(size, ())),
    )


def _gemma3(
    size: str,
    architecture: tuple[tuple[str, int], ...],
    constants: tuple[tuple[str, Any], ...],
) -> tuple[Variant, ...]:
    """One size: as it was trained, and tuned for chats."""
    kinds = (
        (f"gemma3-{size}", f"google/gemma-3-{size}{'' if size == '270m' else '-pt'}", "completion"),
        (f"gemma3-{size}-it", f"google/gemma-3-{size}-it", "chat"),
    )
    return tuple(_released(*kind, architecture, family="gemma3", constants=constants) for kind in kinds)


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _built_in("tiny", "gemma"),
        _built_in("tiny2", "gemma2", _TINY2),
        _released("2b", "google/gemma-2b", "completion", _GEMMA_2B),
        _released("2b-it", "google/gemma-2b-it", "chat", _GEMMA_2B),
        _released("7b", "google/gemma-7b", "completion", _GEMMA_7B),
        _released("7b-it", "google/gemma-7b-it", "chat", _GEMMA_7B),
        _released("1.1-2b-it", "google/gemma-1.1-2b-it", "chat", _GEMMA_2B),
        _released("1.1-7b-it", "google/gemma-1.1-7b-it", "chat", _GEMMA_7B),
        _released("codegemma-2b", "google/codegemma-2b", "fim", _GEMMA_2B),
        _released("codegemma-7b", "google/codegemma-7b", "fim", _GEMMA_7B),
        _released("codegemma-7b-it", "google/codegemma-7b-it", "chat", _GEMMA_7B),
        _released("codegemma-1.1-2b", "google/codegemma-1.1-2b", "fim", _GEMMA_2B),
        _released("codegemma-1.1-7b-it", "google/codegemma-1.1-7b-it", "chat", _GEMMA_7B),
        *_gemma2("2b", _GEMMA2_2B, _SCALAR_256),
        *_gemma2("9b", _GEMMA2_9B, _SCALAR_256),
        *_gemma2("27b", _GEMMA2_27B, _SCALAR_144),
        *_gemma3("270m", _GEMMA3_270M, _GEMMA3_SMALL),
        *_gemma3("1b", _GEMMA3_1B, _GEMMA3_SMALL),
        *_gemma3("4b", _GEMMA3_4B, _GEMMA3_LARGE),
        *_gemma3("12b", _GEMMA3_12B, _GEMMA3_LARGE),
        *_gemma3("27b", _GEMMA3_27B, _GEMMA3_LARGEST),
    )
}
