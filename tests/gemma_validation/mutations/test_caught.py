"""Every known bug makes a validation fail, with the right layer named, and no sound folder does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_validation.errors import MismatchError
from gemma_validation.findings import Report
from gemma_validation.mutations import BASES, DEFECTS, Base, Defect
from gemma_validation.run import validate

Make = Callable[[str], object]

_POINT = re.compile(r"layers\.(\d+)\.")
# values that are not finite, or a file that is not what the manifest says: no budget decides
_BROKEN = {"NaN in one row", "float16 overflow", "one bit flipped"}


@pytest.mark.parametrize("kind", BASES)
def test_a_sound_folder_passes(kind: Base, sound: Make) -> None:
    """Otherwise what follows would mean nothing."""
    made = sound(kind)
    report = validate(made.folder, reference=made.checkpoint, suite="quick", localise=True)
    assert report.verdict == "passed", report.reasons
    assert report.localisation is not None
    assert report.localisation.culprit is None, report.localisation.message


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_it_is_caught(defect: Defect, defective: Callable[[Defect], Path], sound: Make) -> None:
    folder, checkpoint = defective(defect), sound(defect.needs).checkpoint
    if defect.where == "tokenizer":
        # nothing can be compared where texts become other tokens
        with pytest.raises(MismatchError):
            validate(folder, reference=checkpoint, suite="quick", localise=True)
        return
    report = validate(folder, reference=checkpoint, suite="quick", localise=True)
    # inconclusive would be no finding
    assert report.verdict in ({"broken"} if defect.name in _BROKEN else {"broken", "drift"}), report.reasons
    assert report.exit_code in (3, 6)
    assert report.reasons
    if defect.culprits:
        assert culprit(report) in defect.culprits


def culprit(report: Report) -> int | None:
    """The layer that the localiser names."""
    named = report.localisation and report.localisation.culprit
    found = _POINT.match(named or "")
    return int(found.group(1)) if found else None
