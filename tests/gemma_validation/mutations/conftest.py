"""Sound folders of every kind that a defect goes into, exported once."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemma_validation.mutations import Defect, write_grown, write_odd_width


@dataclasses.dataclass(frozen=True)
class Sound:
    """A sound folder and the checkpoint it was made from."""

    folder: Path
    checkpoint: Path


@pytest.fixture(scope="session")
def sound(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_fp32: Path,
    windowed_checkpoint: Callable[[str], Path],
    windowed_folder: Callable[..., Path],
) -> Callable[[str], Sound]:
    """Makes the folder of a kind when it is first asked for."""
    from gemma_export.checkpoint import BUILTIN_DIRECTORY
    from gemma_export.precision import WeightOptions

    made = {"fp32": Sound(folder=tiny_fp32, checkpoint=BUILTIN_DIRECTORY)}
    root = tmp_path_factory.mktemp("sound")

    def make(kind: str) -> Sound:
        if kind not in made and kind in ("gemma2", "gemma3", "vaultgemma"):
            made[kind] = Sound(folder=windowed_folder(kind), checkpoint=windowed_checkpoint(kind))
        if kind not in made:
            checkpoint, request = BUILTIN_DIRECTORY, {}
            if kind == "q4":
                request = {"precision": "fp32", "weights": WeightOptions(scheme="int4")}
            elif kind == "portable":
                request = {"target": "portable"}
            elif kind == "fp32 odd":
                checkpoint = write_odd_width(root / "odd")
            elif kind == "fp16 grown":
                checkpoint, request = write_grown(root / "grown"), {"precision": "fp16"}
            made[kind] = Sound(folder=_export(checkpoint, root / kind, **request), checkpoint=checkpoint)
        return made[kind]

    return make


@pytest.fixture
def defective(sound: Callable[[str], Sound], tmp_path: Path) -> Iterator[Callable[[Defect], Path]]:
    """Injects a defect; the copy, 17 MB, goes when the test ends."""

    def inject(defect: Defect) -> Path:
        defect.inject(sound(defect.needs).folder, tmp_path / "defective")
        return tmp_path / "defective"

    yield inject
    shutil.rmtree(tmp_path / "defective", ignore_errors=True)


def _export(checkpoint: Path, output: Path, **request: Any) -> Path:
    from gemma_export.checkpoint import BUILTIN_DIRECTORY
    from gemma_export.pipeline import ExportRequest, export

    if checkpoint == BUILTIN_DIRECTORY:
        source: dict[str, Any] = {"variant": "tiny"}
    else:
        source = {"checkpoint": checkpoint}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(ExportRequest(output=output, **source, **request)).folder.directory
