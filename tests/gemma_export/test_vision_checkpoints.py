"""Vision-language checkpoints: their text decoder is exported as if it had been a checkpoint of its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tolerances
import torch
import transformers
from hub_server import HubServer, Repository
from peft_adapters import make_adapter, merged_by_peft
from programs import assert_error, gemma_export
from quantised_checkpoints import Layout, packed, quantise
from safetensors.torch import load_file, save_file
from vision_checkpoints import WEIGHTS, vision_config, vision_reference, write_files
from windowed_decoders import WINDOWED_CONFIGS

from gemma_export.artifact import verify_folder
from gemma_export.checkpoint import QuantisedSource, open_checkpoint
from gemma_export.errors import CheckpointError
from gemma_export.families import family_of
from gemma_export.pipeline import ExportRequest, export
from gemma_export.planning import plan_export
from gemma_export.tracing.binding import merged_weight
from gemma_validation.reference import FoundReference, open_reference

TEXT = WINDOWED_CONFIGS["gemma3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One model as a vision-language checkpoint, and its text decoder as a checkpoint of its own."""

    model: Any
    whole: Path
    text: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("checkpoints")
    model = vision_reference(TEXT)
    # what the library itself writes
    model.save_pretrained(root / "saved")
    tensors = load_file(root / "saved" / WEIGHTS)
    prefix = "language_model.model."
    text = {f"model.{name.removeprefix(prefix)}": value for name, value in tensors.items() if name.startswith(prefix)}
    return Pair(
        model=model,
        whole=write_files(root / "whole", vision_config(TEXT), tensors),
        text=write_files(root / "text", {**TEXT, "eos_token_id": [1, 107]}, text),
    )


@pytest.fixture(scope="module")
def folder(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exports") / "whole"
    export(ExportRequest(checkpoint=pair.whole, logits="all", output=output))
    verify_folder(output)
    return output


def _logits(folder: Path, ids: list[int]) -> npt.NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "onnx/model.onnx"), providers=["CPUExecutionProvider"])
    feeds: dict[str, npt.NDArray[Any]] = {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
    }
    for entry in session.get_inputs():
        if entry.name.startswith("past_key_values"):
            feeds[entry.name] = np.zeros((1, entry.shape[1], 0, entry.shape[3]), np.float32)
    found: npt.NDArray[np.float32] = session.run(["logits"], feeds)[0][0]
    return found


def test_the_graphs_are_those_of_the_text_decoder_alone(pair: Pair, folder: Path, tmp_path: Path) -> None:
    export(ExportRequest(checkpoint=pair.text, logits="all", output=tmp_path / "text"))
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "text") for path in (tmp_path / "text").rglob("*") if path.is_file()
    )
    # these name the checkpoint and its keys
    others = {"gemma_export.json", "config.json", "README.md"}
    for file in files:
        if str(file) not in others:
            assert (folder / file).read_bytes() == (tmp_path / "text" / file).read_bytes(), file
    configs = [json.loads((root / "config.json").read_bytes()) for root in (folder, tmp_path / "text")]
    one, two = (family_of(config).parse_config(config) for config in configs)
    assert one == two


def test_it_says_what_the_whole_model_says_of_text(pair: Pair, folder: Path) -> None:
    ids = [2, *(int(token) for token in np.random.default_rng(3).integers(50, 3000, 70))]
    with torch.no_grad():
        expected = pair.model(input_ids=torch.tensor([ids])).logits[0].numpy()
    worst = np.abs(_logits(folder, ids) - expected).max()
    assert worst <= tolerances.FP32_LOGITS * expected.std()


def test_the_folder_is_a_text_model_to_other_programs(pair: Pair, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    assert config["model_type"] == "gemma3_text"
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert not {"text_config", "vision_config", "image_token_index"} & config.keys()
    read = transformers.AutoConfig.from_pretrained(folder)
    built = transformers.AutoModelForCausalLM.from_config(read)
    expected = pair.model.model.language_model.state_dict()
    found = built.model.state_dict()
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert read.layer_types == pair.model.config.text_config.layer_types
    assert read.rope_parameters == pair.model.config.text_config.rope_parameters


def _contents(checkpoint: Path) -> dict[str, bytes]:
    """What an export would read, by the text decoder's names."""
    plan = plan_export(ExportRequest(checkpoint=checkpoint, output=checkpoint.parent / "unused"))
    view = plan.checkpoint.view(plan.stored)
    if isinstance(view, QuantisedSource):
        parts = {
            f"{name}/{part}": view.part(name, part)[1] for name in view.quantised for part in ("qweight", "scales")
        }
        plain = {name: tensor for name, tensor in view.tensors.items() if name not in view.quantised}
    else:
        parts, plain = {}, dict(view.tensors)
    contents = {name: bytes(content) for name, content in parts.items()}
    for name, tensor in plain.items():
        content = bytearray(tensor.nbytes)
        view.read_into(name, 0, memoryview(content))
        contents[name] = bytes(content)
    return contents


def test_names_of_newer_releases(pair: Pair, tmp_path: Path) -> None:
    tensors = {
        (
            name.replace("language_model.model.", "model.language_model.") if "language" in name else f"model.{name}"
        ): value
        for name, value in load_file(pair.whole / WEIGHTS).items()
    }
    assert any(name.startswith("model.vision_tower.") for name in tensors)
    other = write_files(tmp_path / "whole", vision_config(TEXT), tensors)
    assert _contents(other) == _contents(pair.text)


def test_a_configuration_as_the_library_saves_it(pair: Pair, tmp_path: Path) -> None:
    saved = transformers.Gemma3Config.from_dict({**vision_config(TEXT), "eos_token_id": [1, 107]})
    saved.save_pretrained(tmp_path)
    checkpoint = write_files(tmp_path / "whole", json.loads((tmp_path / "config.json").read_bytes()), {})
    found = open_checkpoint(checkpoint, weights=False).config
    expected = open_checkpoint(pair.text, weights=False).config
    spec, unread = family_of(found).parse_config(found)
    assert spec == family_of(expected).parse_config(expected)[0]
    assert unread == ()


def test_a_head_of_its_own(pair: Pair, tmp_path: Path) -> None:
    tensors = load_file(pair.whole / WEIGHTS)
    tensors["language_model.lm_head.weight"] = torch.randn(TEXT["vocab_size"], TEXT["hidden_size"])
    untied = write_files(tmp_path / "untied", {**vision_config({**TEXT, "tie_word_embeddings": False})}, tensors)
    assert plan_export(ExportRequest(checkpoint=untied, output=tmp_path / "out")).stored["lm_head.weight"]
    tied = write_files(tmp_path / "tied", vision_config(TEXT), tensors)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        plan_export(ExportRequest(checkpoint=tied, output=tmp_path / "out"))


def test_weights_of_the_vision_tower_alone(pair: Pair, tmp_path: Path) -> None:
    tensors = {name: value for name, value in load_file(pair.whole / WEIGHTS).items() if "language" not in name}
    images = write_files(tmp_path / "images", vision_config(TEXT), tensors)
    found = gemma_export("--checkpoint", images, "--output", tmp_path / "out")
    assert_error(found, 4, "no weights of the text decoder", "Fetch the shards that hold the text decoder too.")
    assert not (tmp_path / "out").exists()


def test_a_configuration_without_its_text_decoder(pair: Pair, tmp_path: Path) -> None:
    broken = write_files(
        tmp_path / "broken", {**vision_config(TEXT), "text_config": None}, load_file(pair.text / WEIGHTS)
    )
    found = gemma_export("--checkpoint", broken, "--output", tmp_path / "out", "--dry-run")
    assert_error(found, 3, "text_config must hold the text decoder's keys, found None", "Fetch config.json again")


def test_synthetic_weights_of_its_shapes(pair: Pair, tmp_path: Path) -> None:
    plan = plan_export(ExportRequest(checkpoint=pair.whole, synthetic_seed=1, output=tmp_path / "out"))
    assert plan.family.name == "gemma3"
    assert plan.checkpoint.view(plan.stored).tensors.keys() == plan.stored.keys()


def test_a_user_is_told_that_images_are_not_read(pair: Pair, tmp_path: Path) -> None:
    for checkpoint, told in ((pair.whole, 1), (pair.text, 0)):
        warnings = plan_export(ExportRequest(checkpoint=checkpoint, output=tmp_path / "out")).warnings
        assert sum("images are not read" in warning for warning in warnings) == told


def test_on_the_hub_headers_tell_it(pair: Pair, hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/whole"] = Repository.of_folder(pair.whole)
    plan = plan_export(ExportRequest(checkpoint="org/whole", output=tmp_path / "out"))
    assert plan.family.name == "gemma3"
    assert plan.checkpoint.repository == "org/whole"


def test_integers_of_the_text_decoder(pair: Pair, tmp_path: Path) -> None:
    """Quantised as a whole model is: the vision tower stays in floating point."""
    layout = Layout(group_size=-1)
    whole: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(pair.whole / WEIGHTS).items():
        if "language_model" in name and name.endswith("_proj.weight"):
            parts = packed(quantise(tensor.numpy(), layout, None), layout)
            whole |= {name.replace("weight", part): torch.from_numpy(value) for part, value in parts.items()}
        else:
            whole[name] = tensor.half()
    prefix = "language_model.model."
    text = {f"model.{name.removeprefix(prefix)}": value for name, value in whole.items() if name.startswith(prefix)}
    quantisation = {"quantization_config": layout.config()}
    own = write_files(tmp_path / "whole", {**vision_config(TEXT), **quantisation}, whole)
    alone = write_files(tmp_path / "text", {**TEXT, **quantisation}, text)
    assert _contents(own) == _contents(alone)
    assert sum(name.endswith("/qweight") for name in _contents(own)) == 7 * TEXT["num_hidden_layers"]


def test_the_reference_of_a_validation_is_its_text_decoder(pair: Pair) -> None:
    found = open_reference(FoundReference(kind="checkpoint", path=pair.whole, name="whole"))
    # transformers would load the whole model
    assert not found.plain
    assert found.config["model_type"] == "gemma3_text"
    expected = pair.model.model.language_model.state_dict()
    assert {f"model.{name}" for name in expected} == found.shapes.keys()
    for name, value in expected.items():
        assert torch.equal(found.weight(f"model.{name}").tensor(), value), name


# the vision tower has projections of the same names, and some of its own
ADAPTERS: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ["q_proj", "v_proj", "fc1"]},
    "all-linear": {"target_modules": "all-linear"},
    "expression": {
        "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|up_proj).*?)",
        "rank_pattern": {r"^model\.language_model\.layers\.2\..*": 3},
    },
    "saved": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_of_the_whole_model(name: str, pair: Pair, tmp_path: Path) -> None:
    adapter = make_adapter(pair.model, tmp_path / "lora", ADAPTERS[name])
    expected = merged_by_peft(pair.model, adapter).state_dict()
    prefix = "model.language_model."
    plan = plan_export(ExportRequest(checkpoint=pair.whole, adapter=str(adapter), output=tmp_path / "out"))
    assert plan.merge is not None
    source, untouched, changed = plan.checkpoint.view(plan.stored), pair.model.state_dict(), 0
    for tensor in plan.tensors:
        own = tensor if tensor.startswith("lm_head") else f"{prefix}{tensor.removeprefix('model.')}"
        found = merged_weight(source, plan.merge, tensor).tensor().float()
        torch.testing.assert_close(found, expected[own], rtol=0, atol=7 * tolerances.MERGED_WEIGHTS)
        changed += not torch.equal(expected[own], untouched[own])
    assert changed == {"names": 14, "all-linear": 49, "expression": 14, "saved": 8}[name]


def test_an_adapter_with_names_of_two_models(pair: Pair, tmp_path: Path) -> None:
    adapter = make_adapter(pair.model, tmp_path / "lora", {"target_modules": ["q_proj"]})
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    one = next(name for name in tensors if "language_model" in name)
    tensors[one.replace("language_model.", "", 1)] = tensors.pop(one)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="belongs to no tensor of the base model"):
        plan_export(ExportRequest(checkpoint=pair.whole, adapter=str(adapter), output=tmp_path / "out"))
