"""The texts of texts.toml as strings, slice by slice."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["SliceText", "probe_texts", "slice_texts"]

_FILE = Path(__file__).with_name("texts.toml")
# Days of 220 characters: 3,600 tokens of a small tokenizer are some 9,000 characters, and 4,224 of Gemma's own, one
# and a bit windows of Gemma 2, about 18,000. No two days are the same before day 2,432.
_DAYS = 110
# what the texts do not have: runs of spaces, control characters, joined emoji, decomposed letters, special names
_ODD = (
    "",
    "  x ",
    " " * 33,
    "\t\tx\r\n\n\n",
    "0123456789 3.14e-10",
    "e\u0301 \ufb01 \uff21 \u200d\ufe0f",
    "<bos><eos><pad><unk>",
    "<start_of_turn>user\nx<end_of_turn>\n<|fim_prefix|>a<|fim_suffix|>",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceText:
    """One text."""

    # one of documents.SLICES
    slice: str
    # unique
    name: str
    text: str


@functools.cache
def slice_texts(*, turns: bool) -> tuple[SliceText, ...]:
    """Every text, slices one after another.

    Args:
        turns: conversations in Gemma's turn format; else, for a tokenizer without those tokens, as plain text.
    """
    content = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    texts = [
        SliceText(slice=kind, name=entry["name"], text=entry["text"].strip("\n"))
        for kind in ("code", "prose", "scripts")
        for entry in content[kind]
    ]
    texts.append(SliceText(slice="long", name="diary", text=_diary(content["long"])))
    texts += [
        SliceText(slice="chat", name=entry["name"], text=_conversation(entry["turns"], turns=turns))
        for entry in content["chat"]
    ]
    return tuple(texts)


def probe_texts() -> tuple[str, ...]:
    """Texts that show where two tokenizers differ: those of every slice, and odd ones."""
    return (*_ODD, *(entry.text for entry in slice_texts(turns=True)))


def _conversation(spoken: Sequence[str], *, turns: bool) -> str:
    """User and model in turn, as Gemma is trained: https://ai.google.dev/gemma/docs/core/prompt-structure."""
    begin, end = ("<start_of_turn>", "<end_of_turn>\n") if turns else ("", "\n\n")
    return "".join(f"{begin}{('user', 'model')[index % 2]}\n{text}{end}" for index, text in enumerate(spoken))


def _diary(parts: Mapping[str, Any]) -> str:
    """A diary of many days from lists of sentences whose lengths share no factor, so that no two days are the same.

    It looks back to earlier days, so that far tokens matter.
    """
    lines = [parts["opening"].strip()]
    for day in range(1, _DAYS + 1):
        # each list turns at its own speed
        said = [
            parts[kind][(day * step) % len(parts[kind])] for kind, step in (("weather", 1), ("work", 2), ("event", 3))
        ]
        back = parts["back"][day % len(parts["back"])].format(day=max(1, day - 3 - day * 7 % 11))
        lines.append(f"Day {day}. {' '.join(said)}{f' {back}' if day % 4 == 3 else ''}")
    return "\n\n".join(lines)
