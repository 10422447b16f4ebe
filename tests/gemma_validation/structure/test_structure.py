"""Structural checks: silent on good folders, and each of them finds what it is for."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from folders import altered, rewrite_manifest, swapped_ids
from graph_edits import attribute, constant, edited, named, nodes_of
from reference_exports import structure_of

from gemma_runtime.manifest import MANIFEST_FILE, Manifest, read_manifest
from gemma_validation.artifact import ArtifactRunner, Step
from gemma_validation.errors import ProviderUnavailableError
from gemma_validation.findings import Check
from gemma_validation.structure import check_structure
from gemma_validation.structure.providers import check_providers, judge_providers
from gemma_validation.structure.sessions import ProfiledSessions

_LAYER_1 = "model.layers.1.self_attn"


def _checks(folder: Path) -> dict[str, Check]:
    found = structure_of(folder)
    checks = {check.name: check for check in found}
    assert len(checks) == len(found)
    assert all(check.group == "structure" and "\n" not in check.message for check in found)
    return checks


def _failed(folder: Path) -> dict[str, str]:
    return {name: check.message for name, check in _checks(folder).items() if check.outcome != "passed"}


@pytest.mark.parametrize(
    "folder", ["tiny_fp32", "tiny_fp16", "tiny_int4", "tiny_int8_dynamic", "tiny_portable", "random_grouped"]
)
def test_a_good_folder_passes_everything(folder: str, request: pytest.FixtureRequest) -> None:
    checks = _checks(request.getfixturevalue(folder))
    assert {name: check.message for name, check in checks.items() if check.outcome != "passed"} == {}
    assert len(checks) == 28
    graphs = len(read_manifest(request.getfixturevalue(folder)).graphs)
    assert checks["providers"].message.startswith(f"{graphs} graphs, two tokens each: ")
    assert checks["providers"].message.endswith(" nodes ran on CPUExecutionProvider")


def _epsilon(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "SkipSimplifiedLayerNormalization")[2], "epsilon", 1e-5)


def _erf(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "Gelu")[1], "approximate", "none")


def _scale(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "GroupQueryAttention")[1], "scale", 0.12)


def _softcap(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "GroupQueryAttention")[0], "softcap", 50.0)


def _window(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "GroupQueryAttention")[3], "local_window_size", 4096)


def _interleaved(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "GroupQueryAttention")[0], "rotary_interleaved", 1)


def _sine_for_cosine(model: onnx.ModelProto) -> None:
    node = nodes_of(model, "GroupQueryAttention")[0]
    node.input[7], node.input[8] = node.input[8], node.input[7]


def _keys_for_values(model: onnx.ModelProto) -> None:
    node = nodes_of(model, "GroupQueryAttention")[2]
    node.input[3], node.input[4] = node.input[4], node.input[3]


def _length_ignored(model: onnx.ModelProto) -> None:
    nodes_of(model, "GroupQueryAttention")[2].input[5] = "rows.total_sequence_length"


def _rounded_scale(model: onnx.ModelProto) -> None:
    constant(model, "model.embed_tokens.scale").raw_data = np.float32(16.01).tobytes()


def _no_scale(model: onnx.ModelProto) -> None:
    node = named(model, "model.embed_tokens.ScaledEmbedding")
    node.op_type = "Identity"
    del node.input[1:]


def _layers_swapped(model: onnx.ModelProto) -> None:
    first, second = (named(model, f"model.layers.{layer}.mlp.up_proj.Linear") for layer in (0, 1))
    first.input[1], second.input[1] = second.input[1], first.input[1]


def _stream_broken(model: onnx.ModelProto) -> None:
    named(model, "layers.2.attn_residual").input[0] = "layers.0.mlp_residual"


def _transposed(model: onnx.ModelProto) -> None:
    attribute(named(model, "model.layers.0.self_attn.o_proj.Linear"), "transB", 0)


def _strange_operator(model: onnx.ModelProto) -> None:
    nodes_of(model, "Gelu")[0].op_type = "Erf"
    del nodes_of(model, "Erf")[0].attribute[:]


def _same_bytes(model: onnx.ModelProto) -> None:
    first, second = (constant(model, f"model.layers.{layer}.mlp.up_proj.weight") for layer in (1, 2))
    second.external_data[1].value = first.external_data[1].value


def _symbol(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"


def _order(model: onnx.ModelProto) -> None:
    first = onnx.ValueInfoProto()
    first.CopyFrom(model.graph.output[1])
    model.graph.output.remove(model.graph.output[1])
    model.graph.output.append(first)


def _ir_version(model: onnx.ModelProto) -> None:
    model.ir_version = 9


def _half_value(model: onnx.ModelProto) -> None:
    value = next(value for value in model.graph.value_info if value.name == "layers.1.attn_residual")
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def _other_head(model: onnx.ModelProto) -> None:
    named(model, "logits").input[1] = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "check", "told"),
    [
        (_epsilon, "epsilon", "epsilon is 9.99999"),
        (_erf, "gelu", "approximate is none, expected tanh"),
        (_scale, "attention", f"{_LAYER_1}.GroupQueryAttention: scale is 0.119999"),
        (_softcap, "attention", "softcap is 50.0, expected 0.0"),
        (_window, "attention", "window is 4096, expected 0"),
        (_interleaved, "rotary embedding", "interleaved, expected halves"),
        (_sine_for_cosine, "rotary embedding", "['sin_cache', 'cos_cache']"),
        (_keys_for_values, "caches", "past is ['past_key_values.2.value'"),
        (_length_ignored, "caches", "input 5 is rows.total_sequence_length, expected rows.seqlens_k"),
        (_rounded_scale, "embedding scale", "factor is [16.0100"),
        (_no_scale, "embedding scale", "the embedding is not scaled"),
        (_layers_swapped, "weights", "reads model.layers.1.mlp.up_proj.weight, expected a weight of model.layers.0"),
        (_stream_broken, "residual stream", "layers.2.attn_residual is the sum of ['layers.0.mlp_residual'"),
        (_transposed, "products", "transB is 0, expected 1"),
        (_strange_operator, "operators", "expected 4 Gelu nodes for 4 layers, found 3"),
        (_same_bytes, "shared bytes", "lie on the same bytes of model.onnx_data"),
        (_symbol, "names and symbols", "int64 ['N', 'sequence_length']"),
        (_order, "names and symbols", "outputs are logits, present.0.value"),
        (_ir_version, "versions", "ir_version is 9, expected 10"),
        (_half_value, "element types", "layers.1.attn_residual: float16, expected float32"),
        (_other_head, "weights", "reads model.layers.0.mlp.up_proj.weight, expected a weight of model.embed_tokens"),
    ],
)
def test_an_edited_graph_is_found(
    edit: Callable[[onnx.ModelProto], None], check: str, told: str, tiny_fp32: Path, tmp_path: Path
) -> None:
    failed = _failed(edited(tiny_fp32, tmp_path / "edited", edit))
    assert told in failed[check]


def test_a_graph_that_onnxruntime_refuses(tiny_fp32: Path, tmp_path: Path) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        nodes_of(model, "Gelu")[0].op_type = "NoSuchOperator"

    failed = _failed(edited(tiny_fp32, tmp_path / "edited", unknown, ["main"]))
    assert failed["providers"].startswith("onnxruntime 1.")
    assert "cannot load onnx/model.onnx on cpu" in failed["providers"]


def test_a_twin_that_was_edited_alone(tiny_fp32: Path, tmp_path: Path) -> None:
    def move(model: onnx.ModelProto) -> None:
        constant(model, "model.layers.3.mlp.up_proj.weight").external_data[1].value = "5767168"

    failed = _failed(edited(tiny_fp32, tmp_path / "bytes", move, ["last8"]))
    assert failed["twins"] == (
        "onnx/model_last8.onnx, model.layers.3.mlp.up_proj.weight: not the same as in onnx/model.onnx"
    )
    failed = _failed(edited(tiny_fp32, tmp_path / "node", _epsilon, ["batched"]))
    assert "onnx/model_batched.onnx" in failed["twins"]
    assert "not the node of onnx/model.onnx" in failed["twins"]


def test_rotary_tables_of_another_base(tiny_fp32: Path, tmp_path: Path) -> None:
    """A base that is off by a thousandth moves logits by little; the tables tell."""
    store = bytearray((tiny_fp32 / "onnx/model.onnx_data").read_bytes())
    angles = np.arange(8192)[:, None] * 10010.0 ** (-np.arange(32) / 32)
    store[: 1 << 20] = np.cos(angles).astype(np.float32).tobytes()
    folder = altered(tiny_fp32, tmp_path / "base", {"onnx/model.onnx_data": bytes(store)})
    failed = _failed(folder)
    assert list(failed) == ["rotary tables"]
    assert "cos_cache" in failed["rotary tables"]
    assert "for rope_theta 10000" in failed["rotary tables"]


def test_epsilon_follows_the_residual_scale(tiny_fp16: Path, tmp_path: Path) -> None:
    """float16 stores the stream times 2^-6; the plain epsilon would be wrong there."""

    def plain(model: onnx.ModelProto) -> None:
        for node in nodes_of(model, "SkipSimplifiedLayerNormalization"):
            attribute(node, "epsilon", 1e-6)

    failed = _failed(edited(tiny_fp16, tmp_path / "plain", plain))
    assert failed["epsilon"].endswith("expected 2.441406243836042e-10 (and 39 more)")


def test_a_portable_graph_without_its_mask(tiny_portable: Path, tmp_path: Path) -> None:
    def unmask(model: onnx.ModelProto) -> None:
        for node in nodes_of(model, "Attention"):
            node.input[3] = ""

    failed = _failed(edited(tiny_portable, tmp_path / "unmasked", unmask))
    assert "expected attention.visible" in failed["caches"]


def _config(folder: Path, name: str, **changes: object) -> bytes:
    return json.dumps(json.loads((folder / name).read_text()) | changes).encode()


@pytest.mark.parametrize(
    ("name", "changes", "check", "told"),
    [
        ("config.json", {"rms_norm_eps": 1e-5}, "epsilon", "expected 9.999999747378752e-06"),
        ("config.json", {"rope_theta": 20000.0}, "rotary tables", "for rope_theta 20000"),
        ("config.json", {"vocab_size": 4096}, "configuration", "vocab_size is 4096, the manifest says 3072"),
        ("config.json", {"num_key_value_heads": 4}, "configuration", "2 heads of 64, config.json has 4 of 64"),
        ("config.json", {"model_type": "llama"}, "configuration", "unsupported architecture"),
        ("generation_config.json", {"eos_token_id": [1, 5000]}, "generation configuration", "eos_token_id"),
        ("generation_config.json", {"bos_token_id": 3}, "generation configuration", "bos_token_id is 3"),
        ("generation_config.json", {"eos_token_id": [77]}, "generation configuration", "eos_token_id has [77]"),
        ("generation_config.json", {"temperature": 0.5}, "consumer configuration", "search.temperature is missing"),
        ("genai_config.json", {"model": {}}, "consumer configuration", "genai_config.json: model.type is missing"),
        ("genai_config.json", {"search": {"max_length": 3}}, "consumer configuration", "search.do_sample is missing"),
        ("tokenizer_config.json", {"add_bos_token": False}, "tokenizer configuration", "add_bos_token is False"),
        ("tokenizer_config.json", {"model_max_length": 9000}, "tokenizer configuration", "expected at most 8192"),
        ("tokenizer_config.json", {"chat_template": "{{ 1/0 }}"}, "tokenizer configuration", "read messages"),
        ("tokenizer_config.json", {"chat_template": "{% for"}, "tokenizer configuration", "is no Jinja template"),
        ("tokenizer_config.json", {"chat_template": 7}, "tokenizer configuration", "is 7, expected a text"),
        ("tokenizer_config.json", {"bos_token": "<eos>"}, "tokenizer configuration", "bos_token has id 1"),
    ],
)
def test_an_edited_configuration_is_found(
    name: str, changes: dict[str, object], check: str, told: str, tiny_fp32: Path, tmp_path: Path
) -> None:
    folder = altered(tiny_fp32, tmp_path / "edited", {name: _config(tiny_fp32, name, **changes)})
    failed = _failed(folder)
    assert told in failed[check]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda genai: genai["model"].update(eos_token_id=[88]), "model.eos_token_id is [88], expected [1, 107]"),
        (lambda genai: genai["model"].update(context_length=4096), "model.context_length is 4096, expected 8192"),
        (
            lambda genai: genai["model"]["decoder"]["inputs"].update(past_key_names="nope.%d.key"),
            "model.decoder.inputs.past_key_names is 'nope.%d.key', expected 'past_key_values.%d.key'",
        ),
        (
            lambda genai: genai["model"]["decoder"]["outputs"].update(logits="scores"),
            "model.decoder.outputs.logits is 'scores', expected 'logits'",
        ),
        (lambda genai: genai["search"].update(max_length=3), "search.max_length is 3, expected 8192"),
        (lambda genai: genai["search"].update(do_sample=0), "search.do_sample is 0, expected False"),
        (lambda genai: genai.update(engine={}), "engine is {}, expected no such key"),
    ],
)
def test_what_genai_reads_follows_from_the_rest(
    change: Callable[[dict[str, Any]], None], told: str, tiny_fp32: Path, tmp_path: Path
) -> None:
    genai = json.loads((tiny_fp32 / "genai_config.json").read_text())
    change(genai)
    failed = _failed(altered(tiny_fp32, tmp_path / "edited", {"genai_config.json": json.dumps(genai).encode()}))
    assert failed == {"consumer configuration": f"genai_config.json: {told}"}


def test_a_template_of_transformers_own_tags(tiny_fp32: Path, tmp_path: Path) -> None:
    """`generation` marks what is trained on and `break` leaves a loop: neither is Jinja's own."""
    template = "{% for m in messages %}{%- generation -%}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    named = [{"name": "default", "template": template}, {"name": "tool_use", "template": template}]
    content = _config(tiny_fp32, "tokenizer_config.json", chat_template=named)
    assert _failed(altered(tiny_fp32, tmp_path / "edited", {"tokenizer_config.json": content})) == {}


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("config.json", "configuration"),
        ("generation_config.json", "generation configuration"),
        ("genai_config.json", "consumer configuration"),
        ("tokenizer_config.json", "tokenizer configuration"),
    ],
)
def test_json_nested_beyond_reading(name: str, check: str, tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "deep", {name: b'{"a":' * 100_000})
    failed = _failed(folder)
    assert failed[check].startswith(f"{name} is not JSON")


def test_a_string_for_a_number(tiny_fp32: Path, tmp_path: Path) -> None:
    def say(model: onnx.ModelProto) -> None:
        attribute(nodes_of(model, "SkipSimplifiedLayerNormalization")[2], "epsilon", "abc")

    failed = _failed(edited(tiny_fp32, tmp_path / "edited", say))
    assert failed["epsilon"] == "cannot be looked at: ValueError: could not convert string to float: 'abc'"


def test_a_folder_that_lost_its_tokenizer(tiny_fp32: Path, tmp_path: Path) -> None:
    gone = dict.fromkeys(("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))
    failed = _failed(altered(tiny_fp32, tmp_path / "gone", gone))
    assert failed == {"tokenizer": "the folder has no tokenizer, the source had tokenizer.json, tokenizer.model"}


def test_two_ids_swapped(tiny_fp32: Path, tmp_path: Path) -> None:
    """No text of any slice needs them, and both files still cut alike."""
    content = swapped_ids((tiny_fp32 / "tokenizer.json").read_bytes())
    failed = _failed(altered(tiny_fp32, tmp_path / "swapped", {"tokenizer.json": content}))
    assert failed == {"tokenizer": "tokenizer.json is not the one that the weights came with"}


def test_without_a_configuration_graphs_are_not_looked_at(tiny_fp32: Path, tmp_path: Path) -> None:
    checks = _checks(altered(tiny_fp32, tmp_path / "edited", {"config.json": b"[]"}))
    assert checks["configuration"].message == "config.json: expected a JSON object, found list"
    assert checks["attention"].outcome == "skipped"
    assert checks["attention"].message == "config.json cannot be read"


def test_the_tokenizer_of_another_model(tiny_fp32: Path, tmp_path: Path) -> None:
    """Its ids all exist, and its two files disagree."""
    tokenizer = json.loads((tiny_fp32 / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][::2]
    content = json.dumps(tokenizer).encode()
    failed = _failed(altered(tiny_fp32, tmp_path / "merges", {"tokenizer.json": content}))
    assert failed["tokenizer"].startswith("tokenizer.json and tokenizer.model cut the same text differently")
    failed = _failed(altered(tiny_fp32, tmp_path / "broken", {"tokenizer.model": b"nothing"}))
    assert failed["tokenizer"].startswith("tokenizer.model cannot be read as a tokenizer")
    assert "is not the one that the weights came with" not in failed["tokenizer"]


def test_one_flipped_bit_is_found_by_its_hash(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "flipped", {})
    content = bytearray((folder / "onnx/model.onnx_data").read_bytes())
    content[7_000_000] ^= 1
    (folder / "onnx/model.onnx_data").write_bytes(content)
    failed = _failed(folder)
    assert list(failed) == ["hashes"]
    assert failed["hashes"].startswith("onnx/model.onnx_data was altered: expected SHA-256")


def test_files_that_are_not_the_manifests(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "missing", {})
    (folder / "onnx/model_all.onnx").unlink()
    checks = _checks(folder)
    assert checks["files"].message.startswith("onnx/model_all.onnx is missing")
    assert checks["twins"].outcome == checks["providers"].outcome == "skipped"


def test_weights_in_a_file_of_another_name(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "renamed", {})
    (folder / "onnx/model.onnx_data").rename(folder / "onnx/weights.bin")
    text = (folder / MANIFEST_FILE).read_text().replace("model.onnx_data", "weights.bin")
    (folder / MANIFEST_FILE).write_text(text)

    def rename(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "weights.bin"

    failed = _failed(edited(folder, tmp_path / "edited", rename))
    told = "onnx/model.onnx, {}: its data file is weights.bin, expected model.onnx_data"
    first = failed["data locations"].partition(", ")[2].partition(":")[0]
    assert failed["data locations"].startswith(told.format(first))


def test_more_files_than_the_manifest_lists_are_told(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "more", {})
    (folder / "notes.txt").write_text("mine")
    rewrite_manifest(folder)
    assert "not in the manifest: notes.txt" in _checks(folder)["files"].message


def test_every_graph_is_profiled_in_a_prompt_and_behind_a_cache(
    tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[int]] = {}
    step, end, in_place = ArtifactRunner.step, ArtifactRunner.end_profile, ArtifactRunner.step_in_place

    def told(runner: ArtifactRunner, ids: Any, mask: Any, past: Any = None) -> Step:
        seen.setdefault(runner.graph.role, []).append(0 if past is None else past[0].shape[2])
        return step(runner, ids, mask, past)

    def told_in_place(runner: ArtifactRunner, ids: Any, mask: Any, state: Any) -> Any:
        seen.setdefault(runner.graph.role, []).append(int(mask.sum()) - 1)
        return in_place(runner, ids, mask, state)

    def elsewhere(runner: ArtifactRunner) -> Path:
        """The profile as another provider would have left it behind a cache of the graph with all positions."""
        profile = end(runner)
        if runner.graph.role == "all":
            events = json.loads(profile.read_text(encoding="utf-8"))
            last = [event for event in events if event.get("args", {}).get("op_name") == "GroupQueryAttention"][-1]
            last["args"]["provider"] = "CUDAExecutionProvider"
            profile.write_text(json.dumps(events), encoding="utf-8")
        return profile

    monkeypatch.setattr(ArtifactRunner, "step", told)
    monkeypatch.setattr(ArtifactRunner, "step_in_place", told_in_place)
    manifest = read_manifest(tiny_fp32)
    assert check_providers(ProfiledSessions(tiny_fp32, manifest, provider="cpu")).outcome == "passed"
    assert seen == {graph.role: [0, 1] for graph in manifest.graphs}
    assert {"main", "all"} < set(seen)
    monkeypatch.setattr(ArtifactRunner, "end_profile", elsewhere)
    found = check_providers(ProfiledSessions(tiny_fp32, manifest, provider="cpu"))
    assert (found.outcome, found.message) == (
        "failed",
        "onnx/model_all.onnx: expected all nodes on CPUExecutionProvider, found 1 GroupQueryAttention on "
        "CUDAExecutionProvider",
    )


def test_a_twin_of_a_later_onnxruntime_is_left_out_and_named(tiny_fp32: Path) -> None:
    manifest = read_manifest(tiny_fp32)
    graphs = tuple(
        dataclasses.replace(graph, min_onnxruntime="99.0") if graph.role == "batched" else graph
        for graph in manifest.graphs
    )
    found = check_providers(ProfiledSessions(tiny_fp32, dataclasses.replace(manifest, graphs=graphs), provider="cpu"))
    assert (found.outcome, found.message.partition("; ")[2]) == (
        "passed",
        "not run by this onnxruntime: onnx/model_batched.onnx",
    )
    none = tuple(dataclasses.replace(graph, min_onnxruntime="99.0") for graph in manifest.graphs)
    with pytest.raises(ProviderUnavailableError, match=r"needs onnxruntime 99\.0"):
        check_providers(ProfiledSessions(tiny_fp32, dataclasses.replace(manifest, graphs=none), provider="cpu"))


def test_one_session_is_open_at_a_time(tiny_fp32: Path) -> None:
    sessions, token = ProfiledSessions(tiny_fp32, read_manifest(tiny_fp32), provider="cpu"), np.ones((1, 1), np.int64)
    first = sessions.open("all")
    assert sessions.open("all") is first
    other = sessions.open("main")
    assert other.graph.role == "main"
    with pytest.raises(AttributeError):
        # its memory has been given back
        first.step(token, token)
    other.step(token, token)
    sessions.close()
    sessions.open("all").step(token, token)


def test_nodes_elsewhere_than_asked_for() -> None:
    """No device is needed to judge a profile."""
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    good = judge_providers(Counter({(cuda, "MatMul"): 5, (cpu, "Shape"): 2}), "cuda")
    assert (good.outcome, good.message) == (
        "passed",
        f"5 nodes ran on {cuda}; beside it on the CPU, shapes and lengths: 2 Shape",
    )
    bad = judge_providers(Counter({(cuda, "MatMul"): 5, (cpu, "GroupQueryAttention"): 2}), "cuda")
    assert (bad.outcome, bad.message) == (
        "failed",
        f"expected all nodes on {cuda}, found 2 GroupQueryAttention on {cpu}",
    )
    assert judge_providers(Counter({(cpu, "Shape"): 2}), "cuda").message == (
        f"expected all nodes on {cuda}, found none there"
    )


def test_hashing_ends_with_an_interruption(tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for gigabytes that nobody will look at."""
    parts = []

    def endless(directory: Path, manifest: Manifest, advance: Callable[[int], None]) -> None:
        while True:
            time.sleep(0.001)
            advance(1)
            parts.append(1)

    def interrupted(*_: object) -> None:
        while not parts:
            time.sleep(0.001)
        raise KeyboardInterrupt

    monkeypatch.setattr("gemma_validation.structure.verify_hashes", endless)
    monkeypatch.setattr("gemma_validation.structure._files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_structure(tiny_fp32, read_manifest(tiny_fp32))
