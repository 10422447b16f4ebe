"""Calibration files: what is text, what is refused, what is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemma_export.calibration.text import read_calibration
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.errors import InputError, MissingResourceError
from gemma_export.pipeline import ExportRequest
from gemma_export.planning import ExportPlan, plan_export
from gemma_export.precision import WeightOptions
from gemma_runtime.tokenizer import load_tokenizer


def _plan(calibration: Path | None = None, seed: int | None = None) -> ExportPlan:
    weights = WeightOptions(scheme="int4", quantiser="gptq")
    return plan_export(ExportRequest(variant="tiny", weights=weights, calibration=calibration, synthetic_seed=seed))


def test_the_built_in_text_is_long_enough_and_has_many_scripts() -> None:
    plan = _plan()
    assert plan.calibration is not None
    assert plan.calibration.tokens > 4096
    assert plan.calibration.warnings == ()
    assert plan.calibration.options["source"] == "built-in"
    assert all(sequence[0] == plan.spec.bos_token_id for sequence in plan.calibration.token_ids)
    text = read_calibration(None).text
    assert all(piece in text for piece in ("def ", "поезд".title(), "今天", "The "))


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"", "an empty file"),
        (b" \n\t", "nothing but white space"),
        (b"text \xff\xfe", "byte 0xff at 5"),
        (b"a\0b", "NUL character at 1"),
        (b"x" * ((16 << 20) + 1), "more than 16 MiB"),
        (b"a few words", "tokens, expected at least 64"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, phrase: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=phrase) as caught:
        _plan(path)
    assert caught.value.exit_code == 3
    assert "text.txt" in caught.value.message


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="cannot be read"):
        _plan(tmp_path)


def test_a_short_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("def add(a, b):\n    return a + b\n" * 40)
    plan = _plan(path)
    assert any("quantise better" in warning for warning in plan.warnings)


def test_line_ends_do_not_change_a_text(tmp_path: Path) -> None:
    unix, windows = tmp_path / "a.txt", tmp_path / "b.txt"
    unix.write_bytes(b"one\ntwo\n")
    windows.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_calibration(unix).sha256 == read_calibration(windows).sha256


def test_synthetic_weights_run_on_random_ids() -> None:
    plan = _plan(seed=0)
    assert plan.calibration is not None
    assert plan.calibration.options["source"] == "random token ids"
    assert plan.calibration.options["sha256"] is None


def test_a_long_text_is_sampled_over_its_whole_length(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"number_{n} = {n} + {n * 7}\n" for n in range(20_000)))
    calibration = _plan(path).calibration
    assert calibration is not None
    assert len(calibration.token_ids) == 128
    assert {len(sequence) for sequence in calibration.token_ids} == {256}
    # the last of them is from the text's last part
    tokenizer = load_tokenizer(BUILTIN_DIRECTORY)
    assert "number_19" in tokenizer.decode(list(calibration.token_ids[-1][1:]))
    assert "number_0 " in tokenizer.decode(list(calibration.token_ids[0][1:]))
