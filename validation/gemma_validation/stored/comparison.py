"""Everything that a folder stores and a checkpoint has too."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_runtime.manifest import Manifest
from gemma_validation.findings import Check, Localisation
from gemma_validation.stored.blocks import BadBlock, ShiftedMatrix, blocks_check, compare_blocks
from gemma_validation.stored.gains import Gain, compare_gains, gains_check

if TYPE_CHECKING:
    from gemma_export.weights import Weight

__all__ = ["StoredWeights", "compare_stored", "point_of"]

# wrong weights in a message
_NAMED = 3
# a part of a layer -> the point of the stream that it writes to
_HALVES = {
    "self_attn": "attn_residual",
    "input_layernorm": "attn_residual",
    "mlp": "mlp_residual",
    "pre_feedforward_layernorm": "mlp_residual",
    "post_feedforward_layernorm": "mlp_residual",
}
# the norm behind attention, or, in Gemma 1, before the MLP
_MIDDLE = "post_attention_layernorm"
_MIDDLE_OF = {True: "attn_residual", False: "mlp_residual"}
_ELSEWHERE = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "logits"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """What a comparison found."""

    checks: tuple[Check, ...] = ()
    # matrices first, then blocks, then gains; worst first
    wrong: tuple[ShiftedMatrix | BadBlock | Gain, ...] = ()
    # branches of layers end in norms
    post_norms: bool = False

    def named(self, localisation: Localisation) -> Localisation:
        """The same, with what is stored wrongly: its half is the culprit if no other stands out.

        One block in thousands, or a gain that is off by a few percent, changes a layer's output less than 4 bits do.
        """
        if not self.wrong:
            return localisation
        told = "; ".join(map(str, self.wrong[:_NAMED]))
        more = f"; {len(self.wrong) - _NAMED} more" if len(self.wrong) > _NAMED else ""
        return dataclasses.replace(
            localisation,
            culprit=localisation.culprit or point_of(self.wrong[0].tensor, post_norms=self.post_norms),
            message=f"stored weights are not the checkpoint's: {told}{more}; {localisation.message}",
        )


def compare_stored(directory: Path, manifest: Manifest, weights: Callable[[str], Weight]) -> StoredWeights:
    """Holds what a folder stores in integers, and its norms' gains, against the checkpoint's weights.

    Args:
        directory: an exported folder.
        manifest: of it.
        weights: name -> lazy float32 weight of the checkpoint that it was made from, adapter merged if it has one.

    Raises:
        MismatchError: a stored weight is none of the checkpoint's, or of another shape.
        FolderUnreadableError: a graph or data file cannot be read.
        GemmaExportError: a weight cannot be read.
    """
    blocks, gains = compare_blocks(directory, manifest, weights), compare_gains(directory, manifest, weights)
    return StoredWeights(
        checks=(blocks_check(blocks), gains_check(gains)),
        wrong=(*blocks.wrong, *gains.wrong),
        post_norms=gains.post_norms,
    )


def point_of(tensor: str, *, post_norms: bool) -> str | None:
    """The residual point behind a tensor of the checkpoint: "model.layers.3.mlp.up_proj.weight" writes to
    "layers.3.mlp_residual"; None for one that this does not know.

    Args:
        tensor: its name.
        post_norms: branches of layers end in norms.
    """
    layer = re.fullmatch(r"model\.(layers\.\d+)\.(\w+)\..*", tensor)
    if layer is None:
        return _ELSEWHERE.get(tensor)
    half = _MIDDLE_OF[post_norms] if layer[2] == _MIDDLE else _HALVES.get(layer[2])
    return None if half is None else f"{layer[1]}.{half}"
