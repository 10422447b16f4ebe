"""A checkpoint opened as a reference, and its lazy weights, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_export.checkpoint import Checkpoint
    from gemma_export.weights import Weight

__all__ = ["checkpoint_weights", "open_reference"]


def open_reference(directory: Path) -> Checkpoint:
    """A local checkpoint, also one whose matrices are stored in integers (GPTQ, AWQ): they are read as numbers.

    Raises:
        MissingResourceError: folder, config.json or weights are not there.
        ConfigError, CheckpointError: they are broken.
    """
    from gemma_export.checkpoint import QUANTISATION_KEY, open_checkpoint, read_quantisation

    checkpoint = open_checkpoint(directory)
    config = {key: value for key, value in checkpoint.config.items() if key != QUANTISATION_KEY}
    return dataclasses.replace(checkpoint, config=config, quantisation=read_quantisation(checkpoint.config))


def checkpoint_weights(checkpoint: Checkpoint) -> Callable[[str], Weight]:
    """Name -> lazy weight of a checkpoint whose tensors' names and shapes have been checked both ways.

    Raises:
        ConfigError, CheckpointError: the checkpoint is not what its configuration says.
    """
    from gemma_export.checkpoint import check_tensors
    from gemma_export.families import family_of
    from gemma_export.stored_codes import stored_weight

    family = family_of(checkpoint.config)
    spec, _ = family.parse_config(checkpoint.config)
    shapes = family.tensor_shapes(spec)
    source = checkpoint.view(shapes)
    check_tensors(source, shapes)
    return lambda name: stored_weight(source, name)
