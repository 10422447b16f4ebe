"""Norm gains against the checkpoint's: small weights that are never quantised, so that nothing explains a difference.

A gain that is off by a few percent moves logits less than 4-bit weights do: no drift budget sees it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemma_runtime.manifest import Manifest
from gemma_validation.artifact import load_graph, residual_shift
from gemma_validation.errors import MismatchError
from gemma_validation.findings import NOT_FINITE, Check
from gemma_validation.stored.initializers import POST_NORMS, Initializers, has_post_norms

if TYPE_CHECKING:
    from gemma_export.weights import Weight

__all__ = ["Gain", "GainsFound", "compare_gains", "gains_check"]

_NAME = "norm gains"
# of a norm's initializer: 1 + w, or w itself where the semantic operators are kept
_GAIN, _WEIGHT = ".gain", "norm.weight"
# a norm -> the projection whose channels' factors calibration folds into it; without and with norms behind branches.
# Without them Gemma 1 and VaultGemma call the norm before the MLP by different names.
_READERS = {
    False: {
        "input_layernorm": "self_attn.q_proj",
        "post_attention_layernorm": "mlp.gate_proj",
        "pre_feedforward_layernorm": "mlp.gate_proj",
    },
    True: {"input_layernorm": "self_attn.q_proj", "pre_feedforward_layernorm": "mlp.gate_proj"},
}
# wrong gains in a message
_NAMED = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain:
    """One norm's gain, held against the checkpoint's."""

    norm: str
    file: str
    # largest distance of an element, relative to the checkpoint's gain; 0 where all are equal as they are stored
    error: float

    def __str__(self) -> str:
        return f"{self.norm} in {self.file} is off by {self.error:.2g} of its gain"

    @property
    def tensor(self) -> str:
        """Of the checkpoint."""
        return f"{self.norm}.weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GainsFound:
    """What the comparison found."""

    compared: tuple[Gain, ...]
    # norms whose gains calibration has changed
    left_out: int
    # branches of layers end in norms
    post_norms: bool = False

    @property
    def wrong(self) -> tuple[Gain, ...]:
        """All that are not the checkpoint's, worst first."""
        return tuple(sorted((gain for gain in self.compared if gain.error), key=lambda gain: -gain.error))


def compare_gains(directory: Path, manifest: Manifest, weights: Callable[[str], Weight]) -> GainsFound:
    """Holds every norm's gain of every graph against 1 + w of the checkpoint, rounded to the type it is stored in.

    Args:
        directory: an exported folder.
        manifest: of it.
        weights: name -> lazy float32 weight of the checkpoint that it was made from, adapter merged if it has one.

    Raises:
        MismatchError: a norm is none of the checkpoint's, or of another size.
        FolderUnreadableError: a graph or data file cannot be read.
        GemmaExportError: a weight cannot be read.
    """
    compared: dict[tuple[str, int, str], Gain] = {}
    left_out: set[str] = set()
    post_norms = False
    for graph in manifest.graphs:
        file = directory / graph.file
        model = load_graph(file)
        stored, post_norms = Initializers(model, file.parent), has_post_norms(model)
        names = [tensor.name for tensor in model.graph.initializer if tensor.name.endswith((_GAIN, _WEIGHT))]
        for name in names:
            norm = name.rpartition(".")[0]
            if _is_folded(norm, manifest, post_norms=post_norms):
                left_out.add(norm)
                continue
            # graphs that share a data file share its gains
            location, first = stored.place(name)
            where = (location, first, "" if location != f"inline {name}" else graph.file)
            if where not in compared:
                # a stream that is stored times 2^-k changes what writes to it
                writes = post_norms and norm.endswith(POST_NORMS)
                expected = _expected(name, stored, weights, shift=residual_shift(manifest) if writes else 0)
                error = _error(stored.whole(name), expected)
                compared[where] = Gain(norm=norm, file=Path(graph.file).name, error=error)
    return GainsFound(compared=tuple(compared.values()), left_out=len(left_out), post_norms=post_norms)


def _is_folded(norm: str, manifest: Manifest, *, post_norms: bool) -> bool:
    """Whether calibration multiplied the gain: a strength of nothing leaves a projection's channels alone."""
    layer, _, name = norm.rpartition(".")
    reader = _READERS[post_norms].get(name)
    for key in ("smoothing", "activation_aware"):
        found = manifest.precision.options.get(key)
        if found is not None and reader is not None:
            strengths = found.get("strengths", {}).get(f"{layer}.{reader}.weight")
            if strengths is None or any(strengths):
                return True
    return False


def _expected(
    name: str, stored: Initializers, weights: Callable[[str], Weight], *, shift: int
) -> npt.NDArray[np.float32]:
    """What a norm's initializer should hold before it is rounded to its type."""
    norm, shape = name.rpartition(".")[0], stored.shape(name)
    try:
        weight = weights(f"{norm}.weight")
    except KeyError as error:
        raise MismatchError(
            f"the folder stores {name}, the checkpoint has no {norm}.weight",
            hint="Give the checkpoint that this folder was exported from.",
        ) from error
    if tuple(weight.shape) != shape:
        raise MismatchError(
            f"the folder stores {name} as {list(shape)}, the checkpoint has {list(weight.shape)}",
            hint="Give the checkpoint that this folder was exported from.",
        )
    w: npt.NDArray[np.float32] = weight.tensor().float().numpy()
    # the semantic operator adds one, and multiplies by 2^-k, itself
    return (np.float32(1) + w) * np.float32(2.0**-shift) if name.endswith(_GAIN) else w


def _error(found: npt.NDArray[Any], exact: npt.NDArray[np.float32]) -> float:
    # as it is stored: rounded once
    expected = exact.astype(found.dtype).astype(np.float32)
    same = found.astype(np.float32)
    if not np.isfinite(same).all():
        return NOT_FINITE
    apart = np.abs(same - expected)
    if not apart.any():
        return 0.0
    # an average gain for those near zero
    size = np.maximum(np.abs(expected), np.abs(expected).mean())
    return float((apart / np.maximum(size, np.finfo(np.float32).tiny)).max())


def gains_check(found: GainsFound) -> Check:
    """What was found, as a check of the folder; skipped where calibration has changed all of them."""
    left_out, wrong, count = found.left_out, found.wrong, len(found.compared)
    why = f"; {left_out} left out: calibration folds channel scales into the norms of layers" if left_out else ""
    if not count:
        return Check(group="structure", name=_NAME, outcome="skipped", message=f"no gain to compare{why}")
    more = f"; {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    message = (
        f"{len(wrong)} of {count} gains are not the checkpoint's: {'; '.join(map(str, wrong[:_NAMED]))}{more}{why}"
        if wrong
        else f"all {count} gains are the checkpoint's{why}"
    )
    return Check(
        group="structure",
        name=_NAME,
        outcome="failed" if wrong else "passed",
        message=message,
        measured=max(gain.error for gain in found.compared),
        bound=0.0,
    )
