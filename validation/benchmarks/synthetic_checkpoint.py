"""A Gemma checkpoint of a given shape on disk: bfloat16 safetensors in shards, normal numbers, streamed.

Uniform numbers, or few distinct ones, would flatter a quantiser; the numbers here are normal, of standard deviation
fan_in ** -0.5 (0.1 for norm gains), so activations keep their size through the layers and float16 holds them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import statistics
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.families import FAMILIES

__all__ = ["SHAPES", "Shape", "checkpoint_bytes", "write_checkpoint"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
# elements drawn at once: 2 MiB of bfloat16 stay in a core's cache
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A size of the Gemma 1 architecture and the number of files it is spread over."""

    changes: Mapping[str, Any]
    shards: int

    @property
    def config(self) -> dict[str, Any]:
        """The whole config.json."""
        return {
            "architectures": ["GemmaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "model_type": "gemma",
            "pad_token_id": 0,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
            **self.changes,
        }

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        family = FAMILIES["gemma"]
        spec, _ = family.parse_config(self.config)
        return family.tensor_shapes(spec)


SHAPES = {
    # https://huggingface.co/google/gemma-2b/blob/main/config.json
    "2b": Shape(
        changes={
            "head_dim": 256,
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_attention_heads": 8,
            "num_hidden_layers": 18,
            "num_key_value_heads": 1,
            "vocab_size": 256000,
        },
        shards=2,
    ),
    # rows are multiples of 128, so that every 4-bit format of the peers has whole groups
    "tiny": Shape(
        changes={
            "head_dim": 64,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_attention_heads": 8,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "vocab_size": 3072,
        },
        shards=2,
    ),
}


def checkpoint_bytes(shape: Shape) -> int:
    """Bytes of all tensors."""
    return sum(_nbytes(tensor) for tensor in shape.tensors.values())


def write_checkpoint(directory: Path, shape: Shape, seed: int = 0) -> None:
    """Writes config, tokenizer and shards; the folder must not exist. The same arguments give the same bytes.

    The tokenizer is the built-in one; a vocabulary larger than its 3,072 pieces is padded by whoever reads it.
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(shape.config, indent=2), encoding="utf-8")
    for name in _TOKENIZER_FILES:
        shutil.copy(BUILTIN_DIRECTORY / name, directory / name)
    tensors = shape.tensors
    names, index = list(tensors), {}
    for shard in range(shape.shards):
        file = f"model-{shard + 1:05}-of-{shape.shards:05}.safetensors"
        part = names[shard * len(names) // shape.shards : (shard + 1) * len(names) // shape.shards]
        _write_shard(directory / file, {name: tensors[name] for name in part}, seed)
        index.update(dict.fromkeys(part, file))
    content = {"metadata": {"total_size": checkpoint_bytes(shape)}, "weight_map": index}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")


def _write_shard(path: Path, tensors: Mapping[str, tuple[int, ...]], seed: int) -> None:
    # readers look for the framework's name in the metadata
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + _nbytes(shape)]}
        offset += _nbytes(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            for chunk in _chunks(name, shape, seed):
                file.write(chunk.data.cast("B"))


def _chunks(name: str, shape: tuple[int, ...], seed: int) -> Iterator[npt.NDArray[np.uint16]]:
    """bfloat16 bits of a tensor, in order."""
    # counter-based, keyed by the name: a tensor does not depend on its place in the files
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    table = _normal_table(shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
    left = _nbytes(shape) // 2
    while left > 0:
        count = min(_CHUNK, left)
        # raw 64-bit draws, four elements each: several times the speed of the ziggurat
        draws = generator.random_raw(-(-count // 4)).view(np.uint16)[:count]
        yield np.take(table, draws)
        left -= count


_QUANTILES: list[npt.NDArray[np.float32]] = []


def _normal_table(deviation: float) -> npt.NDArray[np.uint16]:
    """bfloat16 bits of the normal distribution's quantile for each of 2^16 equally likely draws; up to 4.2 sigma."""
    if not _QUANTILES:
        normal = statistics.NormalDist()
        # symmetric, so half of the quantiles are computed
        upper = [normal.inv_cdf(0.5 + (i + 0.5) / 65536) for i in range(32768)]
        _QUANTILES.append(np.array([-value for value in reversed(upper)] + upper, dtype=np.float32))
    bits = (_QUANTILES[0] * np.float32(deviation)).view(np.uint32)
    # round half to even to the upper 16 bits of a float32
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _nbytes(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape, dtype=np.int64))
