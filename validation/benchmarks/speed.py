"""Decode and prefill speed and memory of 4- and 8-bit exports beside onnxruntime-genai and llama.cpp, in one run.

Every program makes its export of one synthetic checkpoint once, before the first round; the rounds only run them, whole
processes in turn. Each loads, prefills a prompt of random ids and decodes greedily, twice; the second time counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.exporters import QUIET, genai_program, importable, json_figures, llama_program
from benchmarks.harness import (
    INPUT,
    METRICS,
    OUTPUT,
    SCRATCH,
    Benchmark,
    Input,
    Metric,
    Program,
    Step,
    add_arguments,
    choose,
    read_settings,
    run_benchmark,
)
from benchmarks.synthetic_checkpoint import SHAPES, checkpoint_bytes, write_checkpoint

__all__ = ["main"]

_HERE = Path(__file__).resolve().parent
_PEERS = _HERE.parents[1] / ".peers"
_METRICS = {
    "decode": Metric(label="decode", unit="tok/s", better="higher", description="one token at a time, greedy"),
    "prefill": Metric(label="prefill", unit="tok/s", better="higher", description="the whole prompt in one step"),
    "peak_bytes": METRICS["peak_bytes"],
    "seconds": METRICS["seconds"],
}
# (name, options of gemma-export)
_OURS = (
    ("int4 (default)", "--int4"),
    ("int4 block 32", "--int4 --block-size 32"),
    ("int8", "--int8"),
    ("int8-dynamic", "--int8-dynamic --no-smoothing"),
    ("fp32", "--fp32"),
)
_SUBJECT = _OURS[0][0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Contestant:
    """An exporter whose output is made once, and the program that runs it in the rounds."""

    folder: str
    exporter: Program
    runner: Program


def main(arguments: list[str]) -> int:
    """Runs the benchmark and returns its exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks speed", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="2b", help="of the checkpoint (default: 2b)")
    parser.add_argument("--prompt", type=int, default=128, metavar="N", help="tokens of the prompt (default: 128)")
    parser.add_argument("--new", type=int, default=64, metavar="N", help="tokens to decode (default: 64)")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", default=_PEERS, help="environments of `make peers` (default: .peers)"
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    settings = read_settings(options)
    lengths = (str(options.prompt), str(options.new))
    peers = options.peers.resolve()
    contestants = [*_ours(lengths), *_genai(peers, lengths), *_llama(peers, lengths)]
    programs = tuple(contestant.runner for contestant in contestants)
    kept = choose(programs, settings)
    chosen = [contestant for contestant in contestants if contestant.runner in kept]
    shape = SHAPES[options.shape]
    benchmark = Benchmark(
        name=f"speed-{options.shape}",
        title=f"Generation on the CPU, {options.shape} shape: a prompt of {options.prompt} tokens, {options.new} new",
        subject=_SUBJECT,
        programs=programs,
        input=Input(
            name=f"speed-{options.shape}",
            # int4 exports are a third of the checkpoint, int8 half, float32 twice
            nbytes=3 * checkpoint_bytes(shape),
            make=functools.partial(_make_exports, shape=options.shape, contestants=chosen),
        ),
        options={"shape": options.shape, "prompt": options.prompt, "new": options.new},
        metrics=_METRICS,
    )
    return run_benchmark(benchmark, settings)


def _make_exports(directory: Path, *, shape: str, contestants: list[_Contestant]) -> None:
    """Every export; one that fails is told and its runner will have no figures."""
    checkpoint, scratch = directory / "checkpoint", directory / "scratch"
    write_checkpoint(checkpoint, shape=SHAPES[shape])
    for contestant in contestants:
        output = directory / contestant.folder
        output.mkdir()
        folders = {INPUT: str(checkpoint), OUTPUT: str(output), SCRATCH: str(scratch)}
        for step in contestant.exporter.steps:
            scratch.mkdir(exist_ok=True)
            command = [
                functools.reduce(lambda text, item: text.replace(*item), folders.items(), part) for part in step.command
            ]
            print(f"making {contestant.runner.name}: {step.name}", file=sys.stderr, flush=True)
            environment = {**os.environ, **contestant.exporter.environment}
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=scratch)
            except (OSError, subprocess.CalledProcessError) as error:
                said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
                print(f"cannot make {contestant.runner.name}: {' '.join(said)}", file=sys.stderr)
                break
        shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(checkpoint)


def _filled(text: str, folders: Mapping[str, str]) -> str:
    for name, folder in folders.items():
        text = text.replace(name, folder)
    return text


def _ours(lengths: tuple[str, str]) -> list[_Contestant]:
    found = []
    for name, options in _OURS:
        folder = name.translate(str.maketrans(" ()", "___"))
        export = (sys.executable, "-m", "gemma_export", "--checkpoint", INPUT, *options.split())
        exporter = Program(
            name=name,
            note=f"gemma-export {options}",
            steps=(Step(name="export", command=(*export, "--force", "--output", f"{OUTPUT}/folder")),),
            python=Path(sys.executable),
            packages=("gemma-export", "onnxruntime", "numpy"),
            install="make test installs it",
            environment=importable(),
        )
        script = (sys.executable, str(_HERE / "decode_speed.py"), f"{INPUT}/{folder}/folder", *lengths)
        found.append(_contestant(folder, exporter, script))
    return found


def _genai(peers: Path, lengths: tuple[str, str]) -> list[_Contestant]:
    exporter = genai_program(
        "onnxruntime-genai int4", "its builder's int4, block 32", peers, options=("-p", "int4", "-e", "cpu")
    )
    script = (str(peers / "genai/bin/python"), str(_HERE / "peers/genai_speed.py"), f"{INPUT}/genai", *lengths)
    return [_contestant("genai", exporter, script)]


def _llama(peers: Path, lengths: tuple[str, str]) -> list[_Contestant]:
    found = []
    for name, kind in (("llama.cpp Q4_0", "q4_0"), ("llama.cpp Q4_K_M", "q4_k_m"), ("llama.cpp Q8_0", "q8_0")):
        exporter = llama_program(name, f"quantised to {kind.upper()}", peers, quantisation=kind)
        model = f"{INPUT}/{kind}/model-{kind}.gguf"
        script = (str(peers / "llama/bin/python"), str(_HERE / "peers/gguf_speed.py"), model, *lengths)
        found.append(_contestant(kind, exporter, script))
    return found


def _contestant(folder: str, exporter: Program, script: tuple[str, ...]) -> _Contestant:
    runner = dataclasses.replace(
        exporter,
        steps=(Step(name="generate", command=script),),
        environment=QUIET | importable(),
        disk_factor=0.1,
        read_values=json_figures,
    )
    return _Contestant(folder=folder, exporter=exporter, runner=runner)
