"""The programs of the speed benchmark, as data: who exports what once, and what runs it in the rounds."""

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
from benchmarks.harness import INPUT, OUTPUT, Program, Step

__all__ = ["CHECKPOINT", "SUBJECT", "Contestant", "Lengths", "contestants"]

# of the input folder: what exporters read, and what PyTorch runs
CHECKPOINT = "checkpoint"

_HERE = Path(__file__).resolve().parent
# (name, options of gemma-export, bytes of the export as a multiple of the bfloat16 checkpoint's)
_OURS = (
    ("int4 (default)", "--int4", 0.3),
    ("int4 block 256", "--int4 --block-size 256", 0.3),
    ("int4 block 32", "--int4 --block-size 32", 0.33),
    ("int4 block 32 symmetric", "--int4 --block-size 32 --symmetric", 0.33),
    ("int4 fp16", "--int4 --fp16", 0.3),
    ("int4 block 32 fp16", "--int4 --block-size 32 --fp16", 0.3),
    ("int4 block 32 symmetric fp16", "--int4 --block-size 32 --symmetric --fp16", 0.3),
    ("int4 table 8 bits fp16", "--int4 --embedding-bits 8 --fp16", 0.33),
    (
        "int4 block 64 symmetric table 8 bits fp16",
        "--int4 --block-size 64 --symmetric --embedding-bits 8 --fp16",
        0.33,
    ),
    ("int4 block 32 table 8 bits fp16", "--int4 --block-size 32 --embedding-bits 8 --fp16", 0.36),
    ("int8", "--int8", 0.6),
    ("int8 fp16", "--int8 --fp16", 0.6),
    ("int8-dynamic", "--int8-dynamic --no-smoothing", 0.6),
    ("fp16", "--fp16", 1.1),
    ("fp32", "--fp32", 2.1),
)
SUBJECT = _OURS[0][0]
_LLAMA = (("llama.cpp Q4_0", "q4_0", 0.4), ("llama.cpp Q4_K_M", "q4_k_m", 0.4), ("llama.cpp Q8_0", "q8_0", 0.6))
_TORCH = (("PyTorch bf16", "bfloat16"), ("PyTorch fp32", "float32"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """In tokens: prompts to read, contexts to decode behind, and how many to decode."""

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    new: int

    @property
    def arguments(self) -> tuple[str, ...]:
        """As every runner takes them (benchmarks.speed_protocol)."""
        return (",".join(map(str, self.prompts)), ",".join(map(str, self.contexts)), str(self.new))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """A program of the rounds, and the exporter that makes what it runs: none where it runs the checkpoint."""

    runner: Program
    # folder of the input that it runs
    folder: str
    exporter: Program | None
    # bytes of that folder as a multiple of the checkpoint's
    size: float


def contestants(peers: Path, lengths: Lengths) -> tuple[Contestant, ...]:
    """Ours first.

    Args:
        peers: folder of the environments that `make peers` installs.
        lengths: what each of them runs.
    """
    return (
        *_ours(lengths),
        *_genai(peers, lengths),
        _openvino(peers, lengths),
        *_llama(peers, lengths),
        *_torch(lengths),
    )


def _ours(lengths: Lengths) -> list[Contestant]:
    found = []
    for name, options, size in _OURS:
        folder = name.translate(str.maketrans(" ()", "___"))
        export = (sys.executable, "-m", "gemma_export", "--checkpoint", INPUT, *options.split(), *fixed_scale(options))
        exporter = Program(
            name=name,
            note=f"gemma-export {options}",
            steps=(Step(name="export", command=(*export, "--force", "--output", f"{OUTPUT}/folder")),),
            python=Path(sys.executable),
            packages=("gemma-export", "onnxruntime", "numpy"),
            install="make test installs it",
            environment=importable(),
        )
        script = (sys.executable, str(_HERE / "decode_speed.py"), f"{INPUT}/{folder}/folder", *lengths.arguments)
        found.append(_contestant(folder, size, exporter, script))
    return found


def _genai(peers: Path, lengths: Lengths) -> list[Contestant]:
    found = []
    for name, options in GENAI_INT4:
        exporter = genai_program(name, f"its builder's {options}", peers, options=tuple(options.split()))
        folder = name.replace(" ", "_")
        script = (str(exporter.python), str(_HERE / "peers/genai_speed.py"), f"{INPUT}/{folder}", *lengths.arguments)
        found.append(_contestant(folder, 0.4, exporter, script))
    return found


def _openvino(peers: Path, lengths: Lengths) -> Contestant:
    exporter = openvino_program("OpenVINO int4", "int4", peers, more_packages=("openvino-genai",))
    script = (str(exporter.python), str(_HERE / "peers/openvino_speed.py"), f"{INPUT}/openvino", *lengths.arguments)
    return _contestant("openvino", 0.4, exporter, script)


def _llama(peers: Path, lengths: Lengths) -> list[Contestant]:
    found = []
    for name, kind, size in _LLAMA:
        exporter = llama_program(name, f"quantised to {kind.upper()}", peers, quantisation=kind)
        model = f"{INPUT}/{kind}/model-{kind}.gguf"
        script = (str(exporter.python), str(_HERE / "peers/gguf_speed.py"), model, *lengths.arguments)
        found.append(_contestant(kind, size, exporter, script))
    return found


def _torch(lengths: Lengths) -> list[Contestant]:
    found = []
    for name, dtype in _TORCH:
        script = (sys.executable, str(_HERE / "peers/torch_speed.py"), f"{INPUT}/{CHECKPOINT}", *lengths.arguments)
        runner = Program(
            name=name,
            note=f"transformers in {dtype}, uncompiled",
            steps=(Step(name="generate", command=(*script, dtype)),),
            python=Path(sys.executable),
            packages=("torch", "transformers", "numpy"),
            install="make test installs it",
        )
        found.append(Contestant(runner=_running(runner, CHECKPOINT), folder=CHECKPOINT, exporter=None, size=0.0))
    return found


def _contestant(folder: str, size: float, exporter: Program, script: tuple[str, ...]) -> Contestant:
    runner = dataclasses.replace(exporter, steps=(Step(name="generate", command=script),))
    return Contestant(runner=_running(runner, folder), folder=folder, exporter=exporter, size=size)


def _running(program: Program, folder: str) -> Program:
    """The program as one that prints figures and leaves nothing."""
    return dataclasses.replace(
        program,
        environment=QUIET | dict(program.environment),
        disk_factor=0.01,
        read_values=json_figures,
        reads=(folder,),
    )
