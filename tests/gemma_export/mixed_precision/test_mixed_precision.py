"""`--max-kl`: the bound is kept, with fewer bytes than simpler orders, by a measurement that is onnxruntime's KL."""

from __future__ import annotations

import importlib.util
import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import tolerances
import torch
import transformers
from decoders import Graph, builtin_reference, reference_logits
from peft_adapters import make_adapter, merged_by_peft
from programs import assert_error, gemma_export

from gemma_export.artifact import verify_folder
from gemma_export.calibration.batches import measured_batches
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.cli.output import print_result
from gemma_export.errors import DriftError, UsageError
from gemma_export.mixed_precision import Choice, Matrix, matrices_of, with_scheme
from gemma_export.mixed_precision.candidates import with_rules
from gemma_export.mixed_precision.choose import choose_mixed_precision, reference_for
from gemma_export.mixed_precision.curve import search, steps
from gemma_export.mixed_precision.divergence import StreamedKL
from gemma_export.mixed_precision.reference import Reference
from gemma_export.pipeline import ExportRequest, ExportResult, export
from gemma_export.planning import ExportPlan, plan_export
from gemma_export.precision import WeightOptions
from gemma_export.tracing import model_weight
from gemma_runtime import read_manifest
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift

# between the built-in model's int4 (0.059 on the calibration text) and int8 (5e-4)
_MAX_KL = 0.02
_TEXT = Path(__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    output = tmp_path_factory.mktemp("mixed") / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = WeightOptions(scheme="int4")
        asked = ExportRequest(variant="tiny", precision=request.param, weights=options, max_kl=_MAX_KL, output=output)
        return export(asked)


@pytest.fixture(scope="module")
def plan() -> ExportPlan:
    return plan_export(ExportRequest(variant="tiny", weights=WeightOptions(scheme="int4"), max_kl=_MAX_KL))


@pytest.fixture(scope="module")
def reference(plan: ExportPlan) -> Reference:
    source = plan.checkpoint.source
    assert source is not None
    stored = plan.target.stored_tensors(plan.tensors, plan.spec)
    return reference_for(
        plan.family,
        plan.spec,
        lambda name: model_weight(source, None, name),
        stored,
        measured_batches(plan.checkpoint, plan.spec),
        factors={},
        rounds_activations=True,
    )


def drift_on(folder: Path, batches: list[np.ndarray], model: transformers.GemmaForCausalLM | None = None) -> float:
    graph = Graph(folder / read_manifest(folder).graph("all").file)
    model = model or builtin_reference()
    pairs = [(ids.size, ids, graph.step(ids, np.ones_like(ids))[0]) for ids in batches]
    kls = [count * measure_drift(reference_logits(model, ids), found).mean_kl for count, ids, found in pairs]
    return sum(kls) / sum(count for count, _, _ in pairs)


def test_the_bound_is_kept_and_the_measurement_is_onnxruntimes(exported: ExportResult) -> None:
    mixed, folder = exported.mixed, exported.folder.directory
    assert mixed is not None
    assert 0 < mixed.taken < len(mixed.curve) - 1
    assert mixed.kl <= _MAX_KL
    texts = [batch.numpy() for batch in measured_batches(exported.plan.checkpoint, exported.plan.spec)]
    assert drift_on(folder, texts) == pytest.approx(mixed.kl, rel=tolerances.MEASURED_KL)
    held_out = np.array([load_tokenizer(BUILTIN_DIRECTORY).encode(_TEXT)[:512]])
    assert drift_on(folder, [held_out]) <= tolerances.HELD_OUT_FACTOR * _MAX_KL


def test_the_folder_says_what_was_chosen(exported: ExportResult) -> None:
    mixed, folder = exported.mixed, exported.folder.directory
    assert mixed is not None
    assert verify_folder(folder).extra_files == ()
    manifest = read_manifest(folder)
    kinds = {entry.path: entry.kind for entry in manifest.files}
    assert kinds["mixed_precision.json"] == kinds["mixed_precision.png"] == "document"
    sizes = {entry.path: entry.size for entry in manifest.files}
    assert sizes[exported.plan.facts.data_files[0]] == mixed.nbytes == exported.plan.data.size
    written = json.loads((folder / "mixed_precision.json").read_text())
    assert written == mixed.to_dict()
    tensors = manifest.precision.options["mixed_precision"]["tensors"]
    changed = {rule["match"]: rule for rule in manifest.precision.options["rules"]}
    assert len(tensors) == 21
    for name, tensor in tensors.items():
        expected = {"bits": 4, "block_size": 128, **changed.get(name, {})}
        assert (tensor["bits"], tensor["block_size"]) == (expected["bits"], expected["block_size"])
    assert (folder / "mixed_precision.png").read_bytes().startswith(b"\x89PNG")


def test_fewer_bytes_than_simpler_orders(exported: ExportResult, plan: ExportPlan, reference: Reference) -> None:
    """At the chosen bytes, 8 bits from the first layer on, and in random order, lose more."""
    mixed = exported.mixed
    if exported.plan.precision.activation_dtype != "float32":
        pytest.skip("measured once, with float32 activations")
    assert mixed is not None
    stored = plan.target.stored_tensors(plan.tensors, plan.spec)
    matrices = matrices_of(plan.precision, stored)
    budget = mixed.nbytes - mixed.curve[0].nbytes
    orders = [list(matrices), [m for m in matrices if "layers" in m.name]]
    shuffled = list(matrices)
    random.Random(0).shuffle(shuffled)
    for order in (*orders, shuffled):
        left, rules = budget, []
        for matrix in order:
            extra = matrix.choices[-1].nbytes - matrix.choices[0].nbytes
            if extra <= left:
                left -= extra
                rules.append(matrix.choices[-1].rule)
        assert plan.precision.scheme is not None
        assert rules
        assert reference.mean_kl(with_scheme(plan.precision, with_rules(plan.precision.scheme, rules))) > mixed.kl


def test_a_bound_that_int4_keeps_leaves_it_alone(plan: ExportPlan, reference: Reference, tmp_path: Path) -> None:
    stored = plan.target.stored_tensors(plan.tensors, plan.spec)
    mixed = choose_mixed_precision(reference, plan.precision, stored, 0.1, directory=tmp_path)
    assert (mixed.taken, len(mixed.curve), mixed.scheme) == (0, 1, plan.precision.scheme)


def test_a_bound_that_nothing_keeps(plan: ExportPlan, reference: Reference, tmp_path: Path) -> None:
    stored = plan.target.stored_tensors(plan.tensors, plan.spec)
    with pytest.raises(DriftError, match=r"mean KL is 0\.000\d+ with the most bytes") as raised:
        choose_mixed_precision(reference, plan.precision, stored, 1e-6, directory=tmp_path)
    assert raised.value.exit_code == 6


def test_the_trade_off_is_printed(exported: ExportResult, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each measured point, the chosen one marked, before the line that names the folder."""
    print_result(exported, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    mixed = exported.mixed
    assert mixed is not None
    end = next(number for number, line in enumerate(lines) if line.startswith("wrote "))
    header, *rows = lines[:end]
    assert header.split() == ["MB", "mean", "KL", "tensors", "given", "more", "bytes"]
    (chosen,) = [row for row in rows if row.endswith(" <- chosen")]
    size, value, count = chosen.split()[:3]
    assert size == f"{mixed.nbytes / 1e6:.2f}"
    assert value == f"{mixed.kl:.3g}"
    assert int(count.rstrip(":")) == mixed.taken
    assert f": {mixed.curve[mixed.taken].matrix} " in chosen
    measured = [point for point in mixed.curve if point.measured is not None]
    assert len([row for row in rows if not row.split()[1].startswith("~")]) == len(measured)


def test_exit_code_and_nothing_written(tmp_path: Path) -> None:
    result = gemma_export("--variant", "tiny", "--int4", "--max-kl", "1e-6", cwd=tmp_path)
    assert_error(result, 6, "mean KL is", "1e-06")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_bounds_that_mean_nothing(bound: float) -> None:
    with pytest.raises(UsageError, match="--max-kl must be a finite number above 0"):
        plan_export(ExportRequest(variant="tiny", weights=WeightOptions(scheme="int4"), max_kl=bound))


@pytest.mark.parametrize("scheme", [None, "int8"])
def test_only_4_bits_have_bytes_to_spend(scheme: str | None) -> None:
    with pytest.raises(UsageError, match="--max-kl spends bytes on a 4-bit export"):
        plan_export(ExportRequest(variant="tiny", weights=WeightOptions(scheme=scheme), max_kl=0.1))


def test_a_calibration_file_is_what_kl_is_measured_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"def area_{n}(width, height):\n    return width * height * {n}\n\n" for n in range(400)))
    options = WeightOptions(scheme="int4")
    asked = ExportRequest(variant="tiny", weights=options, max_kl=_MAX_KL, calibration=path, output=tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = export(asked)
    calibration = exported.plan.calibration
    assert calibration is not None
    assert len(calibration.token_ids) == 16
    # spread over the text, in order, each sequence once
    assert calibration.token_ids[0] != calibration.token_ids[-1]
    assert len(set(calibration.token_ids)) == 16
    mixed = exported.mixed
    assert mixed is not None
    assert mixed.positions == calibration.tokens
    stated = read_manifest(tmp_path / "out").precision.options["calibration"]
    assert stated["source"] == "mine.txt"
    assert stated["tokens"] == calibration.tokens
    assert drift_on(tmp_path / "out", [np.array([ids]) for ids in calibration.token_ids]) == pytest.approx(
        mixed.kl, rel=tolerances.MEASURED_KL
    )


def test_with_an_adapter_the_merged_model_is_what_is_measured(tmp_path: Path) -> None:
    base = builtin_reference()
    adapter = make_adapter(base, tmp_path / "lora", {"target_modules": ["q_proj", "down_proj"], "r": 2})
    options = WeightOptions(scheme="int4", block_size=32)
    asked = ExportRequest(variant="tiny", weights=options, max_kl=50.0, adapter=str(adapter), output=tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = export(asked)
    assert exported.mixed is not None
    texts = [batch.numpy() for batch in measured_batches(exported.plan.checkpoint, exported.plan.spec)]
    merged = merged_by_peft(base, adapter)
    assert drift_on(tmp_path / "out", texts, merged) == pytest.approx(exported.mixed.kl, rel=tolerances.MEASURED_KL)
    assert drift_on(tmp_path / "out", texts) > 2 * exported.mixed.kl


def test_without_matplotlib_there_is_no_plot_and_a_line_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name))
    options = WeightOptions(scheme="int4", block_size=32)
    asked = ExportRequest(variant="tiny", weights=options, max_kl=0.2, output=tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = export(asked)
    assert any("pip install matplotlib" in note for note in exported.notes)
    assert "mixed_precision.png" not in {file.path for file in exported.plan.files}
    assert verify_folder(tmp_path / "out").extra_files == ()
    assert (tmp_path / "out/mixed_precision.json").exists()
    assert not (tmp_path / "out/mixed_precision.png").exists()


@pytest.mark.parametrize("by", ["option", "rule"])
def test_calibrated_quantisers_are_chosen_afterwards(by: str, tmp_path: Path) -> None:
    config = tmp_path / "rules.toml"
    config.write_text('[[rule]]\nmatch = "*.down_proj.weight"\nquantizer = "gptq"\n')
    options = (
        WeightOptions(scheme="int4", quantiser="gptq")
        if by == "option"
        else WeightOptions(scheme="int4", config=config)
    )
    with pytest.raises(UsageError, match="gptq quantises them in a row") as raised:
        plan_export(ExportRequest(variant="tiny", weights=options, max_kl=0.1))
    assert raised.value.exit_code == 2


def test_rules_by_hand_stay(tmp_path: Path) -> None:
    config = tmp_path / "rules.toml"
    config.write_text('scheme = "int4"\n[[rule]]\nmatch = "*.down_proj.weight"\nblock_size = 64\n')
    plan = plan_export(ExportRequest(variant="tiny", weights=WeightOptions(config=config), max_kl=0.1))
    matrices = matrices_of(plan.precision, plan.target.stored_tensors(plan.tensors, plan.spec))
    assert len(matrices) == 17
    assert not any("down_proj" in matrix.name for matrix in matrices)


def test_streamed_kl_is_the_whole_vocabularys() -> None:
    torch.manual_seed(0)
    plain, changed = torch.randn(7, 50) * 30, torch.randn(7, 50) * 30
    streamed = StreamedKL(7, 2)
    for columns in (slice(0, 20), slice(20, 21), slice(21, 50)):
        streamed.reference(plain[:, columns])
        streamed.model(0, changed[:, columns])
        streamed.model(1, plain[:, columns])
    p, q = plain.double().log_softmax(-1), changed.double().log_softmax(-1)
    assert streamed.means()[0] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-12)
    assert streamed.means()[1] < 1e-12


def test_steps_follow_the_convex_hull() -> None:
    ways = tuple(Choice(rule=None, bits=4, block_size=128, nbytes=n) for n in (10, 11, 14, 20))
    found = steps([Matrix(name="a", choices=ways)], {"a": (1.0, 0.95, 0.2, 0.0)})
    # the second way buys less a byte than the third: it is passed over
    assert [(step.extra_bytes, round(step.saves, 6)) for step in found] == [(4, 0.8), (6, 0.2)]


def test_search_finds_the_fewest_steps() -> None:
    true = [1.0 - 0.01 * i**1.2 / 2.5 for i in range(101)]
    measured = {0: true[0], 100: true[100]}
    sums = [1.0 - 0.009 * i for i in range(101)]
    found = search(sums, [1000 + 10 * i for i in range(101)], measured, 0.6, lambda i: true[i])
    assert measured[found] <= 0.6 < true[found - 1]


def test_other_formats_than_the_measured_one_are_refused() -> None:
    weights = WeightOptions(scheme="int4", format="qdq")
    with pytest.raises(UsageError, match="--max-kl measures the kernels of target ort"):
        plan_export(ExportRequest(variant="tiny", weights=weights, max_kl=0.02))
