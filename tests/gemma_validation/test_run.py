"""What a whole run keeps where a part of it fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from reference_exports import exported

from gemma_export.errors import ResourceExhaustedError
from gemma_validation.documents import Document
from gemma_validation.errors import FolderUnreadableError, MissingPackageError
from gemma_validation.layered import LayeredReference
from gemma_validation.run import validate


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ResourceExhaustedError("hidden states need 9 GB", hint="x"), "could not be run: hidden states need 9 GB"),
        (MissingPackageError("no torch", hint="x"), "could not be run: no torch"),
        (FolderUnreadableError("no such point", hint="x"), "no such point"),
    ],
    ids=["memory", "package", "graph"],
)
def test_what_was_measured_outlives_the_search_for_the_layer(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported(tmp_path, checkpoints.write(tmp_path / "base"))

    def fails(*_: Any) -> None:
        raise error

    # a model of this size runs whole until a layer is looked for
    monkeypatch.setattr(LayeredReference, "prepare", fails)
    report = validate(made.folder, localise=True)
    assert report.drift
    assert report.greedy
    assert all(check.outcome in ("passed", "skipped") for check in report.checks)
    assert report.localisation is not None
    assert (report.localisation.culprit, report.localisation.points) == (None, ())
    assert report.localisation.message.endswith(message)


def test_layers_are_read_once_for_texts_and_greedy_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once more in bfloat16, which writes nothing: a large model takes as long to read as to run."""
    made = exported(tmp_path, checkpoints.write(tmp_path / "base"))
    monkeypatch.setattr("gemma_validation.reference.select._WHOLE_BYTES", 0)
    readings: list[tuple[str, int]] = []
    prepare = LayeredReference.prepare

    def counted(reference: LayeredReference, documents: Sequence[Document]) -> None:
        readings.append((reference.about.dtype, len(documents)))
        prepare(reference, documents)

    monkeypatch.setattr(LayeredReference, "prepare", counted)
    report = validate(made.folder)
    assert report.verdict == "passed", report.reasons
    assert len(report.greedy) == 5
    texts = readings[1][1]
    assert readings == [("float32", texts + 5), ("bfloat16", texts)]
