"""The names that `--variant` knows. Literal data: to add a released checkpoint, add a line.

Repository ids are those of the Hub; parameter counts are the sums of the checkpoints' tensors (tied head counted once).
"""

from __future__ import annotations

import dataclasses

__all__ = ["GEMMA_TERMS_URL", "VARIANTS", "Variant"]

GEMMA_TERMS_URL = "https://ai.google.dev/gemma/terms"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One released checkpoint."""

    name: str
    # name in gemma_export.families.FAMILIES
    family: str
    # Hub repository id; None for the built-in model
    repository: str | None
    # branch, tag or 40-hex commit to start from
    revision: str | None
    # how a prompt is built: "completion", "chat" or "fim" (completion and fill-in-the-middle)
    prompt: str
    # the licence page that must be accepted or read
    license_url: str
    # the values that a checkpoint claiming this variant must have in its config.json
    architecture: tuple[tuple[str, int], ...]
    # largest |value| of the residual stream that was published for it, and where (URL)
    published_peak: tuple[float, str] | None = None


_GEMMA_2B = (
    ("hidden_size", 2048),
    ("intermediate_size", 16384),
    ("num_hidden_layers", 18),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 1),
    ("head_dim", 256),
    ("vocab_size", 256000),
    ("max_position_embeddings", 8192),
)
_GEMMA_7B = (
    ("hidden_size", 3072),
    ("intermediate_size", 24576),
    ("num_hidden_layers", 28),
    ("num_attention_heads", 16),
    ("num_key_value_heads", 16),
    ("head_dim", 256),
    ("vocab_size", 256000),
    ("max_position_embeddings", 8192),
)
_TINY = (
    ("hidden_size", 256),
    ("intermediate_size", 512),
    ("num_hidden_layers", 4),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 2),
    ("head_dim", 64),
    ("vocab_size", 3072),
    ("max_position_embeddings", 8192),
)


def _released(name: str, repository: str, prompt: str, architecture: tuple[tuple[str, int], ...]) -> Variant:
    return Variant(
        name=name,
        family="gemma",
        repository=repository,
        revision="main",
        prompt=prompt,
        license_url=f"https://huggingface.co/{repository}",
        architecture=architecture,
    )


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            name="tiny",
            family="gemma",
            repository=None,
            revision=None,
            prompt="fim",
            license_url="https://docs.python.org/3/license.html",
            architecture=_TINY,
        ),
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
    )
}
