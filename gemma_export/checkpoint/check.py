"""Names, shapes and types of a checkpoint's tensors, both ways, before anything is written. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from gemma_export.checkpoint.text_part import text_prefix
from gemma_export.errors import CheckpointError
from gemma_export.tensors import DTYPE_BYTES, TensorSource

__all__ = ["check_tensors", "same_bytes"]

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# a buffer that old releases of transformers saved; the reference computes it from the configuration
_RECOMPUTED = ".rotary_emb.inv_freq"
_COMPARE_BYTES = 4 << 20


def check_tensors(source: TensorSource, expected: Mapping[str, tuple[int, ...]], *, headers_only: bool = False) -> None:
    """Holds a source against the architecture's tensors.

    Args:
        source: the checkpoint's tensors.
        expected: tensor name -> shape, from the configuration.
        headers_only: nothing of the tensors can be read yet: what only their values can tell is left to a second check.

    Raises:
        CheckpointError: names the tensors that are missing, unexpected, of another shape or of an unusable type.
    """
    found = source.tensors
    extra = {name for name in found if name not in expected and not name.endswith(_RECOMPUTED)}
    if _HEAD in extra and _EMBEDDING in found:
        _check_tied_head(source, headers_only=headers_only)
        extra.remove(_HEAD)
    missing = [name for name in expected if name not in found]
    if missing or extra:
        raise _names_differ(missing, sorted(extra), len(expected))
    for name, shape in expected.items():
        tensor = found[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"tensor {name}: expected shape {list(shape)} from config.json, found {list(tensor.shape)}",
                hint="config.json and the weights are of different models, or of different sizes.",
            )
        if tensor.dtype not in DTYPE_BYTES:
            raise CheckpointError(
                f"tensor {name}: expected {', '.join(DTYPE_BYTES)}, found {tensor.dtype}",
                hint="This is a quantised checkpoint in a layout that is not read: export the one it was made from.",
            )


def same_bytes(source: TensorSource, first: str, second: str) -> bool:
    """Whether two tensors of a source have one type, shape and content; both are read from end to end.

    Raises:
        CheckpointError: the bytes cannot be read.
    """
    tensor = source.tensors[first]
    same = tensor == source.tensors[second] and tensor.dtype in DTYPE_BYTES
    position = 0
    while same and position < tensor.nbytes:
        size = min(_COMPARE_BYTES, tensor.nbytes - position)
        contents = bytearray(size), bytearray(size)
        for name, content in zip((first, second), contents, strict=True):
            source.read_into(name, position, memoryview(content))
        same = contents[0] == contents[1]
        position += size
    return same


def _names_differ(missing: list[str], extra: list[str], count: int) -> CheckpointError:
    parts = []
    if missing:
        near = difflib.get_close_matches(missing[0], extra, n=1, cutoff=0.6)
        found = f" (found {near[0]!r})" if near else ""
        parts.append(f"{len(missing)} of {count} missing, first {missing[0]}{found}")
    if extra:
        parts.append(f"{len(extra)} unexpected, first {extra[0][:120]!r}")
    adapter = any("lora_" in name for name in extra)
    hint = "config.json and weights must be of one model."
    if adapter:
        hint = "This is an adapter: give it with --adapter and its base model with --checkpoint."
    elif any(name.endswith(".qweight") for name in extra):
        hint = (
            "These are quantised weights: config.json needs their quantization_config (older GPTQ checkpoints have it "
            'as quantize_config.json; add "quant_method": "gptq").'
        )
    elif text_prefix(extra) is not None:
        hint = "These names are of a vision-language checkpoint: take its own config.json, whose model_type is gemma3."
    return CheckpointError(f"the checkpoint's tensors are not those of config.json: {'; '.join(parts)}", hint=hint)


def _check_tied_head(source: TensorSource, *, headers_only: bool) -> None:
    """A head saved beside a tied embedding must be the embedding: the reference would ignore it."""
    head, table = source.tensors[_HEAD], source.tensors[_EMBEDDING]
    alike = head == table and head.dtype in DTYPE_BYTES
    if not alike or not (headers_only or same_bytes(source, _HEAD, _EMBEDDING)):
        raise CheckpointError(
            f"config.json ties the head to the embedding, but {_HEAD} differs from {_EMBEDDING}",
            hint='If the head was trained apart, set "tie_word_embeddings": false in config.json.',
        )
