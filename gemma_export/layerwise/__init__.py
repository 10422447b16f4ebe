"""Runs a torch reference one layer at a time from lazy weights: a model of any size in the memory of one layer.

    run = LayerwiseRun(reference_stack(family, spec), weights, batches)
    for layer in run.layers():              # weights of one layer in memory, float32
        layer.observe(look)                 # every batch through it, its taps shown, nothing kept (calibration)
        ...                                 # change layer.module's parameters: what follows sees the changed layer
        layer.advance(look)                 # every batch through it, the results kept for the next layer
    for batch, first, logits in run.head(): # logits, a block of the vocabulary at a time

Nobody has to call `advance`: leaving a layer does it. The stack says how layers are built, called and named, so
validation runs another implementation's layers (transformers') over the same weights.
"""

from __future__ import annotations

from gemma_export.layerwise.hidden_states import HiddenStates
from gemma_export.layerwise.run import LayerwiseRun, LoadedLayer, Observer, Tap, require_finite, row_blocks
from gemma_export.layerwise.stack import LayerStack, checkpoint_weights, reference_stack

__all__ = [
    "HiddenStates",
    "LayerStack",
    "LayerwiseRun",
    "LoadedLayer",
    "Observer",
    "Tap",
    "checkpoint_weights",
    "reference_stack",
    "require_finite",
    "row_blocks",
]
