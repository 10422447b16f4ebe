"""The checkpoint that exporters are measured on."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from tolerances import SAMPLE_DEVIATION

from benchmarks.synthetic_checkpoint import SHAPES, checkpoint_bytes, write_checkpoint
from gemma_export.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_checkpoint(directory, SHAPES["tiny"])
    return directory


def arrays(directory: Path) -> dict[str, np.ndarray]:
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            found.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118  no mapping
    return found


def test_every_tensor_is_there_once_in_shards(tiny: Path) -> None:
    assert len(list(tiny.glob("*.safetensors"))) == 2
    found = arrays(tiny)
    assert {name: array.shape for name, array in found.items()} == SHAPES["tiny"].tensors
    assert all(array.dtype == ml_dtypes.bfloat16 for array in found.values())
    assert sum(array.nbytes for array in found.values()) == checkpoint_bytes(SHAPES["tiny"])


def test_our_own_reader_takes_it(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    assert checkpoint.has_tokenizer


def test_numbers_are_normal_and_of_the_usual_size(tiny: Path) -> None:
    matrix = arrays(tiny)["model.layers.0.mlp.gate_proj.weight"].astype(np.float64)
    deviation = matrix.shape[1] ** -0.5
    assert matrix.std() == pytest.approx(deviation, rel=SAMPLE_DEVIATION)
    assert abs(matrix.mean()) < deviation * SAMPLE_DEVIATION
    # a normal distribution has 4.55 % beyond two deviations, a uniform one none
    assert (np.abs(matrix) > 2 * deviation).mean() == pytest.approx(0.0455, rel=0.1)
    assert 3.8 < np.abs(matrix).max() / deviation < 4.4


def test_the_same_arguments_give_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "again", SHAPES["tiny"])
    write_checkpoint(tmp_path / "other", SHAPES["tiny"], seed=1)
    for file in tiny.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    shard = "model-00001-of-00002.safetensors"
    assert (tmp_path / "other" / shard).read_bytes() != (tiny / shard).read_bytes()


def test_two_tensors_differ(tiny: Path) -> None:
    found = arrays(tiny)
    first, second = (found[f"model.layers.{layer}.mlp.up_proj.weight"].astype(np.float32) for layer in (0, 1))
    assert not np.array_equal(first, second)


def test_the_2b_shape_has_the_models_size() -> None:
    """https://huggingface.co/google/gemma-2b: 2,506,172,416 parameters."""
    assert checkpoint_bytes(SHAPES["2b"]) == 2 * 2_506_172_416
