"""A chat on the terminal; what was said is read once.

python examples/chat.py FOLDER
"""

from __future__ import annotations

import sys

from gemma_runtime import Gemma, Sampling
from gemma_runtime.errors import GemmaRuntimeError


def main(folder: str) -> None:
    chat = Gemma(folder).chat()
    sampling = Sampling(temperature=0.7, top_p=0.9, seed=1)
    print("> ", end="", flush=True)
    for line in sys.stdin:
        try:
            for piece in chat.stream(line, sampling=sampling, max_new_tokens=200):
                print(piece.text, end="", flush=True)
        except GemmaRuntimeError as error:
            # an empty line, or a context that is full: the conversation goes on
            print(f"{error.message}. {error.hint}", end="")
        print("\n> ", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
