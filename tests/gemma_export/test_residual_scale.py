"""--residual-scale: what each choice means, and the smallest shift for a peak."""

from __future__ import annotations

import json
import math
from pathlib import Path

import checkpoints
import pytest
from programs import assert_error, gemma_export

from gemma_export.errors import NonFiniteError, UsageError
from gemma_export.residual_scale import FLOAT16_MAX, MAX_SHIFT, choose_residual_scale, shift_for_peak
from gemma_runtime import read_manifest


def chosen(
    option: str,
    dtype: str = "float16",
    variant: str | None = None,
    kind: str = "local",
    merged: bool = False,
):
    scale = choose_residual_scale(option, activation_dtype=dtype, variant=variant, source_kind=kind, merged=merged)
    return scale.shift, scale.reason


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"option": "auto", "variant": "2b"}, (6, "variant 2b")),
        ({"option": "auto", "variant": "tiny", "kind": "builtin"}, (6, "variant tiny")),
        ({"option": "auto", "kind": "synthetic"}, (6, "synthetic weights")),
        ({"option": "auto"}, (None, "measured")),
        # an adapter makes another model of it
        ({"option": "auto", "variant": "2b", "merged": True}, (None, "measured")),
        ({"option": "auto", "variant": "tiny", "kind": "builtin", "merged": True}, (None, "measured")),
        ({"option": "auto", "kind": "synthetic", "merged": True}, (None, "measured")),
        ({"option": "6", "variant": "2b", "merged": True}, (6, "given")),
        ({"option": "off", "variant": "2b", "merged": True}, (0, "off")),
        ({"option": "auto", "dtype": "float32", "merged": True}, (0, "float32 activations")),
        ({"option": "measure", "variant": "2b"}, (None, "measured")),
        ({"option": "measure", "kind": "synthetic"}, (None, "measured")),
        ({"option": "off"}, (0, "off")),
        ({"option": "0"}, (0, "given")),
        ({"option": "16"}, (16, "given")),
        ({"option": "auto", "dtype": "float32"}, (0, "float32 activations")),
        ({"option": "off", "dtype": "bfloat16"}, (0, "bfloat16 activations")),
        ({"option": "0", "dtype": "float32"}, (0, "float32 activations")),
    ],
)
def test_choices(arguments: dict[str, object], expected: tuple[int | None, str]) -> None:
    assert chosen(**arguments) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("option", ["6", "measure"])
def test_other_types_need_none(option: str, dtype: str) -> None:
    with pytest.raises(UsageError, match=f"--residual-scale {option} is for float16 activations, .* {dtype}"):
        chosen(option, dtype)


@pytest.mark.parametrize("option", ["-1", "6.0", "many", "", "17", "²", " 6", "1e1", "99999999999999999999"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_numbers_out_of_range(option: str, dtype: str) -> None:
    with pytest.raises(UsageError, match=r"auto, measure, off or a number from 0 to 16, found") as caught:
        chosen(option, dtype)
    assert repr(option) in caught.value.message


@pytest.mark.parametrize(
    ("peak", "shift"),
    [
        (0.0, 0),
        (1.0, 0),
        (FLOAT16_MAX / 4, 0),
        (math.nextafter(FLOAT16_MAX / 4, math.inf), 1),
        (FLOAT16_MAX / 2, 1),
        (FLOAT16_MAX, 2),
        (1e6, 6),
        (FLOAT16_MAX * 16, 6),
        (math.nextafter(FLOAT16_MAX * 16, math.inf), 7),
        (1e9, 16),
    ],
)
def test_smallest_shift_with_two_bits_of_headroom(peak: float, shift: int) -> None:
    assert shift_for_peak(peak) == shift


def test_peaks_beyond_every_shift() -> None:
    with pytest.raises(NonFiniteError, match=f"peaks at 1e\\+12: .* at most 2\\^-{MAX_SHIFT}") as caught:
        shift_for_peak(1e12)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "code", "phrases"),
    [
        ("--variant tiny --fp16 --residual-scale -3", 2, ["--residual-scale", "'-3'", "0 to 16"]),
        ("--variant tiny --fp16 --residual-scale lots", 2, ["'lots'"]),
        ("--variant tiny --fp16 --residual-scale 40", 2, ["'40'"]),
        ("--variant tiny --fp32 --residual-scale 6", 2, ["float16 activations", "float32"]),
        ("--variant tiny --residual-scale measure", 2, ["float16 activations"]),
        ("--variant 2b --fp16 --residual-scale measure", 4, ["google/gemma-2b", "--checkpoint"]),
    ],
)
def test_command_line_refusals(arguments: str, code: int, phrases: list[str], tmp_path: Path) -> None:
    assert_error(gemma_export(*arguments.split(), cwd=tmp_path), code, *phrases)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_measured_and_told(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    plan = json.loads(gemma_export("--checkpoint", "model", "--fp16", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert plan["residual_scale"] == {"option": "auto", "shift": None, "reason": "measured"}
    result = gemma_export("--checkpoint", "model", "--fp16", "--output", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "measuring headroom: " in result.stderr
    assert "note: residual stream not scaled (measured: peaks at " in result.stderr
    result = gemma_export("--checkpoint", "model", "--fp16", "--output", "out", "--force", "--json", cwd=tmp_path)
    told = json.loads(result.stdout)["residual_scale"]
    assert told == read_manifest(tmp_path / "out").precision.options["residual_scale"]
    assert told["shift"] == 0
    assert set(told["measured"]["probes"]) == {"prose", "code", "scripts", "symbols", "long", "bos"}


def test_float32_says_nothing(tiny_fp32: Path, tiny_fp16: Path) -> None:
    assert read_manifest(tiny_fp32).precision.options == {}
    assert read_manifest(tiny_fp16).precision.options == {
        "residual_scale": {"option": "auto", "shift": 6, "reason": "variant tiny"}
    }
