"""transformers' own layers, one at a time over lazy weights: a reference of any size in the memory of one layer.

architecture   what is needed of an architecture, and which there are
gemma          Gemma 1 and CodeGemma
gemma2         Gemma 2 and ShieldGemma
gemma3         Gemma 3, the text decoders
vaultgemma     VaultGemma
pieces         attention that long documents do not make large
caches         keys and values of such a run
modules        what all of them have alike
reference      the reference itself

torch and transformers are imported when a reference is made, not before.
"""

from __future__ import annotations

from gemma_validation.layered.architecture import Architecture, architecture_of
from gemma_validation.layered.reference import LayeredReference

__all__ = ["Architecture", "LayeredReference", "architecture_of"]
