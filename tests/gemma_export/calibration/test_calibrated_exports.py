"""Whole exports with gptq: nearer to PyTorch than rounding, the same bytes again, nothing left when it fails."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import tolerances
from decoders import Graph, builtin_reference, reference_logits

from gemma_export.artifact import verify_folder
from gemma_export.calibration import quantise as calibration
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_export.precision import WeightOptions
from gemma_runtime import read_manifest
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift

# written after the model was trained, and no part of the calibration text
_TEXT = Path(__file__).read_text(encoding="utf-8")


def _export(
    folder: Path,
    quantiser: str,
    calibration: Path,
    precision: str = "fp32",
    target: str = "ort",
    **options: object,
) -> Path:
    weights = WeightOptions(scheme="int4", quantiser=quantiser, **options)  # type: ignore[arg-type]
    text = calibration if quantiser == "gptq" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(
            ExportRequest(
                variant="tiny", precision=precision, weights=weights, calibration=text, target=target, output=folder
            )
        )
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A part of the built-in text: seconds instead of half a minute."""
    from gemma_export.calibration.text import read_calibration

    path = tmp_path / "text.txt"
    path.write_text(read_calibration(None).text[-7000:], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Mean KL of rounding, in the default layout."""
    return _mean_kl(_export(tmp_path_factory.mktemp("plain") / "out", "rtn", Path(), symmetric=False))


def _mean_kl(folder: Path) -> float:
    ids = np.array([load_tokenizer(BUILTIN_DIRECTORY).encode(_TEXT)[:512]])
    found, _ = Graph(folder / read_manifest(folder).graph("all").file).step(ids, np.ones_like(ids))
    return measure_drift(reference_logits(builtin_reference(), ids), found).mean_kl


def test_gptq_loses_less_than_rounding_and_gives_the_same_bytes_again(tmp_path: Path, text: Path, plain: float) -> None:
    first, again = (_export(tmp_path / name, "gptq", text) for name in ("first", "again"))
    assert verify_folder(first).extra_files == ()
    data = [(folder / "onnx/model_q4.onnx_data").read_bytes() for folder in (first, again)]
    assert data[0] == data[1]
    assert 0 < _mean_kl(first) < tolerances.GPTQ_SHARE_OF_RTN * plain
    options = read_manifest(first).precision.options
    assert options["quantizer"] == "gptq"
    assert options["calibration"]["source"] == "text.txt"
    assert len(options["calibration"]["sha256"]) == 64
    # nothing beside the folders
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "first", "text.txt"]


def test_the_scaled_stream_and_rules_of_single_tensors(tmp_path: Path, text: Path) -> None:
    """float16: what calibration quantises is what the graph holds, the residual scale included."""
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nmatch = "*.0.mlp.down_proj.weight"\nbits = 8\nblock_size = 32\n'
        '[[rule]]\nmatch = "*.1.mlp.up_proj.weight"\nquantizer = "rtn"\n'
        '[[rule]]\nmatch = "*.2.mlp.gate_proj.weight"\nbits = "float"\n'
    )
    folder = _export(tmp_path / "out", "gptq", text, "fp16", config=rules)
    assert verify_folder(folder).extra_files == ()
    assert 0 < _mean_kl(folder) < tolerances.INT4_MEAN_KL


def test_the_portable_targets_own_format(tmp_path: Path, text: Path) -> None:
    """Projections apart and transposed: the same codes by the same inputs, in DequantizeLinear."""
    found = _export(tmp_path / "portable", "gptq", text, target="portable")
    assert verify_folder(found).extra_files == ()
    assert (
        0
        < _mean_kl(found)
        < tolerances.GPTQ_SHARE_OF_RTN
        * _mean_kl(_export(tmp_path / "plain", "rtn", text, target="portable", symmetric=False))
    )


def test_on_channels_that_were_scaled_before(tmp_path: Path, text: Path, plain: float) -> None:
    """--activation-aware changes the weights and the inputs that gptq sees: both must be the graph's."""
    found = _export(tmp_path / "aware", "gptq", text, activation_aware=True)
    assert 0 < _mean_kl(found) < tolerances.GPTQ_SHARE_OF_RTN * plain
    assert read_manifest(found).precision.options["activation_aware"]["tokens"] > 500


def test_nothing_is_left_of_a_calibration_that_is_interrupted(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*arguments: object) -> None:
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "gptq", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _export(tmp_path / "out", "gptq", text)
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["text.txt"]
