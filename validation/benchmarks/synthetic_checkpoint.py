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

from gemma_export.base_checkpoint import released_config
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.families import family_of
from gemma_export.variants import VARIANTS

__all__ = ["SHAPES", "Shape", "checkpoint_bytes", "write_checkpoint"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
# config.json's model_type -> the class that readers look for
_ARCHITECTURES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
# elements drawn at once: 2 MiB of bfloat16 stay in a core's cache
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A size of an architecture and the number of files it is spread over."""

    # the whole config.json
    config: Mapping[str, Any]
    shards: int

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        family = family_of(self.config)
        spec, _ = family.parse_config(self.config)
        return family.tensor_shapes(spec)


def _released(variant: str, shards: int) -> Shape:
    """A released variant; what its family does not need to say, peers want to read."""
    config = released_config(VARIANTS[variant])
    config |= {
        "architectures": [_ARCHITECTURES[config["model_type"]]],
        "attention_bias": False,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "torch_dtype": "bfloat16",
    }
    return Shape(config=config, shards=shards)


_2B = _released("2b", 2)
# rows are multiples of 128, so that every 4-bit format of the peers has whole groups
_TINY_SIZES = {
    "head_dim": 64,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "vocab_size": 3072,
}
SHAPES = {
    "2b": _2B,
    # where a peer's export of the 2B needs more memory than there is: its layers' sizes, and a head that is held
    "2b-short": Shape(config={**_2B.config, "num_hidden_layers": 6, "vocab_size": 49152}, shards=1),
    "tiny": Shape(config={**_2B.config, **_TINY_SIZES}, shards=2),
    "gemma2-2b": _released("gemma2-2b", 2),
    "gemma3-1b": _released("gemma3-1b", 1),
    "gemma3-270m": _released("gemma3-270m", 1),
}


def checkpoint_bytes(shape: Shape) -> int:
    """Bytes of all tensors."""
    return sum(_nbytes(tensor) for tensor in shape.tensors.values())


def write_checkpoint(directory: Path, shape: Shape, seed: int = 0) -> None:
    """Writes config, tokenizer and shards; the folder must not exist. The same arguments give the same bytes.

    The tokenizer is the built-in one; a vocabulary larger than its 3,072 pieces is padded by whoever reads it.
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(shape.config, indent=2, sort_keys=True), encoding="utf-8")
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
