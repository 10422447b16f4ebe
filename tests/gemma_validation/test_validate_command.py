"""gemma-validate as a user runs it: verdicts, exit codes, what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import checkpoints
import onnx
import pytest
from folders import altered
from json_schemas import validated
from programs import assert_error, gemma_export, gemma_validate, start

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_runtime.manifest import read_manifest
from gemma_validation.mutations import DEFECTS

LOOSE = 'min_positions = 2\n[all]\nkl_mean = { bound = 9.0, reason = "anything goes" }\n'
STRICT = 'min_positions = 2\n[all]\nkl_mean = { bound = 1e-30, reason = "nothing goes" }\n'
DEMANDING = 'min_positions = 1000000\n[all]\nkl_mean = { bound = 9.0, reason = "more text than there is" }\n'


@pytest.fixture(scope="module")
def tiny_q4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("q4") / "q4"
    assert gemma_export("--variant", "tiny", "--int4", "--output", folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def golden(tiny_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("golden") / "tiny.golden"
    made = gemma_validate(tiny_fp32, "--make-golden", file)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines() == [
        f"wrote {file}: {file.stat().st_size:,} bytes",
        f"next: gemma-validate {tiny_fp32} --reference {file}",
    ]
    return file


def test_a_sound_folder(tiny_q4: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    result = gemma_validate(tiny_q4, "--report-dir", tmp_path / "reports", "--json", GITHUB_STEP_SUMMARY=str(summary))
    assert result.returncode == 0, result.stderr
    report = validated(result.stdout, "gemma_validation/report")
    assert (report["verdict"], report["subject"]["precision"]) == ("passed", "int4")
    assert report == json.loads((tmp_path / "reports/report.json").read_text(encoding="utf-8"))
    assert {path.name for path in (tmp_path / "reports").iterdir()} == {"report.json", "report.html", "junit.xml"}
    assert "passed" in summary.read_text(encoding="utf-8")
    assert report["drift"][0]["kl"]["mean"] > 10 * report["noise_floor"][0]["kl"]["mean"]
    assert [drift["slice"] for drift in report["drift"]] == ["all", "code", "prose", "scripts", "long", "chat"]
    assert len(report["greedy"]) == 5
    assert all(check["outcome"] in ("passed", "skipped") for check in report["checks"])
    kept = read_manifest(tiny_q4).validation
    assert kept is not None
    assert kept["verdict"] == "passed"
    assert gemma_export("verify", tiny_q4).returncode == 0


def test_drift_names_what_is_over_the_budget(tiny_q4: Path, tmp_path: Path) -> None:
    (tmp_path / "budget.toml").write_text(STRICT)
    before = (tiny_q4 / "gemma_export.json").read_bytes()
    result = gemma_validate(tiny_q4, "--budget", tmp_path / "budget.toml", "--no-record")
    assert result.returncode == 6, result.stderr
    assert "\ndrift: " in result.stdout
    assert "kl_mean of all positions" in result.stdout
    # where it comes from is looked for without being asked
    assert "\nwhere: " in result.stdout
    assert (tiny_q4 / "gemma_export.json").read_bytes() == before


def test_too_little_text_is_no_pass(tiny_q4: Path, tmp_path: Path) -> None:
    (tmp_path / "budget.toml").write_text(DEMANDING)
    result = gemma_validate(tiny_q4, "--budget", tmp_path / "budget.toml", "--no-record")
    assert result.returncode == 9
    assert "inconclusive" in result.stdout


def test_against_another_export(tiny_q4: Path, tiny_fp32: Path) -> None:
    """Without torch: a folder is compared by onnxruntime alone."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"sys.argv = ['gemma-validate', {str(tiny_q4)!r}, '--reference', {str(tiny_fp32)!r}, '--no-record', '--json']\n"
        "from gemma_validation.cli import main\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["reference"]["kind"], report["noise_floor"]) == ("folder", [])
    assert 0.01 < report["drift"][0]["kl"]["mean"] < 0.1


def test_a_reference_folder_that_was_altered(tiny_q4: Path, tiny_fp32: Path, tmp_path: Path) -> None:
    """One byte of its weights, and nothing is compared with it; neither is a golden pack made of it."""
    reference = Path(shutil.copytree(tiny_fp32, tmp_path / "reference"))
    data = reference / "onnx/model.onnx_data"
    content = bytearray(data.read_bytes())
    content[len(content) // 3] ^= 1
    data.write_bytes(content)
    before = (tiny_q4 / "gemma_export.json").read_bytes()
    result = gemma_validate(tiny_q4, "--reference", reference)
    assert_error_after_stages(result, 3, "the reference reference is not what its manifest says", "model.onnx_data")
    assert (tiny_q4 / "gemma_export.json").read_bytes() == before
    result = gemma_validate(tiny_q4, "--reference", reference, "--make-golden", tmp_path / "pack")
    assert_error_after_stages(result, 3, "model.onnx_data")
    assert not (tmp_path / "pack").exists()


def test_against_a_golden_pack(golden: Path, tiny_q4: Path) -> None:
    """The same without torch and without the checkpoint."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"sys.argv = ['gemma-validate', {str(tiny_q4)!r}, '--reference', {str(golden)!r}, '--no-record']\n"
        "from gemma_validation.cli import main\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "lower bound" in result.stdout
    for name in ("reference cache into artifact", "artifact cache into reference"):
        assert f"skipped: {name}: not run: a golden pack has no keys and values" in result.stdout


def test_making_a_golden_pack_for_a_program(tiny_q4: Path, tiny_fp32: Path, tmp_path: Path) -> None:
    result = gemma_validate(tiny_q4, "--reference", tiny_fp32, "--make-golden", tmp_path / "pack", "--json")
    assert result.returncode == 0, result.stderr
    made = validated(result.stdout, "gemma_validation/golden")
    assert (made["file"], made["bytes"]) == (str(tmp_path / "pack"), (tmp_path / "pack").stat().st_size)
    assert (made["reference"]["kind"], made["reference"]["name"]) == ("folder", "fp32")
    assert (made["positions"], made["top"]) == (512, 256)


@pytest.mark.parametrize("option", [("--provider", "cpu"), ("--no-record",), ("--record",), ("--localise",)])
def test_what_has_no_effect_on_a_golden_pack_is_refused(option: tuple[str, ...], tiny_fp32: Path) -> None:
    result = gemma_validate(tiny_fp32, "--make-golden", "pack", *option)
    assert_error(result, 2, f"--{option[0].removeprefix('--no-').removeprefix('--')} has no meaning there")


def test_no_golden_pack_of_what_is_no_number(tiny_fp32: Path, tmp_path: Path) -> None:
    (defect,) = (defect for defect in DEFECTS if defect.name == "NaN in one row")
    defect.inject(tiny_fp32, tmp_path / "nan")
    result = gemma_validate(tiny_fp32, "--reference", tmp_path / "nan", "--make-golden", tmp_path / "pack")
    assert_error_after_stages(result, 3, "no golden pack is made: the reference's logits at position", "not finite")
    assert not (tmp_path / "pack").exists()


def test_a_golden_pack_of_another_checkpoint(golden: Path, tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    assert gemma_export("--checkpoint", tmp_path / "model", "--output", tmp_path / "folder").returncode == 0
    assert_error_after_stages(gemma_validate(tmp_path / "folder", "--reference", golden), 3, str(golden))


def test_a_golden_pack_that_was_altered(golden: Path, tiny_fp32: Path, tmp_path: Path) -> None:
    content = bytearray(golden.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "altered.golden").write_bytes(content)
    result = gemma_validate(tiny_fp32, "--reference", tmp_path / "altered.golden")
    assert_error_after_stages(result, 3, "altered.golden")


def test_a_checkpoint_of_another_model(tiny_fp32: Path, tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    result = gemma_validate(tiny_fp32, "--reference", tmp_path / "model")
    assert_error_after_stages(result, 3)


def test_weights_of_another_fine_tune(tiny_fp32: Path, tmp_path: Path) -> None:
    """Same sizes, same tokenizer, other numbers: only the hashes of the manifest can tell."""
    shutil.copytree(BUILTIN_DIRECTORY, tmp_path / "model")
    file = next((tmp_path / "model").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    assert_error_after_stages(gemma_validate(tiny_fp32, "--reference", tmp_path / "model"), 3, file.name)


def test_a_checkpoint_that_is_gone(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "a/model")
    assert gemma_export("--checkpoint", tmp_path / "a/model", "--output", tmp_path / "folder").returncode == 0
    assert_error_after_stages(gemma_validate(tmp_path / "folder", cwd=tmp_path), 4, "model", "--reference")


@pytest.mark.parametrize(
    ("budget", "phrases"),
    [
        ('[all]\nkl_maen = { bound = 1.0, reason = "x" }\n', ["kl_maen"]),
        ('[everything]\nkl_mean = { bound = 1.0, reason = "x" }\n', ["everything"]),
        ('[all]\nkl_mean = { bound = -1.0, reason = "x" }\n', ["kl_mean"]),
        ("[all]\nkl_mean = { bound = 1.0 }\n", ["reason"]),
        ("[all\n", ["budget.toml"]),
    ],
)
def test_budget_files(budget: str, phrases: list[str], tiny_fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "budget.toml").write_text("min_positions = 2\n" + budget)
    assert_error(gemma_validate(tiny_fp32, "--budget", tmp_path / "budget.toml"), 2, *phrases)


def test_a_provider_that_is_not_here(tiny_fp16: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a CUDA provider")
    assert_error_after_stages(gemma_validate(tiny_fp16, "--provider", "cuda"), 8, "cuda")


def test_report_directory_that_is_a_file(tiny_fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("mine")
    assert_error(gemma_validate(tiny_fp32, "--report-dir", tmp_path / "reports"), 7, "reports")
    assert (tmp_path / "reports").read_text() == "mine"


def test_no_exported_folder(tmp_path: Path) -> None:
    assert_error(gemma_validate(tmp_path), 3, "gemma_export.json")


def test_files_that_are_not_the_manifests_are_not_run(tiny_fp32: Path, tmp_path: Path) -> None:
    """No reference is needed to see it, and onnxruntime is not given the file."""
    shutil.copytree(tiny_fp32, tmp_path / "folder")
    data = tmp_path / "folder/onnx/model.onnx_data"
    content = bytearray(data.read_bytes())
    content[len(content) // 3] ^= 1
    data.write_bytes(content)
    result = gemma_validate(tmp_path / "folder", "--reference", tmp_path / "nowhere", "--json")
    report = validated(result.stdout, "gemma_validation/report")
    assert (result.returncode, report["verdict"], report["reference"]["kind"]) == (3, "broken", "none")
    assert report["drift"] == []


def test_a_graph_that_does_not_load(tiny_fp32: Path, tmp_path: Path) -> None:
    """A finding like any other: what else was found is in the report too."""
    model = onnx.load_model(tiny_fp32 / "onnx/model_all.onnx", load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Gelu").op_type = "NoSuchOperator"
    folder = altered(tiny_fp32, tmp_path / "folder", {"onnx/model_all.onnx": model.SerializeToString()})
    result = gemma_validate(folder, "--json", "--no-record")
    report = validated(result.stdout, "gemma_validation/report")
    assert (result.returncode, report["verdict"], report["drift"]) == (3, "broken", [])
    assert any(reason.startswith("graph of all positions: ") for reason in report["reasons"])


def test_a_configuration_that_makes_no_sense(tiny_fp32: Path, tmp_path: Path, golden: Path) -> None:
    config = json.loads((tiny_fp32 / "config.json").read_text(encoding="utf-8"))
    content = json.dumps({**config, "rms_norm_eps": "1e-6"}).encode()
    folder = altered(tiny_fp32, tmp_path / "folder", {"config.json": content})
    result = gemma_validate(folder, "--reference", golden, "--json", "--no-record")
    report = validated(result.stdout, "gemma_validation/report")
    assert (result.returncode, report["verdict"]) == (3, "broken")
    assert "Traceback" not in result.stderr


def test_localise_needs_layers(tiny_q4: Path, tiny_fp32: Path) -> None:
    result = gemma_validate(tiny_q4, "--reference", tiny_fp32, "--localise")
    assert_error_after_stages(result, 2, "--localise")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run(name: str, tiny_fp32: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_fp32, tmp_path / "folder")
    before = (tmp_path / "folder/gemma_export.json").read_bytes()
    process = start("gemma_validation", tmp_path / "folder", "--report-dir", tmp_path / "reports")
    assert process.stderr is not None
    while "drift" not in process.stderr.readline():
        assert process.poll() is None
    assert_interrupted(process, name)
    assert list((tmp_path / "reports").iterdir()) == []
    assert (tmp_path / "folder/gemma_export.json").read_bytes() == before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_golden_pack(name: str, tiny_q4: Path, tiny_fp32: Path, tmp_path: Path) -> None:
    """What an earlier run made stays as it is, and nothing lies beside it."""
    (tmp_path / "pack").write_text("of an earlier run")
    process = start("gemma_validation", tiny_q4, "--reference", tiny_fp32, "--make-golden", tmp_path / "pack")
    assert process.stderr is not None
    while "reference ..." not in process.stderr.readline():
        assert process.poll() is None
    assert_interrupted(process, name)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("pack", "of an earlier run")]


def assert_interrupted(process: subprocess.Popen[str], name: str) -> None:
    """A program that is told to stop does so, says so and leaves with 130."""
    process.send_signal(getattr(signal, name))
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-2].startswith("error: interrupted")


def test_a_reader_that_goes_away_changes_no_exit_code(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_fp32, tmp_path / "folder"))
    with (folder / "onnx/model.onnx_data").open("r+b") as data:
        data.write(b"\xff")
    command = [sys.executable, "-m", "gemma_validation", str(folder), "--no-record"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 3, stderr


def test_reports_of_an_earlier_run_do_not_outlive_a_failure(tiny_fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    for name in ("report.json", "junit.xml", "report.html", "notes.txt"):
        (tmp_path / "reports" / name).write_text("passed")
    (tmp_path / "budget.toml").write_text("[all\n")
    options = ("--report-dir", tmp_path / "reports", "--budget", tmp_path / "budget.toml")
    assert gemma_validate(tiny_fp32, *options).returncode == 2
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["notes.txt"]


def test_the_folder_as_its_own_reference(tiny_fp32: Path) -> None:
    result = gemma_validate(tiny_fp32, "--reference", tiny_fp32, "--no-record")
    assert_error_after_stages(result, 2, "itself", "--reference-provider")
    result = gemma_validate(tiny_fp32, "--reference", tiny_fp32, "--reference-provider", "cpu", "--no-record")
    assert_error_after_stages(result, 2, "itself")


def test_the_folder_as_its_own_reference_on_another_provider(tiny_fp16: Path) -> None:
    """Which is not here: it got as far as being opened there."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a CUDA provider")
    result = gemma_validate(tiny_fp16, "--reference", tiny_fp16, "--reference-provider", "cuda", "--no-record")
    assert_error_after_stages(result, 8, "has no cuda provider")


def test_a_reference_s_provider(golden: Path, tiny_q4: Path, tiny_fp32: Path, tmp_path: Path) -> None:
    """Folders have some, other references have none."""
    result = gemma_validate(tiny_q4, "--reference", tiny_fp32, "--reference-provider", "directml", "--no-record")
    assert_error_after_stages(
        result, 8, "the reference fp32 runs on cpu", "not on directml", "--reference-provider cpu"
    )
    for options in (("--reference", golden), (), ("--make-golden", tmp_path / "pack")):
        result = gemma_validate(tiny_q4, *options, "--reference-provider", "cpu")
        kind = "tiny.golden is a golden pack" if "--reference" in options else "built-in is a checkpoint"
        assert_error_after_stages(result, 2, "--reference-provider is for an exported folder", kind)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['gemma-validate', '--help']\n"
        "import atexit, os\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'transformers', 'numpy'}\n"
        "atexit.register(lambda: os._exit(bool(heavy & set(sys.modules))))\n"
        "from gemma_validation.cli import main\nmain()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def assert_error_after_stages(result: subprocess.CompletedProcess[str], code: int, *phrases: str) -> None:
    """As `assert_error`; what had begun is told before it."""
    told = [line for line in result.stderr.splitlines(keepends=True) if not re.fullmatch(r"[a-z ]+ \.\.\.\n", line)]
    result.stderr = "".join(told)
    assert_error(result, code, *phrases)
