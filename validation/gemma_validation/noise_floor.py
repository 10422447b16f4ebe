"""The reference's own bfloat16 run against it: what rounding alone costs, beside the drift of the export."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemma_export.errors import NonFiniteError
from gemma_validation.documents import Document
from gemma_validation.findings import Check, Drift
from gemma_validation.metrics import DriftMeter, NotFinite
from gemma_validation.reference import ReferenceSource

__all__ = ["NoiseFloor"]


class NoiseFloor:
    """Measures it while the export is measured. It is no part of the export: where it fails, it is left out and told.

    Args:
        source: the reference.
        documents: what is run.
        tau: margin above which a changed token is a decisive flip, logits.
    """

    def __init__(self, source: ReferenceSource, documents: Sequence[Document], *, tau: float) -> None:
        self._documents = documents
        self._meter = DriftMeter(tau=tau)
        # why there is none although there should be
        self._missing: str | None = None
        self._noise = source.noise()
        if self._noise is not None:
            try:
                self._noise.prepare(documents)
            except NonFiniteError as error:
                self._drop(error.message)
            except BaseException:
                self.close()
                raise

    def add(self, document: int, first: int, reference: npt.NDArray[np.float32]) -> None:
        """Compares consecutive positions.

        Args:
            document: its index.
            first: the position of the first row.
            reference: float32, finite, [n, vocab_size].
        """
        if self._noise is None:
            return
        rows = self._noise.logits(document, first, first + len(reference))
        try:
            self._meter.add(self._documents[document], first, reference, rows)
        except NotFinite as error:
            self._drop(f"logits at position {error.position} of {error.document} are not finite")

    def drifts(self) -> tuple[Drift, ...]:
        """Over everything first, then each slice; none where there is no floor."""
        return () if self._noise is None else self._meter.drifts()

    def checks(self) -> tuple[Check, ...]:
        """The note on a floor that is missing."""
        if self._missing is None:
            return ()
        return (Check(group="structure", name="noise floor", outcome="skipped", message=self._missing),)

    def close(self) -> None:
        """Lets go of the run."""
        if self._noise is not None:
            self._noise.close()

    def _drop(self, why: str) -> None:
        self.close()
        self._noise = None
        self._missing = f"the reference's own bfloat16 run is left out: {why}"
