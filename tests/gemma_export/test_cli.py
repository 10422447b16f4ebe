"""gemma-export as a user types it: results, refusals, exit codes, interruptions."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from programs import assert_error, gemma_export, gemma_run, start

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_runtime import read_manifest

SNAPSHOTS = Path(__file__).parent / "snapshots"


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("command", ["", "variants", "verify"])
def test_help_is_a_snapshot(command: str) -> None:
    """To accept a change on purpose, write the new text into tests/gemma_export/snapshots."""
    found = gemma_export(*command.split(), "--help").stdout
    assert found == (SNAPSHOTS / f"help_{command or 'export'}.txt").read_text()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, gemma_export.cli; sys.exit(bool({'torch', 'onnx', 'onnx_ir', 'numpy', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_dry_run_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['gemma-export', '--variant', '7b', '--synthetic-weights', '--dry-run', '--json']\n"
        "from gemma_export.cli import cli; cli.main(standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'onnx', 'onnx_ir'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_variants_table() -> None:
    rows = json.loads(gemma_export("variants", "--json").stdout)["variants"]
    sizes = {row["variant"]: row["parameters"] for row in rows}
    # the published counts: 2,506,172,416 and 8,537,680,896 (https://huggingface.co/google/gemma-2b, gemma-7b)
    assert sizes["2b"] == sizes["codegemma-1.1-2b"] == 2_506_172_416
    assert sizes["7b"] == sizes["1.1-7b-it"] == 8_537_680_896
    # and those of google/gemma-2-2b, gemma-2-9b, gemma-3-270m and gemma-3-1b-pt
    assert sizes["gemma2-2b"] == sizes["shieldgemma-2b"] == 2_614_341_888
    assert (sizes["gemma2-9b-it"], sizes["gemma3-270m"]) == (9_241_705_984, 268_098_176)
    assert sizes["gemma3-1b"] == 999_885_952
    assert list(sizes)[:13] == [
        "tiny",
        "tiny2",
        "2b",
        "2b-it",
        "7b",
        "7b-it",
        "1.1-2b-it",
        "1.1-7b-it",
        "codegemma-2b",
        "codegemma-7b",
        "codegemma-7b-it",
        "codegemma-1.1-2b",
        "codegemma-1.1-7b-it",
    ]
    table = gemma_export("variants").stdout
    assert "8,538 M" in table
    assert "https://huggingface.co/google/codegemma-7b-it" in table


@pytest.mark.parametrize(
    ("arguments", "code", "phrases"),
    [
        ("--variant 7b-ti", 2, ["unknown variant '7b-ti'", "7b-it"]),
        ("--variant codegema-2b", 2, ["codegemma-2b"]),
        ("", 2, ["--variant", "--checkpoint"]),
        ("--variant tiny --fp32 --fp16", 2, ["--fp32 and --fp16"]),
        ("--variant tiny --target tensorrt", 2, ["tensorrt", "ort"]),
        ("--variant tiny --logits first", 2, ["--logits", "first"]),
        ("--variant tiny --logits 0", 2, ["--logits"]),
        ("--variant tiny --context 0", 2, ["--context"]),
        ("--variant tiny --context many", 2, ["--context"]),
        ("--variant tiny --synthetic-weights -3", 2, []),
        ("--variant tiny --synthetic-weights 1e9", 2, ["seed"]),
        ("--variant tiny --int3", 2, ["--int3"]),
        ("--variant tiny --int4 --symmetric --asymmetric", 2, ["--symmetric and --asymmetric exclude each other"]),
        ("--variant tiny --int4 --asymmetric --symmetric", 2, ["--symmetric and --asymmetric exclude each other"]),
        (
            "--variant tiny --int8-dynamic --no-smoothing --smoothing",
            2,
            ["--smoothing and --no-smoothing exclude each other", "Give one of them"],
        ),
        ("--variant tiny --int8-dynamic --context 1", 2, ["a context of 1 token", "--context 2", "--no-smoothing"]),
        ("--variant tiny --int4 --activation-aware --context 1", 2, ["a context of 1 token", "--activation-aware"]),
        ("--variant tiny --int4 --quantizer gptq --context 1", 2, ["a context of 1 token", "--quantizer gptq"]),
        ("--variant tiny --int4 --max-kl 0.1 --context 1", 2, ["a context of 1 token", "--max-kl"]),
        ("--variant tiny --kv-cache int8 --context 1", 2, ["a context of 1 token", "--kv-cache"]),
        ("--variant tiny --int4 --int8", 2, ["--int4 and --int8"]),
        ("--variant tiny --int8 --int8-dynamic", 2, ["--int8 and --int8-dynamic exclude each other"]),
        ("--variant tiny --int8-dynamic --fp16", 2, ["--int8-dynamic and --fp16 exclude each other", "--int8"]),
        ("--variant tiny --int8-dynamic --target portable", 2, ["target portable has no kernels for", "--target ort"]),
        ("--variant tiny --int8-dynamic --target directml", 2, ["target directml has no kernels for", "--target ort"]),
        ("--variant tiny --int8-dynamic --block-size 64", 2, ["--block-size is about weights in blocks", "--int8"]),
        ("--variant tiny --int8-dynamic --asymmetric", 2, ["--asymmetric is about weights in blocks", "--int8"]),
        ("--variant tiny --int8-dynamic --quantizer rtn", 2, ["--quantizer is about weights in blocks", "--int8"]),
        ("--variant tiny --int8-dynamic --format qdq", 2, ["--format is about weights in blocks", "--int8"]),
        ("--variant tiny --int8-dynamic --max-kl 0.01", 2, ["--max-kl", "--int8-dynamic is given", "Add --int4"]),
        ("--variant tiny --int8-dynamic --bf16", 2, ["--int8-dynamic and --bf16 exclude each other", "--int8"]),
        ("--variant tiny --int8-dynamic --residual-scale 6", 2, ["--residual-scale 6 is for float16", "float32"]),
        ("--variant tiny --no-smoothing", 2, ["--no-smoothing", "neither --int4 nor --int8"]),
        ("--variant tiny --activation-aware", 2, ["--activation-aware", "neither --int4 nor --int8"]),
        ("--variant tiny --int8-dynamic --activation-aware", 2, ["--activation-aware is about weights in blocks"]),
        ("--variant tiny --int4 --activation-aware --target directml", 2, ["target directml has no kernels for int4"]),
        ("--variant tiny --int8 --no-smoothing", 2, ["--no-smoothing is about 8-bit activations", "--int8-dynamic"]),
        ("--variant tiny --int4 --block-size 100", 2, ["block size 100", "32, 64, 128, 256"]),
        ("--variant tiny --int4 --quantizer best", 2, ["quantizer 'best'", "rtn, search, gptq"]),
        ("--variant tiny --int4 --quantizer gptq --calibration nowhere.txt", 4, ["nowhere.txt", "cannot be read"]),
        ("--variant tiny --int4 --quantizer rtn --calibration nowhere.txt", 2, ["--calibration", "--quantizer gptq"]),
        ("--variant tiny --calibration nowhere.txt", 2, ["--calibration", "nothing here runs the model"]),
        ("--variant tiny --kv-cache int4", 2, ["--kv-cache 'int4'", "expected one of: int8"]),
        ("--variant tiny --kv-cache int8 --target portable", 2, ["portable", "int8 caches", "--target ort"]),
        ("--variant tiny --kv-cache int8 --target directml", 2, ["directml", "int8 caches", "--target ort"]),
        (
            "--variant tiny --kv-cache int8 --target portable --keep-functions",
            2,
            ["portable with functions", "int8 caches"],
        ),
        ("--variant tiny --kv-cache int8 --bf16", 2, ["--kv-cache int8", "bfloat16", "float32 or float16"]),
        (
            "--variant tiny --kv-cache int8 --int4 --max-kl 0.1",
            2,
            ["--max-kl", "--kv-cache int8", "--precision-config"],
        ),
        ("--variant tiny --kv-cache int8 --calibration nowhere.txt", 4, ["nowhere.txt", "cannot be read"]),
        ("--kv-cache int8 variants", 2, ["--kv-cache"]),
        ("--variant tiny --int4 --embedding-bits 3", 2, ["embedding bits 3"]),
        ("--variant tiny --int4 --format onnx", 2, ["format 'onnx'", "nbits, qdq"]),
        ("--variant tiny --format qdq", 2, ["--format", "neither --int4 nor --int8"]),
        ("--variant tiny --int4 --target portable --format nbits", 2, ["portable", "as qdq, not as nbits"]),
        ("--variant tiny --int4 --target portable --keep-functions", 2, ["int4 weights among functions"]),
        ("--variant tiny --fp16 --block-size 64", 2, ["--block-size", "neither --int4 nor --int8"]),
        ("--variant tiny --asymmetric", 2, ["--asymmetric", "neither --int4 nor --int8"]),
        ("--variant tiny --int4 --precision-config nowhere.toml", 4, ["nowhere.toml", "cannot be read"]),
        ("--variant tiny variants", 2, ["--variant"]),
        ("--variant 7b", 4, ["google/gemma-7b", "offline", "hf download google/gemma-7b", "--checkpoint"]),
        ("--variant codegemma-2b --fp16", 4, ["google/codegemma-2b"]),
        ("--checkpoint nowhere", 4, ["nowhere", "does not exist"]),
        ("verify nowhere", 3, ["nowhere", "does not exist"]),
    ],
)
def test_refusals(arguments: str, code: int, phrases: list[str], tmp_path: Path) -> None:
    assert_error(gemma_export(*arguments.split(), cwd=tmp_path), code, *phrases)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "code", "phrases"),
    [
        ({"model_type": "llama"}, 3, ["unsupported architecture", "llama"]),
        ({"num_hidden_layers": 10**9}, 3, ["num_hidden_layers", "1000000000"]),
        ({"hidden_size": -32}, 3, ["hidden_size", "-32"]),
        ({"head_dim": "absent"}, 3, ["missing key 'head_dim'"]),
        ({"sliding_window": 4096}, 3, ["sliding_window", "mathematics"]),
        ({"hidden_size": 40}, 3, ["expected shape", "found"]),
        ({"num_hidden_layers": 3}, 3, ["missing", "model.layers.2."]),
        ({"num_hidden_layers": 1}, 3, ["unexpected", "model.layers.1."]),
        ({"tie_word_embeddings": False}, 3, ["missing", "lm_head.weight"]),
    ],
)
def test_checkpoints_that_contradict_their_config(
    changes: dict[str, object], code: int, phrases: list[str], tmp_path: Path
) -> None:
    checkpoints.write(tmp_path / "model", **changes)
    assert_error(gemma_export("--checkpoint", "model", cwd=tmp_path), code, *phrases)
    assert left_in(tmp_path) == ["model"]


@pytest.mark.parametrize(("target", "head_dim"), [("ort", 24), ("ort", 8), ("directml", 6), ("directml", 12)])
def test_head_sizes_that_the_attention_kernel_refuses(target: str, head_dim: int, tmp_path: Path) -> None:
    config = {**checkpoints.CONFIG, "head_dim": head_dim}
    checkpoints.write(tmp_path / "model", weights=checkpoints.tensors(config), head_dim=head_dim)
    found = gemma_export("--checkpoint", "model", "--target", target, cwd=tmp_path)
    assert_error(found, 3, f"target {target}", "head_dim", f"found {head_dim}", "--target portable")
    assert left_in(tmp_path) == ["model"]
    assert gemma_export("--checkpoint", "model", "--target", "portable", "--dry-run", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("option", ["--checkpoint", "--adapter"])
def test_an_empty_name_is_not_the_current_folder(option: str, tmp_path: Path) -> None:
    model = checkpoints.write(tmp_path / "model")
    assert_error(gemma_export("--variant", "tiny", option, "", cwd=model), 2, option, "is empty")


def test_broken_checkpoint_files(tmp_path: Path) -> None:
    model = checkpoints.write(tmp_path / "model")
    weights = (model / "model.safetensors").read_bytes()
    for content in (weights[:-1], weights[:20], b"", b"\xff" * 8 + weights[8:]):
        (model / "model.safetensors").write_bytes(content)
        assert_error(
            gemma_export("--checkpoint", "model", cwd=tmp_path), 3, "model.safetensors is truncated or corrupt"
        )
    (model / "model.safetensors").unlink()
    assert_error(gemma_export("--checkpoint", "model", cwd=tmp_path), 4, "no weights")
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert_error(gemma_export("--checkpoint", "model", cwd=tmp_path), 3, "pickle")
    (model / "config.json").write_text('{"model_type": "gemma",')
    assert_error(gemma_export("--checkpoint", "model", cwd=tmp_path), 3, "config.json is not JSON")
    (model / "config.json").unlink()
    assert_error(gemma_export("--checkpoint", "model", cwd=tmp_path), 4, "has no config.json")
    assert left_in(tmp_path) == ["model"]


def test_no_tokenizer(tmp_path: Path) -> None:
    model = checkpoints.write(tmp_path / "model")
    for name in checkpoints.TOKENIZER_FILES:
        (model / name).unlink()
    assert_error(gemma_export("--checkpoint", "model", cwd=tmp_path), 4, "no tokenizer")
    assert left_in(tmp_path) == ["model"]


def test_variant_and_checkpoint_must_agree(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    result = gemma_export("--variant", "2b", "--checkpoint", "model", cwd=tmp_path)
    assert_error(result, 3, "not variant 2b", "expected 2048")


@pytest.mark.parametrize(
    ("options", "value", "phrases"),
    [
        ("", np.nan, ["nan"]),
        ("--fp16", 70000, ["float16", "--fp32"]),
        ("--int4", np.nan, ["nan"]),
        ("--int4 --quantizer gptq", np.nan, ["nan"]),
        ("--int8", np.inf, ["inf"]),
        # smoothing runs the model and would find the number first
        ("--int8-dynamic --no-smoothing", -np.inf, ["-inf"]),
        ("--int8-dynamic", np.nan, ["nan"]),
    ],
)
def test_non_finite_weights_are_named(options: str, value: float, phrases: list[str], tmp_path: Path) -> None:
    weights = checkpoints.tensors(checkpoints.CONFIG)
    weights["model.layers.1.mlp.up_proj.weight"][7, 5] = value
    checkpoints.write(tmp_path / "model", weights=weights)
    result = gemma_export("--checkpoint", "model", *options.split(), cwd=tmp_path)
    assert_error(result, 3, "model.layers.1.mlp.up_proj.weight", "[7, 5]", *phrases)
    assert left_in(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "an empty file"), (b" \n", "nothing but white space"), (b"text \xff", "byte 0xff at 5"), (b"a\0", "a NUL")],
)
def test_calibration_files_that_are_no_text(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    options = "--variant tiny --int4 --quantizer gptq --calibration text.txt"
    assert_error(gemma_export(*options.split(), cwd=tmp_path), 3, "text.txt", "expected UTF-8 text", found)
    assert left_in(tmp_path) == ["text.txt"]


def test_export_of_a_checkpoint(tmp_path: Path) -> None:
    """Default name, unknown keys as one warning, JSON on stdout, plain progress lines, the next command."""
    checkpoints.write(tmp_path / "my-model", my_note="x", other=1)
    result = gemma_export("--checkpoint", "my-model", "--fp16", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("warning: ") == 1
    assert "my_note, other" in result.stderr
    assert "\x1b" not in result.stderr + result.stdout
    assert "\r" not in result.stderr
    assert result.stdout.splitlines()[-1] == 'next: gemma-run my-model-fp16 "Your prompt"'
    assert left_in(tmp_path) == ["my-model", "my-model-fp16"]
    manifest = read_manifest(tmp_path / "my-model-fp16")
    assert (manifest.source.kind, manifest.source.name, manifest.variant) == ("local", "my-model", None)
    assert manifest.providers == ("cpu", "cuda")
    assert str(tmp_path) not in (tmp_path / "my-model-fp16/gemma_export.json").read_text()

    assert_error(gemma_export("--checkpoint", "my-model", "--fp16", cwd=tmp_path), 7, "my-model-fp16 exists", "--force")
    again = gemma_export("--checkpoint", "my-model", "--fp16", "--force", "--json", cwd=tmp_path)
    content = json.loads(again.stdout)
    assert content["output"] == "my-model-fp16"
    twins = ("", "_all", "_last8", "_batched", "_static")
    assert content["graphs"] == [f"onnx/model_fp16{twin}.onnx" for twin in twins]
    assert gemma_export("verify", "my-model-fp16", cwd=tmp_path).returncode == 0


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    for name in ("one", "the second"):
        result = gemma_export("--checkpoint", "model", "--output", name, cwd=tmp_path)
        assert result.returncode == 0
    # the next command to type is one that a shell takes
    assert shlex.split(result.stdout.splitlines()[-1])[:3] == ["next:", "gemma-run", "the second"]
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "the second" / file).read_bytes(), file


@pytest.mark.parametrize(
    "options",
    [
        "--fp32",
        "--fp16 --context 100",
        "--fp32 --logits all",
        "--int4",
        "--int4 --fp16 --block-size 32 --symmetric",
        "--int8 --asymmetric",
    ],
)
def test_dry_run_says_what_is_written(options: str, tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    plan = json.loads(
        gemma_export("--checkpoint", "model", *options.split(), "--dry-run", "--json", cwd=tmp_path).stdout
    )
    assert left_in(tmp_path) == ["model"]
    assert gemma_export("--checkpoint", "model", *options.split(), "--output", "out", cwd=tmp_path).returncode == 0
    planned = {file["path"]: file for file in plan["files"]}
    written = {
        path.relative_to(tmp_path / "out").as_posix(): path.stat().st_size
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert planned.keys() == written.keys()
    for name, size in written.items():
        if planned[name]["exact"]:
            assert planned[name]["size"] == size, name
        else:
            assert size <= planned[name]["size"] <= 20 * size, name
    assert {file["path"] for file in plan["files"] if not file["exact"]} == {
        "gemma_export.json",
        *(name for name in written if name.endswith(".onnx")),
    }
    assert planned[next(name for name in written if name.endswith("_data"))]["exact"]


def test_a_precision_file_decides_and_is_recorded(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    rule = '[[rule]]\nmatch = "{}"\nbits = 8\nblock_size = 32\n'
    (tmp_path / "mixed.toml").write_text(rule.format("*.down_proj.weight"))
    options = ("--checkpoint", "model", "--int4", "--precision-config")
    assert gemma_export(*options, "mixed.toml", "--output", "out", cwd=tmp_path).returncode == 0
    assert gemma_export("verify", "out", cwd=tmp_path).returncode == 0
    precision = json.loads((tmp_path / "out" / "gemma_export.json").read_text())["precision"]
    assert (precision["name"], precision["weight_dtype"]) == ("int4", "int4")
    assert precision["options"] == {
        "scheme": "int4",
        "bits": 4,
        "block_size": 128,
        "symmetric": False,
        "quantizer": "search",
        "embedding_bits": 4,
        "format": "nbits",
        "rules": [{"match": "*.down_proj.weight", "bits": 8, "block_size": 32}],
    }
    (tmp_path / "none.toml").write_text(rule.format("*.q_proj.weight"))
    assert_error(gemma_export(*options, "none.toml", cwd=tmp_path), 2, "matches no matrix", "qkv_proj.weight")
    (tmp_path / "bad.toml").write_text("scheme = ")
    assert_error(gemma_export(*options, "bad.toml", cwd=tmp_path), 3, "bad.toml", "expected TOML")
    assert left_in(tmp_path) == ["bad.toml", "mixed.toml", "model", "none.toml", "out"]


def test_synthetic_weights_need_no_checkpoint_and_no_tokenizer(tmp_path: Path) -> None:
    config = {**checkpoints.CONFIG, "vocab_size": 64}
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape/config.json").write_text(json.dumps(config))
    for seed in ("3", "4"):
        arguments = ("--checkpoint", "shape", "--synthetic-weights", seed, "--output", f"out{seed}")
        assert gemma_export(*arguments, cwd=tmp_path).returncode == 0
    source = read_manifest(tmp_path / "out3").source
    assert (source.kind, source.seed, source.generator_version) == ("synthetic", 3, 1)
    data = [(tmp_path / f"out{seed}/onnx/model.onnx_data").read_bytes() for seed in (3, 4)]
    assert data[0] != data[1]
    assert_error(gemma_run("out3", "hello", cwd=tmp_path), 4, "no tokenizer")


def test_disk_too_small(tmp_path: Path) -> None:
    huge = {**checkpoints.CONFIG, "hidden_size": 1 << 16, "intermediate_size": 1 << 19, "num_hidden_layers": 900}
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape/config.json").write_text(json.dumps(huge))
    result = gemma_export("--checkpoint", "shape", "--synthetic-weights", cwd=tmp_path)
    assert_error(result, 5, "not enough disk space", "needed", "free")
    assert left_in(tmp_path) == ["shape"]


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_disk_full_while_writing(tmp_path: Path) -> None:
    """A file size limit stands for a disk that fills up after the preflight."""
    code = """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        sys.argv = ["gemma-export", "--variant", "tiny", "--output", "out"]
        from gemma_export.cli import main
        main()
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_error(result, 5, "model.onnx_data")
    assert left_in(tmp_path) == []


# about 0.3 GB in float32: the write takes long enough to be interrupted in
_SLOW = {
    **checkpoints.CONFIG,
    "vocab_size": 20000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
}


def start_slow_export(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """An export that is in the middle of writing its data file."""
    (directory / "shape").mkdir(exist_ok=True)
    (directory / "shape/config.json").write_text(json.dumps(_SLOW))
    process = start(
        "gemma_export", "--checkpoint", "shape", "--synthetic-weights", "--output", "out", *arguments, cwd=directory
    )
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size > 30_000_000 for path in directory.glob(".out.staging-*/onnx/*_data")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_interrupt_leaves_nothing_behind(number: str, tmp_path: Path) -> None:
    process = start_slow_export(tmp_path)
    process.send_signal(getattr(signal, number))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert left_in(tmp_path) == ["shape"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_kill_leaves_no_half_folder_and_the_next_run_reclaims(tmp_path: Path) -> None:
    process = start_slow_export(tmp_path)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out").exists()
    assert [name for name in left_in(tmp_path) if name.startswith(".out.staging-")]
    result = gemma_export("--checkpoint", "shape", "--synthetic-weights", "--output", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "interrupted export had left" in result.stderr
    assert left_in(tmp_path) == ["out", "shape"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_another_export_holds_the_output(tmp_path: Path) -> None:
    process = start_slow_export(tmp_path)
    # held in the middle of its write for as long as it takes
    process.send_signal(signal.SIGSTOP)
    try:
        assert_error(gemma_export("--variant", "tiny", "--output", "out", cwd=tmp_path), 7, "another export holds")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_progress_bar_on_a_terminal(tmp_path: Path) -> None:
    import pty

    checkpoints.write(tmp_path / "model")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gemma_export", "--checkpoint", "model", "--output", "out"],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 65536):
            shown += chunk
    except OSError:
        # Linux reports the closed end of a pseudo-terminal as an input/output error
        assert process.wait(timeout=60) == 0
    os.close(leader)
    assert process.wait(timeout=60) == 0
    assert "\u2501".encode() in shown
    assert b"writing out" in shown


def test_verify_finds_what_loading_does_not(tmp_path: Path, tiny_fp32: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(tiny_fp32, folder)
    assert json.loads(gemma_export("verify", folder, "--json").stdout)["ok"] is True
    data = folder / "onnx/model.onnx_data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert gemma_run(folder, "def f():", "--max-new-tokens", 2).returncode == 0
    assert_error(gemma_export("verify", folder), 3, "onnx/model.onnx_data", "SHA-256")
    assert_error(gemma_run(folder, "def f():", "--verify"), 3, "onnx/model.onnx_data")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = gemma_export("--checkpoint", "nowhere", "--debug", cwd=tmp_path)
    assert result.returncode == 4
    assert "Traceback" in result.stderr


def test_generation_config_is_checked(tmp_path: Path) -> None:
    model = checkpoints.write(tmp_path / "model")
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 99999]}')
    result = gemma_export("--checkpoint", "model", cwd=tmp_path)
    assert_error(result, 3, "generation_config.json: eos_token_id", "3071", "99999")
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 7], "do_sample": true}')
    assert gemma_export("--checkpoint", "model", cwd=tmp_path).returncode == 0
    written = json.loads((tmp_path / "model-fp32/generation_config.json").read_text())
    assert written == {"eos_token_id": [1, 7], "do_sample": True, "bos_token_id": 2, "pad_token_id": 0}


def test_notice_follows_the_weights_not_the_name(tmp_path: Path) -> None:
    """A checkpoint of the tiny model's shape is not the built-in model."""
    shutil.copytree(BUILTIN_DIRECTORY, tmp_path / "mine")
    options = {"builtin": (), "mine": ("--checkpoint", "mine"), "random": ("--synthetic-weights",)}
    notices = {}
    for name, more in options.items():
        assert gemma_export("--variant", "tiny", *more, "--output", name + "-out", cwd=tmp_path).returncode == 0
        notices[name] = (tmp_path / f"{name}-out/NOTICE").read_text()
    assert "ai.google.dev/gemma/terms" in notices["mine"]
    assert "Python Software Foundation" in notices["builtin"]
    assert "random numbers" in notices["random"]


@pytest.mark.skipif(sys.platform != "linux", reason="address space limits are Linux's")
def test_out_of_memory(tmp_path: Path) -> None:
    """Matrices of 512 MB, run in float32, do not fit the address space that is left after everything is imported."""
    (tmp_path / "wide").mkdir()
    config = {**checkpoints.CONFIG, "vocab_size": 3072, "hidden_size": 128, "intermediate_size": 1 << 20}
    (tmp_path / "wide/config.json").write_text(json.dumps(config))
    for name in checkpoints.TOKENIZER_FILES:
        shutil.copy(BUILTIN_DIRECTORY / name, tmp_path / "wide" / name)
    code = """
        import resource, sys
        from pathlib import Path
        from gemma_export.pipeline import ExportRequest, export
        export(ExportRequest(variant="tiny", output=Path("before")))
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, resource.RLIM_INFINITY))
        measured = "--fp16 --residual-scale measure"
        sys.argv = f"gemma-export --checkpoint wide --synthetic-weights {measured} --output out".split()
        from gemma_export.cli import main
        main()
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_error(result, 5, "out of memory", "--dry-run")
    assert left_in(tmp_path) == ["before", "wide"]


def test_what_a_checkpoint_says_of_its_maker_stays_there(tmp_path: Path) -> None:
    """Neither a path of the saving machine nor a null that no reader understands goes into the folder."""
    model = checkpoints.write(tmp_path / "model", _name_or_path="/home/alice/secret")
    (model / "generation_config.json").write_text('{"eos_token_id": null, "pad_token_id": null}')
    assert gemma_export("--checkpoint", "model", cwd=tmp_path).returncode == 0
    assert all(b"alice" not in path.read_bytes() for path in (tmp_path / "model-fp32").rglob("*") if path.is_file())
    written = json.loads((tmp_path / "model-fp32/generation_config.json").read_text())
    assert written == {"bos_token_id": 2, "eos_token_id": [1], "pad_token_id": 0}


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links and odd names are POSIX's")
def test_a_checkpoint_is_called_what_the_user_called_it(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "base")
    (tmp_path / "mine").symlink_to("base")
    os.rename(tmp_path / "base", os.fsencode(tmp_path) + b"/b\xffse")
    (tmp_path / "mine").unlink()
    os.symlink(b"b\xffse", os.fsencode(tmp_path) + b"/mine")
    assert gemma_export("--checkpoint", "mine", cwd=tmp_path).returncode == 0
    assert read_manifest(tmp_path / "mine-fp32").source.name == "mine"
    assert gemma_export("--checkpoint", b"b\xffse".decode("utf-8", "surrogateescape"), cwd=tmp_path).returncode == 0
    assert read_manifest(tmp_path / "b_se-fp32").source.name == "b_se"


def test_context_beyond_what_can_be_computed(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model", max_position_embeddings=1 << 24)
    assert_error(gemma_export("--checkpoint", "model", cwd=tmp_path), 3, "max_position_embeddings", "--context")
    assert gemma_export("--checkpoint", "model", "--context", "64", "--dry-run", cwd=tmp_path).returncode == 0


def test_debug_belongs_to_every_command(tmp_path: Path) -> None:
    assert gemma_export("variants", "--debug").returncode == 0
    assert "Traceback" in gemma_export("verify", "nowhere", "--debug", cwd=tmp_path).stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_or_closed_stdout_is_no_bug() -> None:
    command = [sys.executable, "-m", "gemma_export", "variants"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 5
    assert result.stderr.startswith("error: stdout: no space left on device\nhint: ")
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")
