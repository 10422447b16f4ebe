"""Whole exports with gptq: nearer to PyTorch than rounding, the same bytes again, nothing left when it fails."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from decoders import Graph, builtin_reference, reference_logits
from safetensors.torch import load_file, save_file

from gemma_export.artifact import verify_folder
from gemma_export.calibration import quantise as calibration
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.layerwise import LayerwiseRun, LoadedLayer, Observer
from gemma_export.pipeline import ExportRequest, export
from gemma_export.planning import plan_export
from gemma_export.precision import WeightOptions
from gemma_export.precision.block_codes import BlockCodes, dequantise
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.code_store import CodeStore
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
    assert 0 < _mean_kl(found) < tolerances.GPTQ_AWARE_SHARE_OF_RTN * plain
    assert read_manifest(found).precision.options["activation_aware"]["tokens"] > 500


@pytest.mark.parametrize(
    ("tied", "bits", "place"),
    [(True, None, "first"), (True, 8, "last"), (False, None, "last")],
    ids=["tied", "tied in 8 bits", "untied"],
)
def test_the_heads_place_among_the_matrices(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, tied: bool, bits: int | None, place: str
) -> None:
    """A tied table comes before the layers, which then see its rows; a head that they do not see, behind them."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(BUILTIN_DIRECTORY, checkpoint)
    if not tied:
        tensors = load_file(checkpoint / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        (checkpoint / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}), encoding="utf-8")
    kept: list[tuple[str, BlockCodes]] = []
    seen: list[torch.Tensor] = []

    def keep(store: CodeStore, name: str, codes: BlockCodes) -> None:
        kept.append((name, codes))
        append(store, name, codes)

    def through(run: LayerwiseRun, observer: Observer | None = None) -> Generator[LoadedLayer, None, None]:
        for layer in layers(run, observer):
            if layer.index == 0:
                seen.append(run.hidden[0][0].clone())
            yield layer

    append, layers = CodeStore.append, LayerwiseRun.layers
    monkeypatch.setattr(CodeStore, "append", keep)
    monkeypatch.setattr(LayerwiseRun, "layers", through)
    weights = WeightOptions(scheme="int4", quantiser="gptq", embedding_bits=bits)
    request = ExportRequest(checkpoint=checkpoint, weights=weights, calibration=text, output=tmp_path / "out")
    export(request)
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    names = [name for name, _ in kept]
    assert names.count(head) == 1
    assert names[0 if place == "first" else -1] == head
    assert all("layers." in name for name in names if name != head)
    # what runs begin with: of the last two, one is quantised and one the reference
    quantised, reference = seen[-2:]
    assert not torch.equal(quantised, reference)
    if place == "last":
        assert len(seen) == 2
        return
    assert len(seen) == 3
    assert torch.equal(seen[0], reference)
    plan = plan_export(request)
    assert plan.precision.scheme is not None
    assert plan.calibration is not None
    codes = kept[0][1]
    layout = plan.precision.scheme.format_of(head, (len(codes.data), plan.spec.hidden_size))
    assert isinstance(layout, BlockFormat)
    rows = dequantise(codes, layout)[torch.tensor(plan.calibration.token_ids[0])]
    torch.testing.assert_close(quantised, rows * plan.spec.hidden_size**0.5)


@pytest.mark.parametrize("last", [1, 2, 9], ids=["at the table", "in a layer", "in the next"])
def test_nothing_is_left_of_a_calibration_that_is_interrupted(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    calls = []
    quantise = calibration.gptq

    def interrupted(*arguments: Any) -> BlockCodes:
        calls.append(arguments)
        if len(calls) == last:
            raise KeyboardInterrupt
        return quantise(*arguments)

    monkeypatch.setattr(calibration, "gptq", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _export(tmp_path / "out", "gptq", text)
    assert len(calls) == last
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["text.txt"]


def test_matrices_that_are_quantised_in_pieces(
    tmp_path: Path, text: Path, plain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece's rows make up for what they lack, not for what the first ones do."""
    # of 48 or 97 rows; the last one of a matrix has fewer
    monkeypatch.setattr(calibration, "_PIECE", 25000)
    assert 0 < _mean_kl(_export(tmp_path / "pieces", "gptq", text)) < tolerances.GPTQ_SHARE_OF_RTN * plain
