"""What an export knows, as the manifest says it."""

from __future__ import annotations

import dataclasses
import importlib.metadata

import onnx_ir as ir
import pytest

from gemma_export import __version__
from gemma_export.artifact import manifest as module
from gemma_export.artifact.manifest import build_manifest, hashed_adapter, hashed_source
from gemma_export.artifact.writer import GraphFile
from gemma_export.config import CacheState, DecoderSpec, Rotary
from gemma_runtime.manifest import (
    AdapterSource,
    FileEntry,
    Generator,
    Graph,
    Manifest,
    Precision,
    SourceFile,
    State,
    parse_manifest,
)

# every number differs, so that none can stand for another
SPEC = DecoderSpec(
    family="gemma",
    vocab_size=11,
    hidden_size=12,
    intermediate_size=13,
    num_hidden_layers=2,
    num_attention_heads=15,
    num_key_value_heads=3,
    head_dim=17,
    rms_norm_eps=1e-6,
    attention_scale=17**-0.5,
    attention_softcap=0.0,
    final_softcap=0.0,
    windows=(0, 0),
    rotary=Rotary(theta=10000.0, factor=1.0),
    local_rotary=Rotary(theta=10000.0, factor=1.0),
    post_norms=False,
    qk_norm=False,
    computes_rotary=False,
    max_position_embeddings=18,
    tie_word_embeddings=True,
    bos_token_id=2,
    eos_token_ids=(1,),
    pad_token_id=0,
)
SOURCE = hashed_source(
    kind="hub",
    repository="google/gemma-2b",
    revision="0" * 40,
    name=None,
    seed=None,
    generator_version=None,
    files=[("b.safetensors", 7, "b" * 64), ("a.safetensors", 9, "a" * 64)],
    adapter=hashed_adapter(
        repository="someone/lora",
        revision="1" * 40,
        name=None,
        ranks=[4, 8],
        files=[("d", 3, "d" * 64), ("c", 2, "c" * 64)],
    ),
)
FILES = [
    FileEntry(path="onnx/model_fp16.onnx", size=1, sha256="1" * 64, kind="graph"),
    FileEntry(path="onnx/model_fp16.onnx_data", size=2, sha256="2" * 64, kind="data"),
    FileEntry(path="onnx/model_fp16_all.onnx", size=3, sha256="3" * 64, kind="graph"),
    FileEntry(path="onnx/model_fp16_windowed.onnx", size=4, sha256="4" * 64, kind="graph"),
]


def build() -> Manifest:
    model = ir.Model(ir.Graph([], [], nodes=[], name="empty"), ir_version=10)
    return build_manifest(
        graphs=[
            GraphFile(role="main", file="onnx/model_fp16.onnx", logits="last", model=model),
            GraphFile(role="last8", file="onnx/model_fp16_all.onnx", logits=8, model=model),
            GraphFile(role="windowed", file="onnx/model_fp16_windowed.onnx", logits="last", model=model),
        ],
        files=FILES,
        data_file="onnx/model_fp16.onnx_data",
        spec=SPEC,
        states=[
            CacheState(
                kind="attention",
                layer=layer,
                past_names=(f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"),
                present_names=(f"present.{layer}.key", f"present.{layer}.value"),
                num_heads=3,
                head_dim=17,
                # the second layer sees everything
                window=(5, 0)[layer],
            )
            for layer in range(2)
        ],
        variant="2b",
        source=SOURCE,
        target="ort",
        opset=21,
        cache_layout="compacted",
        providers=("cpu", "cuda"),
        rows={"main": "batch_size", "last8": 1, "windowed": "batch_size"},
        chunks={"main": "batched", "last8": "single", "windowed": "none"},
        # by number, not by text
        min_onnxruntime={"main": "1.24", "last8": "1.9", "windowed": "1.29"},
        windowed={"windowed"},
        cache_bytes={"main": 4000, "last8": 4000, "windowed": 2005},
        precision="fp16",
        activation_dtype="float16",
        weight_dtype="bfloat16",
        state_dtype="int8",
        options={"headroom": 2},
    )


def test_every_field() -> None:
    states = tuple(
        State(
            layer=layer,
            kind="attention",
            past=(f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"),
            present=(f"present.{layer}.key", f"present.{layer}.value"),
            shape=("batch_size", 3, "past_sequence_length", 17),
            # of the cache: what the graph computes in
            dtype="int8",
            window=(5, 0)[layer],
        )
        for layer in range(2)
    )
    common = {
        "opset": 21,
        "inputs": ("input_ids", "attention_mask"),
        "data_files": ("onnx/model_fp16.onnx_data",),
    }
    # of the layers of a windowed graph those with a window say so
    windowed = (dataclasses.replace(states[0], shape=("batch_size", 3, "window_capacity", 17)), states[1])
    # a graph of one row says so
    single = tuple(dataclasses.replace(state, shape=(1, *state.shape[1:])) for state in states)
    found = build()
    assert found == Manifest(
        variant="2b",
        family="gemma",
        source=SOURCE,
        target="ort",
        precision=Precision(name="fp16", activation_dtype="float16", weight_dtype="bfloat16", options={"headroom": 2}),
        providers=("cpu", "cuda"),
        # the folder runs where one of its graphs does
        min_onnxruntime="1.9",
        cache_layout="compacted",
        context_length=18,
        vocab_size=11,
        graphs=(
            Graph(
                file="onnx/model_fp16.onnx",
                role="main",
                logits="last",
                chunks="batched",
                min_onnxruntime="1.24",
                cache_bytes=4000,
                state=states,
                **common,  # type: ignore[arg-type]
            ),
            Graph(
                file="onnx/model_fp16_all.onnx",
                role="last8",
                logits=8,
                chunks="single",
                min_onnxruntime="1.9",
                cache_bytes=4000,
                state=single,
                **common,  # type: ignore[arg-type]
            ),
            Graph(
                file="onnx/model_fp16_windowed.onnx",
                role="windowed",
                logits="last",
                chunks="none",
                min_onnxruntime="1.29",
                cache_bytes=2005,
                state=windowed,
                **common,  # type: ignore[arg-type]
            ),
        ),
        files=tuple(FILES),
        generator=found.generator,
    )


def test_the_runtime_reads_it_back() -> None:
    assert parse_manifest(build().to_json()) == build()


def test_source_files_are_sorted() -> None:
    assert SOURCE.files == (
        SourceFile(name="a.safetensors", size=9, sha256="a" * 64),
        SourceFile(name="b.safetensors", size=7, sha256="b" * 64),
    )


def test_the_adapter_of_a_source() -> None:
    assert SOURCE.adapter == AdapterSource(
        repository="someone/lora",
        revision="1" * 40,
        name=None,
        ranks=(4, 8),
        files=(SourceFile(name="c", size=2, sha256="c" * 64), SourceFile(name="d", size=3, sha256="d" * 64)),
    )


def test_versions_of_what_decides_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = build().generator
    assert found.version == __version__
    assert found.packages["onnx"] == importlib.metadata.version("onnx")
    assert {"numpy", "onnx", "onnx-ir", "torch"} <= found.packages.keys()
    monkeypatch.setattr(module, "_PACKAGES", ("onnx", "no-such-package-anywhere"))
    assert build().generator == Generator(version=__version__, packages={"onnx": found.packages["onnx"]})
