"""Every defect does what it says, where it says, and nowhere else: only then does catching it mean something."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from observed import Stepper, observe, residual_stream, token_ids

from gemma_export.artifact import verify_folder
from gemma_export.errors import FolderError
from gemma_runtime import Gemma, read_manifest
from gemma_runtime.errors import ModelOutputError
from gemma_runtime.opening import open_session, session_options
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift
from gemma_validation.errors import ValidationUsageError
from gemma_validation.mutations import BASES, DEFECTS, Defect
from gemma_validation.mutations.mutant import Mutant

Inject = Callable[[Defect], Path]
Make = Callable[[str], object]

# Mean KL against the sound folder, nats: about half of what is measured. float32 itself measures 2e-12 between two
# targets, so even the least of these is no rounding.
_LEAST_KL = {
    "epsilon wrong": 1e-9,
    "erf gelu": 2e-9,
    "embedding scale rounded": 4e-6,
    "one block zeroed": 1e-4,
    "one block's scale doubled": 1.5e-4,
    "scale by another head size": 4e-3,
    "scale by head_dim": 1.4e-3,
}
_LEAST_KL_OF_OTHERS = 0.015
# gives NaN everywhere
_NOT_FINITE = {"NaN in one row", "float16 overflow"}
# |difference| / standard deviation of the logits, between graphs of one folder: float32 sums in another order
_SAME = 1e-4

every_defect = pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)


def defect_named(name: str) -> Defect:
    (found,) = (defect for defect in DEFECTS if defect.name == name)
    return found


@pytest.fixture(scope="module")
def ids(sound: Make) -> list[int]:
    return token_ids(sound("fp32").folder)


@pytest.fixture(scope="module")
def sound_logits(sound: Make, ids: list[int]) -> Callable[[str, str], np.ndarray]:
    """Of a kind of folder, in a way in which defects show."""
    known: dict[tuple[str, str], np.ndarray] = {}

    def look(needs: str, shows: str) -> np.ndarray:
        if (needs, shows) not in known:
            known[needs, shows] = observe(sound(needs).folder, shows, ids)
        return known[needs, shows]

    return look


def test_the_list() -> None:
    names = [defect.name for defect in DEFECTS]
    assert len(set(names)) == len(names) >= 20
    assert {defect.needs for defect in DEFECTS} == set(BASES)
    # naming one and the same layer always must not be enough
    assert len({defect.layer for defect in DEFECTS if defect.layer is not None}) >= 3
    assert [defect.name for defect in DEFECTS if not defect.rehash] == ["one bit flipped"]


@every_defect
def test_the_folder_stays_in_order(defect: Defect, defective: Inject, sound: Make) -> None:
    """Hashes, sizes, interfaces, references into one data file; every graph loads; the sound folder is as it was."""
    before = _digests(sound(defect.needs).folder)
    folder = defective(defect)
    manifest = read_manifest(folder)
    if defect.rehash:
        verify_folder(folder)
    else:
        with pytest.raises(FolderError, match="was altered"):
            verify_folder(folder)
    assert len([entry for entry in manifest.files if entry.kind == "data"]) == 1
    for graph in manifest.graphs:
        open_session(onnxruntime, folder / graph.file, "cpu", session_options(onnxruntime, 1, None))
    assert _digests(sound(defect.needs).folder) == before


@every_defect
def test_it_shows_where_it_says(
    defect: Defect, defective: Inject, ids: list[int], sound_logits: Callable[[str, str], np.ndarray]
) -> None:
    folder = defective(defect)
    found = observe(folder, defect.shows, token_ids(folder) if defect.shows == "tokens" else ids)
    if defect.name in _NOT_FINITE:
        assert not np.isfinite(found).any()
        return
    if defect.shows != "bytes":
        drift = measure_drift(sound_logits(defect.needs, defect.shows), found)
        assert drift.mean_kl >= _LEAST_KL.get(defect.name, _LEAST_KL_OF_OTHERS)
    if defect.shows in ("padding", "decode", "main", "tokens"):
        # a comparison of one document at once cannot find it
        assert observe(folder, "text", ids).tobytes() == sound_logits(defect.needs, "text").tobytes()


@every_defect
def test_every_graph_has_it(defect: Defect, defective: Inject, ids: list[int]) -> None:
    """One document at once: each graph's last position is that of the graph with all of them."""
    folder = defective(defect)
    row = np.array([ids], np.int64)
    expected = Stepper(folder, "all").step(row, np.ones_like(row))[0][0, -1]
    for graph in read_manifest(folder).graphs:
        if graph.role in ("all", "static"):
            continue
        found = Stepper(folder, graph.role).step(row, np.ones_like(row))[0][0, -1]
        if defect.name in _NOT_FINITE:
            assert not np.isfinite(found).any()
            continue
        differs = float(np.abs(found - expected).max() / expected.std())
        assert (differs > 0.1) if (graph.role, defect.shows) == ("main", "main") else (differs < _SAME)


@pytest.mark.parametrize(
    "defect", [defect for defect in DEFECTS if defect.layer is not None], ids=lambda defect: defect.name
)
def test_the_stream_leaves_the_rails_in_its_layer(
    defect: Defect, defective: Inject, sound: Make, ids: list[int]
) -> None:
    """Bit for bit the same up to the layer, and another behind it."""
    assert defect.layer == min(defect.culprits)
    expected, found = residual_stream(sound(defect.needs).folder, ids), residual_stream(defective(defect), ids)
    differing = [name for name in expected if expected[name].tobytes() != found[name].tobytes()]
    assert differing[0].startswith(f"layers.{defect.layer}.")


@every_defect
def test_gemma_run_answers(defect: Defect, defective: Inject) -> None:
    """Nothing but a comparison says that something is wrong; NaN is an error of its own."""
    gemma = Gemma(defective(defect), speculation="off", threads=1)
    if defect.name in _NOT_FINITE:
        with pytest.raises(ModelOutputError):
            gemma.generate("def read_lines(path):", max_new_tokens=2)
    else:
        assert gemma.generate("def read_lines(path):", max_new_tokens=2).token_ids


def test_one_bit_and_no_more(defective: Inject, sound: Make) -> None:
    data = "onnx/model.onnx_data"
    found = np.fromfile(defective(defect_named("one bit flipped")) / data, np.uint8)
    changed = np.bitwise_xor(found, np.fromfile(sound("fp32").folder / data, np.uint8))
    assert int(np.bitwise_count(changed).sum()) == 1


@pytest.mark.parametrize("name", ["one block's scale doubled", "one block zeroed"])
def test_one_block_and_no_more(name: str, defective: Inject, sound: Make, tmp_path: Path) -> None:
    """Codes, scales and zero points as weights: rows of blocks of 128."""
    defect = defect_named(name)
    projection = f"model.layers.{defect.layer}.mlp.{'up' if 'scale' in name else 'down'}_proj.weight"
    one = _dequantised(Mutant(sound("q4").folder, tmp_path / "sound"), projection)
    two = _dequantised(Mutant(defective(defect), tmp_path / "copy"), projection)
    rows, blocks = np.nonzero((one != two).any(-1))
    assert len(rows) == 1
    expected = 2 * one[rows, blocks] if "scale" in name else np.zeros_like(one[rows, blocks])
    np.testing.assert_array_equal(two[rows, blocks], expected)


def test_layers_swapped_twice_are_in_place(defective: Inject, sound: Make, tmp_path: Path) -> None:
    defect = defect_named("two layers swapped")
    once = defective(defect)
    defect.inject(once, tmp_path / "twice")
    assert _digests(tmp_path / "twice") == _digests(sound("fp32").folder)


def test_the_other_tokenizer_is_one(defective: Inject, sound: Make) -> None:
    """As many pieces, the same controls, one answer in both of its files; other ids."""
    folder = defective(defect_named("wrong tokenizer"))
    one, two, three = (
        load_tokenizer(place, library)
        for place, library in ((sound("fp32").folder, None), (folder, "tokenizers"), (folder, "sentencepiece"))
    )
    text = "def add(a, b):\n    return a + b\n"
    assert len(one.encode(text)) == len(two.encode(text))
    assert one.encode(text)[1:] != two.encode(text)[1:] == three.encode(text)[1:]
    assert one.special_tokens() == two.special_tokens() == three.special_tokens()
    assert two.decode(two.encode_plain(text)) == text


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("embedding scale rounded", "fp32", "changes nothing"),
        ("causal mask dropped", "fp32", "no node compares positions"),
        ("float16 overflow", "fp32", "not rescaled"),
        ("one block zeroed", "fp32", "no initializer"),
        ("wrong pad side", "portable", "no node computes 'rows.first'"),
    ],
)
def test_a_folder_of_another_kind_is_refused(name: str, kind: str, message: str, sound: Make, tmp_path: Path) -> None:
    with pytest.raises(ValidationUsageError, match=message) as found:
        defect_named(name).inject(sound(kind).folder, tmp_path / "out")
    assert found.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_not_there_is_refused(sound: Make, tmp_path: Path) -> None:
    mutant = Mutant(sound("fp32").folder, tmp_path / "out")
    (tmp_path / "out/tokenizer.json").unlink()
    with pytest.raises(ValidationUsageError, match="has no tokenizer"):
        defect_named("wrong tokenizer").alter(mutant)


def test_nothing_is_overwritten(sound: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("kept")
    with pytest.raises(FileExistsError):
        DEFECTS[0].inject(sound("fp32").folder, tmp_path / "out")
    assert (tmp_path / "out/mine").read_text() == "kept"


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _dequantised(model: Mutant, name: str) -> np.ndarray:
    """[N, blocks, block size] from MatMulNBits' layout: two codes in a byte, the first in the low half."""
    data, scales, packed = (model.tensor(f"{name}.{part}") for part in ("data", "scales", "zero_points"))
    codes = np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:2], -1)
    zeros = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, : data.shape[1], None]
    return (codes.astype(np.float32) - zeros) * scales[..., None]
