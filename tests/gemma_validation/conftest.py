"""Folders that several tests of the validation share; tiny_fp32 and tiny_fp16 are everybody's."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from torchlib import build_torchlib_once


@pytest.fixture(scope="session", autouse=True)
def _torchlib() -> None:
    """Most tests here export."""
    build_torchlib_once()


@pytest.fixture(scope="session")
def tiny_int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with int4 weights, whose kernels round activations block by block."""
    return _export(tmp_path_factory, variant="tiny", scheme="int4")


@pytest.fixture(scope="session")
def tiny_int8_dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with 8-bit weights and activations."""
    return _export(tmp_path_factory, variant="tiny", scheme="int8-dynamic")


@pytest.fixture(scope="session")
def tiny_qdq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with int4 weights in standard operators."""
    return _export(tmp_path_factory, variant="tiny", scheme="int4", target="portable")


@pytest.fixture(scope="session")
def tiny_portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in standard operators, whose cache keeps the mask's columns."""
    return _export(tmp_path_factory, variant="tiny", target="portable")


@pytest.fixture(scope="session")
def tiny_fp16_short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in float16 with a context of 16 tokens."""
    return _export(tmp_path_factory, variant="tiny", precision="fp16", context=16)


@pytest.fixture(scope="session")
def random_grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, grouped heads, no tokenizer, a hidden size without a whole square root, an odd rotary base."""
    config = {
        "model_type": "gemma",
        "vocab_size": 301,
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-5,
        "rope_theta": 777.7,
        "max_position_embeddings": 96,
    }
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    (checkpoint / "config.json").write_text(json.dumps(config))
    return _export(tmp_path_factory, checkpoint=checkpoint, synthetic_seed=1)


@pytest.fixture(scope="session")
def windowed_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints of WINDOWED_CONFIGS and of "vaultgemma" by name, with the built-in tokenizer."""
    from windowed_decoders import VAULT_CONFIG, WINDOWED_CONFIGS, windowed_reference, write_windowed_checkpoint

    from gemma_export.checkpoint import BUILTIN_DIRECTORY

    root = tmp_path_factory.mktemp("windowed")

    def make(name: str) -> Path:
        directory, config = root / name, {**WINDOWED_CONFIGS, "vaultgemma": VAULT_CONFIG}[name]
        if not directory.exists():
            write_windowed_checkpoint(windowed_reference(config), directory, config, BUILTIN_DIRECTORY)
        return directory

    return make


@pytest.fixture(scope="session")
def windowed_folder(
    windowed_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Exports of `windowed_checkpoint`, each once: by name and options of the export."""
    made: dict[str, Path] = {}

    def make(name: str, **options: object) -> Path:
        key = f"{name} {sorted(options.items())}"
        if key not in made:
            made[key] = _export(tmp_path_factory, checkpoint=windowed_checkpoint(name), **options)  # type: ignore[arg-type]
        return made[key]

    return make


def _export(tmp_path_factory: pytest.TempPathFactory, *, scheme: str | None = None, **options: object) -> Path:
    from gemma_export.pipeline import ExportRequest, export
    from gemma_export.precision import WeightOptions

    weights = {} if scheme is None else {"weights": WeightOptions(scheme=scheme)}
    output = tmp_path_factory.mktemp("export") / "folder"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(ExportRequest(output=output, **weights, **options)).folder.directory  # type: ignore[arg-type]
