"""gemma-export --adapter as a user types it: what is said, recorded, refused; exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import adapters
import checkpoints
import numpy as np
import pytest
from programs import assert_error, gemma_export, gemma_run

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.checkpoint.json_file import read_json
from gemma_export.families import FAMILIES
from gemma_export.variants import VARIANTS
from gemma_runtime import read_manifest


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    family = FAMILIES["gemma"]
    return family.tensor_shapes(family.parse_config(config)[0])


SMALL = adapters.tensors(shapes(checkpoints.CONFIG))
TINY = adapters.tensors(shapes(read_json(BUILTIN_DIRECTORY / "config.json")))


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_tiny_with_an_adapter(tmp_path: Path) -> None:
    """A folder of its own by default, everything names the adapter, the numbers differ, and it runs."""
    adapters.write(tmp_path / "mine", TINY)
    assert gemma_export("--variant", "tiny", cwd=tmp_path).returncode == 0
    planned = gemma_export("--variant", "tiny", "--adapter", "mine", "--dry-run", cwd=tmp_path)
    assert "the built-in tiny model with the adapter mine -> gemma-tiny-mine-fp32" in planned.stdout
    result = gemma_export("--variant", "tiny", "--adapter", "mine", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    assert "exporting the built-in tiny model with the adapter mine to gemma-tiny-mine-fp32" in result.stderr
    assert left_in(tmp_path) == ["gemma-tiny-fp32", "gemma-tiny-mine-fp32", "mine"]
    folder = tmp_path / "gemma-tiny-mine-fp32"
    card = (folder / "README.md").read_text()
    assert "# gemma-tiny-mine" in card
    assert "An ONNX export of the built-in tiny model with the adapter mine" in card
    assert "adapter mine is merged" in (folder / "NOTICE").read_text()
    assert gemma_export("verify", folder).returncode == 0
    source = read_manifest(folder).source
    assert source.adapter is not None
    assert (source.adapter.name, source.adapter.ranks) == ("mine", (4,))
    assert str(tmp_path) not in (folder / "gemma_export.json").read_text()
    data = [(tmp_path / name / "onnx/model.onnx_data").read_bytes() for name in ("gemma-tiny-fp32", folder.name)]
    assert len(data[0]) == len(data[1])
    assert data[0] != data[1]
    assert read_manifest(tmp_path / "gemma-tiny-fp32").source.adapter is None
    assert gemma_run(folder, "def f():", "--max-new-tokens", 2).returncode == 0


def test_json_names_the_adapter(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    adapters.write(tmp_path / "mine", SMALL)
    arguments = ("--checkpoint", "model", "--adapter", "mine", "--json")
    expected = {"name": "mine", "ranks": [4], "tensors": 4}
    plan = json.loads(gemma_export(*arguments, "--dry-run", cwd=tmp_path).stdout)
    assert plan["adapter"] == expected
    assert plan["output"] == "model-mine-fp32"
    assert json.loads(gemma_export(*arguments, cwd=tmp_path).stdout)["adapter"] == expected
    plain = json.loads(gemma_export("--checkpoint", "model", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert plain["adapter"] is None
    assert plain["peak_memory_bytes"] < plan["peak_memory_bytes"]


def test_dry_run_knows_the_size_of_an_untied_head(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    head = np.random.default_rng(0).standard_normal((3072, 32)).astype(np.float32)
    whole = {f"{adapters.PREFIX}lm_head.weight": head}
    adapters.write(tmp_path / "mine", {**SMALL, **whole}, modules_to_save=["lm_head"])
    arguments = ("--checkpoint", "model", "--adapter", "mine", "--output", "out")
    plan = json.loads(gemma_export(*arguments, "--dry-run", "--json", cwd=tmp_path).stdout)
    planned = {file["path"]: file["size"] for file in plan["files"]}
    assert gemma_export(*arguments, cwd=tmp_path).returncode == 0
    assert planned["onnx/model.onnx_data"] == (tmp_path / "out/onnx/model.onnx_data").stat().st_size
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    assert head.tobytes() in (tmp_path / "out/onnx/model.onnx_data").read_bytes()


def test_an_adapter_over_synthetic_weights(tmp_path: Path) -> None:
    """For sizing: allowed where the shapes fit, and said to be synthetic."""
    adapters.write(tmp_path / "mine", SMALL)
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape/config.json").write_text(json.dumps(checkpoints.CONFIG))
    arguments = ("--synthetic-weights", "--adapter", "mine", "--output", "out")
    assert gemma_export("--checkpoint", "shape", *arguments, cwd=tmp_path).returncode == 0
    source = read_manifest(tmp_path / "out").source
    assert (source.kind, source.adapter is not None) == ("synthetic", True)
    result = gemma_export("--variant", "2b", *arguments, "--force", "--dry-run", cwd=tmp_path)
    assert_error(result, 3, "expected shape [4, 16384]", "model.layers.0.mlp.down_proj.weight", "found [4, 48]")


def test_another_base_model_is_a_warning(tmp_path: Path) -> None:
    family = FAMILIES["gemma"]
    config = {**checkpoints.CONFIG, **dict(VARIANTS["2b"].architecture)}
    weights = adapters.tensors(family.tensor_shapes(family.parse_config(config)[0]), kinds=("k_proj",), rank=1)
    adapters.write(
        tmp_path / "mine", weights, r=1, target_modules=["k_proj"], base_model_name_or_path="google/gemma-7b"
    )
    arguments = ("--variant", "2b", "--synthetic-weights", "--adapter", "mine", "--dry-run")
    result = gemma_export(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    warning = "warning: adapter mine was trained on 'google/gemma-7b', the exported checkpoint is google/gemma-2b\n"
    assert result.stderr == warning
    assert (
        warning.strip().removeprefix("warning: ")
        in json.loads(gemma_export(*arguments, "--json", cwd=tmp_path).stdout)["warnings"]
    )


@pytest.mark.parametrize(
    ("checkpoint", "exported", "warns"),
    [
        ("my-model", "the local checkpoint my-model", True),
        ("Gemma-7B", "the local checkpoint Gemma-7B", False),
        # what transformers noted of where it came from
        ("made-from", "the local checkpoint made-from", False),
        (None, "the built-in tiny model", True),
    ],
)
def test_another_base_model_beside_a_local_or_built_in_one(
    checkpoint: str | None, exported: str, warns: bool, tmp_path: Path
) -> None:
    base = ("--variant", "tiny")
    if checkpoint is not None:
        origin = {"_name_or_path": "Google/gemma-7b"} if checkpoint == "made-from" else {}
        checkpoints.write(tmp_path / checkpoint, **origin)
        base = ("--checkpoint", checkpoint)
    adapters.write(tmp_path / "mine", TINY if checkpoint is None else SMALL, base_model_name_or_path="google/gemma-7b")
    result = gemma_export(*base, "--adapter", "mine", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    warning = f"warning: adapter mine was trained on 'google/gemma-7b', the exported checkpoint is {exported}\n"
    assert result.stderr == (warning if warns else "")


@pytest.mark.parametrize(
    ("changes", "phrases"),
    [
        ({"peft_type": "PREFIX_TUNING"}, ["adapter_config.json: peft_type is 'PREFIX_TUNING'", "LoRA"]),
        ({"r": 8}, ["expected shape [8, ", "found [4, "]),
        ({"target_modules": ["q_proj", "down_proj", "c_attn"]}, ["'c_attn'", "q_proj, k_proj, v_proj, o_proj"]),
        ({"unheard_of": 3}, ["unknown key 'unheard_of' is 3"]),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], phrases: list[str], tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    adapters.write(tmp_path / "mine", SMALL, **changes)
    assert_error(gemma_export("--checkpoint", "model", "--adapter", "mine", cwd=tmp_path), 3, *phrases)
    assert left_in(tmp_path) == ["mine", "model"]


def test_folders_that_are_refused(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    adapter = adapters.write(tmp_path / "mine", SMALL)

    def run(name: str = "mine") -> Any:
        return gemma_export("--checkpoint", "model", "--adapter", name, cwd=tmp_path)

    assert_error(run("./my-lora"), 4, "adapter my-lora does not exist", "ORG/NAME")
    # tests are offline, and nothing is cached
    phrases = ("someone/my-lora at main", "offline", "nothing of this revision is cached", "give it to --adapter.")
    assert_error(run("someone/my-lora"), 4, *phrases)
    for address in ("https://huggingface.co/someone/my-lora", "https://hf.co/someone/my-lora/tree/v2"):
        revision = "@v2" if address.endswith("v2") else ""
        assert_error(run(address), 4, f"adapter {address} is an address", f"Give --adapter someone/my-lora{revision}.")
    assert_error(run("model"), 4, "has no adapter_config.json", "--checkpoint")
    path = adapter / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert_error(run(), 3, "adapter_model.safetensors is truncated or corrupt")
    path.rename(adapter / "adapter_model.bin")
    assert_error(run(), 3, "has no adapter_model.safetensors", "pickle", "run any code")
    # the other way round: an adapter is no checkpoint
    shutil.copy(tmp_path / "model/config.json", adapter / "config.json")
    assert_error(gemma_export("--checkpoint", "mine", cwd=tmp_path), 4, "no weights", "--adapter")
    assert_error(gemma_export("--adapter", "mine", cwd=tmp_path), 2, "--variant", "--checkpoint")
    assert_error(gemma_export("--adapter", "mine", "variants", cwd=tmp_path), 2, "--adapter belongs to an export")
    assert left_in(tmp_path) == ["mine", "model"]


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model")
    name = f"{adapters.PREFIX}model.layers.1.self_attn.q_proj.lora_B.weight"
    broken = {**SMALL, name: SMALL[name].copy()}
    broken[name][9, 2] = np.inf
    adapters.write(tmp_path / "mine", broken)
    assert_error(gemma_export("--checkpoint", "model", "--adapter", "mine", cwd=tmp_path), 3, name, "[9, 2]: inf")
    # the sum fits float32 and not float16
    adapters.write(tmp_path / "large", SMALL, lora_alpha=1_000_000)
    arguments = ("--checkpoint", "model", "--adapter", "large", "--fp16")
    assert_error(gemma_export(*arguments, cwd=tmp_path), 3, "with adapter large", "does not fit float16", "--fp32")
    assert left_in(tmp_path) == ["large", "mine", "model"]


def test_dry_run_with_an_adapter_imports_no_torch(tmp_path: Path) -> None:
    adapters.write(tmp_path / "mine", TINY)
    code = (
        "import sys; sys.argv = 'gemma-export --variant tiny --adapter mine --dry-run --json'.split()\n"
        "from gemma_export.cli import cli; cli.main(standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'onnx', 'onnx_ir', 'peft', 'transformers'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, stdout=subprocess.DEVNULL)
    assert process.returncode == 0
