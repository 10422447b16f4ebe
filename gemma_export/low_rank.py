"""A stored matrix plus a low-rank product, evaluated in row chunks: a LoRA merged while it streams."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gemma_export.weights import Cast, Weight

__all__ = ["LowRankSum"]


class LowRankSum(Weight):
    """base + scale * left @ right in float32, each row then brought to a given norm if there are norms.

    The operations and their order are those of PEFT's merge of a float32 model, which sums its products in another
    order at most: https://github.com/huggingface/peft/blob/main/src/peft/tuners/lora/layer.py (get_delta_weight) and,
    for norms, dora.py (get_weight_norm). `right` and one chunk of `left` are held in memory; `base` streams.

    Args:
        base: [rows, columns], of any float type.
        left: [rows, rank].
        right: [rank, columns].
        scale: of the product.
        norms: [rows], DoRA's magnitudes, or None.
        name: of the result, for messages.
    """

    dtype = torch.float32

    def __init__(
        self, base: Weight, left: Weight, right: Weight, *, scale: float, norms: Weight | None = None, name: str
    ) -> None:
        assert base.shape == (left.shape[0], right.shape[1])
        assert left.shape[1] == right.shape[0]
        # stored NaN and infinity are reported with their own tensor's name and position
        self.base, self.left, self.right = (Cast(weight, torch.float32) for weight in (base, left, right))
        self.norms = None if norms is None else Cast(norms, torch.float32)
        self.scale, self.name = scale, name
        self.shape = base.shape

    def chunks(self) -> Iterator[torch.Tensor]:
        """See Weight."""
        right = self.right.tensor()
        norms = None if self.norms is None else self.norms.tensor()
        left = _Rows(self.left)
        product: torch.Tensor | None = None
        row = 0
        for chunk in self.base.chunks():
            rows = slice(row, row + len(chunk))
            if product is None:
                # the first chunk is the largest
                product = torch.empty_like(chunk)
            change = torch.mm(left.take(len(chunk)), right, out=product[: len(chunk)])
            # in the buffer of our own cast
            chunk += change.mul_(self.scale)
            if norms is not None:
                chunk *= (norms[rows] / torch.linalg.vector_norm(chunk, dim=1)).unsqueeze(1)
            yield chunk
            row = rows.stop

    def __str__(self) -> str:
        return self.name


class _Rows:
    """Takes rows of a weight in order, as many as asked for, whatever its chunks are."""

    def __init__(self, weight: Weight) -> None:
        self._chunks = weight.chunks()
        self._rest = torch.empty(0, *weight.shape[1:], dtype=weight.dtype)

    def take(self, count: int) -> torch.Tensor:
        parts = []
        while count:
            if not len(self._rest):
                self._rest = next(self._chunks)
            # copied: the chunk is valid until the next is taken
            part = self._rest[:count].clone()
            self._rest = self._rest[count:]
            parts.append(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)
