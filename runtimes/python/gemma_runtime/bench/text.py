"""A benchmark for people and for machines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

from gemma_runtime.bench.found import Benchmark, Memory
from gemma_runtime.bench.operators import OperatorProfile
from gemma_runtime.bench.spread import Spread

__all__ = ["benchmark_json", "benchmark_text"]

_SCHEMA_VERSION = 1
# operators below this share of a step are added up in one line
_SMALL_SHARE = 0.01
# of all packages, those that decide the speed
_RUNTIMES = ("python", "gemma-export", "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")


def benchmark_json(found: Benchmark) -> str:
    """See schemas/bench.schema.json. ASCII, so that any path survives any console."""
    return json.dumps({"schema_version": _SCHEMA_VERSION, **dataclasses.asdict(found)}, indent=2)


def benchmark_text(found: Benchmark) -> str:
    """Machine, tables of speed, memory, and the operators of a decode step."""
    lines = [*_head(found), "", *_load(found), "", *_speed(found), "", *_memory(found.memory, found.folder.file_bytes)]
    if found.folder.provider != "cpu":
        lines += ["", "operators: times of this process, which starts kernels on the device and does not wait for them"]
    for profile in found.profiles:
        lines += ["", *_profile(profile)]
    return "\n".join(lines)


def _row(key: str, value: str) -> str:
    return f"{key:16}{value}"


def _head(found: Benchmark) -> Iterator[str]:
    folder, machine = found.folder, found.machine
    yield _row("folder", f"{folder.directory}: {folder.target}, {folder.precision}, {folder.graph}")
    features = [name for name, there in machine.features.items() if there]
    yield _row("machine", f"{machine.processor or machine.architecture}, {machine.cores.usable} cores")
    yield _row("", f"{', '.join(features)}; {machine.platform}")
    threads = "threads chosen by the engine" if folder.threads is None else f"threads: {folder.threads}"
    runtimes = [f"{name} {version}" for name, version in found.versions.items() if name in _RUNTIMES]
    yield _row("runs on", f"{folder.provider}, {threads}; {', '.join(runtimes)}")
    yield _row("rounds", f"{found.rounds}; median (lowest to highest); a new random prompt each")
    if found.load_average is not None and found.load_average > machine.cores.usable / 2:
        yield _row("warning", f"load average {found.load_average:.1f} at the start: other programs slow this one down")
    if found.left_out:
        yield _row("left out", f"{', '.join(map(str, found.left_out))} tokens: more than this folder's context takes")


def _load(found: Benchmark) -> Iterator[str]:
    load = found.load
    yield _row("load", f"{load.seconds:.2f} s")
    yield _row("first token", f"{load.first_token_seconds:.2f} s from nothing, behind a prompt of {load.prompt} tokens")


def _speed(found: Benchmark) -> Iterator[str]:
    rows = [["tokens", "prefill tokens/s", "decode tokens/s behind them"]]
    decode = {row.context: _rate(row.tokens_per_second) for row in found.decode}
    rows += [[str(row.tokens), _rate(row.tokens_per_second), decode.get(row.tokens, "")] for row in found.prefill]
    return _table(rows)


def _memory(memory: Memory, file_bytes: int) -> Iterator[str]:
    told = {
        "before loading": memory.before_load,
        "loaded": memory.after_load,
        "after the runs": memory.after_runs,
        "peak": memory.peak,
    }
    shown = ", ".join(f"{name} {_size(size)}" for name, size in told.items() if size is not None)
    ratio = f" ({memory.peak / file_bytes:.2f} times the file)" if memory.peak else ""
    yield _row("resident memory", f"{shown or 'unknown'}{ratio}; graph and data {_size(file_bytes)}")


def _profile(profile: OperatorProfile) -> Iterator[str]:
    yield (
        f"one decode step behind {profile.context} tokens, profiled: {profile.step_seconds * 1e3:.2f} ms, of which "
        f"{profile.matmul_share:.1%} in matrix products"
    )
    if profile.matmul_weight_bytes_per_second is not None:
        yield (
            f"they read {_size(profile.matmul_weight_bytes)} of weights at "
            f"{profile.matmul_weight_bytes_per_second / 1e9:.1f} GB/s"
        )
    rows = [["operator", "calls", "ms", "share", "weights GB/s"]]
    large = [operator for operator in profile.operators if operator.share >= _SMALL_SHARE]
    for row in large:
        rate = "" if row.weight_bytes_per_second is None else f"{row.weight_bytes_per_second / 1e9:.1f}"
        rows.append([row.operator, str(row.calls), f"{row.seconds * 1e3:.3f}", f"{row.share:.1%}", rate])
    small = [operator for operator in profile.operators if operator.share < _SMALL_SHARE]
    if small:
        seconds, share = sum(operator.seconds for operator in small), sum(operator.share for operator in small)
        calls = sum(operator.calls for operator in small)
        rows.append([f"{len(small)} others", str(calls), f"{seconds * 1e3:.3f}", f"{share:.1%}", ""])
    between = profile.outside_share
    rows.append(["between nodes", "", f"{between * profile.step_seconds * 1e3:.3f}", f"{between:.1%}", ""])
    yield from _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of equal width: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()


def _rate(spread: Spread) -> str:
    digits = 1 if spread.median < 100 else 0
    shown = [f"{value:.{digits}f}" for value in (spread.median, spread.minimum, spread.maximum)]
    return shown[0] if len(spread.rounds) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _size(count: int) -> str:
    """Decimal units, as gemma-export prints them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
