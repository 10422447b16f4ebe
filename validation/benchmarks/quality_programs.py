"""The programs of the quality benchmark, as data: every precision of ours, and peers at theirs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from benchmarks.exporters import (
    GENAI_INT4,
    QUIET,
    fixed_scale,
    genai_program,
    importable,
    json_figures,
    llama_program,
    openvino_program,
)
from benchmarks.harness import INPUT, OUTPUT, SCRATCH, Program, Step

__all__ = ["IDS", "REFERENCE", "quality_programs"]

# of the input folder, beside the checkpoint
IDS, REFERENCE = "ids.npy", "reference.npy"

_HERE = Path(__file__).resolve().parent
_CHECKPOINT = f"{INPUT}/checkpoint"
# (name, options of gemma-export)
_OURS = (
    ("int4 (default)", "--int4"),
    ("fp32", "--fp32"),
    ("fp16", "--fp16"),
    ("int8", "--int8"),
    ("int8 + fp16", "--int8 --fp16"),
    ("int8-dynamic", "--int8-dynamic"),
    ("int4 + fp16", "--int4 --fp16"),
    ("int4 rtn", "--int4 --quantizer rtn"),
    ("int4 rtn block 32 symmetric", "--int4 --quantizer rtn --block-size 32 --symmetric"),
    ("int4 block 32", "--int4 --block-size 32"),
    ("int4 block 256", "--int4 --block-size 256"),
    ("int4 search block 32 symmetric", "--int4 --block-size 32 --symmetric"),
    ("int4 activation-aware", "--int4 --activation-aware"),
    ("int4 gptq", "--int4 --quantizer gptq"),
    ("int4 gptq activation-aware", "--int4 --quantizer gptq --activation-aware"),
    ("int4 gptq block 32 symmetric + fp16", "--int4 --quantizer gptq --block-size 32 --symmetric --fp16"),
    ("int4 gptq block 32 + fp16", "--int4 --quantizer gptq --block-size 32 --fp16"),
    ("int4 gptq table 8 bits + fp16", "--int4 --quantizer gptq --embedding-bits 8 --fp16"),
    (
        "int4 gptq block 64 symmetric table 8 bits + fp16",
        "--int4 --quantizer gptq --block-size 64 --symmetric --embedding-bits 8 --fp16",
    ),
    (
        "int4 gptq block 32 table 8 bits + fp16",
        "--int4 --quantizer gptq --block-size 32 --embedding-bits 8 --fp16",
    ),
)
_LLAMA = (("llama.cpp Q4_0", "q4_0"), ("llama.cpp Q4_K_M", "q4_k_m"), ("llama.cpp Q8_0", "q8_0"))


def quality_programs(peers: Path) -> tuple[Program, ...]:
    """All programs, ours first; the last step of each prints its figures.

    Args:
        peers: folder of the environments that `make peers` installs.
    """
    return (
        *(_gemma_export(name, options) for name, options in _OURS),
        *(_genai(name, options, peers) for name, options in GENAI_INT4),
        _openvino(peers),
        *(_llama(name, kind, peers) for name, kind in _LLAMA),
    )


def _gemma_export(name: str, options: str) -> Program:
    export = (
        sys.executable,
        "-m",
        "gemma_export",
        "--checkpoint",
        _CHECKPOINT,
        *options.split(),
        *fixed_scale(options),
    )
    return Program(
        name=name,
        note=f"gemma-export {options}",
        steps=(
            Step(name="export", command=(*export, "--output", f"{OUTPUT}/folder")),
            _compare(f"{OUTPUT}/folder"),
        ),
        python=Path(sys.executable),
        packages=("gemma-export", "torch", "onnxruntime"),
        install="make test installs it",
        environment=importable(),
        disk_factor=4.0,
        read_values=json_figures,
    )


def _genai(name: str, options: str, peers: Path) -> Program:
    return _comparing(
        genai_program(
            name,
            f"onnxruntime_genai.models.builder {options}",
            peers,
            options=tuple(options.split()),
            checkpoint=_CHECKPOINT,
            more=(_compare(f"{OUTPUT}/model.onnx"),),
        )
    )


def _openvino(peers: Path) -> Program:
    logits, model = f"{SCRATCH}/logits.npy", f"{OUTPUT}/openvino_model.xml"
    script = str(_HERE / "peers/openvino_logits.py")
    run = (str(peers / "openvino/bin/python"), script, model, f"{INPUT}/{IDS}", logits)
    more = (Step(name="run", command=run), _compare(logits))
    return _comparing(openvino_program("OpenVINO int4", "int4", peers, checkpoint=_CHECKPOINT, more=more))


def _llama(name: str, kind: str, peers: Path) -> Program:
    logits, model = f"{SCRATCH}/logits.npy", f"{OUTPUT}/model-{kind}.gguf"
    run = (str(peers / "llama/bin/python"), str(_HERE / "peers/gguf_logits.py"), model, f"{INPUT}/{IDS}", logits)
    return _comparing(
        llama_program(
            name,
            f"convert_hf_to_gguf.py, quantised to {kind.upper()}, run by llama.cpp",
            peers,
            quantisation=kind,
            checkpoint=_CHECKPOINT,
            more=(Step(name="run", command=run), _compare(logits)),
        )
    )


def _compare(subject: str) -> Step:
    script = (sys.executable, str(_HERE / "compare_logits.py"))
    return Step(name="compare", command=(*script, subject, INPUT))


def _comparing(program: Program) -> Program:
    """The program with our figures read from its last step."""
    return dataclasses.replace(program, environment=QUIET | importable(), read_values=json_figures)
