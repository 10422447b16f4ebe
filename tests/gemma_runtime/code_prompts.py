"""Prompts as users have them: code cut anywhere, repeated code, edited copies, prose, turns of a conversation."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from gemma_runtime import Message

__all__ = ["prompts"]

_MODULES = ("argparse", "ast", "calendar", "cmd", "csv", "dataclasses", "difflib", "functools", "heapq", "shlex")
_PROSE = (
    "The river rises in the hills and reaches the sea after three days. ",
    "Nobody knew why the clock had stopped, and nobody asked. ",
    "A list of what we need: bread, salt, two candles and a map. ",
    "When the results are in, compare them with those of last year. ",
)


def prompts(count: int, *, seed: int = 0) -> list[str | Sequence[Message]]:
    """Five kinds in turn.

    Args:
        count: how many.
        seed: of the places where the standard library's sources are cut.
    """
    generator = random.Random(seed)
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = [(library / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES]

    def code(longest: int) -> str:
        source = generator.choice(sources)
        begin = generator.randrange(len(source) - longest)
        return source[begin : begin + generator.randrange(longest // 5, longest)]

    def edited_copy() -> str:
        original = code(300)
        return original + "\n# with other names\n" + original.replace("self", "this")[: len(original) // 2]

    def prose() -> str:
        return "".join(generator.choices(_PROSE, k=generator.randrange(1, 6)))[: generator.randrange(20, 200)]

    def turns() -> Sequence[Message]:
        question = generator.choice(("What does this do?\n", "Repeat this, with a comment:\n", "Shorten:\n"))
        return [Message(role="user", content=question + code(200))]

    kinds = (lambda: code(500), lambda: code(150) * 3, edited_copy, prose, turns)
    return [kinds[number % len(kinds)]() for number in range(count)]
