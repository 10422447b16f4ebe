"""Values that are no number break a folder wherever they come up, and cost no more than the noise floor there."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graph_edits import edited, named
from local_references import layers_of
from reference_exports import opens

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.errors import NonFiniteError
from gemma_runtime.manifest import read_manifest
from gemma_validation.budgets import default_budget, judge
from gemma_validation.comparison import compare
from gemma_validation.documents import Document
from gemma_validation.invariances import check_invariances
from gemma_validation.layered import LayeredReference
from gemma_validation.metrics import TAU
from gemma_validation.reference import FoundReference, open_source
from gemma_validation.run import validate

_DOCUMENTS = (Document(slice="code", name="short", token_ids=(2, *range(300, 312))),)


def _single_steps_are_nan(model: onnx.ModelProto) -> None:
    """A step of one token gives NaN; prompts and chunks are as they were."""
    make = onnx.helper.make_node
    named(model, "logits").output[0] = "logits.sound"
    constants = {"second": np.array(1, np.int64), "one": np.array(1, np.int64), "nan": np.array(np.nan, np.float32)}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, f"single.{name}") for name, value in constants.items()
    )
    model.graph.node.extend(
        [
            make("Shape", ["input_ids"], ["single.shape"]),
            make("Gather", ["single.shape", "single.second"], ["single.length"]),
            make("Equal", ["single.length", "single.one"], ["single.step"]),
            make("Where", ["single.step", "single.nan", "logits.sound"], ["logits"]),
        ]
    )


def test_a_twin_s_decode_step(tiny_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # it would see the nodes that were put in: here the numbers alone are to tell
    monkeypatch.setattr("gemma_validation.run.check_structure", lambda *_, **__: ())
    folder = edited(tiny_fp32, tmp_path / "last8", _single_steps_are_nan, roles=("last8",))
    report = validate(folder, localise=False)
    assert (report.verdict, report.exit_code) == ("broken", 3)
    assert report.reasons == ("graph last8: logits: not finite",)
    (wrong,) = [check for check in report.checks if not check.finite]
    assert (wrong.group, wrong.name, wrong.outcome, wrong.measured) == ("invariance", "graph last8", "failed", None)
    # what could be compared is there, and is right
    assert report.drift[0].kl.max < 1e-9


def test_the_decode_step_of_what_is_compared(tiny_fp32: Path, tmp_path: Path) -> None:
    """No document ends with a single token, so that only greedy text, exchanged caches and invariances can tell."""
    folder = edited(tiny_fp32, tmp_path / "all", _single_steps_are_nan, roles=("all",))
    manifest, arguments = read_manifest(folder), {"opened": opens(folder), "suite": "quick"}
    found = FoundReference(kind="checkpoint", path=BUILTIN_DIRECTORY, name="tiny")
    with contextlib.closing(open_source(found, folder, manifest)) as source:
        compared = compare(folder, manifest, source, _DOCUMENTS, tau=TAU, **arguments)  # type: ignore[arg-type]
    checks = (*compared.checks, *check_invariances(folder, manifest, _DOCUMENTS, **arguments))
    _, verdict, reasons = judge(default_budget("fp32"), compared.drift, checks)
    assert verdict == "broken"
    assert reasons[0] == "finite logits: the test's logits at position 6 of greedy text are not finite"
    assert compared.greedy == ()
    assert compared.drift[0].kl.max < 1e-9
    wrong = {check.name for check in checks if not check.finite}
    assert {"token by token", "left padding", "cached positions", "state symbols", "graph last8"} <= wrong
    assert "reference cache into artifact" in wrong
    # its prompts are sound, and so is the reference behind its cache
    outcomes = {check.name: check.outcome for check in checks}
    assert outcomes["artifact cache into reference"] == "passed"
    assert outcomes["later tokens"] == "passed"


class _Noisy(LayeredReference):
    """A reference whose bfloat16 run overflows: on the way, or at the position given."""

    at: int | None = None

    def noise(self) -> LayeredReference | None:
        found = super().noise()
        assert found is not None
        if self.at is None:

            def refuse(*_: object) -> None:
                raise NonFiniteError("layers.1.output is not finite", hint="")

            found.prepare = refuse  # type: ignore[method-assign, assignment]
            return found
        compute = found.logits

        def logits(document: int, first: int, last: int) -> npt.NDArray[np.float32]:
            rows = compute(document, first, last).copy()
            rows[self.at, 5] = np.inf
            return rows

        found.logits = logits  # type: ignore[method-assign]
        return found


@pytest.mark.parametrize(
    ("at", "why"),
    [
        (3, "logits at position 3 of short are not finite"),
        (None, "layers.1.output is not finite"),
    ],
)
def test_a_noise_floor_that_overflows_is_left_out(at: int | None, why: str, tiny_fp32: Path) -> None:
    plain = layers_of(BUILTIN_DIRECTORY)
    source = _Noisy(plain._config, name="noisy", weights=plain._weights)
    source.at = at
    manifest = read_manifest(tiny_fp32)
    arguments = {"suite": "quick", "opened": opens(tiny_fp32), "tau": TAU}
    found = compare(tiny_fp32, manifest, source, _DOCUMENTS, **arguments)  # type: ignore[arg-type]
    assert found.noise_floor == ()
    assert found.drift[0].kl.max < 1e-9
    checks = {check.name: check for check in found.checks}
    assert checks["finite logits"].outcome == "passed"
    note = checks["noise floor"]
    assert (note.outcome, note.message) == ("skipped", f"the reference's own bfloat16 run is left out: {why}")
    # and it is there where it is a number
    sound = compare(tiny_fp32, manifest, layers_of(BUILTIN_DIRECTORY), _DOCUMENTS, **arguments)  # type: ignore[arg-type]
    assert [drift.slice for drift in sound.noise_floor] == ["all", "code"]
    assert "noise floor" not in {check.name for check in sound.checks}
    assert dataclasses.replace(sound, about=found.about, checks=found.checks, noise_floor=()) == found
