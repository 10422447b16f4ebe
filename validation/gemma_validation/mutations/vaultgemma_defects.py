"""Defects of VaultGemma: its norm before the MLP is named as Gemma 2's, and no branch has a norm behind it."""

from __future__ import annotations

from gemma_validation.mutations.defect import Defect
from gemma_validation.mutations.mutant import Mutant

__all__ = ["VAULTGEMMA_DEFECTS"]

# each in a layer of its own, for the localiser
_SKIPPED, _GAIN = 1, 2
_NORM = "pre_feedforward_layernorm"


def _skip_norm(mutant: Mutant) -> None:
    mutant.skip(f"model.layers.{_SKIPPED}.{_NORM}.RMSNorm", f"layers.{_SKIPPED}.attn_residual")


def _gain_without_one(mutant: Mutant) -> None:
    mutant.write_without_one(f"model.layers.{_GAIN}.{_NORM}")


VAULTGEMMA_DEFECTS = (
    Defect(
        name="norm before the MLP skipped",
        about="a layer's MLP reads the stream as it is",
        where="graph",
        needs="vaultgemma",
        alter=_skip_norm,
        caught_by=frozenset({"structure", "gates"}),
        layer=_SKIPPED,
    ),
    Defect(
        name="gain before the MLP without +1",
        about="the norm before a layer's MLP multiplies by w, stored relative to one",
        where="data",
        needs="vaultgemma",
        alter=_gain_without_one,
        caught_by=frozenset({"stored", "gates"}),
        layer=_GAIN,
    ),
)
