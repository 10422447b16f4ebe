"""Checkpoints in GPTQ's and AWQ's layouts, packed word by word from the formats' descriptions, and what they mean.

Sources: https://github.com/AutoGPTQ/AutoGPTQ (nn_modules/qlinear/qlinear_cuda.py, pack),
https://github.com/casper-hansen/AutoAWQ (awq/modules/linear/gemm.py, from_linear). Nothing of the exporter is used.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers
from decoders import reference_model
from safetensors.numpy import save_file
from windowed_decoders import WINDOWED_CONFIGS, windowed_reference

from gemma_export.checkpoint import BUILTIN_DIRECTORY

# widths that groups of 64 do not divide, and in which no two matrices are square
CONFIG: dict[str, object] = {
    "vocab_size": 3072,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
# the same widths in the families with windows, norms behind branches and of heads
WINDOWED: dict[str, dict[str, object]] = {
    name: {**WINDOWED_CONFIGS[name], **{key: CONFIG[key] for key in _SIZES}} for name in ("gemma2", "gemma3 nested")
}
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a quantiser was told."""

    method: str = "gptq"
    bits: int = 4
    group_size: int = 32
    symmetric: bool = True
    desc_act: bool = False
    version: str = "gptq"
    scales: str = "float16"

    def config(self) -> dict[str, Any]:
        """The quantization_config."""
        if self.method == "awq":
            return {
                "quant_method": "awq",
                "bits": 4,
                "group_size": self.group_size,
                "zero_point": True,
                "version": "gemm",
                "modules_to_not_convert": None,
            }
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": self.symmetric,
            "desc_act": self.desc_act,
            "checkpoint_format": self.version,
            "damp_percent": 0.1,
            "true_sequential": True,
        }


@dataclasses.dataclass(kw_only=True)
class Matrix:
    """One quantised matrix."""

    # [out, in], [out, groups], [out, groups], [in]
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    groups: np.ndarray

    def dequantised(self) -> np.ndarray:
        """float32 [out, in], element by element."""
        out = np.empty(self.codes.shape, np.float32)
        for column, group in enumerate(self.groups):
            difference = self.codes[:, column].astype(np.float64) - self.zeros[:, group]
            out[:, column] = difference * self.scales[:, group].astype(np.float64)
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantised:
    """A checkpoint folder and what it computes."""

    directory: Path
    # in float32, with the matrices multiplied out
    model: transformers.PreTrainedModel
    # module -> matrix
    matrices: dict[str, Matrix]


def quantise(weight: np.ndarray, layout: Layout, order: np.ndarray | None) -> Matrix:
    """Rounds to the nearest in each group; `order` puts neighbours of that order into groups."""
    rows, columns = weight.shape
    size = columns if layout.group_size == -1 else layout.group_size
    groups = np.arange(columns) // size
    if order is not None:
        groups[order] = np.arange(columns) // size
    count, top = int(groups.max()) + 1, 2**layout.bits - 1
    scale_type = ml_dtypes.bfloat16 if layout.scales == "bfloat16" else layout.scales
    scales, zeros = np.zeros((rows, count), scale_type), np.zeros((rows, count), np.int64)
    codes = np.zeros((rows, columns), np.int64)
    for group in range(count):
        part = weight[:, groups == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if layout.symmetric:
            scales[:, group] = 2 * np.maximum(-low, high) / top
            zeros[:, group] = 2 ** (layout.bits - 1)
        else:
            scales[:, group] = (high - low) / top
            # from 1: the first format of GPTQ cannot hold 0
            zeros[:, group] = np.clip(np.rint(-low / scales[:, group]), 1, top)
        wide = part / scales[:, group, None].astype(np.float64) + zeros[:, group, None]
        codes[:, groups == group] = np.clip(np.rint(wide), 0, top)
    return Matrix(codes=codes, scales=scales, zeros=zeros, groups=groups)


def packed(matrix: Matrix, layout: Layout) -> dict[str, np.ndarray]:
    """The stored parts of a matrix, without their module's name."""
    codes, zeros = matrix.codes.T, matrix.zeros.T
    if layout.method == "awq":
        return {
            "qweight": _words_along_rows(codes, 4, _AWQ_ORDER),
            "qzeros": _words_along_rows(zeros, 4, _AWQ_ORDER),
            "scales": np.ascontiguousarray(matrix.scales.T),
        }
    straight = tuple(range(32 // layout.bits))
    stored = zeros - (1 if layout.version == "gptq" else 0)
    return {
        "qweight": np.ascontiguousarray(_words_along_rows(codes.T, layout.bits, straight).T),
        "qzeros": _words_along_rows(stored, layout.bits, straight),
        "scales": np.ascontiguousarray(matrix.scales.T),
        "g_idx": matrix.groups.astype(np.int32),
    }


def _words_along_rows(values: np.ndarray, bits: int, order: tuple[int, ...]) -> np.ndarray:
    """int32 [rows, columns * bits / 32]; place i of a word holds column order[i] of its columns."""
    rows, columns = values.shape
    count = 32 // bits
    words = np.zeros((rows, columns // count), np.uint32)
    for word in range(columns // count):
        for place, column in enumerate(order):
            value = values[:, word * count + column].astype(np.uint32) & np.uint32(2**bits - 1)
            words[:, word] |= value << np.uint32(bits * place)
    return words.view(np.int32)


def write(
    directory: Path,
    layout: Layout,
    *,
    config: dict[str, object] | None = None,
    skip: Callable[[str], bool] = lambda module: False,
    change: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None,
    settings: dict[str, Any] | None = None,
) -> Quantised:
    """A checkpoint of random weights whose projections are quantised.

    Args:
        directory: is made.
        layout: of all matrices.
        config: the model's; with a model_type it is of a family with windows.
        skip: modules that stay in floating point.
        change: alters the tensors before they are saved.
        settings: changes of quantization_config; None leaves a key out.
    """
    config = CONFIG if config is None else config
    model = windowed_reference(config) if "model_type" in config else reference_model(config)
    generator = np.random.default_rng(5)
    tensors: dict[str, np.ndarray] = {}
    matrices = {}
    orders: dict[int, np.ndarray] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module = name.removesuffix(".weight")
            if not name.endswith("_proj.weight") or skip(module):
                # floating-point tensors as such checkpoints have them
                parameter.copy_(parameter.half().float())
                tensors[name] = parameter.half().numpy()
                continue
            # inputs of one width are shared, as those of query, key and value are
            order = orders.setdefault(parameter.shape[1], generator.permutation(parameter.shape[1]))
            matrix = quantise(parameter.numpy() * 0.5, layout, order if layout.desc_act else None)
            parameter.copy_(torch.from_numpy(matrix.dequantised()))
            matrices[module] = matrix
            tensors |= {f"{module}.{part}": value for part, value in packed(matrix, layout).items()}
    change(tensors)
    directory.mkdir(parents=True)
    quantisation = {key: value for key, value in (layout.config() | (settings or {})).items() if value != "absent"}
    content = {"model_type": "gemma", **config, "quantization_config": quantisation}
    (directory / "config.json").write_text(json.dumps(content))
    save_file(tensors, directory / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(BUILTIN_DIRECTORY / name, directory / name)
    return Quantised(directory=directory, model=model, matrices=matrices)
