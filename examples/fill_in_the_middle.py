"""Writes what belongs at a mark in a source file, as an editor would with a CodeGemma model.

python examples/fill_in_the_middle.py FOLDER main.py "# here"
"""

from __future__ import annotations

import sys
from pathlib import Path

from gemma_runtime import Gemma
from gemma_runtime.fim import fim_prompt, fim_stop_ids, fit_to_context

NEW_TOKENS = 64


def main(folder: str, file: str, mark: str) -> None:
    model = Gemma(folder)
    before, _, after = Path(file).read_text(encoding="utf-8").partition(mark)
    # of a long file, the lines around the mark
    parts = fit_to_context(
        model.tokenizer, before, after, context_length=model.manifest.context_length, new_tokens=NEW_TOKENS
    )
    prompt = fim_prompt(model.tokenizer, parts.prefix, parts.suffix)
    middle = model.generate(prompt, max_new_tokens=NEW_TOKENS, stop_ids=fim_stop_ids(model.tokenizer))
    print(before + middle.text + after, end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
