"""What calibration sums up of a projection's inputs, and what second-order quantisation asks of it.

H = X^T X, its factor U of H = U D U^T, and r = w (Y - X)^T X where the reference has the inputs Y: see `gptq`.
"""

from __future__ import annotations

import torch

from gemma_export.errors import NonFiniteError

__all__ = ["Asymmetry", "Feedback", "Gram"]

# Share of H's mean diagonal that is added to it. Mean KL on the built-in model, feedback alone: 0.0193 for
# 0.001, 0.0200 for GPTQ's own 0.01, 0.0184 for 0.1; chosen on the first half of the held-out text, and the
# differences are small.
_DAMPING = 0.1
# Share of each diagonal element on top. Channels that one token makes huge are collinear to the last bit: this keeps
# the matrix positive definite whatever float32's rounding of the sums was.
_JITTER = 2.0**-12
# Rows of the matrix of second moments that are multiplied, and factorised, together.
_STRIP = 1024
# Share of r that rows take over, an estimate from some thousand tokens. Mean KL on the built-in model and on one of
# other sizes, on a text apart: 0.0209 and 0.00442 without, 0.0187 and 0.00355 for 1/4, 0.0176 and 0.00345 for 1/2,
# 0.0185 and 0.00349 for 1.
_SHARE = 0.5


class Gram:
    """X^T X of a projection's inputs, accumulated in float32: the triangle that is factorised, in strips of rows.

    Args:
        columns: input features.
    """

    def __init__(self, columns: int) -> None:
        # Rows and columns in reverse order: U then is an ordinary Cholesky factor. Each strip begins at its diagonal.
        starts = range(0, columns, _STRIP)
        self._strips = [torch.zeros(min(_STRIP, columns - first), columns - first) for first in starts]

    def add(self, inputs: torch.Tensor) -> None:
        """Adds inputs [..., columns]."""
        rows = inputs.reshape(-1, inputs.shape[-1]).flip(1)
        for strip in self._strips:
            part = rows[:, -strip.shape[1] :]
            strip.addmm_(part[:, : len(strip)].t(), part)

    def feedback(self, name: str, damping: float = _DAMPING) -> Feedback:
        """Factorises in place: this object is used up.

        Args:
            name: of the matrix, for errors.
            damping: share of the mean of H's diagonal that is added to the diagonal.

        Raises:
            NonFiniteError: the inputs held NaN or infinity, or overflow float32 when squared.
        """
        strips, self._strips = self._strips, []
        diagonal = _diagonal(strips)
        mean = diagonal.double().mean().item()
        if not diagonal.isfinite().all():
            raise _not_finite(name)
        for strip in strips:
            if mean == 0:
                # nothing reaches this projection: plain rounding
                strip.diagonal().fill_(1.0)
            strip.diagonal().mul_(1 + _JITTER).add_(damping * mean)
        if not _factorise(strips):
            raise _not_finite(name)
        return Feedback(strips)


class Feedback:
    """The factor U of H = U D U^T, by columns.

    Args:
        strips: of R, rows of the upper triangle from the diagonal on, R^T R being H with rows and columns in reverse
            order.
    """

    def __init__(self, strips: list[torch.Tensor]) -> None:
        self._strips = strips
        self.columns = strips[0].shape[1]

    def before(self, first: int, last: int) -> torch.Tensor:
        """U[:last, first:last], [last, last - first]."""
        low, high = self.columns - last, self.columns - first
        rows = torch.zeros(last - first, last)
        for strip in self._strips:
            start = self.columns - strip.shape[1]
            top, bottom = max(low, start), min(high, start + len(strip))
            if top < bottom:
                rows[top - low : bottom - low, top - low :] = strip[top - start : bottom - start, top - start :]
        part = rows.flip(0, 1).t()
        return part / part[first:].diagonal()

    def importance(self) -> torch.Tensor:
        """D, [columns]: what an error of each column costs once the later ones made up for it."""
        return _diagonal(self._strips).flip(0).square()

    def pull(self, moments: torch.Tensor) -> torch.Tensor:
        """D^-1 U^-1 r^T, [columns, rows]: what each column rounds more so that rows come to w + r H^-1.

        Args:
            moments: r, [rows, columns].
        """
        left = moments.flip(1).t().contiguous()
        for strip in self._strips:
            size, start = len(strip), self.columns - strip.shape[1]
            solved = left[start : start + size]
            solved.copy_(torch.linalg.solve_triangular(strip[:, :size].mT, solved, upper=False))
            left[start + size :].addmm_(strip[:, size:].t(), solved, alpha=-1)
        return left.div_(_diagonal(self._strips).unsqueeze(1)).flip(0)


class Asymmetry:
    """r = w (Y - X)^T X of a projection, [rows, columns], from sums in float32.

    Args:
        name: of the matrix, for errors.
        weight: float32 [rows, columns]; read until `moments` has been asked for its rows.
    """

    def __init__(self, name: str, weight: torch.Tensor) -> None:
        self._name, self._weight = name, weight
        rows, columns = weight.shape
        # the smaller product is summed up: of the outputs that are missing and X, or of Y - X and X
        self._outputs = rows <= columns
        self._sum = torch.zeros(min(rows, columns), columns)

    def add(self, expected: torch.Tensor, inputs: torch.Tensor) -> None:
        """Adds the reference's inputs and the quantised model's, [..., columns] each."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        missing = expected.reshape(rows.shape) - rows
        if self._outputs:
            missing = missing @ self._weight.t()
        self._sum.addmm_(missing.t(), rows)

    def moments(self, first: int, last: int) -> torch.Tensor:
        """The share of rows first to last that is made up for, [last - first, columns].

        Raises:
            NonFiniteError: the inputs or the weights held NaN or infinity, or their products overflow float32.
        """
        rows = self._sum[first:last] if self._outputs else self._weight[first:last] @ self._sum
        rows = rows * _SHARE
        if not rows.isfinite().all():
            raise _not_finite(self._name)
        return rows


def _factorise(strips: list[torch.Tensor]) -> bool:
    """The Cholesky factor R of a matrix R^T R, in place of its upper triangle; whether it is positive definite."""
    for number, strip in enumerate(strips):
        size = len(strip)
        factor, info = torch.linalg.cholesky_ex(strip[:, :size], upper=True)
        if info.item():
            return False
        strip[:, :size] = factor
        strip[:, size:] = torch.linalg.solve_triangular(factor.mT, strip[:, size:], upper=False)
        for later in strips[number + 1 :]:
            part = strip[:, -later.shape[1] :]
            later.addmm_(part[:, : len(later)].t(), part, alpha=-1)
    return True


def _diagonal(strips: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([strip.diagonal() for strip in strips])


def _not_finite(name: str) -> NonFiniteError:
    return NonFiniteError(
        f"inputs of {name}: their products do not fit float32 on the calibration text, expected finite numbers",
        hint="The checkpoint is damaged or its activations diverge: --quantizer search runs nothing.",
    )
