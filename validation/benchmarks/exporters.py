"""The programs of the export benchmark, as data: ours and three peers, each in an environment of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import INPUT, OUTPUT, SCRATCH, Need, Program, Step

__all__ = [
    "GENAI_INT4",
    "PRECISIONS",
    "QUIET",
    "SUBJECT",
    "exporters",
    "fixed_scale",
    "genai_program",
    "importable",
    "json_figures",
    "llama_program",
    "openvino_program",
]

PRECISIONS = ("fp16", "int4")
# layouts of 4 bits that onnxruntime-genai's builder is compared in: name, its options
GENAI_INT4 = (
    ("onnxruntime-genai int4", "-p int4 -e cpu"),
    ("onnxruntime-genai int4 block 128", "-p int4 -e cpu --extra_options block_size=128"),
    ("onnxruntime-genai int4 k_quant", "-p int4 -e cpu --extra_options algo_config=k_quant"),
)
SUBJECT = "gemma-export"

_HERE = Path(__file__).resolve().parent
# nothing is downloaded or reported while a clock runs; CI=true keeps OpenVINO's telemetry from forking senders
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1", "CI": "true"}


def exporters(precision: str, peers: Path) -> tuple[Program, ...]:
    """All programs for a precision, ours first.

    Args:
        precision: one of PRECISIONS.
        peers: folder of the environments that `make peers` installs.
    """
    return (
        _gemma_export(precision),
        _genai(precision, peers),
        openvino_program("OpenVINO", precision, peers),
        _llama(precision, peers),
    )


def importable() -> dict[str, str]:
    """Environment in which a source tree that is not installed stays importable."""
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}


def fixed_scale(options: str) -> tuple[str, ...]:
    """The residual scale that known variants take: unknown checkpoints are measured first, which no peer does."""
    return ("--residual-scale", "6") if "fp16" in options else ()


def json_figures(stdout: str) -> Mapping[str, float]:
    """Figures that a step prints as its last line."""
    figures: dict[str, float] = json.loads(stdout.splitlines()[-1])
    return figures


def _gemma_export(precision: str) -> Program:
    program = (sys.executable, "-m", "gemma_export")
    flag = f"--{precision}"
    return Program(
        name=SUBJECT,
        note=f"{precision} ONNX for onnxruntime, float16 activations" if precision == "fp16" else "4-bit ONNX",
        steps=(
            Step(
                name="export",
                command=(
                    *program,
                    "--checkpoint",
                    INPUT,
                    flag,
                    *fixed_scale(flag),
                    "--output",
                    f"{OUTPUT}/folder",
                    "--json",
                ),
            ),
        ),
        python=Path(sys.executable),
        packages=("gemma-export", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy"),
        install="make test installs it",
        needs=(Need(missing=f"this gemma-export has no {flag}", command=(*program, "--help"), contains=flag),),
        environment=importable(),
        disk_factor=1.2,
    )


def _genai(precision: str, peers: Path) -> Program:
    # the builder has no float16 graph for its CPU provider: with -e cpu it writes float32
    provider = {"fp16": "cuda", "int4": "cpu"}[precision]
    note = {
        "fp16": "onnxruntime_genai.models.builder -p fp16 -e cuda, ONNX with an LM head of its own",
        "int4": "onnxruntime_genai.models.builder -p int4 -e cpu, block 32, round to nearest",
    }[precision]
    return genai_program("onnxruntime-genai", note, peers, options=("-p", precision, "-e", provider))


def genai_program(
    name: str,
    note: str,
    peers: Path,
    *,
    options: tuple[str, ...],
    checkpoint: str = INPUT,
    more: tuple[Step, ...] = (),
) -> Program:
    """onnxruntime-genai's builder with some options, from a checkpoint to OUTPUT; then further steps."""
    python = peers / "genai/bin/python"
    builder = (str(python), "-m", "onnxruntime_genai.models.builder")
    command = (*builder, "-i", checkpoint, "-o", OUTPUT, "-c", SCRATCH, *options)
    return Program(
        name=name,
        note=note,
        steps=(Step(name="build", command=command), *more),
        python=python,
        packages=("onnxruntime-genai", "onnxruntime", "onnx-ir", "torch", "transformers"),
        install="make peer-genai installs it",
        environment=QUIET,
        disk_factor=3.0,
    )


def openvino_program(
    name: str,
    precision: str,
    peers: Path,
    *,
    more_packages: tuple[str, ...] = (),
    checkpoint: str = INPUT,
    more: tuple[Step, ...] = (),
) -> Program:
    """optimum-intel's export for OpenVINO, from a checkpoint to OUTPUT; then further steps.

    Args:
        name: of the program.
        precision: one of PRECISIONS.
        peers: folder of the environments that `make peers` installs.
        more_packages: further ones whose versions count.
        checkpoint: its folder.
        more: steps behind the export.
    """
    format_options = {
        "fp16": ("--weight-format", "fp16"),
        "int4": ("--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0"),
    }[precision]
    environment = peers / "openvino/bin"
    command = (str(environment / "optimum-cli"), "export", "openvino", "--model", checkpoint)
    return Program(
        name=name,
        note=f"optimum-cli export openvino {' '.join(format_options)}, tokenizer converted too",
        steps=(
            Step(name="export", command=(*command, "--task", "text-generation-with-past", *format_options, OUTPUT)),
            *more,
        ),
        python=environment / "python",
        packages=("optimum-intel", "openvino", "nncf", "torch", "transformers", *more_packages),
        install="make peer-openvino installs it",
        environment=QUIET,
        disk_factor=3.0,
    )


def _llama(precision: str, peers: Path) -> Program:
    if precision == "fp16":
        return llama_program("llama.cpp", "convert_hf_to_gguf.py --outtype f16", peers)
    note = "convert_hf_to_gguf.py --outtype f16, then quantised to Q4_0 (embedding: 6 bits)"
    return llama_program("llama.cpp", note, peers, quantisation="q4_0")


def llama_program(
    name: str,
    note: str,
    peers: Path,
    *,
    quantisation: str | None = None,
    checkpoint: str = INPUT,
    more: tuple[Step, ...] = (),
) -> Program:
    """llama.cpp's converter, and its quantiser where asked for, from a checkpoint to OUTPUT; then further steps."""
    python = peers / "llama/bin/python"
    script = peers / "llama/source/vendor/llama.cpp/convert_hf_to_gguf.py"
    half = f"{OUTPUT}/model-f16.gguf" if quantisation is None else f"{SCRATCH}/model-f16.gguf"
    converter = (str(python), str(script), checkpoint, "--outtype", "f16", "--outfile", half)
    steps = [Step(name="convert", command=converter)]
    needs = [Need(missing="the converter's source is not there; make peer-llama brings it", file=script)]
    if quantisation is not None:
        target = f"{OUTPUT}/model-{quantisation}.gguf"
        quantise = (str(python), str(_HERE / "peers/quantise_gguf.py"), half, target, quantisation)
        steps.append(Step(name="quantise", command=quantise))
        needs.append(
            Need(
                missing="its quantiser is not built; make peer-llama-quantiser builds it (minutes)",
                command=(str(python), "-c", "import llama_cpp"),
            )
        )
    return Program(
        name=name,
        note=note,
        steps=(*steps, *more),
        python=python,
        packages=("torch", "transformers", "sentencepiece", "numpy"),
        install="make peer-llama installs it",
        needs=tuple(needs),
        metadata=(peers / "llama/source/PKG-INFO",),
        environment=QUIET,
        disk_factor=1.5,
    )
