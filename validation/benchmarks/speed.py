"""Speed and memory of generation beside onnxruntime-genai, OpenVINO GenAI, llama.cpp and PyTorch, in one run.

Every program makes its export of one synthetic checkpoint once, before the first round; the rounds only run them, whole
processes in turn. Each loads, reads prompts of random ids (a new one each time) and decodes greedily behind some.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import (
    INPUT,
    METRICS,
    OUTPUT,
    SCRATCH,
    Benchmark,
    Input,
    Metric,
    Program,
    add_arguments,
    choose,
    read_settings,
    run_benchmark,
)
from benchmarks.harness.probe import run_environment
from benchmarks.speed_programs import CHECKPOINT, SUBJECT, Contestant, Lengths, contestants
from benchmarks.speed_protocol import FIRST_PROMPT
from benchmarks.synthetic_checkpoint import SHAPES, checkpoint_bytes, write_checkpoint
from gemma_export.errors import UsageError

__all__ = ["main"]

_PEERS = Path(__file__).resolve().parents[2] / ".peers"
# the checkpoint, and the largest intermediate file of an exporter, both in 16 bits
_WITHOUT_EXPORTS = 2.2


def main(arguments: list[str]) -> int:
    """Runs the benchmark and returns its exit code."""
    options = _parser().parse_args(arguments)
    settings = read_settings(options)
    lengths = Lengths(prompts=options.prompts, contexts=options.contexts, new=options.new)
    known = contestants(options.peers.resolve(), lengths)
    programs = tuple(contestant.runner for contestant in known)
    if options.subject not in {program.name for program in programs}:
        raise UsageError(
            f"no program {options.subject!r}", hint=f"There are: {', '.join(program.name for program in programs)}."
        )
    kept = choose(programs, settings)
    chosen = [contestant for contestant in known if contestant.runner in kept]
    shape = SHAPES[options.shape]
    factor = _WITHOUT_EXPORTS + sum(contestant.size for contestant in chosen)
    benchmark = Benchmark(
        name=f"speed-{options.shape}",
        title=f"Generation on the CPU, {options.shape} shape, {lengths.new} new tokens behind each context",
        subject=options.subject,
        programs=programs,
        input=Input(
            name=f"speed-{options.shape}",
            nbytes=int(factor * checkpoint_bytes(shape)),
            make=functools.partial(_make_exports, shape=options.shape, chosen=chosen),
        ),
        options={"shape": options.shape, "prompts": lengths.prompts, "contexts": lengths.contexts, "new": lengths.new},
        metrics=_metrics(lengths),
    )
    return run_benchmark(benchmark, settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks speed", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="2b", help="of the checkpoint (default: 2b)")
    parser.add_argument(
        "--prompts", type=_lengths, default=(128, 512), metavar="N,...", help="prompt lengths (default: 128,512)"
    )
    parser.add_argument(
        "--contexts", type=_lengths, default=(128, 4096), metavar="N,...", help="to decode behind (default: 128,4096)"
    )
    parser.add_argument("--new", type=int, default=64, metavar="N", help="tokens to decode there (default: 64)")
    parser.add_argument(
        "--subject", default=SUBJECT, metavar="NAME", help=f"whom the others are compared with (default: {SUBJECT})"
    )
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", default=_PEERS, help="environments of `make peers` (default: .peers)"
    )
    add_arguments(parser)
    return parser


def _lengths(text: str) -> tuple[int, ...]:
    lengths = tuple(sorted({int(part) for part in text.split(",")}))
    if lengths[0] < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return lengths


def _metrics(lengths: Lengths) -> dict[str, Metric]:
    rate = functools.partial(Metric, unit="tok/s", better="higher")
    time = functools.partial(Metric, unit="s", better="lower")
    found = {
        f"decode_{context}": rate(
            label=f"decode at {context}", description=f"one token at a time, greedy, behind {context} tokens"
        )
        for context in lengths.contexts
    }
    for length in sorted({*lengths.prompts, *lengths.contexts}):
        found[f"prefill_{length}"] = rate(
            label=f"prefill {length}",
            description=f"a prompt of {length} tokens, read from nothing",
            headline=length in lengths.prompts,
        )
    first = f"from nothing, imports included, to the first token behind a prompt of {FIRST_PROMPT}"
    found["first_token"] = time(label="first token", description=first)
    found["load"] = time(label="load", description="from nothing, imports included, to a model", headline=False)
    found["peak_bytes"] = METRICS["peak_bytes"]
    return found


def _make_exports(directory: Path, *, shape: str, chosen: Sequence[Contestant]) -> None:
    """Every export; one that fails is told and its runner will have no figures."""
    checkpoint, scratch = directory / CHECKPOINT, directory / "scratch"
    write_checkpoint(checkpoint, shape=SHAPES[shape])
    for contestant in chosen:
        if contestant.exporter is None:
            continue
        output = directory / contestant.folder
        output.mkdir()
        _export(contestant.exporter, {INPUT: str(checkpoint), OUTPUT: str(output), SCRATCH: str(scratch)})
        shutil.rmtree(scratch, ignore_errors=True)
    if all(contestant.folder != CHECKPOINT for contestant in chosen):
        shutil.rmtree(checkpoint)


def _export(exporter: Program, folders: dict[str, str]) -> None:
    for step in exporter.steps:
        Path(folders[SCRATCH]).mkdir(exist_ok=True)
        command = [functools.reduce(lambda text, item: text.replace(*item), folders.items(), p) for p in step.command]
        print(f"making {exporter.name}: {step.name}", file=sys.stderr, flush=True)
        environment = run_environment(exporter)
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=folders[SCRATCH])
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            print(f"cannot make {exporter.name}: {' '.join(said)}", file=sys.stderr)
            return
