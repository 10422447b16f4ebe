"""Guessing tokens ahead beside plain steps: the same prompts, in turn, in one process.

Code editing: a function of the standard library, and the beginning of its copy with one name changed. Text without
repeats: continuations that a penalty keeps from repeating, and those drawn at temperature 1, whose tokens nothing
earlier foretells. Greedy answers must be equal.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import random
import re
import statistics
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness.machine import describe_machine, one_line
from gemma_runtime import Completion, Gemma, Sampling

__all__ = ["edits", "main"]


# tokens of an answer whose speed says something
_SHORTEST = 16
# left to itself a small model's greedy text soon goes round in circles, which are easy to foretell
_NO_REPEATS = Sampling(repetition_penalty=1.3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """One kind of text."""

    kind: str
    prompts: int
    tokens: int
    # decode speeds, guessing / plain, prompt by prompt, then the median and the lowest and highest tenth
    ratio: float
    low: float
    high: float
    plain_tokens_per_second: float
    guessing_tokens_per_second: float
    drafted: int
    accepted: int
    rechecked: int
    changed: int
    # greedy answers that differ
    different: int


def main(arguments: list[str]) -> int:
    """Runs the benchmark and returns its exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks speculation", description=__doc__)
    parser.add_argument("folder", type=Path, help="an exported folder")
    parser.add_argument("--prompts", type=int, default=24, metavar="N", help="of each kind (default: 24)")
    parser.add_argument("--new", type=int, default=128, metavar="N", help="tokens to generate (default: 128)")
    parser.add_argument("--draft", type=Path, metavar="DIR", help="a smaller model's folder instead of looking up")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    load_average = os.getloadavg()[0]
    guessing = Gemma(options.folder, draft=options.draft)
    plain = Gemma(options.folder, speculation="off")
    copies, starts = zip(*edits(options.prompts), strict=True)
    kinds = {
        "code editing, greedy": (copies, Sampling()),
        "text without repeats, greedy": (starts, _NO_REPEATS),
        "text without repeats, temperature 1": (starts, Sampling(temperature=1.0)),
    }
    found = [
        _compare(kind, prompts, plain, guessing, sampling, options.new) for kind, (prompts, sampling) in kinds.items()
    ]
    if options.json:
        print(json.dumps([dataclasses.asdict(each) for each in found], indent=2))
    else:
        print(f"{options.folder}, {one_line(describe_machine(Path.cwd()))}, load {load_average:.1f} at the start\n")
        print(*map(_text, found), sep="\n")
    return 0 if not any(each.different for each in found) else 1


def edits(count: int) -> Iterator[tuple[str, str]]:
    """Prompts that repeat a function up to its first lines with another name, and those lines alone."""
    generator = random.Random(0)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    generator.shuffle(files)
    found = 0
    for path in files:
        source = path.read_text(encoding="utf-8", errors="replace")
        functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        for node in functions[:2]:
            text = ast.get_source_segment(source, node) or ""
            if not 400 < len(text) < 1200 or found == count:
                continue
            head, rest = text.split("\n", 1)
            renamed = re.sub(rf"\b{re.escape(node.name)}\b", f"{node.name}_again", head)
            first = rest.split("\n", 1)[0]
            found += 1
            yield f"{text}\n\n\n{renamed}\n{first}\n", f"{renamed}\n{first}\n"


def _compare(kind: str, prompts: Sequence[str], plain: Gemma, guessing: Gemma, sampling: Sampling, new: int) -> _Found:
    pairs: list[tuple[Completion, Completion]] = []
    for number, prompt in enumerate(prompts):
        seeded = dataclasses.replace(sampling, seed=number)
        models = (plain, guessing) if number % 2 else (guessing, plain)
        answers = {model: model.generate(prompt, max_new_tokens=new, sampling=seeded) for model in models}
        if len(answers[plain].token_ids) >= _SHORTEST:
            pairs.append((answers[plain], answers[guessing]))
    ratios = sorted(second.decode_tokens_per_second / first.decode_tokens_per_second for first, second in pairs)
    told = [second.speculation for _, second in pairs if second.speculation is not None]
    tenth = len(ratios) // 10
    return _Found(
        kind=kind,
        prompts=len(pairs),
        tokens=sum(len(second.token_ids) for _, second in pairs),
        ratio=statistics.median(ratios),
        low=ratios[tenth],
        high=ratios[-1 - tenth],
        plain_tokens_per_second=statistics.median(first.decode_tokens_per_second for first, _ in pairs),
        guessing_tokens_per_second=statistics.median(second.decode_tokens_per_second for _, second in pairs),
        drafted=sum(each.drafted for each in told),
        accepted=sum(each.accepted for each in told),
        rechecked=sum(each.rechecked for each in told),
        changed=sum(each.changed for each in told),
        different=sum(a.token_ids != b.token_ids for a, b in pairs) if sampling.temperature == 0 else 0,
    )


def _text(found: _Found) -> str:
    return (
        f"{found.kind}: {found.ratio:.2f} of plain steps ({found.low:.2f} to {found.high:.2f} in eight of ten), "
        f"{found.plain_tokens_per_second:.0f} -> {found.guessing_tokens_per_second:.0f} tokens/s; "
        f"{found.accepted} of {found.drafted} guesses kept, {found.rechecked} decided alone, of these {found.changed} "
        f"otherwise, {found.different} of {found.prompts} answers differ"
    )
