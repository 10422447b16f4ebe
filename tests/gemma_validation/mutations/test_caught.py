"""Every known bug fails a validation, by each check that is to see it, its layer named; no sound folder does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import example_reports
import pytest

from gemma_validation.errors import MismatchError
from gemma_validation.findings import Check, Outcome, Report
from gemma_validation.mutations import BASES, DEFECTS, Base, Defect, Group
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
        assert defect.caught_by == {"tokens"}
        with pytest.raises(MismatchError):
            validate(folder, reference=checkpoint, suite="quick", localise=True)
        return
    report = validate(folder, reference=checkpoint, suite="quick", localise=True)
    # inconclusive would be no finding
    assert report.verdict in ({"broken"} if defect.name in _BROKEN else {"broken", "drift"}), report.reasons
    assert report.exit_code in (3, 6)
    assert report.reasons
    assert defect.caught_by <= groups(report), "a check that found it before finds it no more"
    if defect.culprits:
        assert culprit(report) in defect.culprits


@pytest.mark.parametrize(
    ("outcomes", "gate", "found"),
    [
        ({"hashes": "failed", "epsilon": "passed"}, "passed", {"files"}),
        ({"epsilon": "failed", "norm gains": "skipped"}, "inconclusive", {"structure"}),
        ({"norm gains": "failed", "stored blocks": "failed", "finite logits": "failed"}, None, {"stored", "finite"}),
        ({"chunks of 7": "failed", "epsilon": "inconclusive"}, "failed", {"invariance", "gates"}),
    ],
)
def test_groups_of_a_report(outcomes: dict[str, Outcome], gate: Outcome | None, found: set[str]) -> None:
    checks = tuple(
        Check(group="invariance" if name == "chunks of 7" else "structure", name=name, outcome=outcome, message="x")
        for name, outcome in outcomes.items()
    )
    example = example_reports.passed()
    gates = () if gate is None else (dataclasses.replace(example.gates[0], outcome=gate),)
    assert groups(dataclasses.replace(example, checks=checks, gates=gates)) == found


def groups(report: Report) -> set[Group]:
    """Which kinds of looking found something."""
    found: set[Group] = {_group(check) for check in report.checks if check.outcome == "failed"}
    return found | ({"gates"} if any(gate.outcome == "failed" for gate in report.gates) else set())


def _group(check: Check) -> Group:
    named: dict[str, Group] = {
        "files": "files",
        "hashes": "files",
        "finite logits": "finite",
        "stored blocks": "stored",
        "norm gains": "stored",
    }
    return named.get(check.name, check.group)


def culprit(report: Report) -> int | None:
    """The layer that the localiser names."""
    named = report.localisation and report.localisation.culprit
    found = _POINT.match(named or "")
    return int(found.group(1)) if found else None
