"""What a defect is."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gemma_validation.mutations.mutant import Mutant

__all__ = ["BASES", "Base", "Defect", "Group", "Place", "Shows"]

Place = Literal["graph", "data", "tokenizer"]
# Kinds of folders that defects go into:
#   fp32, q4, portable   the built-in model: float32 and int4 of target ort, float32 of target portable
#   fp32 odd             float32 of a checkpoint whose hidden size is no square (checkpoints.write_odd_width)
#   fp16 grown           float16 of one whose residual stream leaves float16 (checkpoints.write_grown)
#   gemma2, gemma3       float32 of small random models with every part of these families: windows shorter than the
#                        texts, weights that bend soft-capping; gemma3 with seven layers, the sixth without a window
#   vaultgemma           the same of VaultGemma, with three layers, the second with a window
Base = Literal["fp32", "q4", "portable", "fp32 odd", "fp16 grown", "gemma2", "gemma3", "vaultgemma"]
BASES: tuple[Base, ...] = ("fp32", "q4", "portable", "fp32 odd", "fp16 grown", "gemma2", "gemma3", "vaultgemma")
# Where a defect can be seen at all:
#   text      one document at once, on the graph with logits of every position
#   padding   only rows with padding
#   decode    only steps that have a cache behind them
#   main      only the main graph: its twin with all positions is right
#   bytes     only the files: no number that is computed need change
#   tokens    only the ids that text becomes
Shows = Literal["text", "padding", "decode", "main", "bytes", "tokens"]
# What a validation looks with, each by itself:
#   files       sizes and hashes
#   structure   graphs, configuration, tokenizer
#   stored      blocks and gains against the checkpoint's
#   finite      whether logits are numbers
#   invariance  the artifact against itself, and caches exchanged
#   gates       bounds on the drift from the reference
#   tokens      texts of both tokenizers: nothing is compared where they differ
Group = Literal["files", "structure", "stored", "finite", "invariance", "gates", "tokens"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defect:
    """One bug that an exporter could have, put into a copy of a sound folder."""

    # lower case, unique
    name: str
    # what was wrongly done, one line
    about: str
    # the part of the folder that is altered
    where: Place
    needs: Base
    alter: Callable[[Mutant], None]
    # every group that must find it by itself, so that none of them stops working behind another; more may
    caught_by: frozenset[Group]
    # the layer that has to be named as the culprit; None: the defect is in no single layer
    layer: int | None = None
    # other layers that have the defect too: naming one of them is right as well
    also: tuple[int, ...] = ()
    shows: Shows = "text"
    # whether the manifest is made to agree with the altered files
    rehash: bool = True

    def inject(self, folder: Path, out: Path) -> None:
        """Writes the defective copy, every graph of the folder alike.

        Args:
            folder: a sound folder of the kind `needs`; it stays as it is.
            out: a directory that does not exist yet.

        Raises:
            ValidationUsageError: the folder is of another kind; nothing is left at `out`.
            FileExistsError: `out` is there already.
        """
        mutant = Mutant(folder, out)
        try:
            self.alter(mutant)
            mutant.save(rehash=self.rehash)
        except BaseException:
            shutil.rmtree(out)
            raise

    @property
    def culprits(self) -> frozenset[int]:
        """Every layer that may be named; empty where there is none."""
        return frozenset() if self.layer is None else frozenset((self.layer, *self.also))
