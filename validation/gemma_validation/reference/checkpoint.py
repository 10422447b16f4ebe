"""A checkpoint opened as a reference: configuration, tokenizer and lazy float32 weights, whatever they are stored as.

The weights of quantised checkpoints are multiplied out, adapters are merged, synthetic weights are generated: by the
exporter's own readers, tensor by tensor. A plain checkpoint is read by transformers itself where it is run whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_export.adapter import Merge, open_adapter, plan_merge
from gemma_export.base_checkpoint import released_config
from gemma_export.checkpoint import (
    QUANTISATION_KEY,
    Checkpoint,
    check_tensors,
    open_checkpoint,
    read_quantisation,
    synthetic_checkpoint,
)
from gemma_export.config import DecoderSpec
from gemma_export.errors import GemmaExportError
from gemma_export.families import Family, family_of
from gemma_export.tensors import TensorSource
from gemma_export.variants import VARIANTS
from gemma_runtime.manifest import Manifest
from gemma_validation.errors import ReferenceMissingError
from gemma_validation.reference.find import FoundReference

if TYPE_CHECKING:
    from gemma_export.weights import Weight

__all__ = ["ReferenceCheckpoint", "open_reference"]

_FLOAT32_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceCheckpoint:
    """What a reference is computed from."""

    # for reports
    name: str
    # None for weights that are generated for a released variant's shapes
    directory: Path | None
    # its config is as transformers should read it: of the merged model, and nothing of integers in it
    checkpoint: Checkpoint
    family: Family
    spec: DecoderSpec
    # the checkpoint's tensors by the architecture's names
    source: TensorSource
    # an adapter, held against them
    merge: Merge | None
    # the weights are those of `directory`, all of them, in floating point: transformers can load them itself
    plain: bool

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json, of the merged model."""
        return self.checkpoint.config

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor -> shape of the model; transformers' parameters have the same names."""
        return self.family.tensor_shapes(self.spec)

    @property
    def float32_bytes(self) -> int:
        """All weights in float32."""
        return _FLOAT32_BYTES * sum(math.prod(shape) for shape in self.shapes.values())

    def weight(self, name: str) -> Weight:
        """A tensor of the model as a lazy float32 weight, adapter merged, integers multiplied out."""
        from gemma_export.tracing.binding import model_weight

        return model_weight(self.source, self.merge, name)


def open_reference(found: FoundReference, manifest: Manifest | None = None) -> ReferenceCheckpoint:
    """Opens a checkpoint; headers are read and checked, weights are not.

    Args:
        found: of kind "checkpoint".
        manifest: of the export: how its weights are generated, where they are.

    Raises:
        ReferenceMissingError: checkpoint or adapter cannot be used; says why.
    """
    assert found.kind == "checkpoint"
    try:
        return _opened(found, manifest)
    except GemmaExportError as error:
        raise ReferenceMissingError(
            f"the reference {found.name} cannot be used: {error.message}", hint=error.hint
        ) from error


def _opened(found: FoundReference, manifest: Manifest | None) -> ReferenceCheckpoint:
    seed = None if manifest is None else manifest.source.seed
    checkpoint = _base(found, manifest, weights=seed is None)
    quantisation = None if seed is not None else read_quantisation(checkpoint.config)
    config = {key: value for key, value in checkpoint.config.items() if key != QUANTISATION_KEY}
    family = family_of(config)
    spec, _ = family.parse_config(config)
    shapes = family.tensor_shapes(spec)
    checkpoint = dataclasses.replace(checkpoint, config=config, quantisation=quantisation)
    if seed is not None:
        checkpoint = synthetic_checkpoint(checkpoint, shapes, seed=seed)
    source = checkpoint.view(shapes)
    check_tensors(source, shapes)
    merge = None
    if found.adapter is not None:
        merge = plan_merge(open_adapter(found.adapter), shapes, tied=spec.tie_word_embeddings)
        spec = dataclasses.replace(spec, tie_word_embeddings=merge.tied)
        checkpoint = dataclasses.replace(checkpoint, config={**config, "tie_word_embeddings": merge.tied})
    return ReferenceCheckpoint(
        name=found.name,
        directory=found.path,
        checkpoint=checkpoint,
        family=family,
        spec=spec,
        source=source,
        merge=merge,
        plain=seed is None and quantisation is None and merge is None and not checkpoint.text_part,
    )


def _base(found: FoundReference, manifest: Manifest | None, *, weights: bool) -> Checkpoint:
    if found.path is not None:
        return open_checkpoint(found.path, weights=weights)
    assert manifest is not None, "only a manifest says what to generate"
    if manifest.variant not in VARIANTS:
        raise ReferenceMissingError(
            f"the synthetic weights are of variant {manifest.variant!r}, which this release does not know",
            hint="Validate with the release that exported the folder.",
        )
    return Checkpoint(config=released_config(VARIANTS[manifest.variant]), source=None)
