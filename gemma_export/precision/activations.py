"""Activations as kernels round them to 8 bits."""

from __future__ import annotations

import torch

__all__ = ["round_activations"]


def round_activations(values: torch.Tensor, block_size: int) -> torch.Tensor:
    """Activations [..., columns] with 8 bits and one scale in each block; a block of all columns is one for each token.

    So does MatMulNBits at accuracy level 4: the scale is the block's largest |value| / 127, values are rounded to the
    nearest. Source: QuantizeARow of
    https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/mlas/lib/qnbitgemm.h. The graphs of integer
    products (passes.QuantiseActivations) round a token the same way.
    """
    columns = values.shape[-1]
    missing = -columns % block_size
    padded = torch.nn.functional.pad(values, (0, missing))
    blocks = padded.view(*padded.shape[:-1], -1, block_size)
    scales = blocks.abs().amax(-1, keepdim=True) / 127.0
    rounded = torch.where(scales > 0, blocks / scales, 0.0).round_() * scales
    return rounded.flatten(-2)[..., :columns]
